//! The answer to `status`.

use nvme_emu::{Limits, QueuePlace, Statistics};
use serde_json::{Value, json};

use super::{Control, Controlled, limits};
use crate::reactor::{Load, ReactorThread};

impl Control {
    /// Everything there is to see. Times are in nanoseconds, but the uptime in seconds; counters begin at the start.
    pub(super) fn status(&self) -> Value {
        let reactors: Vec<Value> = self.reactors.iter().map(reactor).collect();
        let controllers: Vec<Value> =
            self.controllers.iter().map(|controller| self.controller(controller)).collect();
        json!({
            "version": env!("CARGO_PKG_VERSION"),
            "pid": std::process::id(),
            "uptime_s": self.started.elapsed().as_secs(),
            "reactors": reactors,
            "controllers": controllers,
        })
    }

    fn controller(&self, controller: &Controlled) -> Value {
        let function = &controller.function;
        let Statistics { reads, writes, bytes_read, bytes_written, media_errors } = function.statistics();
        let reactors: Vec<&str> =
            controller.workers.iter().filter_map(|&number| self.reactor_name(number)).collect();
        let mut queues = function.queues();
        queues.sort_by_key(|queue| queue.sqid);
        let queues = queues.into_iter().map(|QueuePlace { sqid, cqid, worker }| {
            let reactor = controller.workers.get(worker).and_then(|&number| self.reactor_name(number));
            json!({ "sqid": sqid, "cqid": cqid, "reactor": reactor })
        });
        let subsystem = function.subsystem();
        let namespaces = subsystem.nsids().into_iter().filter_map(|nsid| {
            let limits = subsystem.limits(nsid).ok()?;
            Some(json!({
                "nsid": nsid,
                "device": controller.devices.get(&nsid),
                "limits": shown(&limits),
            }))
        });
        json!({
            "name": controller.name,
            "socket": controller.socket,
            "subsystem": controller.subsystem,
            "connected": function.host().has_client(),
            "enabled": function.is_enabled(),
            "doorbells": if function.has_mapped_doorbells() { "mapped" } else { "trapped" },
            "reactors": reactors,
            "queues": queues.collect::<Vec<_>>(),
            "namespaces": namespaces.collect::<Vec<_>>(),
            "limits": shown(&function.limits()),
            "counters": {
                "reads": reads,
                "writes": writes,
                "bytes_read": bytes_read,
                "bytes_written": bytes_written,
                "media_errors": media_errors,
            },
        })
    }

    fn reactor_name(&self, number: usize) -> Option<&str> {
        self.reactors.get(number).map(ReactorThread::name)
    }
}

/// `null` for those that have none, which are most: an answer is as large as the configuration at worst.
fn shown(limits: &Limits) -> Value {
    if limits.is_unlimited() { Value::Null } else { limits::show(limits) }
}

fn reactor(reactor: &ReactorThread) -> Value {
    let Load { turns, busy_turns, sleeps, slept, sleep_price } = reactor.load();
    let nanos = |time: std::time::Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    json!({
        "name": reactor.name(),
        "cpu": reactor.cpu(),
        "mode": reactor.mode().name(),
        "load": {
            "turns": turns,
            "busy_turns": busy_turns,
            "sleeps": sleeps,
            "slept_ns": nanos(slept),
            "sleep_price_ns": nanos(sleep_price),
        },
    })
}
