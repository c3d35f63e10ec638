//! Data pointers against a model, and every misuse of them.

use super::*;
use nvme_spec::command::{CommandFlags, DataPointer};
use nvme_spec::sgl::SglIdentifier;
use proptest::prelude::*;
use rustix::fs::MemfdFlags;
use std::os::fd::OwnedFd;
use vfio_user_server::DmaSpace;
use vfio_user_server::dma::MapFlags;

const PAGE: u64 = 4096;
/// Guest memory: 128 pages at 0, a hole of 16, 112 pages more of the same file.
const FIRST: u64 = 128 * PAGE;
const SECOND: u64 = 144 * PAGE;
const END: u64 = 256 * PAGE;

struct Guest {
    space: DmaSpace,
    memory: OwnedFd,
}

impl Guest {
    fn new() -> Self {
        let memory = rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&memory, END).unwrap();
        let space = DmaSpace::new();
        let both = MapFlags::READ | MapFlags::WRITE;
        space.map(0, FIRST, Some(memory.try_clone().unwrap()), 0, both).unwrap();
        space.map(SECOND, END - SECOND, Some(memory.try_clone().unwrap()), SECOND, both).unwrap();
        space.map(END, PAGE, None, 0, both).unwrap();
        space.map(END + PAGE, PAGE, Some(memory.try_clone().unwrap()), 0, MapFlags::READ).unwrap();
        Self { space, memory }
    }

    fn write(&self, at: u64, data: &[u8]) {
        rustix::io::pwrite(&self.memory, data, at).unwrap();
    }

    fn fill(&self) -> Vec<u8> {
        let bytes: Vec<u8> = (0..END).map(|i| ((i / 4 * 2_654_435_761) >> 7) as u8).collect();
        self.write(0, &bytes);
        bytes
    }

    fn resolve(&self, command: &Command, len: usize, access: Access) -> Result<Vec<u8>, TransferError> {
        let mut segments = Vec::new();
        let transfer = Transfer { command, len, access, page: PAGE, sgl_allowed: true };
        resolve(&self.space.table(), &mut Hint::default(), transfer, &mut segments)?;
        assert_eq!(segments.iter().map(Segment::len).sum::<usize>(), len);
        let mut data = vec![0; len];
        read_from_host(&segments, &mut data);
        Ok(data)
    }

    fn status(&self, command: &Command, len: usize, access: Access) -> Status {
        self.resolve(command, len, access).map_or_else(|error| error.status.code(), |_| Status::SUCCESS)
    }
}

fn prp(prp1: u64, prp2: u64) -> Command {
    Command { dptr: DataPointer::from_prps(prp1, prp2), ..Command::default() }
}

fn sgl(descriptor: SglDescriptor) -> Command {
    Command {
        flags: CommandFlags::new().with_psdt(Psdt::SGL_METADATA_BUFFER),
        dptr: DataPointer::from_sgl(descriptor),
        ..Command::default()
    }
}

/// Pages of data, and where their list begins.
fn scattered() -> impl Strategy<Value = (Vec<u64>, u64, usize, u64)> {
    // Lists live in pages 0 to 7; data in the others, the hole left out.
    let page = prop_oneof![8u64..128, 144u64..256];
    (proptest::collection::vec(page, 2..258), 0..PAGE / 4, 1..=PAGE as usize, 0..512u64)
        .prop_map(|(pages, offset, tail, list)| (pages, offset * 4, tail, list * 8))
}

proptest! {
    #[test]
    fn any_legal_prp_layout_names_its_bytes((pages, offset, tail, list) in scattered()) {
        let guest = Guest::new();
        let mut expected = guest.fill();
        let total = (PAGE - offset) as usize + (pages.len() - 2) * PAGE as usize + tail;
        // Lay the list out, chained at each page's end, from `list` in page 0 on.
        let mut at = list;
        let mut rest = &pages[1..];
        if rest.len() > 1 {
            loop {
                let room = ((PAGE - at % PAGE) / 8) as usize;
                let (now, later) = if rest.len() > room { rest.split_at(room - 1) } else { (rest, &[][..]) };
                for entry in now {
                    expected[at as usize..][..8].copy_from_slice(&(entry * PAGE).to_le_bytes());
                    at += 8;
                }
                if later.is_empty() {
                    break;
                }
                let next = at / PAGE * PAGE + PAGE;
                expected[at as usize..][..8].copy_from_slice(&next.to_le_bytes());
                at = next;
                rest = later;
            }
            guest.write(0, &expected[..8 * PAGE as usize]);
        }
        let prp2 = if pages.len() == 2 { pages[1] * PAGE } else { list };
        let mut bytes = expected[(pages[0] * PAGE + offset) as usize..][..(PAGE - offset) as usize].to_vec();
        for page in &pages[1..] {
            bytes.extend_from_slice(&expected[(page * PAGE) as usize..][..PAGE as usize]);
        }
        bytes.truncate(total);
        let command = prp(pages[0] * PAGE + offset, prp2);
        prop_assert_eq!(guest.resolve(&command, total, Access::Read).unwrap(), bytes);
    }

    #[test]
    fn any_garbage_is_an_error_or_the_right_length(
        prp1 in any::<u64>(), prp2 in any::<u64>(), small in any::<bool>(),
        lists in proptest::collection::vec(any::<u64>(), 64),
        len in 0usize..=1 << 20, psdt in 0u8..4, write in any::<bool>(),
    ) {
        let guest = Guest::new();
        // Half of the time, addresses that mostly hit memory.
        let near = |address: u64| if small { address % (END + 4 * PAGE) } else { address };
        for (i, entry) in lists.iter().enumerate() {
            guest.write(i as u64 * 8, &near(*entry).to_le_bytes());
        }
        let mut command = prp(near(prp1), near(prp2) & !7);
        command.flags = CommandFlags::new().with_psdt(Psdt(psdt));
        let access = if write { Access::Write } else { Access::Read };
        let _ = guest.resolve(&command, len, access);
    }

    #[test]
    fn any_sgl_of_one_segment_names_its_bytes(
        pieces in proptest::collection::vec((0u64..120 * 1024, 0u64..2048), 1..200)
    ) {
        let guest = Guest::new();
        let all = guest.fill();
        let base = 8 * PAGE;
        let mut bytes = Vec::new();
        for (i, (start, len)) in pieces.iter().enumerate() {
            let (start, len) = (base + start * 4 % (110 * PAGE), len * 4);
            bytes.extend_from_slice(&all[start as usize..][..len as usize]);
            guest.write(i as u64 * 16, SglDescriptor::data_block(start, len as u32).as_bytes());
        }
        let command = sgl(SglDescriptor::last_segment(0, pieces.len() as u32 * 16));
        prop_assert_eq!(guest.resolve(&command, bytes.len(), Access::Read).unwrap(), bytes);
    }
}

#[test]
fn neighbouring_pages_are_one_segment() {
    let guest = Guest::new();
    let list: Vec<u8> = (1..32u64).flat_map(|i| ((8 + i) * PAGE).to_le_bytes()).collect();
    guest.write(0, &list);
    let command = prp(8 * PAGE, 0);
    let mut segments = Vec::new();
    let transfer =
        Transfer { command: &command, len: 32 * 4096, access: Access::Read, page: PAGE, sgl_allowed: true };
    resolve(&guest.space.table(), &mut Hint::default(), transfer, &mut segments).unwrap();
    assert_eq!(segments.len(), 1);
}

#[test]
fn prp_misuse() {
    let guest = Guest::new();
    let read = Access::Read;
    for (command, len, status) in [
        (prp(1, 0), 512, Status::PRP_OFFSET_INVALID),
        (prp(4, 0), 512, Status::SUCCESS),
        (prp(PAGE, PAGE + 4), 8192, Status::PRP_OFFSET_INVALID),
        (prp(PAGE, 4), 3 * 4096, Status::PRP_OFFSET_INVALID),
        (prp(FIRST, 0), 512, Status::DATA_TRANSFER_ERROR),
        (prp(FIRST - 512, 0), 512, Status::SUCCESS),
        (prp(PAGE, FIRST), 3 * 4096, Status::DATA_TRANSFER_ERROR),
        (prp(u64::MAX - 3, 0), 4096, Status::DATA_TRANSFER_ERROR),
        (prp(END, 0), 512, Status::DATA_TRANSFER_ERROR),
    ] {
        assert_eq!(guest.status(&command, len, read), status, "{command:?}");
    }
    assert_eq!(guest.status(&prp(END + PAGE, 0), 512, Access::Read), Status::SUCCESS);
    assert_eq!(
        guest.status(&prp(END + PAGE, 0), 512, Access::Write),
        Status::DATA_TRANSFER_ERROR,
        "read-only"
    );
    let unshared = guest.resolve(&prp(END, 0), 512, read).unwrap_err();
    assert!(matches!(unshared.fault, Some(DmaFault::NotShared { .. })));
}

#[test]
fn a_prp_list_that_chains_to_itself_ends() {
    let guest = Guest::new();
    // A list of one slot at the end of its page: its entry is the chain pointer, to its own page.
    guest.write(PAGE - 8, &0u64.to_le_bytes());
    assert_eq!(guest.status(&prp(8 * PAGE, PAGE - 8), 1 << 20, Access::Read), Status::SUCCESS);
    guest.write(PAGE - 8, &(PAGE - 8).to_le_bytes());
    assert_eq!(guest.status(&prp(8 * PAGE, PAGE - 8), 1 << 20, Access::Read), Status::PRP_OFFSET_INVALID);
}

#[test]
fn sgl_misuse() {
    let guest = Guest::new();
    let block = SglDescriptor::data_block(8 * PAGE, 512);
    let with = |descriptors: &[SglDescriptor]| {
        guest.write(0, descriptors.as_bytes());
        descriptors.len() as u32 * 16
    };
    let status = |first| guest.status(&sgl(first), 512, Access::Read);
    assert_eq!(status(block), Status::SUCCESS);
    assert_eq!(status(SglDescriptor::data_block(8 * PAGE, 508)), Status::DATA_SGL_LENGTH_INVALID);
    assert_eq!(status(SglDescriptor::data_block(8 * PAGE, 516)), Status::DATA_SGL_LENGTH_INVALID);
    assert_eq!(
        status(SglDescriptor::data_block(8 * PAGE + 2, 512)),
        Status::SGL_DATA_BLOCK_GRANULARITY_INVALID
    );
    assert_eq!(status(SglDescriptor::segment(0, 0)), Status::INVALID_SGL_SEGMENT_DESCRIPTOR);
    assert_eq!(status(SglDescriptor::segment(0, 15)), Status::INVALID_SGL_SEGMENT_DESCRIPTOR);
    assert_eq!(
        status(SglDescriptor::new(SglType::KEYED_DATA_BLOCK, 0, 512)),
        Status::SGL_DESCRIPTOR_TYPE_INVALID
    );
    let offset = SglDescriptor {
        identifier: SglIdentifier::new().with_kind(SglType::DATA_BLOCK).with_subtype(SglSubtype::OFFSET),
        ..block
    };
    assert_eq!(status(offset), Status::SGL_DESCRIPTOR_TYPE_INVALID);
    // A segment that is its own successor.
    let itself = SglDescriptor::segment(0, 16);
    let len = with(&[itself]);
    assert_eq!(status(SglDescriptor::segment(0, len)), Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS);
    // A segment must end with a pointer, a last segment must not have one.
    let len = with(&[block]);
    assert_eq!(status(SglDescriptor::segment(0, len)), Status::INVALID_SGL_SEGMENT_DESCRIPTOR);
    let len = with(&[block, SglDescriptor::last_segment(0, 16)]);
    assert_eq!(status(SglDescriptor::last_segment(0, len)), Status::INVALID_SGL_SEGMENT_DESCRIPTOR);
    // More descriptors than are taken.
    let len = (MAX_DESCRIPTORS as u32 + 1) * 16;
    assert_eq!(status(SglDescriptor::last_segment(0, len)), Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS);
    assert_eq!(
        status(SglDescriptor::last_segment(0, 0xFFFF_FFF0)),
        Status::INVALID_NUMBER_OF_SGL_DESCRIPTORS
    );
}

#[test]
fn bit_buckets_swallow_reads_only() {
    let guest = Guest::new();
    let all = guest.fill();
    let list = [
        SglDescriptor::data_block(8 * PAGE, 256),
        SglDescriptor::bit_bucket(100 * 1024),
        SglDescriptor::data_block(9 * PAGE, 256),
    ];
    guest.write(0, list.as_bytes());
    let command = sgl(SglDescriptor::last_segment(0, 48));
    assert!(guest.resolve(&command, 512 + 100 * 1024, Access::Write).is_ok());
    // In a transfer to the device they are empty.
    let data = guest.resolve(&command, 512, Access::Read).unwrap();
    assert_eq!(data[..256], all[8 * PAGE as usize..][..256]);
    assert_eq!(data[256..], all[9 * PAGE as usize..][..256]);
}

#[test]
fn what_psdt_says_is_checked_whatever_was_resolved_before() {
    let guest = Guest::new();
    let mut hint = Hint::default();
    let mut segments = Vec::new();
    for (psdt, expected) in [
        (Psdt::SGL_METADATA_BUFFER, None),
        (Psdt::SGL_METADATA_SGL, None),
        (Psdt::from_bits(3), Some(Status::INVALID_FIELD_IN_COMMAND)),
    ] {
        let mut command = Command::default();
        command.dptr = nvme_spec::command::DataPointer::from_sgl(SglDescriptor::data_block(0, 512));
        command.flags.set_psdt(psdt);
        let transfer =
            Transfer { command: &command, len: 512, access: Access::Read, page: 4096, sgl_allowed: true };
        let resolved = resolve(&guest.space.table(), &mut hint, transfer, &mut segments);
        assert_eq!(resolved.err().map(|error| error.status.code()), expected, "{psdt:?}");
    }
}
