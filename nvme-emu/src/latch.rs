//! A latch: a future that resolves when every clone of its token is dropped. Control threads wait on it for
//! work that workers do; a worker that dies releases it too.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    released: bool,
    waker: Option<Waker>,
}

/// Held by those who still have to act.
#[derive(Clone)]
pub(crate) struct Token(#[expect(dead_code, reason = "held for its drop")] Arc<Releaser>);

struct Releaser(Arc<Shared>);

impl Drop for Releaser {
    fn drop(&mut self) {
        let waker = {
            let mut state = self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            state.released = true;
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Resolves when all tokens are gone.
pub(crate) struct Latch(Arc<Shared>);

/// A latch and its first token.
pub(crate) fn latch() -> (Token, Latch) {
    let shared = Arc::<Shared>::default();
    (Token(Arc::new(Releaser(shared.clone()))), Latch(shared))
}

impl Latch {
    /// Whether all tokens are gone, for pollers that have no task.
    pub(crate) fn is_released(&self) -> bool {
        self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).released
    }
}

impl Future for Latch {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut state = self.0.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        if state.released {
            return Poll::Ready(());
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resolves_with_the_last_token() {
        let (token, latch) = latch();
        let other = token.clone();
        drop(token);
        assert!(!latch.is_released());
        drop(other);
        assert!(latch.is_released());
    }
}
