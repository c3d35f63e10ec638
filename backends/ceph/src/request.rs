//! [`Request`]: an I/O from its place in the budget to its result, over one or several calls of a library.
//!
//! What the libraries have in common: a call takes a buffer, ends on a thread of its own, and cannot be taken back.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use block::reactor::{RemoteOp, Ticket};
use block::{AlignedBuf, Completed, Error, Io, IoFuture, Op, Reactor};

use crate::abandoned::{Abandoned, Gone, Range};
use crate::budget::{Budget, Wait};
use crate::buffers::Buffers;
use crate::ffi::Errno;

/// What a library and Ceph's messenger need for a call besides its data, about.
const CALL: u64 = 4096;

/// An open image or volume.
pub(crate) trait Target: Send + Sync + Sized + 'static {
    /// A call of the library: what to do, and where.
    type Call: Copy + Unpin;

    /// What may be in flight.
    fn budget(&self) -> &Budget;
    /// What is in flight without anybody who waits.
    fn abandoned(&self) -> &Abandoned;
    /// What an errno of an operation means.
    fn error(&self, op: Op, errno: Errno) -> Error;
    /// After so long an I/O has failed; never if missing.
    fn io_timeout(&self) -> Option<Duration>;
    /// Whether the data of a write are handed over in a buffer: unless the library copies them before its call returns.
    fn gathers(&self, io: &Io) -> bool;
    /// Begins a call, which completes `ticket`. The library may use `buffer` until the ticket is completed: for what it reads,
    /// or with the data of a write. Without a buffer it has copied what is written when this returns.
    fn begin(&self, ticket: Ticket, call: Self::Call, io: &Io, buffer: Option<&AlignedBuf>);
    /// What the result of a call means: for a read the bytes that came, after which there are zeroes.
    fn judge(&self, call: Self::Call, result: i32) -> Result<usize, Errno>;
    /// Where in the I/O's data a call's are.
    fn place(&self, call: Self::Call, io: &Io) -> std::ops::Range<usize>;
}

/// What the requests of a channel share.
pub(crate) struct Shared<T> {
    pub(crate) reactor: Reactor,
    /// Apart, because operations in a library own it and must not own the reactor.
    pub(crate) resources: Rc<Resources<T>>,
}

/// See [`Shared`].
pub(crate) struct Resources<T> {
    pub(crate) target: Arc<T>,
    buffers: Buffers,
}

impl<T> Shared<T> {
    pub(crate) fn new(target: Arc<T>, reactor: Reactor) -> Rc<Self> {
        let resources = Resources { target, buffers: Buffers::default() };
        Rc::new(Self { reactor, resources: Rc::new(resources) })
    }
}

/// The target's, for who waits.
struct OfTarget<T>(Rc<Resources<T>>);

impl<T: Target> AsRef<Abandoned> for OfTarget<T> {
    fn as_ref(&self) -> &Abandoned {
        self.0.target.abandoned()
    }
}

impl<T: Target> AsRef<Budget> for OfTarget<T> {
    fn as_ref(&self) -> &Budget {
        self.0.target.budget()
    }
}

/// What the calls of a request use, until they have ended: even if nobody waits for them any more.
struct Keep<T: Target> {
    resources: Rc<Resources<T>>,
    cost: u64,
    buffer: Option<AlignedBuf>,
    /// Nobody waits for it any more, but it changes the disk.
    abandoned: Option<u64>,
}

impl<T: Target> Drop for Keep<T> {
    fn drop(&mut self) {
        let target = &self.resources.target;
        if let Some(id) = self.abandoned {
            target.abandoned().end(id);
        }
        if let Some(buffer) = self.buffer.take() {
            self.resources.buffers.give(buffer);
        }
        target.budget().give(self.cost);
    }
}

/// The calls that an I/O takes.
pub(crate) enum Calls<C> {
    /// One, as nearly always.
    One(C),
    /// Several at the same time.
    Many(Vec<C>),
}

/// See the module. With one call it allocates nothing itself once its channel's buffers are warm.
pub(crate) struct Request<T: Target> {
    shared: Rc<Shared<T>>,
    /// `None` once completed.
    io: Option<Io>,
    /// The bytes that it is about.
    range: Range,
    state: State<T>,
}

enum State<T: Target> {
    New(Calls<T::Call>),
    /// For what was abandoned before on these blocks.
    WaitsForTurn(Calls<T::Call>, Gone<OfTarget<T>>),
    /// For the budget.
    Waits(Calls<T::Call>, Wait<OfTarget<T>>),
    Runs(T::Call, RemoteOp<Keep<T>>),
    RunMany(Box<Many<T>>),
    Ended,
}

/// What several calls share.
type Shares<T> = Rc<RefCell<Keep<T>>>;

/// Calls of one request.
struct Many<T: Target> {
    /// Let go of one by one as they end.
    running: Vec<(T::Call, RemoteOp<Shares<T>>)>,
    result: Result<(), Error>,
}

impl<T: Target> Request<T> {
    /// `io`, which passed the device's check, is about the bytes `range` and takes these calls.
    pub(crate) fn new(shared: Rc<Shared<T>>, io: Io, range: Range, calls: Calls<T::Call>) -> Self {
        Self { shared, io: Some(io), range, state: State::New(calls) }
    }

    /// What is taken from the budget.
    fn cost(io: &Io, calls: &Calls<T::Call>) -> u64 {
        let calls = match calls {
            Calls::One(_) => 1,
            Calls::Many(calls) => calls.len() as u64,
        };
        CALL * calls + io.bytes()
    }

    /// Gives it to the library, once its cost was taken from the budget.
    fn start(shared: &Shared<T>, io: &Io, calls: Calls<T::Call>) -> Result<State<T>, Error> {
        let (resources, cost) = (&shared.resources, Self::cost(io, &calls));
        let mut keep = Keep { resources: resources.clone(), cost, buffer: None, abandoned: None };
        let bytes = io.bytes() as usize;
        let gathers = matches!(calls, Calls::Many(_)) || resources.target.gathers(io);
        match io.op {
            Op::Read => keep.buffer = Some(resources.buffers.take(bytes)?),
            Op::Write if gathers => {
                let mut buffer = resources.buffers.take(bytes)?;
                io.gather(0, &mut buffer[..bytes]);
                keep.buffer = Some(buffer);
            }
            // With room for where a mismatch is.
            Op::CompareAndWrite => {
                let mut buffer = resources.buffers.take(bytes + size_of::<u64>())?;
                io.gather(0, &mut buffer[..bytes]);
                keep.buffer = Some(buffer);
            }
            _ => {}
        }
        Ok(match calls {
            Calls::One(call) => State::Runs(
                call,
                shared.reactor.remote(keep, |ticket, keep| {
                    let resources = &keep.resources;
                    resources.target.begin(ticket, call, io, keep.buffer.as_ref());
                }),
            ),
            Calls::Many(calls) => {
                let keep = Rc::new(RefCell::new(keep));
                let begin = |call: T::Call| {
                    let op = shared.reactor.remote(keep.clone(), |ticket, keep| {
                        let keep = keep.borrow();
                        resources.target.begin(ticket, call, io, keep.buffer.as_ref());
                    });
                    (call, op)
                };
                let running = calls.into_iter().map(begin).collect();
                State::RunMany(Box::new(Many { running, result: Ok(()) }))
            }
        })
    }

    /// What the result of a call means, and its data, if it read any.
    fn judge(io: &Io, call: T::Call, keep: &Keep<T>, result: i32) -> Result<(), Error> {
        let target = &keep.resources.target;
        let bytes = target.judge(call, result).map_err(|errno| target.error(io.op, errno))?;
        if let (Op::Read, Some(buffer)) = (io.op, &keep.buffer) {
            let place = target.place(call, io);
            let len = bytes.min(place.len()).min(buffer_len(io, &place));
            // SAFETY: within the buffer, which has all of the I/O's bytes (above), in a part that this call alone was given, and
            // it has ended: nobody writes there any more. Others of the same I/O may still write elsewhere in the buffer, of
            // which this makes no reference.
            let there = unsafe { std::slice::from_raw_parts(buffer.as_ptr().add(place.start), len) };
            io.scatter(place.start, there);
            scatter_zeroes(io, place.start + len, place.end);
        }
        Ok(())
    }

    fn end(&mut self, result: Result<(), Error>) -> Poll<Completed> {
        self.state = State::Ended;
        self.io.take().map_or(Poll::Pending, |io| Poll::Ready(io.complete(result)))
    }
}

/// Bytes of the I/O's from the beginning of `place` on.
fn buffer_len(io: &Io, place: &std::ops::Range<usize>) -> usize {
    (io.bytes() as usize).saturating_sub(place.start)
}

/// Zeroes for bytes `from` to before `to` of what is read.
fn scatter_zeroes(io: &Io, mut from: usize, to: usize) {
    const ZEROES: [u8; 4096] = [0; 4096];
    while from < to {
        let len = (to - from).min(ZEROES.len());
        io.scatter(from, &ZEROES[..len]);
        from += len;
    }
}

impl<T: Target> Future for Request<T> {
    type Output = Completed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completed> {
        let this = &mut *self;
        let shared = this.shared.clone();
        let target = &*shared.resources.target;
        loop {
            let Some(io) = &this.io else { return Poll::Pending };
            match &mut this.state {
                State::New(_) if target.abandoned().any() => {
                    let gone = Abandoned::gone(OfTarget(shared.resources.clone()), this.range);
                    this.state = State::WaitsForTurn(this.state.take_calls(), gone);
                    continue;
                }
                State::New(_) => {}
                State::WaitsForTurn(_, gone) => {
                    if Pin::new(gone).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                }
                State::Waits(_, wait) => {
                    if Pin::new(wait).poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    let calls = this.state.take_calls();
                    // Meanwhile something may have been abandoned here.
                    if target.abandoned().changes(this.range) {
                        target.budget().give(Self::cost(io, &calls));
                        this.state = State::New(calls);
                        continue;
                    }
                    match Self::start(&shared, io, calls) {
                        Ok(next) => this.state = next,
                        Err(error) => return this.end(Err(error)),
                    }
                    continue;
                }
                State::Runs(call, op) => {
                    let Poll::Ready((result, keep)) = Pin::new(op).poll(cx) else { return Poll::Pending };
                    let result = Self::judge(io, *call, &keep, result);
                    drop(keep);
                    return this.end(result);
                }
                State::RunMany(many) => {
                    if !many.poll(io, cx) {
                        return Poll::Pending;
                    }
                    let result = std::mem::replace(&mut many.result, Ok(()));
                    return this.end(result);
                }
                State::Ended => return Poll::Pending,
            }
            let calls = this.state.take_calls();
            let cost = Self::cost(io, &calls);
            if !target.budget().take(cost) {
                this.state = State::Waits(calls, Budget::wait(OfTarget(shared.resources.clone()), cost));
                continue;
            }
            match Self::start(&shared, io, calls) {
                Ok(next) => this.state = next,
                Err(error) => return this.end(Err(error)),
            }
        }
    }
}

impl<T: Target> State<T> {
    /// The calls of one that has not begun; afterwards it is [`State::Ended`].
    fn take_calls(&mut self) -> Calls<T::Call> {
        match std::mem::replace(self, Self::Ended) {
            Self::New(calls) | Self::WaitsForTurn(calls, _) | Self::Waits(calls, _) => calls,
            Self::Runs(call, _) => Calls::One(call), // not asked of these
            Self::RunMany(_) | Self::Ended => Calls::Many(Vec::new()),
        }
    }
}

impl<T: Target> Many<T> {
    /// Whether all have ended.
    fn poll(&mut self, io: &Io, cx: &mut Context<'_>) -> bool {
        let mut at = 0;
        while let Some((call, op)) = self.running.get_mut(at) {
            match Pin::new(op).poll(cx) {
                Poll::Pending => at += 1,
                Poll::Ready((result, keep)) => {
                    let result = Request::judge(io, *call, &keep.borrow(), result);
                    drop(self.running.swap_remove(at)); // it has ended
                    self.result = std::mem::replace(&mut self.result, Ok(())).and(result);
                }
            }
        }
        self.running.is_empty()
    }
}

impl<T: Target> Request<T> {
    /// Nobody waits for it any more. Who comes to its range later waits until it is over.
    fn abandon(&mut self) {
        if self.io.as_ref().is_some_and(|io| !matches!(io.op, Op::Read | Op::Flush)) {
            let begin = || Some(self.shared.resources.target.abandoned().begin(self.range));
            match &mut self.state {
                State::Runs(_, op) => {
                    if let Some(keep) = op.keep_mut() {
                        keep.abandoned = begin();
                    }
                }
                State::RunMany(many) => {
                    if let Some(keep) = many.running.first().and_then(|(_, op)| op.keep()) {
                        keep.borrow_mut().abandoned = begin();
                    }
                }
                _ => {}
            }
        }
        self.state = State::Ended;
    }
}

/// A request that fails when its time is over. Then the library goes on with it, in its order.
struct Timed<T: Target> {
    request: Request<T>,
    deadline: Pin<Box<dyn Future<Output = ()>>>,
}

impl<T: Target> Future for Timed<T> {
    type Output = Completed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Completed> {
        let Self { request, deadline } = &mut *self;
        let ended = Pin::new(&mut *request).poll(cx);
        if ended.is_ready() || deadline.as_mut().poll(cx).is_pending() {
            return ended;
        }
        request.abandon();
        let op = request.io.as_ref().map_or(Op::Flush, |io| io.op);
        let error = request.shared.resources.target.error(op, Errno(libc::ETIMEDOUT));
        request.end(Err(error))
    }
}

impl<T: Target> Request<T> {
    /// As a future with the time that an I/O has.
    pub(crate) fn run(self) -> IoFuture {
        match self.shared.resources.target.io_timeout() {
            None => IoFuture::new(self),
            Some(time) => {
                let deadline = Box::pin(self.shared.reactor.sleep(time));
                IoFuture::new(Timed { request: self, deadline })
            }
        }
    }
}

impl<T: Target> Drop for Request<T> {
    fn drop(&mut self) {
        self.abandon();
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use std::sync::Mutex;

    use block::testing::{Buffer, poll_once};

    use super::*;

    /// A library that answers when the test says so.
    struct Fake {
        budget: Budget,
        abandoned: Abandoned,
        time: Option<Duration>,
        /// Of all calls that were ever begun.
        tickets: Mutex<Vec<Option<Ticket>>>,
    }

    impl Fake {
        fn new(budget: u64, time: Option<Duration>) -> Arc<Self> {
            let (budget, abandoned) = (Budget::new(budget), Abandoned::default());
            Arc::new(Self { budget, abandoned, time, tickets: Mutex::default() })
        }

        fn begun(&self) -> usize {
            self.tickets.lock().unwrap().len()
        }

        fn answer(&self, call: usize) {
            self.tickets.lock().unwrap()[call].take().unwrap().complete(0);
        }
    }

    impl Target for Fake {
        type Call = ();

        fn budget(&self) -> &Budget {
            &self.budget
        }

        fn abandoned(&self) -> &Abandoned {
            &self.abandoned
        }

        fn error(&self, op: Op, errno: Errno) -> Error {
            crate::error::of_io("fake", op, errno)
        }

        fn io_timeout(&self) -> Option<Duration> {
            self.time
        }

        fn gathers(&self, _: &Io) -> bool {
            true
        }

        fn begin(&self, ticket: Ticket, (): (), _: &Io, _: Option<&AlignedBuf>) {
            self.tickets.lock().unwrap().push(Some(ticket));
        }

        fn judge(&self, (): (), result: i32) -> Result<usize, Errno> {
            usize::try_from(result).map_err(|_| Errno(-result))
        }

        fn place(&self, (): (), io: &Io) -> std::ops::Range<usize> {
            0..io.bytes() as usize
        }
    }

    fn request(shared: &Rc<Shared<Fake>>, lba: u64) -> Pin<Box<IoFuture>> {
        let io = Buffer::with(&[1; 512]).io(Op::Write, lba, 1);
        let range = (lba * 512, lba * 512 + 512);
        Box::pin(Request::new(shared.clone(), io, range, Calls::One(())).run())
    }

    #[test]
    fn what_was_abandoned_elsewhere_holds_up_nobody() {
        let reactor = Reactor::new(8).unwrap();
        let fake = Fake::new(2 * (CALL + 512), None);
        let shared = Shared::new(fake.clone(), reactor.clone());
        let is_ready = |future: &mut Pin<Box<IoFuture>>| reactor.block_on(poll_once(future)).is_some();
        let (mut stuck, mut other) = (request(&shared, 0), request(&shared, 1));
        assert!(!is_ready(&mut stuck) && !is_ready(&mut other));
        drop(stuck); // given up, and never answered
        let mut waiting: Vec<_> = (10..13).map(|lba| request(&shared, lba)).collect();
        assert!(waiting.iter_mut().all(|future| !is_ready(future)));
        assert_eq!(fake.begun(), 2);
        // The one that is answered makes room for one of those that wait.
        fake.answer(1);
        reactor.turn();
        assert!(is_ready(&mut other));
        for _ in 0..100 {
            assert!(waiting.iter_mut().all(|future| !is_ready(future)));
            reactor.turn();
        }
        assert_eq!(fake.begun(), 3, "there is room for one of three that wait");
        fake.answer(0);
        fake.answer(2);
    }

    #[test]
    fn what_has_taken_too_long_has_failed_and_goes_on() {
        let reactor = Reactor::new(8).unwrap();
        let fake = Fake::new(1 << 20, Some(Duration::from_millis(1)));
        let shared = Shared::new(fake.clone(), reactor.clone());
        let error = reactor.block_on(request(&shared, 0)).result.expect_err("nobody answers");
        assert_eq!(error.kind(), block::ErrorKind::Timeout);
        assert!(fake.abandoned.changes((0, 512)), "it may still be carried out");
        // Who comes to the same blocks does not overtake it, and has no more time.
        let error = reactor.block_on(request(&shared, 0)).result.expect_err("it waits");
        assert_eq!((error.kind(), fake.begun()), (block::ErrorKind::Timeout, 1));
        fake.answer(0);
        reactor.turn();
        assert!(!fake.abandoned.any());
    }
}
