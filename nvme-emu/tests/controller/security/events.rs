//! What a security hears of its controllers: resets and clients that leave, in order with their commands.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use block::security::SecurityEvent::{self, ControllerReset, Detached, FunctionReset};
use nvme_emu::{Controller, ControllerConfig};
use nvme_spec::opcode::NvmOpcode;
use nvme_spec::registers::{CC, NSSR, NSSR_MAGIC};
use nvme_spec::status::Status;
use vfio_user_server::{PciFunction, Reset};

use super::{Heard, asked, finish, receive, reset, rig, run, send, sent, until_submitted};
use crate::rig::{DATA, Rig, nvm};

/// A second host of the same subsystem.
fn second(rig: &Rig) -> Rig {
    let (controller, seeds) = Controller::new(rig.subsystem.clone(), ControllerConfig::default()).unwrap();
    rig.beside(controller, seeds)
}

#[track_caller]
fn detach(rig: &mut Rig) {
    let gone = rig.controller.detach(Instant::now());
    finish(rig, gone);
}

#[test]
fn resets_are_told_once() {
    let (mut rig, tper) = rig();
    let told = |expected: &[SecurityEvent]| {
        let expected: Vec<Heard> = expected.iter().copied().map(Heard::Event).collect();
        assert_eq!(tper.heard(), expected);
    };
    told(&[]);
    rig.write_register(CC, 0x0046_0000);
    rig.until(|rig| (!rig.csts().rdy()).then_some(()));
    told(&[ControllerReset]);
    // It is down already.
    rig.write_register(CC, 0x0046_0000);
    rig.write_register(NSSR, NSSR_MAGIC);
    reset(&mut rig, Reset::FunctionLevel);
    told(&[]);
    rig.enable();
    // Toggled faster than anybody looks, and again.
    for cc in [0x0046_0000, 0x0046_0001, 0x0046_0000, 0x0046_0001] {
        rig.write_register(CC, cc);
    }
    rig.turns(20);
    told(&[ControllerReset]);
    rig.enable();
    for kind in [Reset::FunctionLevel, Reset::PowerState] {
        reset(&mut rig, kind);
        told(&[ControllerReset]);
        rig.enable();
    }
    for _ in 0..2 {
        // Enabled and not.
        reset(&mut rig, Reset::Device);
        told(&[FunctionReset]);
    }
    rig.enable();
    rig.write_register(NSSR, NSSR_MAGIC);
    rig.until(|rig| (!rig.csts().rdy()).then_some(()));
    told(&[ControllerReset]);
    // A controller that could not be enabled.
    rig.write_register(CC, 0x0046_0001);
    rig.until(|rig| rig.csts().cfs().then_some(()));
    rig.write_register(CC, 0x0046_0000);
    rig.turns(20);
    told(&[]);
    rig.enable();
    detach(&mut rig);
    told(&[Detached]);
    rig.controller.attach();
    rig.enable();
    told(&[]);
    // Who serves it is gone.
    rig.subsystem.remove_namespace(1).unwrap();
    told(&[Detached]);
    detach(&mut rig);
    told(&[]);
}

#[test]
fn two_controllers_share_the_security() {
    let (mut rig, tper) = rig();
    let mut other = second(&rig);
    assert_eq!(run(&mut rig, &tper, send(0), Ok(vec![])), Status::SUCCESS);
    assert_eq!(run(&mut other, &tper, receive(16), Ok(vec![3; 16])), Status::SUCCESS);
    assert_eq!(other.read_memory(DATA, 16), [3; 16]);
    assert_eq!(rig.read_memory(DATA, 16), [0; 16]);
    assert_eq!(tper.heard(), [sent(&[]), asked(16)]);
    // A reset of the subsystem is one reset.
    other.write_register(NSSR, NSSR_MAGIC);
    for host in [&mut rig, &mut other] {
        host.until(|host| (!host.csts().rdy()).then_some(()));
        host.enable();
    }
    assert_eq!(tper.heard(), [Heard::Event(ControllerReset)]);
    // The first client goes: to the second one, which has a command under way, that is a reset.
    other.submit(0, send(0));
    until_submitted(&mut other, &tper);
    detach(&mut rig);
    assert_eq!(tper.heard(), [sent(&[]), Heard::Event(ControllerReset)]);
    tper.answer(Ok(vec![]));
    assert_eq!(other.wait(0).status(), Status::SUCCESS);
    // It comes again and goes without having done anything.
    rig.controller.attach();
    detach(&mut rig);
    assert_eq!(tper.heard(), []);
    detach(&mut other);
    assert_eq!(tper.heard(), [Heard::Event(Detached)]);
    // A controller that goes takes its client with it.
    rig.controller.attach();
    other.controller.attach();
    other.enable();
    drop(other);
    detach(&mut rig);
    assert_eq!(tper.heard(), [Heard::Event(ControllerReset), Heard::Event(Detached)]);
}

/// A command that the home worker has not fetched when its client is gone would come after the disk was locked.
#[test]
fn no_command_follows_its_reset_or_the_end_of_its_client() {
    let (mut rig, tper) = rig();
    let mut other = second(&rig);
    for _ in 0..2 {
        rig.submit(0, send(0));
        until_submitted(&mut rig, &tper);
        rig.submit(0, send(0));
        rig.write_register(CC, 0x0046_0000);
        rig.until(|rig| (!rig.csts().rdy()).then_some(()));
        assert_eq!(tper.heard(), [sent(&[]), Heard::Event(ControllerReset)]);
        rig.enable();
        tper.answer(Ok(vec![]));
        rig.submit(0, send(0));
        reset(&mut rig, Reset::Device);
        assert_eq!(tper.heard(), [Heard::Event(FunctionReset)]);
        rig.enable();
    }
    // Both clients go, one comes to the other controller, and only then does the home worker look.
    detach(&mut other);
    tper.heard();
    rig.submit(0, send(0));
    let gone = rig.controller.detach(Instant::now());
    other.controller.attach();
    other.enable();
    assert_eq!(run(&mut other, &tper, receive(0), Ok(vec![])), Status::SUCCESS);
    finish(&mut rig, gone);
    rig.turns(20);
    assert_eq!(tper.heard(), [Heard::Event(Detached), asked(0)]);
    rig.controller.attach();
    rig.enable();
    rig.create_queue(1, 16);
    assert_eq!(rig.io(1, nvm(NvmOpcode::READ, 1, 0, 8, DATA)), Status::SUCCESS);
}

/// A home worker in the middle of its turn has commands in its hands.
#[test]
fn no_command_of_a_busy_worker_follows_either() {
    let (mut rig, tper) = rig();
    for round in 0..300 {
        let gone = AtomicBool::new(false);
        let controller = rig.controller.clone();
        std::thread::scope(|scope| {
            (0..20).for_each(|_| _ = rig.submit(0, send(4096)));
            scope.spawn(|| {
                // At another moment each time.
                (0..round * 20).for_each(|_| std::hint::spin_loop());
                let detached = controller.detach(Instant::now());
                gone.store(true, Ordering::Release);
                drop(detached);
            });
            rig.until(|_| {
                tper.unanswered.lock().unwrap().drain(..).for_each(|reply| reply(Ok(vec![])));
                gone.load(Ordering::Acquire).then_some(())
            });
        });
        rig.until(|rig| (!rig.csts().rdy()).then_some(()));
        let heard = tper.heard();
        let end = heard.iter().position(|heard| *heard == Heard::Event(Detached));
        assert_eq!(end, Some(heard.len() - 1), "{heard:?}");
        tper.unanswered.lock().unwrap().clear();
        rig.controller.attach();
        rig.enable();
    }
}
