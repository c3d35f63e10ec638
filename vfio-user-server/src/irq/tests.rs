//! Vectors and the pin: signalled, masked, replaced, taken away.

use super::*;
use rustix::event::{EventfdFlags, eventfd};

fn interrupts(vectors: u16) -> Interrupts {
    Interrupts::new(vectors, Arc::new(Breakage::new()))
}

fn event() -> (OwnedFd, OwnedFd) {
    let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
    (fd.try_clone().unwrap(), fd)
}

/// Reads and resets the counter.
fn count(fd: &OwnedFd) -> u64 {
    let mut data = [0; 8];
    match rustix::io::read(fd, &mut data) {
        Ok(_) => u64::from_ne_bytes(data),
        Err(_) => 0,
    }
}

#[test]
fn a_vector_signals_its_eventfd() {
    let irqs = interrupts(4);
    assert!(!irqs.msix_enabled());
    let (mine, theirs) = event();
    irqs.set_eventfds(index::MSIX, 3, vec![Some(theirs)]).unwrap();
    assert!(irqs.msix_enabled());
    irqs.trigger(3);
    irqs.trigger(2);
    irqs.trigger(4);
    assert_eq!(count(&mine), 1);
    assert!(irqs.is_pending(2));
}

#[test]
fn msi_in_place_of_msix() {
    let irqs = Interrupts::with_msi(4, Arc::new(Breakage::new()));
    let (mine, theirs) = event();
    assert_eq!((irqs.vectors(index::MSI), irqs.vectors(index::MSIX)), (4, 0));
    let (_, other) = event();
    assert_eq!(irqs.set_eventfds(index::MSIX, 0, vec![Some(other)]), Err(IrqError::NoSuchVector));
    irqs.set_eventfds(index::MSI, 1, vec![Some(theirs)]).unwrap();
    assert!(irqs.msix_enabled());
    irqs.trigger(1);
    assert_eq!(count(&mine), 1);
    assert_eq!(irqs.set_masked(index::MSI, 1, 1, true), Err(IrqError::NotMaskable));
    irqs.disable(index::MSI).unwrap();
    assert!(!irqs.msix_enabled());
}

#[test]
fn a_vector_without_an_eventfd_or_masked_is_delivered_later() {
    let irqs = interrupts(1);
    irqs.trigger(0);
    let (mine, theirs) = event();
    irqs.set_eventfds(index::MSIX, 0, vec![Some(theirs)]).unwrap();
    assert_eq!(count(&mine), 1);
    irqs.set_masked(index::MSIX, 0, 1, true).unwrap();
    irqs.trigger(0);
    irqs.trigger(0);
    assert_eq!(count(&mine), 0);
    irqs.set_masked(index::MSIX, 0, 1, false).unwrap();
    assert_eq!(count(&mine), 1);
    irqs.set_masked(index::MSIX, 0, 1, false).unwrap();
    assert_eq!(count(&mine), 0);
    irqs.set_eventfds(index::MSIX, 0, vec![None]).unwrap();
    assert!(irqs.msix_enabled());
    irqs.trigger(0);
    irqs.disable(index::MSIX).unwrap();
    assert!(!irqs.msix_enabled() && !irqs.is_pending(0));
}

#[test]
fn a_full_eventfd_stops_nobody() {
    let irqs = interrupts(1);
    // Blocking, as its maker left it.
    let fd = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    rustix::io::write(&fd, &0xffff_ffff_ffff_fffeu64.to_ne_bytes()).unwrap();
    irqs.set_eventfds(index::MSIX, 0, vec![Some(fd)]).unwrap();
    irqs.trigger(0);
}

#[test]
fn replacing_the_eventfd_under_signals_loses_none() {
    let irqs = interrupts(1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                irqs.trigger(0);
            }
        });
        for round in 0..500 {
            let (mine, theirs) = event();
            irqs.set_eventfds(index::MSIX, 0, vec![Some(theirs)]).unwrap();
            let start = std::time::Instant::now();
            while count(&mine) == 0 {
                assert!(start.elapsed().as_secs() < 60, "no signal in round {round}");
            }
            if round % 3 == 0 {
                irqs.set_eventfds(index::MSIX, 0, vec![None]).unwrap();
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn replacing_the_eventfd_of_the_pin_loses_no_signal() {
    let irqs = interrupts(1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                irqs.set_intx(false);
                irqs.set_intx(true);
            }
        });
        for round in 0..20_000 {
            // Unmasks: with the pin going up again and again, a signal must come.
            let (mine, theirs) = event();
            irqs.set_eventfds(index::INTX, 0, vec![Some(theirs)]).unwrap();
            let start = std::time::Instant::now();
            while count(&mine) == 0 {
                assert!(start.elapsed().as_secs() < 60, "no signal in round {round}");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn intx_masks_itself_and_signals_again_when_unmasked_high() {
    let irqs = interrupts(1);
    irqs.set_intx(true);
    let (mine, theirs) = event();
    irqs.set_eventfds(index::INTX, 0, vec![Some(theirs)]).unwrap();
    assert_eq!(count(&mine), 1);
    irqs.set_intx(false);
    irqs.set_intx(true);
    assert_eq!(count(&mine), 0, "masked by its own signal");
    irqs.set_masked(index::INTX, 0, 1, false).unwrap();
    assert_eq!(count(&mine), 1);
    irqs.set_intx(false);
    irqs.set_masked(index::INTX, 0, 1, false).unwrap();
    assert_eq!(count(&mine), 0);
    irqs.set_intx_disabled(true);
    irqs.set_intx(true);
    assert_eq!(count(&mine), 0);
    irqs.set_intx_disabled(false);
    assert_eq!(count(&mine), 1);
}

#[test]
fn ranges_are_checked_without_overflow() {
    let irqs = interrupts(2);
    let none = |n| (0..n).map(|_| None).collect::<Vec<_>>();
    assert_eq!(irqs.set_eventfds(index::MSIX, 1, none(2)), Err(IrqError::NoSuchVector));
    assert_eq!(irqs.set_eventfds(index::MSIX, u32::MAX, none(1)), Err(IrqError::NoSuchVector));
    assert_eq!(irqs.fire(index::MSIX, 1, u32::MAX), Err(IrqError::NoSuchVector));
    assert_eq!(irqs.set_masked(index::ERR, 0, 1, true), Err(IrqError::NotMaskable));
    assert_eq!(irqs.disable(index::COUNT), Err(IrqError::NoSuchVector));
}

#[test]
fn only_eventfds_are_accepted() {
    let irqs = interrupts(1);
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    assert_eq!(irqs.set_eventfds(index::MSIX, 0, vec![Some(pipe)]), Err(IrqError::NotEventfd));
    assert!(!irqs.msix_enabled());
}

/// The client shares the open file: what it sent is non-blocking only as long as it likes.
#[test]
fn an_eventfd_that_blocks_after_all_costs_the_client_its_eventfds() {
    use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
    type Signal = fn(&Interrupts);
    let signals: [(u32, Signal); 6] = [
        (index::MSIX, |irqs| irqs.trigger(1)),
        (index::MSIX, |irqs| irqs.fire(index::MSIX, 0, 2).unwrap()),
        (index::INTX, |irqs| irqs.set_intx(true)),
        (index::INTX, |irqs| irqs.fire(index::INTX, 0, 1).unwrap()),
        (index::ERR, |irqs| irqs.fire(index::ERR, 0, 1).unwrap()),
        (index::MSIX, |irqs| {
            irqs.set_masked(index::MSIX, 1, 1, true).unwrap();
            irqs.trigger(1);
            irqs.set_masked(index::MSIX, 1, 1, false).unwrap();
        }),
    ];
    for (round, (index, signal)) in signals.into_iter().enumerate() {
        let breakage = Arc::new(Breakage::new());
        let irqs = Arc::new(Interrupts::new(2, breakage.clone()));
        let vectors = irqs.vectors(index);
        let (mine, theirs): (Vec<_>, Vec<_>) = (0..vectors).map(|_| event()).unzip();
        irqs.set_eventfds(index, 0, theirs.into_iter().map(Some).collect()).unwrap();
        for fd in &mine {
            rustix::io::write(fd, &0xffff_ffff_ffff_fffeu64.to_ne_bytes()).unwrap();
            fcntl_setfl(fd, fcntl_getfl(fd).unwrap() - OFlags::NONBLOCK).unwrap();
        }
        let (done, wait) = std::sync::mpsc::channel();
        // Detached: joining it would hang the test where it should fail.
        std::thread::spawn({
            let irqs = irqs.clone();
            move || {
                signal(&irqs);
                // The next one finds nothing to sleep in.
                signal(&irqs);
                done.send(()).unwrap();
            }
        });
        wait.recv_timeout(std::time::Duration::from_secs(60))
            .unwrap_or_else(|_| panic!("round {round} sleeps"));
        assert_eq!(breakage.cause(), Some(Cause::Eventfd));
        let none = irqs.msix.iter().chain(&irqs.notices).all(|v| v.event.load().is_none());
        assert!(none && irqs.intx_event.load().is_none());
        let (_mine, theirs) = event();
        assert_eq!(irqs.set_eventfds(index, 0, vec![Some(theirs)]), Err(IrqError::Unavailable));
        breakage.repair();
        irqs.clear();
        let (mine, theirs) = event();
        irqs.set_eventfds(index::MSIX, 0, vec![Some(theirs)]).unwrap();
        irqs.trigger(0);
        assert_eq!(count(&mine), 1, "the next client");
    }
}

#[test]
fn what_cannot_be_looked_at_is_no_eventfd() {
    assert!(is_eventfd(&event().0));
    assert!(!is_eventfd_link(Err(std::io::ErrorKind::NotFound.into())), "no /proc");
    for name in ["/anon_inode:[eventfd]", "socket:[1]", "anon_inode:[eventpoll]", ""] {
        assert!(!is_eventfd_link(Ok(name.into())), "{name}");
    }
}
