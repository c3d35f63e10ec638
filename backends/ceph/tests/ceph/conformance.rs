//! Images and volumes on a real cluster, by the contract of every device.

use crate::common::{bed, name, rbd_image, volume};
use block::conformance::{Suite, all};
use block_ceph::{CreateOptions, RadosDevice, RadosOptions, RbdDevice, RbdOptions};

fn image(block_size: u32, features: &'static [&'static str]) -> Suite {
    Suite::new(move || {
        let options = RbdOptions { block_size, ..RbdOptions::new("rbd", rbd_image("16M", features)) };
        RbdDevice::open(&bed().connection(), &options).expect("it opens")
    })
}

fn objects(block_size: u32, pool: &'static str, data_pool: Option<&'static str>, object_size: u32) -> Suite {
    Suite::new(move || {
        let options = CreateOptions { size: 16 << 20, object_size, data_pool: data_pool.map(str::to_owned) };
        let volume = volume(pool, &name("volume"), &options);
        let options = RadosOptions { volume, read_only: false, block_size, in_flight: 64 << 20 };
        RadosDevice::open(&bed().connection(), &options).expect("it opens")
    })
}

#[test]
fn rbd() {
    if bed().is_there() {
        all(&image(512, &[]));
        all(&image(4096, &["--image-feature", "layering"]));
    }
}

#[test]
fn rbd_with_its_data_in_an_erasure_coded_pool() {
    if bed().is_there() {
        all(&image(4096, &["--data-pool", "ec", "--image-feature", "layering,exclusive-lock,journaling"]));
    }
}

#[test]
fn rados() {
    if bed().is_there() {
        all(&objects(512, "rbd", None, 4 << 20));
        // Most I/Os touch two objects.
        all(&objects(4096, "rbd", None, 64 << 10));
    }
}

#[test]
fn rados_with_its_data_in_an_erasure_coded_pool() {
    if bed().is_there() {
        all(&objects(4096, "rbd", Some("ec"), 1 << 20));
        all(&objects(512, "ec", None, 1 << 20));
    }
}
