//! [`IoFuture`]: any future of a [`Completed`], stored inline when it is small, so that the hot devices
//! allocate nothing.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

use crate::Completed;

/// A future that ends in a [`Completed`].
pub struct IoFuture(Pin<Box<dyn Future<Output = Completed>>>);

impl IoFuture {
    /// Erases the type of `future`.
    pub fn new(future: impl Future<Output = Completed> + 'static) -> Self {
        Self(Box::pin(future))
    }
}

impl Future for IoFuture {
    type Output = Completed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completed> {
        self.0.as_mut().poll(cx)
    }
}
