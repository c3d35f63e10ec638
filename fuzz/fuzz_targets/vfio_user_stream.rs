//! A client's byte stream, with descriptors, through the decoder and a session.
//!
//! The first byte says in what pieces the rest arrives. A request's unused `error` field says which
//! descriptors come with it: bits 0-1 guest memory, bits 2-7 eventfds. Seeds are the transcripts of
//! `vfio-user-server/tests/transcripts` in this form.

#![no_main]

use std::os::fd::OwnedFd;
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use vfio_user_server::frame::{Decoder, Message};
use vfio_user_server::session::{Output, Progress, Session};
use vfio_user_server::wire::{DmaMap, Header, flags};
use vfio_user_server::{Access, Bar, FunctionInfo, Hint, Host, MappableArea, PciFunction, Quiesced, Reset};
use zerocopy::FromBytes;

/// Bytes of guest memory behind each descriptor.
const MEMORY: u64 = 64 * 4096;

struct Fake {
    info: FunctionInfo,
    area: MappableArea,
    registers: Mutex<Vec<u8>>,
}

impl PciFunction for Fake {
    fn info(&self) -> &FunctionInfo {
        &self.info
    }

    fn mappable(&self, bar: u8) -> Option<MappableArea> {
        (bar == 0).then(|| self.area.clone())
    }

    fn bar_read(&self, bar: u8, offset: u64, data: &mut [u8]) {
        assert_eq!(bar, 0);
        data.copy_from_slice(&self.registers.lock().unwrap()[offset as usize..][..data.len()]);
    }

    fn bar_write(&self, bar: u8, offset: u64, data: &[u8]) {
        assert_eq!(bar, 0);
        self.registers.lock().unwrap()[offset as usize..][..data.len()].copy_from_slice(data);
    }

    fn reset(&self, _: Reset) -> Quiesced {
        Box::pin(async {})
    }

    fn retire_memory(&self, _: Instant) -> Quiesced {
        Box::pin(async {})
    }

    fn detach(&self, _: Instant) -> Quiesced {
        Box::pin(async {})
    }
}

struct World {
    host: Arc<Host>,
    function: Arc<Fake>,
    memory: OwnedFd,
    event: OwnedFd,
    /// Open descriptors between runs.
    open: usize,
}

static WORLD: LazyLock<World> = LazyLock::new(|| {
    let memfd = |size| {
        let fd = rustix::fs::memfd_create("fuzz", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&fd, size).unwrap();
        fd
    };
    let area = MappableArea { offset: 0x1000, size: 0x1000, memory: Arc::new(memfd(0x2000)) };
    let info = FunctionInfo {
        vendor_id: 1,
        device_id: 2,
        subsystem_vendor_id: 3,
        subsystem_id: 4,
        revision: 5,
        class_code: 0x01_08_02,
        serial_number: 6,
        bars: vec![Bar { index: 0, size: 0x4000 }],
        msix_vectors: 33,
        msi: false,
        intx: true,
    };
    let event = rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK).unwrap();
    let mut world = World {
        host: Arc::new(Host::new(33)),
        function: Arc::new(Fake { info, area, registers: Mutex::new(vec![0; 0x4000]) }),
        memory: memfd(MEMORY),
        event,
        open: 0,
    };
    world.open = open_descriptors();
    world
});

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

fn descriptors(header: &Header) -> Vec<OwnedFd> {
    let world = &*WORLD;
    let memory = (0..header.error & 3).map(|_| &world.memory);
    let events = (0..header.error >> 2 & 63).map(|_| &world.event);
    memory.chain(events).map(|fd| fd.try_clone().unwrap()).collect()
}

/// Runs a session to the end of one message.
fn finish(session: &mut Session, mut progress: Progress) -> Output {
    loop {
        match progress {
            Progress::Done(output) => return output,
            Progress::Wait(mut wait) => {
                let mut context = Context::from_waker(Waker::noop());
                assert!(matches!(wait.done.as_mut().poll(&mut context), Poll::Ready(())));
                progress = session.resume();
            }
        }
    }
}

fn check(header: &Header, output: &Output) {
    let Some(reply) = &output.reply else {
        assert!(header.flags & (flags::NO_REPLY | flags::REPLY) != 0);
        return;
    };
    let (answer, body) = Header::read_from_prefix(&reply.bytes).unwrap();
    assert_eq!((answer.id, answer.command), (header.id, header.command));
    assert_eq!(answer.size as usize, reply.bytes.len());
    assert!(answer.flags & flags::REPLY != 0 && header.flags & flags::NO_REPLY == 0);
    if answer.flags & flags::ERROR != 0 {
        assert!(answer.error != 0 && body.is_empty() && reply.fds.is_empty());
    } else {
        assert_eq!(answer.error, 0);
    }
    assert!(reply.fds.len() <= 1);
}

/// Whatever was mapped is in reach exactly where it says.
fn touch(message: &Message) {
    let Ok((map, _)) = DmaMap::read_from_prefix(&message.payload) else { return };
    let table = WORLD.host.dma.table();
    let mut hint = Hint::default();
    for iova in [map.address, map.address.wrapping_add(map.size).wrapping_sub(1), map.size, u64::MAX - 3] {
        for len in [0, 1, 8, 4097, MEMORY as usize + 1] {
            for access in [Access::Read, Access::Write] {
                let mut total = 0;
                let resolved = table.resolve(iova, len, access, &mut hint, |host, n| {
                    total += n;
                    // SAFETY: the table vouches for `n` bytes at `host`.
                    unsafe { host.add(n - 1).as_ptr().read_volatile() };
                });
                assert!(resolved.is_err() || total == len);
            }
        }
    }
    let _ = table.write(map.address, &[1; 100]);
    WORLD.host.interrupts.trigger(map.flags as u16);
    WORLD.host.interrupts.set_intx(map.argsz & 1 != 0);
}

fuzz_target!(|data: &[u8]| {
    let world = &*WORLD;
    let Some((&pieces, mut data)) = data.split_first() else { return };
    let mut session = Session::new(world.host.clone(), world.function.clone());
    let mut decoder = Decoder::new();
    let mut headers = 0;
    'stream: while !data.is_empty() {
        let inside = decoder.is_inside();
        let room = decoder.buffer();
        let n = room.len().min(data.len()).min(usize::from(pieces) + 1);
        room[..n].copy_from_slice(&data[..n]);
        // With the first piece of a message.
        let fds = match Header::read_from_prefix(data) {
            Ok((header, _)) if !inside => descriptors(&header),
            _ => Vec::new(),
        };
        data = &data[n..];
        match decoder.advance(n, fds, false) {
            Ok(None) => {}
            Ok(Some(message)) => {
                let header = message.header;
                let copy =
                    Message { header, payload: message.payload.clone(), fds: Vec::new(), fds_lost: false };
                let progress = session.handle(message);
                let output = finish(&mut session, progress);
                check(&header, &output);
                touch(&copy);
                headers += 1;
                if output.close || headers > 1000 {
                    break 'stream;
                }
            }
            Err(bad) => {
                let output = session.reject(bad.0);
                assert!(output.close);
                break 'stream;
            }
        }
    }
    drop((session, decoder));
    world.host.interrupts.clear();
    world.host.interrupts.set_intx(false);
    world.host.dma.unmap_all().revoke().unwrap();
    // Descriptors that nobody asked for are closed by a thread of their own. libFuzzer opens a few as well.
    let limit = Instant::now() + Duration::from_secs(20);
    while open_descriptors() > world.open + 8 {
        assert!(Instant::now() < limit, "descriptors leak");
        std::thread::yield_now();
    }
});
