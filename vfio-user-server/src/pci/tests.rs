//! What guests and VMMs do to a configuration space.

use super::*;
use crate::function::Bar;
use crate::{Interrupts, pci::msix::MsixBar};

fn info() -> FunctionInfo {
    FunctionInfo {
        vendor_id: 0x1b36,
        device_id: 0x0010,
        subsystem_vendor_id: 0x1af4,
        subsystem_id: 0x1100,
        revision: 2,
        class_code: 0x01_08_02,
        serial_number: 0x1122_3344_5566_7788,
        bars: vec![Bar { index: 0, size: 0x4000 }],
        msix_vectors: 129,
        msi: false,
        intx: true,
    }
}

fn read<const N: usize>(space: &ConfigSpace, at: usize) -> [u8; N] {
    let mut data = [0xee; N];
    space.read(at, &mut data, false);
    data
}

#[test]
fn identity_is_where_it_belongs() {
    let space = ConfigSpace::new(&info());
    assert_eq!(read(&space, 0), [0x36, 0x1b, 0x10, 0x00]);
    assert_eq!(read(&space, 8), [0x02, 0x02, 0x08, 0x01]);
    assert_eq!(read(&space, 0x2c), [0xf4, 0x1a, 0x00, 0x11]);
    assert_eq!(read(&space, 0x3c), [0, 1]);
    assert_eq!(read(&space, 0x104), 0x1122_3344_5566_7788u64.to_le_bytes());
}

#[test]
fn capabilities_are_a_list_that_ends() {
    let space = ConfigSpace::new(&info());
    let mut ids = Vec::new();
    let mut at = usize::from(read::<1>(&space, CAPABILITIES)[0]);
    while at != 0 {
        let [id, next] = read(&space, at);
        ids.push(id);
        at = next.into();
    }
    assert_eq!(ids, [0x01, 0x10, 0x11]);
    assert_eq!(read(&space, 0x100), 0x0001_0003u32.to_le_bytes());
    // Table of 129 in BAR 4 at 0; pending bits on the page behind.
    assert_eq!(read(&space, MSIX + 2), [128, 0]);
    assert_eq!(read(&space, MSIX + 4), [4, 0, 0, 0, 4, 0x10, 0, 0]);
}

#[test]
fn bars_are_sized_in_both_halves_and_at_once() {
    let mut space = ConfigSpace::new(&info());
    assert_eq!(read(&space, BARS), [4, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(space.write(BARS, &[0xff; 4]), None);
    assert_eq!(read(&space, BARS), [0x04, 0xc0, 0xff, 0xff]);
    assert_eq!(space.write(BARS + 4, &[0xff; 4]), None);
    assert_eq!(read(&space, BARS + 4), [0xff; 4]);
    assert_eq!(space.write(BARS, &0xfebf_0000u64.to_le_bytes()), None);
    assert_eq!(read(&space, BARS), 0xfebf_0004u64.to_le_bytes());
    assert_eq!(space.write(BARS + 0x10, &[0xff; 8]), None);
    assert_eq!(read(&space, BARS + 0x10), (!0x1fffu64 | 4).to_le_bytes());
    // BARs 2 and 3, and the ROM, do not exist.
    assert_eq!(space.write(BARS + 8, &[0xff; 8]), None);
    assert_eq!(space.write(0x30, &[0xff; 4]), None);
    assert_eq!((read(&space, BARS + 8), read(&space, 0x30)), ([0; 8], [0; 4]));
}

#[test]
fn read_only_fields_stay() {
    let mut space = ConfigSpace::new(&info());
    let before: [u8; CONFIG_SIZE] = read(&space, 0);
    for at in 0..CONFIG_SIZE {
        // All ones but for FLR and the power state, which have effects.
        let ones = if at == DEVICE_CONTROL + 1 || at == PMCSR { 0x7c } else { 0xff };
        assert_eq!(space.write(at, &[ones]), None);
    }
    for (at, (&old, new)) in before.iter().zip(read::<CONFIG_SIZE>(&space, 0)).enumerate() {
        let writable = if at == PMCSR { 0 } else { space.writable[at] };
        assert_eq!(new, old | writable, "{at:#x}");
    }
    assert_eq!(read(&space, 0), [0x36, 0x1b, 0x10, 0x00, 0x46, 0x05, 0x10, 0x00]);
    space.reset();
    assert_eq!(read::<CONFIG_SIZE>(&space, 0), before);
}

#[test]
fn bus_master_needs_its_bit_and_d0() {
    let mut space = ConfigSpace::new(&info());
    assert!(!space.bus_master());
    assert_eq!(space.write(COMMAND, &[0x04, 0x04]), None);
    assert!(space.bus_master() && space.intx_disabled());
    assert_eq!(space.write(PMCSR, &[3, 0]), None);
    assert!(!space.bus_master() && space.is_asleep());
    assert_eq!(space.write(PMCSR, &[1]), None);
    assert!(space.is_asleep(), "D1 does not exist");
    assert_eq!(space.write(PMCSR, &[0, 0]), Some(Reset::PowerState));
}

#[test]
fn flr_by_any_width_and_alignment() {
    let mut space = ConfigSpace::new(&info());
    assert_eq!(space.write(DEVICE_CONTROL, &0xa810u16.to_le_bytes()), Some(Reset::FunctionLevel));
    assert_eq!(space.write(DEVICE_CONTROL + 1, &[0x80]), Some(Reset::FunctionLevel));
    assert_eq!(space.write(EXPRESS + 4, &[0xff; 8]), Some(Reset::FunctionLevel));
    assert_eq!(space.write(DEVICE_CONTROL, &[0xff]), None);
    assert_eq!(read::<2>(&space, DEVICE_CONTROL)[1] & 0x80, 0, "reads as zero");
}

#[test]
fn accesses_out_of_range_do_nothing() {
    let mut space = ConfigSpace::new(&info());
    for (at, len) in [(4095, 2), (4096, 1), (usize::MAX, 1), (usize::MAX, 0), (0, 5000)] {
        assert_eq!(space.write(at, &vec![0xff; len]), None);
        let mut data = vec![0xee; len];
        space.read(at, &mut data, true);
        assert_eq!(data, vec![0xee; len]);
    }
}

#[test]
fn the_pin_shows_in_the_status_register() {
    let space = ConfigSpace::new(&info());
    let mut data = [0; 4];
    space.read(COMMAND, &mut data, true);
    assert_eq!(data, [0, 0, 0x18, 0]);
    space.read(STATUS + 1, &mut data, true);
    assert_eq!(data[0], 0);
}

#[test]
fn the_msix_table_is_memory_and_the_pending_bits_are_not() {
    let interrupts = Interrupts::new(129, Default::default());
    let mut bar = MsixBar::new(129);
    let mut data = [0xee; 16];
    bar.read(0, &mut data, &interrupts);
    assert_eq!(data, [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0]);
    bar.write(128 * 16, &[0xff; 32]);
    bar.read(128 * 16, &mut data, &interrupts);
    assert_eq!(data, [0xfc, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 0, 0, 0]);
    interrupts.trigger(9);
    interrupts.trigger(128);
    bar.write(0x1000, &[0xff; 32]);
    let mut bits = [0xee; 24];
    bar.read(0x1000, &mut bits, &interrupts);
    assert_eq!((bits[1], bits[16]), (2, 1));
    assert_eq!(bits.iter().map(|b| b.count_ones()).sum::<u32>(), 2);
    bar.write(u64::MAX, &[1, 2]);
    bar.read(u64::MAX, &mut bits[..1], &interrupts);
}

#[test]
fn msi_in_place_of_msix() {
    let mut space = ConfigSpace::new(&FunctionInfo { msix_vectors: 32, msi: true, ..info() });
    let [id, next] = read(&space, MSIX);
    assert_eq!((id, next), (0x05, 0));
    // 32 vectors, 64-bit addresses, no masking of single ones.
    assert_eq!(read(&space, MSIX + 2), [0x8a, 0x00]);
    // No BAR for a table.
    let _ = space.write(BARS + 16, &[0xff; 4]);
    assert_eq!(read(&space, BARS + 16), [0; 4]);
    // A guest's programming is kept.
    let _ = space.write(MSIX + 4, &[0xff; 10]);
    assert_eq!(read(&space, MSIX + 4), [0xfc, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    let _ = space.write(MSIX + 2, &[0xff; 2]);
    assert_eq!(read(&space, MSIX + 2), [0xfb, 0x00]);
}
