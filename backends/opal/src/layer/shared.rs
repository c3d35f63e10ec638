//! [`Shared`]: what the channels of a drive have in common: its geometry, and the map that was published last.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use arc_swap::ArcSwap;
use block::reactor::Ticket;
use block::{Abilities, Info};

use super::map::{Extent, RangeMap};
use super::outer_info;
use crate::Layout;

/// Shared by all channels of a drive. An I/O costs one load of its generation.
pub struct Shared {
    sparse: bool,
    /// Zeroes are zeroes below.
    passes_zeroes: bool,
    /// Grows with every change of the state, after it.
    generation: AtomicU64,
    state: ArcSwap<State>,
    registry: Mutex<Registry>,
}

/// Replaced whole.
pub(super) struct State {
    pub(super) map: RangeMap,
    pub(super) layout: Layout,
    /// What the drive is like.
    pub(super) info: Info,
    /// Held by every epoch that was made of this state.
    pub(super) alive: Arc<Alive>,
}

/// See [`State::alive`].
pub(super) struct Alive;

#[derive(Default)]
struct Registry {
    members: Vec<Member>,
    last: u64,
    /// Of the states before this one.
    former: Vec<Weak<Alive>>,
}

/// A channel.
struct Member {
    id: u64,
    /// Makes it look at the state. `None` while it is about to.
    ticket: Option<Ticket>,
}

impl Shared {
    /// What the channels of a drive share, which lies on a device like `inner` as `layout` says. All is locked until the first
    /// [`Self::publish`].
    pub fn new(inner: &Info, layout: Layout, sparse: bool) -> Arc<Self> {
        let all = Extent { end: u64::MAX, read_locked: true, write_locked: true, key: None };
        let state = State {
            map: RangeMap { extents: vec![all], shadow: None },
            layout,
            info: outer_info(inner, &layout, sparse),
            alive: Arc::new(Alive),
        };
        Arc::new(Self {
            sparse,
            passes_zeroes: sparse && inner.abilities.contains(Abilities::WRITE_ZEROES),
            generation: AtomicU64::new(1),
            state: ArcSwap::from_pointee(state),
            registry: Mutex::default(),
        })
    }

    /// What the drive is like now.
    pub fn info(&self) -> Info {
        self.state.load().info.clone()
    }

    /// Replaces the map. Every `Io` that is submitted after this has returned obeys the new one, on any thread that knows that
    /// it has.
    pub fn publish(&self, map: RangeMap) {
        self.change(|state| State {
            map,
            layout: state.layout,
            info: state.info.clone(),
            alive: Arc::new(Alive),
        });
    }

    /// The device below has changed: it is like `inner` now, and the drive lies on it as `layout` says.
    pub fn resize(&self, inner: &Info, layout: Layout) {
        self.change(|state| State {
            map: RangeMap { extents: state.map.extents.clone(), shadow: state.map.shadow.clone() },
            layout,
            info: outer_info(inner, &layout, self.sparse),
            alive: Arc::new(Alive),
        });
    }

    /// Whether no channel has anything left of the maps before this one: neither cached nor for an I/O under way. (Keys that
    /// are in this one too are kept, of course.)
    pub fn is_settled(&self) -> bool {
        let mut registry = self.registry();
        registry.former.retain(|alive| alive.strong_count() > 0);
        registry.former.is_empty()
    }

    fn change(&self, next: impl FnOnce(&State) -> State) {
        let mut registry = self.registry(); // one change at a time
        let before = self.state.load_full();
        self.state.store(Arc::new(next(&before)));
        // Release: who sees the generation sees the state.
        self.generation.fetch_add(1, Ordering::Release);
        registry.former.retain(|alive| alive.strong_count() > 0);
        registry.former.push(Arc::downgrade(&before.alive));
        drop(before);
        let tickets: Vec<_> = registry.members.iter_mut().filter_map(|member| member.ticket.take()).collect();
        drop(registry);
        tickets.into_iter().for_each(|ticket| ticket.complete(0));
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn is_sparse(&self) -> bool {
        self.sparse
    }

    pub(super) fn passes_zeroes(&self) -> bool {
        self.passes_zeroes
    }

    #[inline]
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// A new channel.
    pub(super) fn join(&self) -> u64 {
        let mut registry = self.registry();
        registry.last += 1;
        let id = registry.last;
        registry.members.push(Member { id, ticket: None });
        id
    }

    /// Completes `ticket` when the state is no longer that of `generation`: soon, if it is not now.
    pub(super) fn leave_ticket(&self, id: u64, ticket: Ticket, generation: u64) {
        let mut registry = self.registry();
        if self.generation() != generation {
            drop(registry);
            return ticket.complete(0);
        }
        if let Some(member) = registry.members.iter_mut().find(|member| member.id == id) {
            member.ticket = Some(ticket);
        }
    }

    /// A channel is gone.
    pub(super) fn quit(&self, id: u64) {
        let mut registry = self.registry();
        let at = registry.members.iter().position(|member| member.id == id);
        let member = at.map(|at| registry.members.swap_remove(at));
        drop(registry);
        drop(member); // completes its ticket
    }
}
