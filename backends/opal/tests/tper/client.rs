//! A host of a TPer: what it sends, byte by byte, and what it gets.

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Instant;

use block_opal::Layout;
use block_opal::crypto::kdf::Cost;
use block_opal::crypto::xts::XtsKey;
use block_opal::secret::Secret;
use block_opal::tper::credential::LocalKeys;
use block_opal::tper::state::State;
use block_opal::tper::{Area, Medium, MediumError, Reset, Tper};

pub const ADMIN_SP: u64 = 0x0000_0205_0000_0001;
pub const LOCKING_SP: u64 = 0x0000_0205_0000_0002;
pub const THIS_SP: u64 = 1;
pub const SID: u64 = 0x0000_0009_0000_0006;
pub const PSID: u64 = 0x0000_0009_0001_FF01;
pub const ADMIN1: u64 = 0x0000_0009_0001_0001;
pub const USER: u64 = 0x0000_0009_0003_0000;
pub const C_PIN_SID: u64 = 0x0000_000B_0000_0001;
pub const C_PIN_MSID: u64 = 0x0000_000B_0000_8402;
pub const C_PIN_USER: u64 = 0x0000_000B_0003_0000;
pub const GLOBAL: u64 = 0x0000_0802_0000_0001;
pub const RANGE: u64 = 0x0000_0802_0003_0000;
pub const KEY: u64 = 0x0000_0806_0003_0000;
pub const MBR_CONTROL: u64 = 0x0000_0803_0000_0001;
pub const MBR: u64 = 0x0000_0804_0000_0000;
pub const ACE: u64 = 0x0000_0008_0000_0000;
pub const GET: u64 = 0x0000_0006_0000_0016;
pub const SET: u64 = 0x0000_0006_0000_0017;
pub const NEXT: u64 = 0x0000_0006_0000_0008;
pub const GEN_KEY: u64 = 0x0000_0006_0000_0010;
pub const REVERT_SP: u64 = 0x0000_0006_0000_0011;
pub const AUTHENTICATE: u64 = 0x0000_0006_0000_001C;
pub const REVERT: u64 = 0x0000_0006_0000_0202;
pub const ACTIVATE: u64 = 0x0000_0006_0000_0203;
pub const RANDOM: u64 = 0x0000_0006_0000_0601;
pub const ERASE: u64 = 0x0000_0006_0000_0803;

pub const HSN: u32 = 0x69;

/// What is durable, and how often something was made so. A copy of it is the drive after a power failure.
#[derive(Clone, Default)]
pub struct Kept {
    pub state: Option<State>,
    pub tables: std::collections::BTreeMap<(bool, u64), u8>,
    pub steps: u32,
    /// Nothing is kept from this step on.
    pub dies_at: Option<u32>,
}

#[derive(Clone, Default)]
pub struct Memory(pub Rc<RefCell<Kept>>);

impl Memory {
    fn step(&self) -> Result<(), MediumError> {
        let mut kept = self.0.borrow_mut();
        kept.steps += 1;
        if kept.dies_at.is_some_and(|at| kept.steps > at) { Err(MediumError) } else { Ok(()) }
    }
}

impl Medium for Memory {
    fn commit(&mut self, state: &State, _: bool) -> Result<(), MediumError> {
        self.step()?;
        self.0.borrow_mut().state = Some(state.clone());
        Ok(())
    }

    fn read(&mut self, area: Area, _: &XtsKey, offset: u64, bytes: &mut [u8]) -> Result<(), MediumError> {
        let kept = self.0.borrow();
        for (at, byte) in (offset..).zip(bytes) {
            *byte = kept.tables.get(&(area == Area::Mbr, at)).copied().unwrap_or(0);
        }
        Ok(())
    }

    fn write(&mut self, area: Area, _: &XtsKey, offset: u64, bytes: &[u8]) -> Result<(), MediumError> {
        self.step()?;
        let tables = &mut self.0.borrow_mut().tables;
        tables.extend((offset..).zip(bytes).map(|(at, byte)| ((area == Area::Mbr, at), *byte)));
        Ok(())
    }

    fn wipe(&mut self) -> Result<(), MediumError> {
        self.step()?;
        self.0.borrow_mut().tables.clear();
        Ok(())
    }
}

/// 1 GiB of 512-byte blocks below.
pub fn layout() -> Layout {
    Layout::on(512, 1 << 21).expect("room")
}

pub fn local() -> LocalKeys {
    LocalKeys::derive(&Secret::copy(&[7; 32]), &[9; 16])
}

/// A host and its drive.
pub struct Host {
    pub tper: Tper,
    pub memory: Memory,
    pub tsn: u32,
}

impl Host {
    pub fn new() -> Self {
        Self::on(Tper::factory(&local()).expect("random bytes"), Memory::default())
    }

    pub fn on(state: State, memory: Memory) -> Self {
        let medium = Box::new(memory.clone());
        let tper = Tper::start(state, local(), medium, &layout(), Cost::LEAST).expect("starts");
        Self { tper, memory, tsn: 0 }
    }

    pub fn raw(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.tper.send(1, 0x1000, bytes, Instant::now()).expect("sent");
        self.tper.receive(1, 0x1000, 65_536).expect("received")
    }

    /// The stream of the answer.
    pub fn exchange(&mut self, tsn: u32, hsn: u32, stream: &[u8]) -> Vec<u8> {
        let answer = self.raw(&frame(tsn, hsn, stream));
        if answer.len() < 56 {
            return Vec::new();
        }
        let len = u32::from_be_bytes(answer[52..56].try_into().expect("four")) as usize;
        answer[56..56 + len].to_vec()
    }

    /// A method call: the tokens of its results, or its status.
    pub fn call(&mut self, object: u64, method: u64, args: &[u8]) -> Result<Vec<u8>, u8> {
        let stream = method_call(object, method, args);
        result(&self.exchange(self.tsn, HSN, &stream))
    }

    pub fn start(&mut self, sp: u64, who: Option<(u64, &[u8])>) -> Result<(), u8> {
        let mut args = vec![0x81, HSN as u8];
        args.extend(uid(sp));
        args.push(1);
        if let Some((authority, pin)) = who {
            args.extend([&[0xF2, 0][..], &bytes(pin), &[0xF3, 0xF2, 3], &uid(authority), &[0xF3]].concat());
        }
        let answer = self.exchange(0, 0, &method_call(0xFF, 0xFF02, &args));
        let results = result(&answer[19..])?;
        // F0 81 69 8x tsn.. F1
        let tsn = &results[3..results.len() - 1];
        self.tsn = tsn[1..].iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte));
        Ok(())
    }

    pub fn end(&mut self) {
        assert_eq!(self.exchange(self.tsn, HSN, &[0xFA]), [0xFA]);
    }

    /// In a session of its own.
    pub fn within<T>(&mut self, sp: u64, who: Option<(u64, &[u8])>, run: impl FnOnce(&mut Self) -> T) -> T {
        self.start(sp, who).expect("a session");
        let result = run(self);
        self.end();
        result
    }

    pub fn msid(&mut self) -> Vec<u8> {
        self.within(ADMIN_SP, None, |host| host.get(C_PIN_MSID, 3, 3)).expect("readable")[6..38].to_vec()
    }

    pub fn get(&mut self, object: u64, first: u8, last: u8) -> Result<Vec<u8>, u8> {
        self.call(object, GET, &[0xF0, 0xF2, 3, first, 0xF3, 0xF2, 4, last, 0xF3, 0xF1])
    }

    pub fn set(&mut self, object: u64, columns: &[(u8, Vec<u8>)]) -> Result<(), u8> {
        let mut args = vec![0xF2, 1, 0xF0];
        for (column, value) in columns {
            args.extend([&[0xF2, *column][..], value, &[0xF3]].concat());
        }
        args.extend([0xF1, 0xF3]);
        self.call(object, SET, &args).map(drop)
    }

    /// Takes ownership and activates: SID and Admin1 have this PIN.
    pub fn own(&mut self, pin: &[u8]) {
        let msid = self.msid();
        self.within(ADMIN_SP, Some((SID, &msid)), |host| {
            host.set(C_PIN_SID, &[(3, bytes(pin))]).expect("PIN set");
            host.call(LOCKING_SP, ACTIVATE, &[]).expect("activated");
        });
    }

    /// The drive after its power failed: what is kept, and nothing else.
    pub fn power_cycle(self) -> Self {
        let kept = self.memory.0.borrow().clone();
        let state = kept.state.clone().expect("a state");
        Self::on(state, Memory(Rc::new(RefCell::new(Kept { dies_at: None, ..kept }))))
    }

    /// The locks and the key of a block.
    pub fn block(&self, lba: u64) -> (bool, bool, Option<[u8; 64]>) {
        let map = self.tper.map();
        let extent = map.extents.iter().find(|extent| lba < extent.end).expect("every block");
        (extent.read_locked, extent.write_locked, extent.key.as_ref().map(|key| *key.bytes()))
    }

    pub fn reset(&mut self, reset: Reset) {
        self.tper.reset(reset).expect("kept");
    }
}

pub fn frame(tsn: u32, hsn: u32, stream: &[u8]) -> Vec<u8> {
    let padded = stream.len().next_multiple_of(4);
    let mut out = vec![0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    out.extend((padded as u32 + 36).to_be_bytes());
    out.extend(tsn.to_be_bytes());
    out.extend(hsn.to_be_bytes());
    out.extend([0; 12]);
    out.extend((padded as u32 + 12).to_be_bytes());
    out.extend([0; 8]);
    out.extend((stream.len() as u32).to_be_bytes());
    out.extend(stream);
    out.resize(56 + padded, 0);
    out
}

pub fn uid(uid: u64) -> Vec<u8> {
    [&[0xA8][..], &uid.to_be_bytes()].concat()
}

pub fn bytes(value: &[u8]) -> Vec<u8> {
    let len = value.len();
    [&[0xD0 | (len >> 8) as u8, len as u8][..], value].concat()
}

pub fn method_call(object: u64, method: u64, args: &[u8]) -> Vec<u8> {
    [&[0xF8][..], &uid(object), &uid(method), &[0xF0], args, &[0xF1, 0xF9, 0xF0, 0, 0, 0, 0xF1]].concat()
}

/// The results, or the status.
pub fn result(stream: &[u8]) -> Result<Vec<u8>, u8> {
    let (results, end) = stream.split_at(stream.len().checked_sub(6).expect("an answer"));
    assert_eq!((end[0], end[1], &end[3..]), (0xF9, 0xF0, &[0, 0, 0xF1][..]), "{stream:02x?}");
    if end[2] == 0 { Ok(results.to_vec()) } else { Err(end[2]) }
}
