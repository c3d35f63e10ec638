//! [`PowerDevice`]: a disk in memory with a volatile cache, whose power fails at a chosen moment.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Rng;
use crate::{Abilities, Channel, Device, Error, ErrorKind, Flags, Info, Io, Op, Reactor, Submission};

/// What happens at the chosen step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// Everything fails from then on, until [`PowerDevice::power_on`]. What is lost is decided then.
    Power,
    /// This step fails alone. It may have done nothing, all, or a part of what it was to do.
    Once,
}

/// A disk in memory, blank at first. What was written since the last flush is, after a power failure and for each block by
/// itself, kept, lost, or torn at any byte. Its clones are the same disk. Keeps only the blocks that are not zeroes.
#[derive(Clone)]
pub struct PowerDevice {
    shared: Arc<Shared>,
}

struct Shared {
    info: Info,
    state: Mutex<State>,
}

/// A block; `None` is zeroes.
type Block = Option<Box<[u8]>>;

struct State {
    block_size: usize,
    durable: HashMap<u64, Box<[u8]>>,
    /// What was written since the last flush, oldest first.
    cached: BTreeMap<u64, Vec<Block>>,
    /// Writes, flushes, discards so far.
    steps: u64,
    failure: Option<(u64, Failure)>,
    is_off: bool,
    rng: Rng,
}

impl PowerDevice {
    /// A blank disk of `blocks` blocks of `block_size` bytes. `seed` decides about what is lost.
    pub fn new(block_size: u32, blocks: u64, seed: u64) -> Self {
        let mut info = Info::new(block_size, blocks);
        info.abilities = Abilities::WRITE
            | Abilities::VOLATILE_CACHE
            | Abilities::WRITE_ZEROES
            | Abilities::DISCARD
            | Abilities::DISCARD_ZEROES;
        let state = State {
            block_size: block_size as usize,
            durable: HashMap::new(),
            cached: BTreeMap::new(),
            steps: 0,
            failure: None,
            is_off: false,
            rng: Rng(seed),
        };
        Self { shared: Arc::new(Shared { info, state: Mutex::new(state) }) }
    }

    /// Operations so far that were to change something: writes, flushes, discards, zeroes.
    pub fn steps(&self) -> u64 {
        self.shared.lock().steps
    }

    /// Has the operation fail before which there are `after` more of those that [`Self::steps`] counts.
    pub fn fail_after(&self, after: u64, failure: Failure) {
        let mut state = self.shared.lock();
        state.failure = Some((state.steps.saturating_add(after), failure));
    }

    /// Whether the chosen step has come.
    pub fn has_failed(&self) -> bool {
        self.shared.lock().failure.is_none()
    }

    /// The power fails now (if it has not) and comes back: what was not flushed is kept, lost or torn.
    pub fn power_on(&self) {
        let mut state = self.shared.lock();
        let state = &mut *state;
        (state.is_off, state.failure) = (false, None);
        for (lba, versions) in std::mem::take(&mut state.cached) {
            let mut versions = versions;
            versions.insert(0, state.durable.get(&lba).cloned());
            let one = state.rng.below(versions.len() as u64) as usize;
            let mut block = versions[one].clone();
            if state.rng.below(3) == 0 {
                let other = versions[state.rng.below(versions.len() as u64) as usize].clone();
                let at = state.rng.below(state.block_size as u64) as usize;
                block = tear(block, other, at, state.block_size);
            }
            state.set_durable(lba, block);
        }
    }

    /// The bytes of `blocks` blocks from `lba` on as a power failure now could leave them at best: those that were flushed.
    pub fn durable(&self, lba: u64, blocks: u64) -> Vec<u8> {
        let state = self.shared.lock();
        let zeroes = vec![0; state.block_size];
        (lba..lba + blocks)
            .flat_map(|lba| state.durable.get(&lba).map_or(&zeroes[..], |b| b).to_vec())
            .collect()
    }

    /// Whether all that was written is durable.
    pub fn is_flushed(&self) -> bool {
        self.shared.lock().cached.is_empty()
    }

    /// Overwrites bytes, durably, as somebody else does who has the disk.
    ///
    /// # Panics
    /// If they are not whole blocks.
    pub fn overwrite(&self, lba: u64, bytes: &[u8]) {
        let mut state = self.shared.lock();
        assert!(bytes.len().is_multiple_of(state.block_size));
        let size = state.block_size;
        for (lba, block) in (lba..).zip(bytes.chunks(size)) {
            state.cached.remove(&lba);
            state.set_durable(lba, Some(block.into()));
        }
    }
}

/// The bytes of `one` before `at`, and those of `other` from there on.
fn tear(one: Block, other: Block, at: usize, size: usize) -> Block {
    let zeroes = || vec![0; size].into_boxed_slice();
    let mut block = one.unwrap_or_else(zeroes);
    block[at..].copy_from_slice(&other.unwrap_or_else(zeroes)[at..]);
    Some(block)
}

impl State {
    fn set_durable(&mut self, lba: u64, block: Block) {
        match block {
            Some(block) => self.durable.insert(lba, block),
            None => self.durable.remove(&lba),
        };
    }

    fn flush(&mut self) {
        for (lba, versions) in std::mem::take(&mut self.cached) {
            self.set_durable(lba, versions.into_iter().last().flatten());
        }
    }

    /// Writes the first `blocks` blocks of an `Io`.
    fn change(&mut self, io: &Io, blocks: u64, is_durable: bool) {
        let mut bytes = vec![0; self.block_size];
        for n in 0..blocks {
            let block = (io.op == Op::Write).then(|| {
                io.gather(n as usize * self.block_size, &mut bytes);
                bytes.clone().into_boxed_slice()
            });
            if is_durable {
                self.cached.remove(&(io.lba + n));
                self.set_durable(io.lba + n, block);
            } else {
                self.cached.entry(io.lba + n).or_default().push(block);
            }
        }
    }

    /// The chosen failure of this step.
    fn fail(&mut self, io: &Io, failure: Failure) {
        match (failure, io.op) {
            // How far it gets is a part of what the power failure decides.
            (Failure::Power, Op::Flush) => {}
            (Failure::Power, _) => self.change(io, io.blocks, false),
            (Failure::Once, Op::Flush) => match self.rng.below(3) {
                0 => {}
                1 => self.flush(),
                // As Linux does when it cannot write what it has in memory: the next flush knows nothing of it.
                _ => self.cached.clear(),
            },
            (Failure::Once, _) => {
                let some = self.rng.below(io.blocks + 1);
                self.change(io, some, false);
            }
        }
    }

    fn run(&mut self, io: &Io, info: &Info) -> Result<(), Error> {
        io.check(info)?;
        if self.is_off {
            return Err(Error::new(ErrorKind::Unreachable, "the power has failed"));
        }
        if io.op == Op::Read {
            let zeroes = vec![0; self.block_size];
            for n in 0..io.blocks {
                let lba = io.lba + n;
                let block = match self.cached.get(&lba).and_then(|versions| versions.last()) {
                    Some(block) => block.as_ref(),
                    None => self.durable.get(&lba),
                };
                io.scatter(n as usize * self.block_size, block.map_or(&zeroes[..], |block| block));
            }
            return Ok(());
        }
        let step = self.steps;
        self.steps += 1;
        if let Some((_, failure)) = self.failure.take_if(|(at, _)| *at <= step) {
            self.fail(io, failure);
            self.is_off = failure == Failure::Power;
            return Err(Error::new(ErrorKind::WriteFault, "this step was to fail"));
        }
        match io.op {
            Op::Flush => self.flush(),
            Op::Write | Op::WriteZeroes | Op::Discard => {
                self.change(io, io.blocks, io.flags.contains(Flags::FUA));
            }
            _ => return Err(ErrorKind::Unsupported.into()),
        }
        Ok(())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Device for PowerDevice {
    fn info(&self) -> Info {
        self.shared.info.clone()
    }

    fn channel(&self, _: &Reactor) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(PowerChannel(self.shared.clone())))
    }
}

struct PowerChannel(Arc<Shared>);

impl Channel for PowerChannel {
    fn submit(&self, io: Io) -> Submission {
        let result = self.0.lock().run(&io, &self.0.info);
        Submission::Done(io.complete(result))
    }
}
