//! Registered buffers against the real kernel.

use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::{opcode, types};
use rustix::fs::MemfdFlags;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::*;
use crate::reactor::RingOp;
use crate::testing::cannot_run;

/// Anonymous memory, unmapped when dropped.
struct Map {
    start: NonNull<u8>,
    len: usize,
}

impl Map {
    fn new(len: usize, prot: ProtFlags) -> Self {
        Self::at(std::ptr::null_mut(), len, prot, MapFlags::PRIVATE).unwrap()
    }

    fn writable(len: usize) -> Self {
        Self::new(len, ProtFlags::READ | ProtFlags::WRITE)
    }

    fn at(at: *mut u8, len: usize, prot: ProtFlags, flags: MapFlags) -> io::Result<Self> {
        // SAFETY: never over what is there: at an address of the kernel's choice, or where nothing is (NOREPLACE).
        let start = unsafe { mmap_anonymous(at.cast(), len, prot, flags) }?;
        Ok(Self { start: NonNull::new(start.cast()).unwrap(), len })
    }

    /// A pointer to a multiple of [`FIXED_PIECE`] in it.
    fn first_piece(&self) -> *mut u8 {
        self.ptr(self.start.as_ptr().align_offset(FIXED_PIECE))
    }

    fn ptr(&self, offset: usize) -> *mut u8 {
        self.start.as_ptr().wrapping_add(offset)
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: exactly this mapping, of which nobody has a reference.
        unsafe { munmap(self.start.as_ptr().cast(), self.len) }.unwrap();
    }
}

/// A reactor that registers, or none if the kernel or the limit of locked memory refuses.
fn reactor(pieces: u32) -> Option<Reactor> {
    let reactor = Reactor::with_fixed_buffers(8, pieces).unwrap();
    let map = Rc::new(Map::writable(4096));
    let _region = add(&reactor, &map);
    if warm(&reactor, map.ptr(0)).is_none() {
        cannot_run("fixed buffers: the kernel or the limit of locked memory refuses them");
        return None;
    }
    Some(reactor)
}

fn add(reactor: &Reactor, map: &Rc<Map>) -> MemoryRegion {
    // SAFETY: the hold keeps the mapping.
    unsafe { reactor.add_memory(map.start, map.len, map.clone()) }
}

/// Uses a page until it would be registered.
fn warm(reactor: &Reactor, ptr: *mut u8) -> Option<u16> {
    for _ in 0..WARM {
        assert_eq!(reactor.fixed_index(ptr, 4096), None);
    }
    assert_eq!(reactor.fixed_index(ptr, 4096), None, "not before the next turn");
    reactor.turn();
    reactor.fixed_index(ptr, 4096)
}

fn file(byte: u8) -> OwnedFd {
    let file = rustix::fs::memfd_create("contents", MemfdFlags::CLOEXEC).unwrap();
    assert_eq!(rustix::io::write(&file, &[byte; 4096]).unwrap(), 4096);
    file
}

/// Reads a page of `byte`s to `ptr`, which `map` has.
fn read(reactor: &Reactor, map: &Rc<Map>, ptr: *mut u8, index: u16, byte: u8) -> RingOp<(Rc<Map>, OwnedFd)> {
    let file = file(byte);
    let entry = opcode::ReadFixed::new(types::Fd(file.as_raw_fd()), ptr, 4096, index).build();
    // SAFETY: what is handed in keeps the file and the mapping, to which nobody has references.
    unsafe { reactor.submit(entry, (map.clone(), file)) }
}

fn byte_at(ptr: *const u8) -> u8 {
    // SAFETY: tests ask for bytes of their mappings, while nothing is in flight.
    unsafe { ptr.read_volatile() }
}

#[test]
fn what_is_used_often_is_registered_and_works() {
    let Some(reactor) = reactor(4) else { return };
    let map = Rc::new(Map::writable(4096));
    let region = add(&reactor, &map);
    let ptr = map.ptr(0);
    let index = warm(&reactor, ptr).expect("registered");
    assert_eq!(reactor.fixed_pieces(), 1);
    let (result, _) = reactor.block_on(read(&reactor, &map, ptr, index, 7));
    assert_eq!((result, byte_at(ptr), byte_at(ptr.wrapping_add(4095))), (4096, 7, 7));
    drop(region);
    assert_eq!(reactor.fixed_pieces(), 0);
    assert_eq!(reactor.fixed_index(ptr, 4096), None);
}

/// Small ends of two pieces, so that little is pinned: tests share the user's limit of locked memory.
#[test]
fn an_index_is_for_ranges_in_one_piece() {
    const END: usize = 8192;
    let Some(reactor) = reactor(4) else { return };
    let map = Rc::new(Map::writable(2 * FIXED_PIECE));
    let border = map.start.as_ptr().wrapping_add(END).align_offset(FIXED_PIECE) + END;
    let start = NonNull::new(map.ptr(border - END)).unwrap();
    // SAFETY: a part of the mapping, which the hold keeps.
    let _region = unsafe { reactor.add_memory(start, 2 * END, map.clone()) };
    let at = |offset: usize| start.as_ptr().wrapping_add(offset);
    let index = warm(&reactor, at(0)).expect("registered");
    for (offset, len, inside) in [
        (0, END, true),
        (0, END + 1, false),
        (END - 512, 512, true),
        (END - 512, 513, false),
        (END, 512, false),
        (0, 0, false),
        (512, usize::MAX, false),
    ] {
        assert_eq!(reactor.fixed_index(at(offset), len), inside.then_some(index), "{len} bytes at {offset}");
    }
    // Outside, and across the ends.
    for (offset, len) in [(2 * END, 1), (2 * END - 1, 2), (usize::MAX, 1), (usize::MAX, 2)] {
        for _ in 0..=WARM {
            assert_eq!(reactor.fixed_index(at(offset), len), None);
        }
    }
    reactor.turn();
    assert_eq!(reactor.fixed_pieces(), 1);
    let other = warm(&reactor, at(2 * END - 4096)).expect("registered");
    assert_ne!(other, index);
    assert_eq!(reactor.fixed_index(at(END), END), Some(other));
}

#[test]
fn clipped_pieces_are_registered() {
    let Some(reactor) = reactor(4) else { return };
    let map = Rc::new(Map::writable(2 * FIXED_PIECE));
    let first = map.first_piece();
    let _below = {
        let start = NonNull::new(first).unwrap();
        // SAFETY: a part of the mapping, which the hold keeps.
        unsafe { reactor.add_memory(start.add(4096), 3 * 4096, map.clone()) }
    };
    assert_eq!(reactor.fixed_index(first, 4096), None);
    let index = warm(&reactor, first.wrapping_add(3 * 4096)).expect("registered");
    assert_eq!(reactor.fixed_index(first.wrapping_add(4096), 3 * 4096), Some(index));
    assert_eq!(reactor.fixed_index(first.wrapping_add(4 * 4096), 4096), None);
    let (result, _) = reactor.block_on(read(&reactor, &map, first.wrapping_add(3 * 4096), index, 9));
    assert_eq!(result, 4096);
}

#[test]
fn the_budget_is_kept_and_given_back() {
    let Some(reactor) = reactor(1) else { return };
    let (one, other) = (Rc::new(Map::writable(4096)), Rc::new(Map::writable(4096)));
    let region = add(&reactor, &one);
    let _other = add(&reactor, &other);
    assert!(warm(&reactor, one.ptr(0)).is_some());
    assert_eq!(warm(&reactor, other.ptr(0)), None);
    drop(region);
    reactor.fixed_index(other.ptr(0), 4096);
    reactor.turn();
    assert!(reactor.fixed_index(other.ptr(0), 4096).is_some());
}

#[test]
fn other_memory_at_the_same_address_is_what_is_read() {
    let Some(reactor) = reactor(4) else { return };
    let map = Rc::new(Map::writable(4096));
    let region = add(&reactor, &map);
    let ptr = map.ptr(0);
    warm(&reactor, ptr).expect("registered");
    drop(region);
    assert_eq!(Rc::strong_count(&map), 1, "the region let go of it");
    drop(map);
    let (prot, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::FIXED_NOREPLACE);
    let map = Rc::new(Map::at(ptr, 4096, prot, flags).expect("the address is free"));
    let _region = add(&reactor, &map);
    let index = warm(&reactor, ptr).expect("registered anew, after as many uses");
    let (result, _) = reactor.block_on(read(&reactor, &map, ptr, index, 5));
    assert_eq!((result, byte_at(ptr)), (4096, 5));
}

#[test]
fn what_is_begun_after_its_region_went_reaches_nothing() {
    let Some(reactor) = reactor(1) else { return };
    let map = Rc::new(Map::writable(4096));
    let region = add(&reactor, &map);
    let index = warm(&reactor, map.ptr(0)).expect("registered");
    let queued = read(&reactor, &map, map.ptr(0), index, 3);
    drop(region);
    // Another piece gets the entry before the kernel sees the operation.
    let other = Rc::new(Map::writable(4096));
    let _other = add(&reactor, &other);
    reactor.0.fixed.wanted.set(None);
    for _ in 0..WARM {
        reactor.fixed_index(other.ptr(0), 4096);
    }
    reactor.0.fixed.turn(&reactor.0.ring);
    assert_eq!(reactor.fixed_index(other.ptr(0), 4096), Some(index));
    let (result, _) = reactor.block_on(queued);
    assert_eq!((result, byte_at(map.ptr(0)), byte_at(other.ptr(0))), (-libc::EFAULT, 0, 0));
}

#[test]
fn an_operation_in_the_kernel_keeps_its_pages() {
    let Some(reactor) = reactor(1) else { return };
    let map = Rc::new(Map::writable(4096));
    let region = add(&reactor, &map);
    let index = warm(&reactor, map.ptr(0)).expect("registered");
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let entry = opcode::ReadFixed::new(types::Fd(reader.as_raw_fd()), map.ptr(0), 4096, index).build();
    // SAFETY: what is handed in keeps the pipe and the mapping.
    let pending = unsafe { reactor.submit(entry, (map.clone(), reader)) };
    reactor.turn();
    drop(region);
    rustix::io::write(&writer, &[8; 100]).unwrap();
    let (result, _) = reactor.block_on(pending);
    assert_eq!((result, byte_at(map.ptr(0))), (100, 8));
}

#[test]
fn memory_that_cannot_be_registered_does_without() {
    let Some(reactor) = reactor(4) else { return };
    let read_only = Rc::new(Map::new(4096, ProtFlags::READ));
    let _region = add(&reactor, &read_only);
    assert_eq!(warm(&reactor, read_only.ptr(0)), None);
    let map = Rc::new(Map::writable(4096));
    let _other = add(&reactor, &map);
    assert!(warm(&reactor, map.ptr(0)).is_some(), "others are not concerned");
}

#[test]
fn the_same_memory_twice_goes_with_the_last() {
    let Some(reactor) = reactor(4) else { return };
    let map = Rc::new(Map::writable(8192));
    let (one, two) = (add(&reactor, &map), add(&reactor, &map));
    let index = warm(&reactor, map.ptr(0));
    drop(one);
    assert_eq!(reactor.fixed_index(map.ptr(0), 4096), index);
    drop(two);
    assert_eq!((reactor.fixed_index(map.ptr(0), 4096), reactor.fixed_pieces()), (None, 0));
    assert_eq!(Rc::strong_count(&map), 1);
}

#[test]
fn without_fixed_buffers_nothing_is_kept() {
    let reactor = Reactor::new(8).unwrap();
    let map = Rc::new(Map::writable(4096));
    assert!(!reactor.takes_memory());
    let _region = add(&reactor, &map);
    assert_eq!(warm(&reactor, map.ptr(0)), None);
}
