//! [`Limited`]: at most so many of something. Who finds none waits, in order.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use block::Error;

/// Things that are lent out, made when they are first needed.
pub(crate) struct Limited<T> {
    most: usize,
    make: fn() -> Result<T, Error>,
    made: Cell<usize>,
    free: RefCell<Vec<T>>,
    /// Who waits, in order. While anybody does, none is free.
    waiting: RefCell<VecDeque<Rc<Waiter<T>>>>,
}

/// A place in the queue.
struct Waiter<T> {
    waker: Cell<Option<Waker>>,
    /// What came, once the place is no longer in the queue.
    handed: Cell<Option<T>>,
}

impl<T> Limited<T> {
    pub(crate) fn new(most: usize, make: fn() -> Result<T, Error>) -> Rc<Self> {
        let (made, free, waiting) = (Cell::new(0), RefCell::default(), RefCell::default());
        Rc::new(Self { most, make, made, free, waiting })
    }

    /// One of them, once there is one.
    pub(crate) fn lend(self: &Rc<Self>) -> impl Future<Output = Result<Loan<T>, Error>> + use<T> {
        Wait { of: self.clone(), waiter: None }
    }

    /// One that is free or can be made.
    fn take(&self) -> Result<Option<T>, Error> {
        let free = self.free.borrow_mut().pop();
        if free.is_some() || self.made.get() == self.most {
            return Ok(free);
        }
        let new = (self.make)()?;
        self.made.set(self.made.get() + 1);
        Ok(Some(new))
    }

    /// Hands one on to who has waited longest.
    fn give(&self, one: T) {
        let next = self.waiting.borrow_mut().pop_front();
        match next {
            Some(waiter) => {
                waiter.handed.set(Some(one));
                // No borrow is held: a waker may run any code.
                if let Some(waker) = waiter.waker.take() {
                    waker.wake();
                }
            }
            None => self.free.borrow_mut().push(one),
        }
    }
}

/// Waits for one. If it goes before that, so does its place, and what it was handed goes on.
struct Wait<T> {
    of: Rc<Limited<T>>,
    waiter: Option<Rc<Waiter<T>>>,
}

impl<T> Future for Wait<T> {
    type Output = Result<Loan<T>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let one = match &this.waiter {
            Some(waiter) => waiter.handed.take(),
            None => this.of.take()?,
        };
        if one.is_some() {
            this.waiter = None;
            return Poll::Ready(Ok(Loan { one, of: this.of.clone() }));
        }
        let waiter = this.waiter.get_or_insert_with(|| {
            let waiter = Rc::new(Waiter { waker: Cell::default(), handed: Cell::default() });
            this.of.waiting.borrow_mut().push_back(waiter.clone());
            waiter
        });
        waiter.waker.set(Some(cx.waker().clone()));
        Poll::Pending
    }
}

impl<T> Drop for Wait<T> {
    fn drop(&mut self) {
        let Some(waiter) = self.waiter.take() else { return };
        match waiter.handed.take() {
            Some(one) => self.of.give(one),
            None => self.of.waiting.borrow_mut().retain(|other| !Rc::ptr_eq(other, &waiter)),
        }
    }
}

/// One of them, given back when dropped.
pub(crate) struct Loan<T> {
    /// `Some` until then.
    one: Option<T>,
    of: Rc<Limited<T>>,
}

impl<T> Deref for Loan<T> {
    type Target = Option<T>;

    fn deref(&self) -> &Option<T> {
        &self.one
    }
}

impl<T> DerefMut for Loan<T> {
    fn deref_mut(&mut self) -> &mut Option<T> {
        &mut self.one
    }
}

impl<T> Drop for Loan<T> {
    fn drop(&mut self) {
        if let Some(one) = self.one.take() {
            self.of.give(one);
        }
    }
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn one_goes_to_who_waited_longest_and_wakes_nobody_else() {
        const MOST: usize = 64;
        let limited = Limited::new(MOST, || Ok(()));
        let wakes = Arc::new(Wakes::default());
        let waker = Waker::from(wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let mut loans: Vec<Loan<()>> = Vec::new();
        let mut waits: VecDeque<_> = VecDeque::new();
        for _ in 0..MOST + 5 {
            let mut wait = Box::pin(limited.lend());
            match wait.as_mut().poll(&mut cx) {
                Poll::Ready(loan) => loans.push(loan.unwrap()),
                Poll::Pending => waits.push_back(wait),
            }
        }
        assert_eq!((loans.len(), waits.len()), (MOST, 5));
        drop(loans.pop());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 1);
        // Whoever comes now is behind them.
        let mut late = Box::pin(limited.lend());
        assert!(late.as_mut().poll(&mut cx).is_pending());
        // The first goes without having looked, and so does the third: the second has it.
        drop(waits.pop_front());
        assert_eq!(wakes.0.load(Ordering::Relaxed), 2);
        drop(waits.remove(1));
        let mut second = waits.pop_front().unwrap();
        let Poll::Ready(Ok(loan)) = second.as_mut().poll(&mut cx) else { panic!("handed on") };
        assert!(waits.iter_mut().all(|wait| wait.as_mut().poll(&mut cx).is_pending()));
        drop((waits, loan));
        assert!(late.as_mut().poll(&mut cx).is_ready());
        drop(loans);
        assert_eq!(limited.free.borrow().len(), MOST);
        assert!(limited.waiting.borrow().is_empty());
    }
}
