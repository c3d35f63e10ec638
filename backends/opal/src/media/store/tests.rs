use block::Device;
use block::testing::{Failure, PowerDevice, Rng};

use super::*;

const BLOCK_SIZES: [u32; 3] = [512, 4096, 65536];
const UUID: [u8; 16] = [0xA7; 16];
const AREA: usize = 2 * SLOT;

fn key(byte: u8) -> Secret<32> {
    Secret::copy(&[byte; 32])
}

fn device(block_size: u32, seed: u64) -> PowerDevice {
    PowerDevice::new(block_size, (4 * SLOT) as u64 / u64::from(block_size), seed)
}

fn store(device: &PowerDevice) -> Store {
    let reactor = Reactor::new(8).unwrap();
    let channel = Rc::from(device.channel(&reactor).unwrap());
    Store::new(reactor, channel, device.info().block_size)
}

fn area(device: &PowerDevice) -> Vec<u8> {
    device.durable(0, AREA as u64 / u64::from(device.info().block_size))
}

fn formatted(block_size: u32, seed: u64, payload: &[u8]) -> (PowerDevice, Store) {
    let device = device(block_size, seed);
    let mut store = store(&device);
    store.format(&key(1), UUID, payload).unwrap();
    (device, store)
}

/// The sealed payloads on the device, at most two.
fn sealed(device: &PowerDevice) -> Vec<Vec<u8>> {
    let area = area(device);
    let of = |slot: &[u8]| match slot::look(slot.first_chunk().unwrap()) {
        Slot::Whole(header) => Some(slot[HEADER..][..header.sealed].to_vec()),
        _ => None,
    };
    area.chunks(SLOT).filter_map(of).collect()
}

/// Whether any 16 bytes of `sealed`, at a multiple of 16, are still somewhere in the area.
fn has_any_of(device: &PowerDevice, sealed: &[u8]) -> bool {
    let area = area(device);
    let number = |bytes: &[u8]| u128::from_le_bytes(bytes.try_into().unwrap());
    let mut pieces: Vec<u128> = sealed.chunks_exact(16).map(number).collect();
    pieces.sort_unstable();
    let mut slots = area.chunks(SLOT).map(|slot| &slot[..slot::used(slot)]);
    slots.any(|used| used.windows(16).any(|window| pieces.binary_search(&number(window)).is_ok()))
}

fn payload(device: &PowerDevice) -> Result<Vec<u8>, LoadError> {
    store(device).load(&key(1)).map(|loaded| loaded.payload.to_vec())
}

#[test]
fn what_is_written_is_loaded() {
    for block_size in BLOCK_SIZES {
        let (device, mut one) = formatted(block_size, 1, b"first");
        assert!(device.is_flushed());
        assert_eq!(payload(&device).unwrap(), b"first");
        for (n, len) in [0, 1, 100_000, 17, MAX_PAYLOAD, 3].into_iter().enumerate() {
            let bytes = Rng(n as u64).bytes(len);
            one.write(&bytes, n % 2 == 0).unwrap();
            assert_eq!(one.in_force(), n as u64 + 2);
            assert!(device.is_flushed());
            let mut other = store(&device);
            let loaded = other.load(&key(1)).unwrap();
            assert_eq!((loaded.uuid, loaded.payload.as_slice()), (UUID, &bytes[..]));
            assert_eq!(other.uuid().unwrap(), UUID);
        }
        let before = area(&device);
        let error = one.write(&vec![0; MAX_PAYLOAD + 1], true).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidInput);
        assert_eq!(area(&device), before);
    }
}

#[test]
fn what_is_there_is_told_apart() {
    let blank = device(512, 1);
    assert!(store(&blank).is_blank().unwrap());
    assert!(matches!(store(&blank).load(&key(1)), Err(LoadError::Blank)));
    assert_eq!(store(&blank).write(b"", true).unwrap_err().kind(), ErrorKind::InvalidInput);

    // One byte anywhere is somebody's, unless it is one of the marker's.
    for at in [0, 510, 4096, SLOT, AREA - 1] {
        let foreign = device(512, 1);
        let mut block = [0; 512];
        block[at % 512] = 1;
        foreign.overwrite(at as u64 / 512, &block);
        assert!(matches!(store(&foreign).load(&key(1)), Err(LoadError::Foreign)), "{at}");
        assert!(matches!(store(&foreign).uuid(), Err(LoadError::Foreign)));
        assert!(matches!(store(&foreign).format(&key(1), UUID, b""), Err(FormatError::NotBlank)));
        assert_eq!(foreign.steps(), 0);
    }

    let (device, mut one) = formatted(512, 1, b"first");
    one.write(b"second", false).unwrap();
    let mut other = store(&device);
    assert!(matches!(other.load(&key(2)), Err(LoadError::WrongDeviceKey)));
    assert_eq!(other.uuid().unwrap(), UUID);
    assert!(other.write(b"", false).is_err(), "without the key");
    assert!(matches!(other.format(&key(2), UUID, b""), Err(FormatError::NotBlank)));
    let whole = area(&device);

    // A changed byte of the newest slot leaves the older one; one of both, none.
    let newest = (0..2).find(|slot| store(&device).newest().unwrap().1 == *slot).unwrap();
    for (slots, expected) in [(vec![newest], true), (vec![0, 1], false)] {
        for at in [20, 30, 47, 70, 100, HEADER, HEADER + 20, SLOT - 1] {
            let mut bytes = whole.clone();
            slots.iter().for_each(|slot| bytes[slot * SLOT + at] ^= 1);
            device.overwrite(0, &bytes);
            match payload(&device) {
                Ok(payload) => assert!(expected && payload == b"first", "{at}"),
                Err(error) => assert!(!expected && matches!(error, LoadError::Damaged), "{at}: {error}"),
            }
        }
    }
    // No header leads out of its slot.
    for len in [SLOT as u32, u32::MAX, (SLOT - HEADER + 1) as u32] {
        let mut bytes = whole.clone();
        [20, SLOT + 20].into_iter().for_each(|at| bytes[at..at + 4].copy_from_slice(&len.to_le_bytes()));
        device.overwrite(0, &bytes);
        assert!(matches!(payload(&device), Err(LoadError::Damaged)));
    }
    // A newer program's.
    let header = Header { version: 7, sealed: 3, uuid: UUID, generation: 9, wipes_other: false };
    let mut bytes = vec![0; AREA];
    header.write(b"abc", &mut bytes[..SLOT]);
    device.overwrite(0, &bytes);
    assert!(matches!(payload(&device), Err(LoadError::Version(7))));
    assert!(matches!(store(&device).uuid(), Err(LoadError::Version(7))));
    assert!(matches!(store(&device).format(&key(1), UUID, b""), Err(FormatError::NotBlank)));
    // And one that seals like this one but does not open.
    let header = Header { version: VERSION, ..header };
    let mut bytes = vec![0; AREA];
    header.write(b"abc", &mut bytes[..SLOT]);
    device.overwrite(0, &bytes);
    assert!(matches!(payload(&device), Err(LoadError::WrongDeviceKey)));
}

#[test]
fn wiped_is_gone() {
    let (device, mut one) = formatted(512, 1, &[1; 200_000]);
    let first = sealed(&device).remove(0);
    assert!(has_any_of(&device, &first));
    one.write(&[2; 100], false).unwrap();
    let both = sealed(&device);
    one.write(&[3; 10], true).unwrap();
    assert!(both.iter().chain([&first]).all(|old| !has_any_of(&device, old)));
    assert_eq!(sealed(&device).len(), 1);
}

/// The power fails at every step of a format: then the device is blank or formatted, and can be used.
#[test]
fn power_failures_while_formatting() {
    for block_size in BLOCK_SIZES {
        for seed in 0..32 {
            let device = device(block_size, seed);
            let mut rng = Rng(seed + 1000);
            let bytes = rng.bytes(rng.clone().below(30_000) as usize);
            for _ in 0..3 {
                device.fail_after(seed % 8, Failure::Power);
                let result = store(&device).format(&key(1), UUID, &bytes);
                device.power_on();
                // The finishing of a format may be interrupted too.
                device.fail_after(rng.below(3), Failure::Power);
                let _ = store(&device).load(&key(1));
                device.power_on();
                match payload(&device) {
                    Ok(payload) => {
                        assert_eq!(payload, bytes);
                        break;
                    }
                    Err(LoadError::Blank) => assert!(result.is_err() && store(&device).is_blank().unwrap()),
                    Err(error) => panic!("{error}"),
                }
            }
            if store(&device).is_blank().unwrap() {
                store(&device).format(&key(1), UUID, &bytes).unwrap();
            }
            assert_eq!(payload(&device).unwrap(), bytes);
            assert_eq!(slot::look(area(&device).first_chunk().unwrap()), Slot::Blank, "the marker is gone");
        }
    }
}

/// The power fails at every step of writes: then the old payload or the new one is there; after a wipe only the new one.
#[test]
fn power_failures_while_writing() {
    for (block_size, seeds) in [(512, 24), (4096, 24), (65536, 12)] {
        for seed in 0..seeds {
            let mut rng = Rng(seed);
            let random = |rng: &mut Rng| {
                let longest = if rng.below(16) == 0 { MAX_PAYLOAD as u64 } else { 9000 };
                let len = rng.below(longest);
                rng.bytes(len as usize)
            };
            let mut old = random(&mut rng);
            let (device, mut one) = formatted(block_size, seed, &old);
            for step in 0..10 {
                let (new, wipes) = (random(&mut rng), rng.below(2) == 0);
                let before = sealed(&device);
                device.fail_after(step, Failure::Power);
                let result = one.write(&new, wipes);
                device.power_on();
                // As is what a start makes up for.
                device.fail_after(rng.below(3), Failure::Power);
                let _ = store(&device).load(&key(1));
                device.power_on();
                one = store(&device);
                let loaded = one.load(&key(1)).unwrap().payload.to_vec();
                assert!(loaded == new || result.is_err() && loaded == old, "seed {seed}, step {step}");
                if wipes && loaded == new && new != old {
                    assert!(before.iter().all(|sealed| !has_any_of(&device, sealed)), "wiped");
                }
                old = loaded;
            }
        }
    }
}

/// Steps fail and the program goes on: it knows what is in force, and never destroys it; then the power fails.
#[test]
fn errors_while_writing() {
    for seed in 0..40 {
        let mut rng = Rng(seed);
        let mut in_force = rng.bytes(5000);
        let (device, mut one) = formatted(512, seed, &in_force);
        // What was in force before a payload that was to wipe it.
        let mut to_go: Vec<Vec<u8>> = Vec::new();
        // What may be on the device all the same.
        let mut tried = Vec::new();
        for _ in 0..12 {
            let len = rng.below(20_000) as usize;
            let (new, wipes) = (rng.bytes(len), rng.below(2) == 0);
            let (count, before) = (one.in_force(), sealed(&device));
            if rng.below(3) > 0 {
                device.fail_after(rng.below(6), Failure::Once);
            }
            let result = one.write(&new, wipes);
            tried.push(new.clone());
            assert!(result.is_err() || one.in_force() == count + 1);
            if one.in_force() > count {
                in_force = new;
                tried.clear();
                if wipes {
                    to_go.extend(before);
                }
            }
            if result.is_ok() {
                assert!(device.is_flushed() && !one.is_wipe_pending());
                assert_eq!(payload(&device).unwrap(), in_force);
                assert!(to_go.iter().all(|old| !has_any_of(&device, old)), "wiped");
                to_go.clear();
            }
        }
        device.power_on();
        let loaded = payload(&device).unwrap();
        assert!(loaded == in_force || tried.contains(&loaded), "seed {seed}");
    }
}

mod arbitrary {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is in the area, nothing panics, and what is not blank is not overwritten.
        #[test]
        fn areas(
            from in prop::array::uniform2(0u8..5),
            changes in prop::collection::vec((0..AREA, any::<u8>()), 0..6),
            near in prop::collection::vec((0usize..128, any::<u8>()), 0..3),
        ) {
            let mut bytes = vec![0; AREA];
            for (slot, kind) in bytes.chunks_mut(SLOT).zip(from) {
                match kind {
                    1 => slot[..32].copy_from_slice(&MARKER),
                    2 => slot.fill(0xFF),
                    3 | 4 => Header { version: VERSION, sealed: 40, uuid: UUID, generation: kind.into(), wipes_other: true }
                        .write(&[9; 40], slot),
                    _ => {}
                }
            }
            for (at, byte) in changes.into_iter().chain(near) {
                bytes[at] = byte;
            }
            let device = device(4096, 1);
            device.overwrite(0, &bytes);
            let mut one = store(&device);
            prop_assert!(one.load(&key(1)).is_err());
            prop_assert_eq!(device.steps(), 0);
            let is_blank = one.is_blank().unwrap();
            prop_assert_eq!(one.format(&key(1), UUID, b"new").is_ok(), is_blank);
            if !is_blank {
                prop_assert_eq!(area(&device), bytes);
            }
        }
    }
}
