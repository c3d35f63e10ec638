//! [`IoFuture`]: any future of a [`Completed`], stored inline when it is small, so that the hot devices
//! allocate nothing.

use std::future::Future;
use std::marker::{PhantomData, PhantomPinned};
use std::mem::{MaybeUninit, align_of, size_of};
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::Completed;

/// Bytes of a future that is stored without an allocation; larger ones are boxed.
pub const INLINE_SIZE: usize = 192;
/// Largest alignment of a future that is stored without an allocation.
pub const INLINE_ALIGN: usize = 16;

/// Room for a future. Its bytes belong to the type that the vtable beside it knows.
#[repr(C, align(16))]
struct Storage(MaybeUninit<[u8; INLINE_SIZE]>);

const _: () = assert!(align_of::<Storage>() == INLINE_ALIGN && size_of::<Storage>() == INLINE_SIZE);

/// What is known of the erased type.
struct VTable {
    /// Polls the future at the pointer. Requires a live, pinned future of the erased type there.
    poll: unsafe fn(*mut u8, &mut Context<'_>) -> Poll<Completed>,
    /// Drops the future at the pointer in place. Requires a live one; afterwards there is none.
    drop: unsafe fn(*mut u8),
}

/// A future that ends in a [`Completed`].
///
/// `!Unpin`: the owner keeps it in a slot that does not move between the first poll and the drop. It is fused:
/// the inner future is dropped as soon as it is ready, and a poll after that is pending for ever.
pub struct IoFuture {
    storage: Storage,
    vtable: &'static VTable,
    /// The stored future may hold pointers into itself, and may belong to this thread.
    _marker: PhantomData<(PhantomPinned, *mut ())>,
}

impl IoFuture {
    /// Erases the type of `future`.
    pub fn new(future: impl Future<Output = Completed> + 'static) -> Self {
        Self::erase(future)
    }

    fn erase<F: Future<Output = Completed> + 'static>(future: F) -> Self {
        if const { fits::<F>() } { Self::inline(future) } else { Self::inline(Box::pin(future)) }
    }

    fn inline<F: Future<Output = Completed> + 'static>(future: F) -> Self {
        assert!(fits::<F>()); // known at compile time, but a `const` block would fail for the branch not taken
        let mut storage = Storage(MaybeUninit::uninit());
        // SAFETY: the storage is large and aligned enough for an `F` (asserted above) and exclusively ours;
        // writing does not read or drop its uninitialised bytes.
        unsafe { storage.0.as_mut_ptr().cast::<F>().write(future) };
        Self { storage, vtable: vtable::<F>(), _marker: PhantomData }
    }
}

const fn fits<F>() -> bool {
    size_of::<F>() <= INLINE_SIZE && align_of::<F>() <= INLINE_ALIGN
}

fn vtable<F: Future<Output = Completed> + 'static>() -> &'static VTable {
    /// # Safety
    /// `at` points to a live `F` that will not move until it is dropped, and that nothing else refers to.
    unsafe fn poll<F: Future<Output = Completed>>(at: *mut u8, cx: &mut Context<'_>) -> Poll<Completed> {
        // SAFETY: live, unaliased and pinned by this function's contract.
        unsafe { Pin::new_unchecked(&mut *at.cast::<F>()) }.poll(cx)
    }
    /// # Safety
    /// `at` points to a live `F` that nothing else refers to, and that is not used afterwards.
    unsafe fn drop<F>(at: *mut u8) {
        // SAFETY: by this function's contract.
        unsafe { std::ptr::drop_in_place(at.cast::<F>()) };
    }
    const { &VTable { poll: poll::<F>, drop: drop::<F> } }
}

/// The vtable of a storage with nothing in it.
static SPENT: VTable = {
    unsafe fn poll(_: *mut u8, _: &mut Context<'_>) -> Poll<Completed> {
        Poll::Pending
    }
    unsafe fn drop(_: *mut u8) {}
    VTable { poll, drop }
};

impl Future for IoFuture {
    type Output = Completed;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completed> {
        // SAFETY: nothing is moved out of `this`: the storage is only reached by pointer.
        let this = unsafe { self.get_unchecked_mut() };
        let at = this.storage.0.as_mut_ptr().cast::<u8>();
        // SAFETY: the vtable belongs to what is in the storage: both are set together in `inline`, and below
        // when the future is gone. It is pinned because `self` is, and only reached through `self`.
        let poll = unsafe { (this.vtable.poll)(at, cx) };
        if poll.is_ready() {
            // First, so that a panic in the drop below cannot lead to a second one.
            let vtable = std::mem::replace(&mut this.vtable, &SPENT);
            // SAFETY: still live, dropped in place as pinning asks for, and not reachable any more.
            unsafe { (vtable.drop)(at) };
        }
        poll
    }
}

impl Drop for IoFuture {
    fn drop(&mut self) {
        // SAFETY: the vtable belongs to what is in the storage (see `poll`), which is not used any more. If the
        // future was pinned then it still is: a pinned `IoFuture` is dropped where it lies.
        unsafe { (self.vtable.drop)(self.storage.0.as_mut_ptr().cast::<u8>()) };
    }
}

/// Gives way once: other futures of this thread are polled before this one goes on. For long work that is done
/// in pieces on the spot.
pub async fn yield_now() {
    let mut yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::pin::pin;
    use std::rc::Rc;
    use std::task::Waker;

    use super::*;
    use crate::{Io, Op};

    fn completed() -> Completed {
        Io::new(Op::Flush, 0, 0, Vec::new(), None, 0).complete(Ok(()))
    }

    /// Counts its drops, carries `N` bytes, and is ready at the `polls`-th poll.
    struct Probe<const N: usize> {
        drops: Rc<Cell<u32>>,
        polls: u32,
        bytes: [u8; N],
        first_at: Option<*const ()>,
        _pinned: PhantomPinned,
    }

    impl<const N: usize> Future for Probe<N> {
        type Output = Completed;

        fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Completed> {
            // SAFETY: nothing is moved.
            let this = unsafe { self.get_unchecked_mut() };
            let at = std::ptr::from_ref(this).cast();
            assert_eq!(*this.first_at.get_or_insert(at), at, "moved while pinned");
            assert!(this.bytes.iter().all(|byte| *byte == 0xa5));
            this.polls -= 1;
            if this.polls == 0 { Poll::Ready(completed()) } else { Poll::Pending }
        }
    }

    impl<const N: usize> Drop for Probe<N> {
        fn drop(&mut self) {
            self.drops.set(self.drops.get() + 1);
        }
    }

    fn probe<const N: usize>(polls: u32) -> (Rc<Cell<u32>>, IoFuture) {
        let drops = Rc::new(Cell::new(0));
        let probe =
            Probe { drops: drops.clone(), polls, bytes: [0xa5; N], first_at: None, _pinned: PhantomPinned };
        (drops, IoFuture::new(probe))
    }

    fn runs_and_drops_once<const N: usize>() {
        let mut cx = Context::from_waker(Waker::noop());
        // Never polled.
        let (drops, future) = probe::<N>(1);
        let moved = future;
        drop(moved);
        assert_eq!(drops.get(), 1);
        // Dropped between two polls.
        let (drops, future) = probe::<N>(3);
        let mut future = Box::pin(future);
        assert!(future.as_mut().poll(&mut cx).is_pending());
        assert_eq!(drops.get(), 0);
        drop(future);
        assert_eq!(drops.get(), 1);
        // To the end: dropped when ready, then pending for ever.
        let (drops, future) = probe::<N>(2);
        {
            let mut future = pin!(future);
            assert!(future.as_mut().poll(&mut cx).is_pending());
            assert!(future.as_mut().poll(&mut cx).is_ready());
            assert_eq!(drops.get(), 1);
            assert!(future.as_mut().poll(&mut cx).is_pending());
        }
        assert_eq!(drops.get(), 1);
    }

    #[test]
    fn small_and_large_futures_run_and_drop_once() {
        runs_and_drops_once::<0>();
        runs_and_drops_once::<100>();
        runs_and_drops_once::<4096>();
    }

    #[test]
    fn alignment_beyond_the_storage_is_boxed() {
        #[repr(align(64))]
        struct Wide(u8);
        let wide = Wide(7);
        let future = IoFuture::new(async move {
            let wide = wide;
            yield_now().await;
            assert_eq!(std::ptr::from_ref(&wide).addr() % 64, 0);
            assert_eq!(wide.0, 7);
            completed()
        });
        let mut future = pin!(future);
        let mut cx = Context::from_waker(Waker::noop());
        assert!(future.as_mut().poll(&mut cx).is_pending());
        assert!(future.as_mut().poll(&mut cx).is_ready());
    }

    #[test]
    fn a_panic_in_poll_leaves_it_droppable() {
        let drops = Rc::new(Cell::new(0));
        let inner = Probe::<8> {
            drops: drops.clone(),
            polls: 1,
            bytes: [0; 8], // makes `poll` panic
            first_at: None,
            _pinned: PhantomPinned,
        };
        let mut future = Box::pin(IoFuture::new(inner));
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let _ = future.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        }));
        assert!(panicked.is_err());
        drop(future);
        assert_eq!(drops.get(), 1);
    }

    #[test]
    fn size_is_bounded() {
        assert!(size_of::<IoFuture>() <= INLINE_SIZE + 16);
    }
}
