//! What every [`Device`] of this repository must do, as tests that run against any of them.
//!
//! A device's crate calls [`conformance_tests!`](crate::conformance_tests) once per way of making the device. Every
//! function here panics when the device falls short, as a test does. Durability and power failures are left out:
//! no test in one process can tell.

mod compare;
mod contents;
mod limits;
mod load;

use std::sync::Arc;

use crate::{Abilities, Channel, Device, Info, Reactor};

pub use compare::compare_and_write;
pub use contents::{discard, flush_and_fua, random_operations, write_zeroes};
pub use limits::{bad_requests, geometry, read_only};
pub use load::{dropped_futures, guards_are_held, nothing_leaks, several_threads, shared_blocks};

/// How to make the device under test.
pub struct Suite {
    make: Box<dyn Fn() -> Arc<dyn Device> + Send + Sync>,
    contents: bool,
}

impl Suite {
    /// Tests the devices that `make` makes: fresh ones, of 64 blocks or more, best of 4 to 64 MiB.
    pub fn new<D: Device>(make: impl Fn() -> D + Send + Sync + 'static) -> Self {
        Self::shared(move || Arc::new(make()))
    }

    /// The same for a device that is made behind an `Arc` already.
    pub fn shared(make: impl Fn() -> Arc<dyn Device> + Send + Sync + 'static) -> Self {
        Self { make: Box::new(make), contents: true }
    }

    /// The device keeps nothing (null): what is read back is not looked at.
    pub fn without_contents(mut self) -> Self {
        self.contents = false;
        self
    }

    fn device(&self) -> Arc<dyn Device> {
        (self.make)()
    }

    /// A device with a reactor and a channel of this thread, and what is known about it.
    fn open(&self) -> Fixture {
        let device = self.device();
        let reactor = Reactor::new(64).expect("a reactor");
        let channel = device.channel(&reactor).expect("a channel");
        Fixture { info: device.info(), channel, reactor, device }
    }
}

struct Fixture {
    info: Info,
    // In this order: the channel goes before its reactor and its device.
    channel: Box<dyn Channel>,
    reactor: Reactor,
    device: Arc<dyn Device>,
}

impl Fixture {
    fn has(&self, abilities: Abilities) -> bool {
        self.info.abilities.contains(abilities)
    }

    fn bytes(&self, blocks: u64) -> usize {
        blocks as usize * self.info.block_size as usize
    }
}

/// Every test of the suite, one after the other: for devices that are dear to set up.
pub fn all(suite: &Suite) {
    type Test = (&'static str, fn(&Suite));
    const TESTS: [Test; 13] = [
        ("geometry", geometry),
        ("bad_requests", bad_requests),
        ("read_only", read_only),
        ("random_operations", random_operations),
        ("flush_and_fua", flush_and_fua),
        ("discard", discard),
        ("write_zeroes", write_zeroes),
        ("compare_and_write", compare_and_write),
        ("several_threads", several_threads),
        ("shared_blocks", shared_blocks),
        ("dropped_futures", dropped_futures),
        ("guards_are_held", guards_are_held),
        ("nothing_leaks", nothing_leaks),
    ];
    for (name, test) in TESTS {
        println!("{name}");
        test(suite);
    }
}

/// Makes one `#[test]` per function of the suite, in a module of its own: `conformance_tests!(name, suite)`, where
/// `suite` is an expression of type [`Suite`], evaluated anew for each test.
#[macro_export]
macro_rules! conformance_tests {
    ($name:ident, $suite:expr) => {
        $crate::conformance_tests!(
            $name, $suite, geometry bad_requests read_only random_operations flush_and_fua discard write_zeroes
            compare_and_write several_threads shared_blocks dropped_futures guards_are_held nothing_leaks
        );
    };
    ($name:ident, $suite:expr, $($test:ident)*) => {
        mod $name {
            use super::*;
            $(
                #[test]
                fn $test() {
                    $crate::conformance::$test(&$suite);
                }
            )*
        }
    };
}
