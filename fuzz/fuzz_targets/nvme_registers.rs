//! Registers, doorbells, the MSI-X table and configuration space of a controller, as a client reads and writes
//! them: any region, offset, size and value.

#![no_main]

use libfuzzer_sys::fuzz_target;
use quarry_fuzz::{Input, Rig};
use vfio_user_server::frame::Decoder;
use vfio_user_server::session::{Output, Progress, Session};
use vfio_user_server::wire::command;

/// Sends one request; turns the worker while the session waits for it.
fn request(rig: &mut Rig, session: &mut Session, code: u16, payload: &[u8]) -> Output {
    let mut bytes = Vec::with_capacity(16 + payload.len());
    bytes.extend_from_slice(&1u16.to_le_bytes());
    bytes.extend_from_slice(&code.to_le_bytes());
    bytes.extend_from_slice(&(16 + payload.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&[0; 8]);
    bytes.extend_from_slice(payload);
    let mut decoder = Decoder::new();
    let mut rest = &bytes[..];
    let message = loop {
        let room = decoder.buffer();
        let n = room.len().min(rest.len());
        room[..n].copy_from_slice(&rest[..n]);
        rest = &rest[n..];
        if let Some(message) = decoder.advance(n, Vec::new(), false).ok().expect("well framed") {
            break message;
        }
    };
    let mut progress = session.handle(message);
    loop {
        match progress {
            Progress::Done(output) => return output,
            Progress::Wait(wait) => {
                rig.until(wait.done);
                progress = session.resume();
            }
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let mut rig = Rig::new(input.byte() & 1 != 0);
    let mut session = Session::new(rig.host.clone(), rig.controller.clone());
    request(&mut rig, &mut session, command::VERSION, &[0, 0, 1, 0]);
    let mut steps = 0;
    while !input.is_empty() && steps < 200 {
        steps += 1;
        let kind = input.byte();
        let region = [0u32, 0, 0, 7, 7, 4, 1, 8][usize::from(kind & 7)];
        let offset = match kind >> 3 & 3 {
            0 => u64::from(input.byte()) & !3,
            1 => u64::from(input.half() % 0x1100),
            2 => 0x1000 + u64::from(input.byte()) * 64,
            _ => input.word(),
        };
        let count = [1u32, 2, 4, 4, 4, 8, 3, 64][usize::from(kind >> 5)];
        let mut payload = Vec::new();
        payload.extend_from_slice(&offset.to_le_bytes());
        payload.extend_from_slice(&region.to_le_bytes());
        payload.extend_from_slice(&count.to_le_bytes());
        let how = input.byte();
        let output = if how & 3 == 0 {
            request(&mut rig, &mut session, command::REGION_READ, &payload)
        } else if how == 0xFF {
            request(&mut rig, &mut session, command::DEVICE_RESET, &[])
        } else {
            let value = input.bytes::<8>();
            payload.extend(value.iter().cycle().take(count as usize));
            request(&mut rig, &mut session, command::REGION_WRITE, &payload)
        };
        if output.close {
            break;
        }
        if how & 4 != 0 {
            rig.turns(1);
        }
    }
    drop(session);
    rig.host.interrupts.clear();
    rig.host.set_bus_master(true);
    rig.must_recover();
});
