use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Wake;

use super::*;

#[derive(Default)]
struct Wakes(AtomicU32);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn poll(wait: &mut Wait) -> (Option<Rc<Loan>>, Arc<Wakes>) {
    let wakes = Arc::new(Wakes::default());
    let waker = Waker::from(wakes.clone());
    match Pin::new(wait).poll(&mut Context::from_waker(&waker)) {
        Poll::Ready(loan) => (Some(loan.unwrap()), wakes),
        Poll::Pending => (None, wakes),
    }
}

#[test]
fn buffers_come_again_and_make_room_for_others() {
    let pool = Pool::new(64 << 10);
    let take = |len| pool.take(len, false).unwrap();
    let loan = take(512).unwrap();
    let at = loan.as_ptr();
    assert_eq!(at.addr() % ALIGN, 0);
    assert_eq!(pool.bytes(), (4096, 4096));
    pool.give(loan);
    assert_eq!(pool.bytes(), (4096, 0));
    let loan = take(4096).unwrap();
    assert_eq!(loan.as_ptr(), at, "the same again");
    assert!(take(64 << 10).is_none(), "not beside it");
    assert!(pool.take(64 << 10, true).unwrap().is_some(), "unless it is forced");
    assert_eq!(pool.bytes(), (4096, 4096), "that one is gone again");
    pool.give(loan);
    // More than there is at all, alone; what was free is given up for it.
    let loan = take(100 << 10).unwrap();
    assert_eq!(pool.bytes(), (128 << 10, 128 << 10));
    assert!(take(1).is_none());
    pool.give(loan);
    let loan = take(1).unwrap();
    assert_eq!(pool.bytes(), (4096, 4096), "it was too large to keep");
    // One that somebody else holds, too, comes back when he lets go.
    let other = loan.clone();
    pool.give(loan);
    assert_eq!(pool.bytes(), (4096, 4096));
    drop(other);
    assert_eq!(pool.bytes(), (0, 0));
}

#[test]
fn who_waits_is_served_in_order() {
    let pool = Pool::new(16 << 10);
    let all = pool.take(16 << 10, false).unwrap().unwrap();
    let (mut large, mut gone, mut small) = (pool.wait(16 << 10), pool.wait(8192), pool.wait(1));
    let ((none, large_wakes), (_, gone_wakes), (_, small_wakes)) =
        (poll(&mut large), poll(&mut gone), poll(&mut small));
    assert!(none.is_none());
    pool.give(all);
    assert_eq!(large_wakes.0.load(Ordering::Relaxed), 1);
    assert_eq!(gone_wakes.0.load(Ordering::Relaxed) + small_wakes.0.load(Ordering::Relaxed), 0);
    assert!(pool.take(1, false).unwrap().is_none(), "behind those that wait");
    assert!(poll(&mut small).0.is_none(), "not its turn");
    let all = poll(&mut large).0.expect("its turn");
    drop(gone);
    assert!(poll(&mut small).0.is_none());
    // Cancelled: its last holder lets go.
    drop(all);
    let loan = poll(&mut small).0.expect("its turn");
    pool.give(loan);
    assert_eq!(pool.bytes().1, 0);
    assert!(pool.waiting.borrow().is_empty());
    assert!(pool.take(1, false).unwrap().is_some());
}
