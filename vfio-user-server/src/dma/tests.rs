//! Tests of the DMA table, among them a naive model.

use proptest::prelude::*;

use super::*;

const PAGE: u64 = PAGE_SIZE;
const RW: MapFlags = MapFlags::READ.union(MapFlags::WRITE);

fn memory(pages: u64) -> OwnedFd {
    let fd = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, pages * PAGE).unwrap();
    fd
}

fn resolve(table: &DmaTable, iova: u64, len: usize, access: Access) -> Result<Vec<usize>, DmaFault> {
    let mut pieces = Vec::new();
    table.resolve(iova, len, access, &mut Hint::default(), |_, n| pieces.push(n))?;
    Ok(pieces)
}

fn mapped(retired: &Retired) -> usize {
    retired.mappings.iter().map(|mapping| mapping.len()).sum()
}

#[test]
fn writes_and_reads_go_through_to_the_file_at_its_offset() {
    let space = DmaSpace::new();
    let fd = memory(4);
    space.map(0, 2 * PAGE, Some(fd.try_clone().unwrap()), 2 * PAGE, RW).unwrap();
    let table = space.table();
    table.write(PAGE - 3, b"across a page").unwrap();
    let mut seen = [0; 13];
    rustix::io::pread(&fd, &mut seen, 3 * PAGE - 3).unwrap();
    assert_eq!(&seen, b"across a page");
    let mut again = [0; 13];
    table.read(PAGE - 3, &mut again).unwrap();
    assert_eq!(again, seen);
    assert_eq!(table.read(2 * PAGE - 1, &mut again[..2]), Err(DmaFault::Unmapped { iova: 2 * PAGE }));
}

#[test]
fn permissions_and_reach_are_told_apart() {
    let space = DmaSpace::new();
    space.map(0, PAGE, Some(memory(1)), 0, MapFlags::READ).unwrap();
    space.map(PAGE, PAGE, None, 0, RW).unwrap();
    space.map(2 * PAGE, PAGE, Some(memory(1)), 0, MapFlags::empty()).unwrap();
    space.map(3 * PAGE, PAGE, Some(memory(1)), 0, MapFlags::WRITE).unwrap();
    let table = space.table();
    assert_eq!(resolve(&table, 8, 8, Access::Read), Ok(vec![8]));
    assert_eq!(resolve(&table, 8, 8, Access::Write), Err(DmaFault::Forbidden { iova: 8 }));
    assert_eq!(resolve(&table, PAGE - 1, 2, Access::Read), Err(DmaFault::NotShared { iova: PAGE }));
    assert_eq!(resolve(&table, 2 * PAGE, 1, Access::Read), Err(DmaFault::Forbidden { iova: 2 * PAGE }));
    assert_eq!(resolve(&table, 3 * PAGE, 1, Access::Write), Ok(vec![1]));
    assert_eq!(resolve(&table, 3 * PAGE, 1, Access::Read), Err(DmaFault::Forbidden { iova: 3 * PAGE }));
    assert_eq!(resolve(&table, u64::MAX, 0, Access::Read), Ok(vec![]));
}

#[test]
fn bad_regions_are_refused() {
    let space = DmaSpace::new();
    let map = |iova, size, offset| space.map(iova, size, Some(memory(4)), offset, RW);
    assert!(matches!(map(0, 0, 0), Err(MapError::Empty)));
    assert!(matches!(map(u64::MAX - PAGE + 1, 2 * PAGE, 0), Err(MapError::Wraps)));
    assert!(matches!(map(1, PAGE, 0), Err(MapError::Misaligned)));
    assert!(matches!(map(0, PAGE - 1, 0), Err(MapError::Misaligned)));
    assert!(matches!(map(0, PAGE, 1), Err(MapError::Misaligned)));
    assert!(matches!(map(0, 2 * PAGE, 3 * PAGE), Err(MapError::BeyondFile { .. })));
    assert!(matches!(map(0, PAGE, u64::MAX - PAGE + 1), Err(MapError::TooLarge)));
    assert!(matches!(map(0, 1 << 50, 0), Err(MapError::TooLarge)));
    map(4 * PAGE, 2 * PAGE, 0).unwrap();
    for (iova, pages) in [(4, 2), (4, 1), (5, 1), (3, 2), (5, 2), (3, 4)] {
        assert!(matches!(map(iova * PAGE, pages * PAGE, 0), Err(MapError::Overlap)), "{iova} {pages}");
    }
    map(3 * PAGE, PAGE, 0).unwrap();
    map(6 * PAGE, PAGE, 0).unwrap();
    map(PAGE.wrapping_neg(), PAGE, 0).unwrap();
    assert_eq!(space.table().len(), 4);
    for (iova, pages) in [(4, 1), (5, 1), (3, 2), (4, 0), (0, 5), (5, 9)] {
        assert!(space.unmap(iova * PAGE, pages * PAGE).is_err(), "{iova} {pages}");
    }
    assert!(space.unmap(PAGE, u64::MAX).is_err(), "wraps");
    assert!(space.unmap(9 * PAGE, PAGE).unwrap().is_empty());
    assert_eq!(space.unmap(4 * PAGE, 2 * PAGE).unwrap().len(), 1);
    map(4 * PAGE, PAGE, 0).unwrap();
    assert_eq!(space.unmap(0, 8 * PAGE).unwrap().len(), 3);
    assert_eq!(space.unmap(PAGE.wrapping_neg(), PAGE).unwrap().len(), 1);
    map(0, PAGE, 0).unwrap();
    let _ = space.unmap_all();
    assert!(space.table().is_empty());
}

#[test]
fn descriptors_that_are_no_memory_are_refused() {
    let space = DmaSpace::new();
    let (pipe, _pipe) = rustix::pipe::pipe().unwrap();
    let (socket, _socket) = std::os::unix::net::UnixStream::pair().unwrap();
    let directory = std::fs::File::open("/").unwrap();
    let read_only = {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(PAGE).unwrap();
        std::fs::File::open(file.path()).unwrap()
    };
    for fd in [pipe, socket.into(), directory.into(), read_only.try_clone().unwrap().into()] {
        assert!(space.map(0, PAGE, Some(fd), 0, RW).is_err());
    }
    space.map(0, PAGE, Some(read_only.into()), 0, MapFlags::READ).unwrap();
}

#[test]
fn tables_count_generations_and_know_what_is_gone() {
    let space = DmaSpace::new();
    assert_eq!(space.generation(), 0);
    space.map(0, PAGE, Some(memory(1)), 0, RW).unwrap();
    space.map(PAGE, PAGE, Some(memory(1)), 0, RW).unwrap();
    let before = space.table();
    let mut hint = Hint::default();
    let first = before.resolve(0, 1, Access::Read, &mut hint, |_, _| ()).unwrap();
    let second = before.resolve(PAGE, 1, Access::Read, &mut hint, |_, _| ()).unwrap();
    assert_eq!(first & second, 0);
    assert_eq!(before.resolve(0, 5000, Access::Read, &mut hint, |_, _| ()).unwrap(), first | second);
    let _ = space.unmap(0, PAGE).unwrap();
    space.map(0, PAGE, Some(memory(1)), 0, RW).unwrap();
    assert_eq!(space.generation(), 4);
    assert_eq!(before.removed(&space.table()), first, "the same range, another region");
    assert_eq!(space.table().removed(&space.table()), 0);
}

#[test]
fn revoked_memory_is_out_of_reach_and_harmless() {
    let space = DmaSpace::new();
    let fd = memory(1);
    space.map(0, PAGE, Some(fd.try_clone().unwrap()), 0, RW).unwrap();
    let held = space.table();
    let retired = space.unmap(0, PAGE).unwrap();
    assert!(retired.is_held());
    held.write(0, b"in flight").unwrap();
    assert_eq!(retired.revoke().unwrap(), 1);
    held.write(0, b"too late!").unwrap();
    let mut seen = [0; 9];
    rustix::io::pread(&fd, &mut seen, 0).unwrap();
    assert_eq!(&seen, b"in flight");
    drop(held);
    space.map(0, PAGE, Some(fd), 0, RW).unwrap();
    let retired = space.unmap_all();
    assert!(!retired.is_held() && mapped(&retired) == PAGE as usize);
    assert_eq!(retired.revoke().unwrap(), 0);
}

#[test]
fn memory_that_is_truncated_breaks_its_space_only() {
    let (space, other) = (DmaSpace::new(), DmaSpace::new());
    let fd = memory(4);
    space.map(0, 4 * PAGE, Some(fd.try_clone().unwrap()), 0, RW).unwrap();
    other.map(0, PAGE, Some(memory(1)), 0, RW).unwrap();
    rustix::fs::ftruncate(&fd, 0).unwrap();
    let mut data = [1; 16];
    space.table().read(2 * PAGE, &mut data).unwrap();
    assert_eq!(data, [0; 16]);
    space.table().write(0, &data).unwrap();
    other.table().write(0, &data).unwrap();
    assert!(space.is_broken() && !other.is_broken());
    space.repair();
    assert!(!space.is_broken());
}

#[test]
fn clearing_a_space_includes_what_is_still_held_from_before() {
    let space = DmaSpace::new();
    let fd = memory(2);
    space.map(0, PAGE, Some(fd.try_clone().unwrap()), 0, RW).unwrap();
    let held = space.table();
    // A client that left while its unmap was waited for: dropped without a revocation.
    drop(space.unmap(0, PAGE).unwrap());
    space.map(PAGE, PAGE, Some(fd.try_clone().unwrap()), PAGE, RW).unwrap();
    let cleared = space.clear();
    assert_eq!(mapped(&cleared), 2 * PAGE as usize);
    assert_eq!(cleared.revoke().unwrap(), 1);
    held.write(0, b"too late").unwrap();
    let mut seen = [1; 8];
    rustix::io::pread(&fd, &mut seen, 0).unwrap();
    assert_eq!(seen, [0; 8]);
}

/// A region of the model: start, size, readable, writable, with descriptor.
type Plain = (u64, u64, bool, bool, bool);

/// What `resolve` must say, byte by byte's worth of care: arithmetic in 128 bits.
fn expected(model: &[Plain], iova: u64, len: usize, write: bool) -> Result<(), DmaFault> {
    let (mut at, end) = (u128::from(iova), u128::from(iova) + len as u128);
    while at < end {
        let hit = model.iter().find(|r| at >= r.0.into() && at < u128::from(r.0) + u128::from(r.1));
        let iova = at.min(u64::MAX.into()) as u64;
        let Some(r) = hit else { return Err(DmaFault::Unmapped { iova }) };
        if !(if write { r.3 } else { r.2 }) {
            return Err(DmaFault::Forbidden { iova });
        }
        if !r.4 {
            return Err(DmaFault::NotShared { iova });
        }
        at = u128::from(r.0) + u128::from(r.1);
    }
    Ok(())
}

/// Addresses at the ends of the address space, where sums wrap.
fn address() -> impl Strategy<Value = u64> {
    prop_oneof![0..8 * PAGE, (u64::MAX - 8 * PAGE)..=u64::MAX, (1 << 63)..(1 << 63) + 8 * PAGE]
}

#[derive(Clone, Debug)]
enum Step {
    Map(u64, u64, bool, bool, bool),
    Unmap(usize),
    Resolve(u64, usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (address(), 1u64..4, any::<bool>(), any::<bool>(), any::<bool>())
            .prop_map(|(a, n, r, w, fd)| Step::Map(a & !(PAGE - 1), n * PAGE, r, w, fd)),
        1 => any::<usize>().prop_map(Step::Unmap),
        8 => (address(), prop_oneof![0usize..20, 0usize..40000, Just(usize::MAX)], any::<bool>())
            .prop_map(|(a, n, w)| Step::Resolve(a, n, w)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]
    #[test]
    fn the_table_agrees_with_a_naive_model(steps in prop::collection::vec(step(), 1..60)) {
        let space = DmaSpace::new();
        let fd = memory(4);
        let mut model: Vec<Plain> = Vec::new();
        // One hint all along: it is warm, stale or out of range.
        let mut hint = Hint::default();
        for step in steps {
            match step {
                Step::Map(iova, size, r, w, with_fd) => {
                    let mut flags = MapFlags::empty();
                    flags.set(MapFlags::READ, r);
                    flags.set(MapFlags::WRITE, w);
                    let end = u128::from(iova) + u128::from(size);
                    let free = end <= 1 << 64 && model.iter().all(|m| {
                        end <= m.0.into() || u128::from(m.0) + u128::from(m.1) <= iova.into()
                    });
                    let fd = with_fd.then(|| fd.try_clone().unwrap());
                    prop_assert_eq!(space.map(iova, size, fd, 0, flags).is_ok(), free);
                    if free {
                        model.push((iova, size, r, w, with_fd));
                    }
                }
                Step::Unmap(which) if !model.is_empty() => {
                    let gone = model.swap_remove(which % model.len());
                    prop_assert!(space.unmap(gone.0, gone.1).is_ok());
                }
                Step::Unmap(_) => {}
                Step::Resolve(iova, len, write) => {
                    let access = if write { Access::Write } else { Access::Read };
                    let mut total = 0;
                    let mut at = iova;
                    let table = space.table();
                    let got = table.resolve(iova, len, access, &mut hint, |host, n| {
                        let region = table.entries.iter().find(|e| at.wrapping_sub(e.start) < e.size).unwrap();
                        let offset = (at - region.start) as usize;
                        assert_eq!(host.as_ptr().addr(), region.host.as_ptr().addr() + offset);
                        assert!(n as u64 <= region.size - offset as u64);
                        at = at.wrapping_add(n as u64);
                        total += n;
                    });
                    prop_assert_eq!(got.map(drop), expected(&model, iova, len, write));
                    if got.is_ok() {
                        prop_assert_eq!(total, len);
                    }
                }
            }
        }
    }
}

/// Not even its size is asked for.
#[test]
fn files_that_others_serve_are_refused_by_name() {
    let file = std::fs::File::open("/proc/self/maps").unwrap();
    let error = DmaSpace::new().map(0, PAGE, Some(file.into()), 0, MapFlags::READ).unwrap_err();
    assert!(matches!(&error, MapError::Foreign(kind) if kind == "proc"), "{error}");
    assert!(error.to_string().contains("memfd"));
}

/// A client that leaves in the middle of an unmap: what is under way goes on to its end, on the client's memory.
#[test]
fn memory_that_nobody_waits_for_is_there_until_it_is_cleared() {
    const SIZE: u64 = 2 << 30;
    let space = DmaSpace::new();
    let fd = rustix::fs::memfd_create("left-behind", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    rustix::fs::ftruncate(&fd, SIZE).unwrap();
    let is_mapped = || std::fs::read_to_string("/proc/self/maps").unwrap().contains("left-behind");
    for size in [SIZE, PAGE] {
        // A small mapping may be the last that holds a large file.
        space.map(0, size, Some(fd.try_clone().unwrap()), 0, MapFlags::all()).unwrap();
        let held = space.table();
        let retired = space.unmap(0, size).unwrap();
        assert!(retired.is_large());
        drop(retired);
        std::thread::sleep(std::time::Duration::from_millis(50));
        held.write(0, b"late").unwrap();
        let mut seen = [0; 4];
        rustix::io::pread(&fd, &mut seen, 0).unwrap();
        assert_eq!(&seen, b"late");
        let cleared = space.clear();
        assert_eq!(mapped(&cleared), size as usize);
        assert_eq!(cleared.revoke().unwrap(), 1);
        held.read(0, &mut seen).unwrap();
        assert_eq!(seen, [0; 4]);
        drop(held);
        // And without a client that comes back to it.
        space.map(0, size, Some(fd.try_clone().unwrap()), 0, MapFlags::all()).unwrap();
        let held = space.table();
        drop(space.unmap(0, size).unwrap());
        drop(held);
        let start = std::time::Instant::now();
        while is_mapped() {
            assert!(start.elapsed().as_secs() < 60, "still there");
        }
    }
}
