//! Whether reactors fit the machine, and controllers their reactors.

use std::collections::BTreeSet;

use super::check::Machine;
use super::diagnostic::Sink;
use super::model::{Config, ControllerConfig, Doorbells, Mode, Modes, Reactors, Threads};

/// Looks for mistakes in the reactors, and in what controllers want of them.
pub(super) fn check(config: &Config, machine: &Machine, sink: &Sink) {
    let allowed = || machine.cpus.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let number = match &config.reactors.threads {
        Threads::Default => 1,
        Threads::Count(count) => {
            if count.value > machine.cpus.len() {
                sink.error(
                    &count.spot,
                    format!("{} reactors, but this process may use {} CPUs", count.value, machine.cpus.len()),
                    format!(
                        "use {} at most: reactors that share a CPU only delay each other",
                        machine.cpus.len()
                    ),
                );
            }
            count.value
        }
        Threads::Cpus(cpus) => {
            let mut seen = BTreeSet::new();
            for cpu in cpus {
                if !machine.cpus.contains(&cpu.value) {
                    sink.error(
                        &cpu.spot,
                        format!("this process cannot use CPU {}", cpu.value),
                        format!("choose from: {} (see taskset, cgroup cpusets, CPUAffinity=)", allowed()),
                    );
                } else if !seen.insert(cpu.value) {
                    sink.error(
                        &cpu.spot,
                        format!("CPU {} has two reactors", cpu.value),
                        "name each CPU once: reactors that share a CPU only delay each other",
                    );
                }
            }
            cpus.len()
        }
    };
    if let Modes::Each(modes) = &config.reactors.modes
        && modes.value.len() != number
    {
        let reactors = if number == 1 { "1 reactor".to_owned() } else { format!("{number} reactors") };
        sink.error(
            &modes.spot,
            format!("{} modes for {reactors}", modes.value.len()),
            "name a mode for each reactor, or one for all: mode = \"adaptive\"",
        );
    }
    for (index, controller) in config.controllers.values().enumerate() {
        doorbells(index, controller, &config.reactors, sink);
        let spread = if controller.reactors.is_empty() { number } else { controller.reactors.len() };
        if controller.intx && spread > 1 {
            sink.error(
                &controller.spot,
                format!("the INTx pin cannot be shared by {spread} reactors"),
                "give the controller one: reactors = [0], or remove `intx`",
            );
        }
        let mut seen = BTreeSet::new();
        for reactor in &controller.reactors {
            if reactor.value >= number {
                let range = if number == 1 { "0".to_owned() } else { format!("from 0 to {}", number - 1) };
                sink.error(
                    &reactor.spot,
                    format!("there is no reactor {}", reactor.value),
                    format!("reactors count {range}; more come with `count` or `cpus` in [reactors]"),
                );
            } else if !seen.insert(reactor.value) {
                sink.error(
                    &reactor.spot,
                    format!("reactor {} is named twice", reactor.value),
                    "remove one of them",
                );
            }
        }
    }
}

/// A reactor that sleeps until it is woken does not see a store into a mapped doorbell.
fn doorbells(index: usize, controller: &ControllerConfig, reactors: &Reactors, sink: &Sink) {
    if controller.doorbells.value == Doorbells::Trapped {
        return;
    }
    let number = reactors.number();
    let asleep = controller
        .spread(index, number)
        .into_iter()
        .filter(|&reactor| reactor < number && reactors.mode(reactor) == Mode::Interrupt)
        .min();
    if let Some(reactor) = asleep {
        sink.error(
            &controller.doorbells.spot,
            format!(
                "reactor {reactor} sleeps until it is woken, and a store into a mapped doorbell wakes nobody"
            ),
            "write doorbells = \"trapped\" here, or mode = \"adaptive\" in [reactors]",
        );
    }
}
