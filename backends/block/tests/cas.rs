//! The test device that compares and writes and changes its size, alone and below a fault layer.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use block::conformance::Suite;
use block::fault::{Action, FaultDevice, Ops, Rule};
use block::testing::{CasDevice, compare_and_write, read, run};
use block::{Device, ErrorKind, Op, Reactor, conformance_tests};

fn device() -> CasDevice {
    CasDevice::new(512, 8192)
}

conformance_tests!(plain, Suite::new(device));
conformance_tests!(below_a_layer, Suite::new(|| FaultDevice::new(Arc::new(device()))));
conformance_tests!(large_blocks, Suite::new(|| CasDevice::new(4096, 1024)));

#[test]
fn a_resize_is_told_through_layers() {
    let inner = Arc::new(device());
    let layer = FaultDevice::new(inner.clone());
    let seen = Arc::new(AtomicU64::new(0));
    let (told, below) = (seen.clone(), Arc::downgrade(&inner));
    layer.on_change(Arc::new(move || {
        let blocks = below.upgrade().map_or(0, |device| device.info().blocks);
        told.store(blocks, Ordering::Relaxed);
    }));
    let reactor = Reactor::new(8).unwrap();
    let channel = layer.channel(&reactor).unwrap();
    let read = |lba| reactor.block_on(read(&*channel, 512, lba, 1)).map_err(|error| error.kind());
    assert_eq!(read(8192), Err(ErrorKind::OutOfRange));

    inner.set_blocks(8200);
    assert_eq!(seen.load(Ordering::Relaxed), 8200, "the listener sees the new size");
    assert_eq!(layer.info().blocks, 8200);
    assert_eq!(read(8199), Ok(vec![0; 512]));

    inner.set_blocks(100);
    assert_eq!((seen.load(Ordering::Relaxed), layer.info().blocks), (100, 100));
    assert_eq!(read(100), Err(ErrorKind::OutOfRange));
}

#[test]
fn a_rule_can_name_compare_and_write() {
    let layer = FaultDevice::new(Arc::new(device()));
    layer.handle().add(Rule::new(Action::Fail(ErrorKind::Timeout)).on(Ops::COMPARE_AND_WRITE));
    let reactor = Reactor::new(8).unwrap();
    let channel = layer.channel(&reactor).unwrap();
    reactor.block_on(async {
        let (old, new) = (vec![0; 512], vec![1; 512]);
        let error = compare_and_write(&*channel, 512, 0, &old, &new).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Timeout);
        assert_eq!(read(&*channel, 512, 0, 1).await.unwrap(), old);
        run(&*channel, block::testing::plain(Op::Flush, 0, 0)).await.unwrap();
    });
}
