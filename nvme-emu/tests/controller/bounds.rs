//! What a host may ask for at once, and how much of it one turn does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::rig::{DATA, Rig, admin, nvm};
use block::{Abilities, Channel, Device, Error, Info, Io, Op, Reactor, Submission};
use block_memory::MemoryDevice;
use nvme_emu::ControllerConfig;
use nvme_spec::nvm::DsmRange;
use nvme_spec::opcode::{AdminOpcode, NvmOpcode};
use nvme_spec::status::Status;
use zerocopy::IntoBytes;

#[test]
fn aborts_beyond_the_limit_are_refused() {
    let disk = Arc::new(MemoryDevice::new(1 << 20).unwrap());
    let mut rig = Rig::new(vec![disk], ControllerConfig::default());
    rig.create_queue(1, 64);
    for _ in 0..2 {
        for cid in 0..6u32 {
            rig.submit(0, admin(AdminOpcode::ABORT, 0).dwords(cid << 16 | 1, 0));
        }
        let mut answers: Vec<_> = (0..6).map(|_| rig.wait(0).status().code()).collect();
        answers.sort_by_key(|status| !status.is_success());
        assert_eq!(answers[..4], [Status::SUCCESS; 4], "ACL is 3, which counts from zero");
        assert_eq!(answers[4..], [Status::ABORT_COMMAND_LIMIT_EXCEEDED; 2]);
    }
}

/// A memory disk that counts discards.
struct Counting(MemoryDevice, Arc<AtomicU32>);

struct CountingChannel(Box<dyn Channel>, Arc<AtomicU32>);

impl Device for Counting {
    fn info(&self) -> Info {
        assert!(self.0.info().abilities.contains(Abilities::DISCARD));
        self.0.info()
    }

    fn channel(&self, reactor: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(CountingChannel(self.0.channel(reactor)?, self.1.clone())))
    }
}

impl Channel for CountingChannel {
    fn submit(&self, io: Io) -> Submission {
        if io.op == Op::Discard {
            self.1.fetch_add(1, Ordering::Relaxed);
        }
        let submission = self.0.submit(io);
        assert!(matches!(submission, Submission::Done(_)), "the worst case: all on the spot");
        submission
    }
}

/// One command names 256 ranges. Others of the reactor do not wait for all of them.
#[test]
fn a_deallocation_is_carried_out_over_many_turns() {
    let discards = Arc::new(AtomicU32::new(0));
    let disk = Arc::new(Counting(MemoryDevice::new(512 << 20).unwrap(), discards.clone()));
    let mut rig = Rig::new(vec![disk], ControllerConfig::default());
    rig.create_queue(1, 64);
    let ranges: Vec<DsmRange> = (0..256u64)
        .map(|n| DsmRange { slba: (n * 2048).into(), nlb: 2048.into(), ..DsmRange::default() })
        .collect();
    rig.write_memory(DATA, ranges.as_bytes());
    let deallocate = nvm(NvmOpcode::DATASET_MANAGEMENT, 1, 0, 1, DATA).dwords(255, 1 << 2);
    rig.submit(1, deallocate);
    let mut most = 0;
    let completion = rig.until(|rig| {
        most = most.max(discards.swap(0, Ordering::Relaxed));
        rig.completion(1)
    });
    assert_eq!(completion.status().code(), Status::SUCCESS);
    assert!((1..=2).contains(&most), "{most} MiB in one turn");
}
