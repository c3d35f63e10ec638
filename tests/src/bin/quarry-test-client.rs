//! A client that writes until it is killed: `quarry-test-client SOCKET`. Prints a line once it is at it.

use std::path::PathBuf;

use nvme_driver::{Controller, Options, Prps, io};

fn main() -> nvme_driver::Result<()> {
    let socket = PathBuf::from(std::env::args_os().nth(1).expect("a socket"));
    let controller = Controller::connect(&socket, Options::default())?;
    controller.request_queues(1)?;
    let mut queues = controller.create_queue_pair(1, 64)?;
    let buffer = controller.arena().alloc(128 << 10)?;
    buffer.fill(0xA5);
    let prps = Prps::new(controller.arena(), buffer.iova(), buffer.len())?;
    let (mut next, mut done) = (0u64, 0u64);
    loop {
        while queues.sq.free() > 0 {
            // 128 KiB each, over the second quarter of 64 MiB.
            let mut command = io::write(1, 32768 + next % 128 * 256, 256, prps.data());
            command.cid.set(next as u16);
            queues.push(&command)?;
            next += 1;
        }
        queues.ring()?;
        done += queues.poll(usize::MAX, |completion| assert!(completion.status().is_success()))? as u64;
        if done >= 100 {
            println!("busy");
            done = 0;
        }
    }
}
