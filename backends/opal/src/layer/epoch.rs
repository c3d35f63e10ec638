//! [`Epoch`]: what one channel has made of a published map: key schedules of its own.

use std::rc::Rc;
use std::sync::Arc;

use block::{Error, ErrorKind, Info, Op};

use super::shared::{Alive, Shared, State};
use crate::crypto::xts::{XtsCipher, XtsKey};

pub(super) struct Epoch {
    pub(super) generation: u64,
    /// What the drive is like.
    pub(super) info: Info,
    /// The block below of the drive's block 0, and of the MBR table's.
    pub(super) data_start: u64,
    pub(super) mbr_start: u64,
    mbr_blocks: u64,
    extents: Vec<View>,
    shadow: Option<Rc<Schedules>>,
    _alive: Arc<Alive>,
}

/// An [`Extent`](super::map::Extent).
struct View {
    end: u64,
    read_locked: bool,
    write_locked: bool,
    schedules: Option<Rc<Schedules>>,
}

/// What was made of a key.
struct Schedules {
    key: Arc<XtsKey>,
    cipher: XtsCipher,
}

/// Which blocks a read shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Those of the drive.
    Data,
    /// Those of the MBR table.
    Shadow,
}

impl Epoch {
    /// What the state is now, with what was made for `before` where keys are the same.
    pub(super) fn new(shared: &Shared, before: Option<&Self>) -> Result<Self, Error> {
        // In this order: a state that is newer than its generation says is only looked at once more.
        let generation = shared.generation();
        let state: Arc<State> = shared.state();
        let mut known: Vec<Rc<Schedules>> = before.map(Self::schedules).unwrap_or_default();
        let mut of = |key: &Option<Arc<XtsKey>>| -> Result<Option<Rc<Schedules>>, Error> {
            let Some(key) = key else { return Ok(None) };
            if let Some(made) = known.iter().find(|made| Arc::ptr_eq(&made.key, key)) {
                return Ok(Some(made.clone()));
            }
            let made = Rc::new(Schedules { key: key.clone(), cipher: XtsCipher::new(key)? });
            known.push(made.clone());
            Ok(Some(made))
        };
        let mut extents = Vec::with_capacity(state.map.extents.len());
        for extent in &state.map.extents {
            let (read_locked, write_locked) = (extent.read_locked, extent.write_locked);
            let schedules = if read_locked && write_locked { None } else { of(&extent.key)? };
            extents.push(View { end: extent.end, read_locked, write_locked, schedules });
        }
        Ok(Self {
            generation,
            info: state.info.clone(),
            data_start: state.layout.data_start(),
            mbr_start: state.layout.mbr_start(),
            mbr_blocks: state.layout.mbr_blocks(),
            extents,
            shadow: of(&state.map.shadow)?,
            _alive: state.alive.clone(),
        })
    }

    fn schedules(&self) -> Vec<Rc<Schedules>> {
        let extents = self.extents.iter().filter_map(|view| view.schedules.clone());
        extents.chain(self.shadow.clone()).collect()
    }

    /// What a read of blocks `lba..lba + blocks` (at least one) shows; or that it is denied.
    #[inline]
    pub(super) fn read(&self, lba: u64, blocks: u64) -> Result<Place, Error> {
        if self.shadow.is_some() && lba < self.mbr_blocks {
            // One that starts in the table and ends beyond it is denied.
            return if blocks <= self.mbr_blocks - lba { Ok(Place::Shadow) } else { Err(denied()) };
        }
        self.check(lba, blocks, |view| view.read_locked).map(|()| Place::Data)
    }

    /// Whether `op`, which changes blocks `lba..lba + blocks` (at least one), may do so.
    #[inline]
    pub(super) fn change(&self, op: Op, lba: u64, blocks: u64) -> Result<(), Error> {
        if self.shadow.is_some() {
            return Err(denied());
        }
        // Who compares learns what is there.
        let reads = op == Op::CompareAndWrite;
        self.check(lba, blocks, |view| view.write_locked || reads && view.read_locked)
    }

    #[inline]
    fn check(&self, lba: u64, blocks: u64, is_locked: impl Fn(&View) -> bool) -> Result<(), Error> {
        let end = lba + blocks;
        for view in &self.extents[self.first(lba)..] {
            // A missing key where it should be is a defect: better no data than noise.
            if is_locked(view) || view.schedules.is_none() {
                return Err(denied());
            }
            if end <= view.end {
                return Ok(());
            }
        }
        Err(denied()) // the map does not reach so far
    }

    /// The number of the extent that has block `lba`.
    #[inline]
    fn first(&self, lba: u64) -> usize {
        match &self.extents[..] {
            [_] => 0,
            extents => extents.partition_point(|view| view.end <= lba),
        }
    }

    /// Blocks `lba..lba + blocks`, cut where the key changes.
    #[inline]
    pub(super) fn runs(&self, place: Place, lba: u64, blocks: u64) -> Runs<'_> {
        Runs { epoch: self, place, next: self.first(lba), at: lba, end: lba + blocks }
    }
}

#[cold]
fn denied() -> Error {
    Error::new(ErrorKind::AccessDenied, "locked by the drive's security subsystem")
}

/// Neighbouring blocks with one key.
pub(super) struct Run<'a> {
    pub(super) first: u64,
    pub(super) blocks: u64,
    pub(super) cipher: &'a XtsCipher,
}

/// See [`Epoch::runs`]. Ends early where there is no key, which the checks above exclude.
pub(super) struct Runs<'a> {
    epoch: &'a Epoch,
    place: Place,
    next: usize,
    at: u64,
    end: u64,
}

impl<'a> Iterator for Runs<'a> {
    type Item = Run<'a>;

    #[inline]
    fn next(&mut self) -> Option<Run<'a>> {
        if self.at >= self.end {
            return None;
        }
        let (schedules, end) = match self.place {
            Place::Shadow => (&self.epoch.shadow, self.end),
            Place::Data => {
                let view = self.epoch.extents.get(self.next)?;
                self.next += 1;
                (&view.schedules, self.end.min(view.end))
            }
        };
        let first = std::mem::replace(&mut self.at, end);
        Some(Run { first, blocks: end - first, cipher: &schedules.as_ref()?.cipher })
    }
}
