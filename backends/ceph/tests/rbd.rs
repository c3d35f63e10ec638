//! RBD images on a real cluster, by the contract of every device.

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use block::conformance::Suite;
use block_ceph::{RbdDevice, RbdOptions};
use common::bed;

/// A fresh image of 16 MiB.
fn image(features: &[&str], size: &str) -> RbdOptions {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let name = format!("image-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let bed = bed();
    let create = ["create", "--size", size, &format!("rbd/{name}")];
    bed.cluster.ok("rbd", create.iter().chain(features)).expect("an image");
    RbdOptions::new("rbd", name)
}

fn device(block_size: u32) -> RbdDevice {
    let options = RbdOptions { block_size, ..image(&[], "16M") };
    RbdDevice::open(&bed().connection(), &options).expect("it opens")
}

block::conformance_tests!(blocks_of_512, Suite::shared(|| Arc::new(device(512))));
block::conformance_tests!(blocks_of_4096, Suite::shared(|| Arc::new(device(4096))));
