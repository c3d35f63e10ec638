//! [`serve`]: one function's clients, one after the other.

use std::future::Future;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::function::PciFunction;
use crate::session::{Output, Progress, Session, Wait};
use crate::sigbus::Cause;
use crate::socket::{self, Received, Socket, watch};
use crate::{Host, Listener, listener};

/// How long the function may go on with a client's accepted I/O after the client left.
const DETACH: Duration = Duration::from_secs(3);
/// How much longer than its deadline the function is waited for. Then memory is taken away all the same.
const GRACE: Duration = Duration::from_millis(500);
/// Time between two warnings that the function has not let go of a client.
const DETACH_LOOK: Duration = Duration::from_secs(5);
/// How long a client that broke the protocol may take to read the answer.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pause after an accept that failed (out of descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a client was turned away: who comes again and again takes no time from others.
const TURNED_AWAY: Duration = Duration::from_millis(5);
/// How long nobody is served after a client that made a signal sleep, and with it a thread that serves others; twice as
/// long each time.
const QUARANTINE: Duration = Duration::from_secs(4);
const LONGEST_QUARANTINE: Duration = Duration::from_secs(256);

/// Serves `function` to the clients of `listener` until `shutdown` resolves. Needs a tokio runtime with I/O
/// and time, of any flavour.
///
/// One client at a time: who comes while another is there is turned away. After each client, however it
/// left, the function is detached, its memory and interrupts are let go, and the next one finds it as after
/// power-on.
pub async fn serve(
    listener: Listener,
    host: Arc<Host>,
    function: Arc<dyn PciFunction>,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let listening = watch(listener.handle(), Interest::READABLE)?;
    let mut shutdown = pin!(shutdown);
    let mut next: Option<Socket> = None;
    let (mut quarantine, mut stuck) = (QUARANTINE, None::<Instant>);
    loop {
        let mut log_wait = true;
        while host.closer.is_exhausted() {
            if std::mem::take(&mut log_wait)
                && let Some(suppressed) = host.complaints.check()
            {
                tracing::error!(
                    suppressed,
                    "descriptors that clients sent cannot be closed; no client is served until some can"
                );
            }
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                () = tokio::time::sleep(ACCEPT_PAUSE) => {}
            }
        }
        let socket = match next.take() {
            Some(socket) => socket,
            None => tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                socket = accept(&listening, &host, None) => socket,
            },
        };
        if let Some(suppressed) = host.visits.check() {
            tracing::info!(suppressed, "client connected");
        }
        host.set_has_client(true);
        function.attach();
        let current = socket.handle();
        let mut running = pin!(converse(socket, &host, &function));
        let mut pause = None;
        let (socket, mut stop) = loop {
            tokio::select! {
                biased;
                // First: the conversation takes all of the time that a turn of this task has, if the client likes.
                () = &mut shutdown => break (None, true),
                socket = &mut running => break (Some(socket), false),
                other = accept(&listening, &host, pause), if next.is_none() && !host.closer.is_behind() => {
                    next = admit(current.as_deref(), other, &host);
                    pause = next.is_none().then_some(TURNED_AWAY);
                },
            }
        };
        host.set_has_client(false);
        let deadline = Instant::now() + DETACH;
        let mut detached = function.detach(deadline);
        let mut look = deadline + GRACE;
        loop {
            tokio::select! {
                biased;
                () = &mut detached => break,
                () = &mut shutdown, if !stop => {
                    stop = true;
                    look = Instant::now().max(deadline + GRACE);
                }
                () = tokio::time::sleep_until(look.into()) => {
                    if let Some(suppressed) = host.complaints.check() {
                        tracing::warn!(suppressed, "the function has not let go of its client yet; no other is served");
                    }
                    // Nobody may rely on that memory any more.
                    release(&host).await;
                    if stop {
                        break;
                    }
                    look = Instant::now() + DETACH_LOOK;
                }
                // Served when the function is ready.
                other = accept(&listening, &host, None), if next.is_none() && !host.closer.is_behind() => {
                    next = Some(other);
                }
            }
        }
        release(&host).await;
        // Of the whole visit: a client that left at once may have threads sleep that the detach has waited for.
        let is_stuck = host.dma.breakage().cause() == Some(Cause::Eventfd);
        host.dma.repair();
        // Only now may the client believe that its memory is its own again.
        drop(current);
        drop(socket);
        host.closer.renew();
        if stop {
            return Ok(());
        }
        if is_stuck {
            // Forgotten with time; a client that behaves in between proves nothing.
            if stuck.is_none_or(|last| last.elapsed() > 2 * LONGEST_QUARANTINE) {
                quarantine = QUARANTINE;
            }
            stuck = Some(Instant::now());
            if let Some(suppressed) = host.complaints.check() {
                tracing::warn!(
                    suppressed,
                    seconds = quarantine.as_secs(),
                    "a client held up threads of this server; no other is served for a while"
                );
            }
            tokio::select! {
                biased;
                () = &mut shutdown => return Ok(()),
                () = tokio::time::sleep(quarantine) => {}
            }
            quarantine = (quarantine * 2).min(LONGEST_QUARANTINE);
        }
        if let Some(suppressed) = host.visits.check() {
            tracing::info!(suppressed, "client gone, ready for the next");
        }
    }
}

/// Keeps a client that comes while `current` is being served only if that one has left already.
fn admit(current: Option<&OwnedFd>, other: Socket, host: &Host) -> Option<Socket> {
    if current.is_none_or(|current| socket::is_hung_up(current.as_fd())) {
        return Some(other);
    }
    if let Some(suppressed) = host.complaints.check() {
        tracing::warn!(suppressed, "a further client was turned away: one is connected");
    }
    None
}

/// The next connection, after a pause if there is to be one. Errors are logged and waited out.
async fn accept(listener: &AsyncFd<Arc<OwnedFd>>, host: &Arc<Host>, pause: Option<Duration>) -> Socket {
    if let Some(pause) = pause {
        tokio::time::sleep(pause).await;
    }
    loop {
        tokio::task::coop::consume_budget().await;
        let accepted = match listener.readable().await {
            Ok(mut ready) => match ready.try_io(|listener| listener::accept(listener.get_ref())) {
                Ok(accepted) => accepted,
                Err(_would_block) => continue,
            },
            Err(error) => Err(error),
        };
        match accepted.and_then(|fd| Socket::new(fd, host.clone())) {
            Ok(socket) => return socket,
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                if let Some(suppressed) = host.complaints.check() {
                    tracing::error!(%error, suppressed, "cannot accept a client");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Speaks with a client until it leaves or has to go. Returns the socket, still open.
async fn converse(mut socket: Socket, host: &Arc<Host>, function: &Arc<dyn PciFunction>) -> Socket {
    let mut session = Session::new(host.clone(), function.clone());
    let mut broken = pin!(memory_broken(host));
    loop {
        let received = tokio::select! {
            biased;
            () = &mut broken => {
                let cause = host.dma.breakage().cause();
                if let Some(suppressed) = host.complaints.check() {
                    tracing::error!(?cause, suppressed, "the client took away what it had given; its connection ends");
                }
                return socket;
            }
            received = socket.receive() => received,
        };
        let output = match received {
            Ok(Received::Message(message)) => {
                let progress = session.handle(message);
                match finish(&mut session, &socket, host, progress, broken.as_mut()).await {
                    Some(output) => output,
                    None => return socket,
                }
            }
            Ok(Received::Broken(bad)) => session.reject(bad.0),
            Ok(Received::Closed) => {
                if socket.is_inside()
                    && let Some(suppressed) = host.visits.check()
                {
                    tracing::info!(suppressed, "client left in the middle of a message");
                }
                return socket;
            }
            Err(error) => {
                if let Some(suppressed) = host.visits.check() {
                    tracing::info!(%error, suppressed, "client left");
                }
                return socket;
            }
        };
        if let Some(reply) = &output.reply {
            let sent = if output.close {
                tokio::time::timeout(FAREWELL, socket.send(reply)).await.unwrap_or(Ok(()))
            } else {
                tokio::select! {
                    biased;
                    () = &mut broken => return socket,
                    sent = socket.send(reply) => sent,
                }
            };
            if let Err(error) = sent {
                if let Some(suppressed) = host.visits.check() {
                    tracing::info!(%error, suppressed, "client left");
                }
                return socket;
            }
        }
        if output.close {
            if let Some(suppressed) = host.complaints.check() {
                tracing::warn!(suppressed, "closing the connection: the client broke the protocol");
            }
            return socket;
        }
    }
}

/// Waits for what a request has to wait for. `None`: the client left meanwhile.
async fn finish(
    session: &mut Session,
    socket: &Socket,
    host: &Host,
    mut progress: Progress,
    mut broken: Pin<&mut impl Future<Output = ()>>,
) -> Option<Output> {
    loop {
        match progress {
            Progress::Done(output) => return Some(output),
            Progress::Wait(Wait { done, deadline }) => {
                tokio::select! {
                    biased;
                    () = done => {}
                    () = until(deadline) => {
                        if let Some(suppressed) = host.complaints.check() {
                            tracing::warn!(suppressed, "the function did not let go of memory in time");
                        }
                    }
                    () = socket.hung_up() => return None,
                    () = broken.as_mut() => return None,
                }
                progress = session.resume();
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(at) => tokio::time::sleep_until((at + GRACE).into()).await,
        None => std::future::pending().await,
    }
}

/// Resolves when the client has to be disconnected.
async fn memory_broken(host: &Host) {
    let event = host.dma.broken_event();
    let event = event.and_then(|event| watch(event, Interest::READABLE).ok());
    while !host.dma.is_broken() {
        match &event {
            Some(event) => match event.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => std::future::pending().await,
            },
            // Out of descriptors when the host was made: look now and then.
            None => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

/// Lets go of everything the client gave.
async fn release(host: &Host) {
    host.set_bus_master(false);
    host.interrupts.clear();
    let retired = host.dma.clear();
    if let Err(error) = retired.let_go().await {
        // Late accesses would reach the memory of a client that is gone, and of nobody else.
        if let Some(suppressed) = host.complaints.check() {
            tracing::error!(%error, suppressed, "cannot take away the memory of a client that left");
        }
    }
}
