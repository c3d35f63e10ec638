//! One connected stream socket with descriptors beside the bytes, never blocking.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use tokio::io::unix::AsyncFd;
use tokio::io::{Interest, Ready};

use crate::Host;
use crate::frame::{Decoder, MAX_FDS, Message};
use crate::session::Reply;

/// A connection to a client.
pub(crate) struct Socket {
    /// There until the end.
    fd: Option<AsyncFd<Arc<OwnedFd>>>,
    /// What has arrived of a message.
    decoder: Decoder,
    host: Arc<Host>,
    /// Room for descriptors, kept from message to message.
    ancillary: Box<[MaybeUninit<u8>]>,
}

/// What reading came to.
pub(crate) enum Received {
    Message(Message),
    /// The header in the error needs an answer before the end.
    Broken(crate::frame::BadSize),
    Closed,
}

impl Socket {
    /// Takes over a connected socket.
    pub(crate) fn new(fd: OwnedFd, host: Arc<Host>) -> io::Result<Self> {
        let fd = Arc::new(fd);
        let watched = rustix::io::ioctl_fionbio(&fd, true)
            .map_err(io::Error::from)
            .and_then(|()| watch(fd.clone(), Interest::READABLE | Interest::WRITABLE));
        let watched = match watched {
            Ok(watched) => watched,
            Err(error) => {
                host.closer.close_connection(fd);
                return Err(error);
            }
        };
        let space = rustix::cmsg_space!(ScmRights(MAX_FDS));
        Ok(Self {
            fd: Some(watched),
            decoder: Decoder::new(),
            host,
            ancillary: vec![MaybeUninit::uninit(); space].into(),
        })
    }

    fn fd(&self) -> io::Result<&AsyncFd<Arc<OwnedFd>>> {
        self.fd.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    /// Whether part of a message has arrived.
    pub(crate) fn is_inside(&self) -> bool {
        self.decoder.is_inside()
    }

    /// Whether the client has gone or will send nothing more. One poll(2), no waiting.
    pub(crate) fn is_hung_up(&self) -> bool {
        self.fd().map_or(true, |fd| is_hung_up(fd.get_ref().as_fd()))
    }

    /// The connection, to look at from elsewhere. To be dropped before the socket, which is to close it.
    pub(crate) fn handle(&self) -> Option<Arc<OwnedFd>> {
        self.fd.as_ref().map(|fd| fd.get_ref().clone())
    }

    /// Reads until a message is whole. May be dropped at any time; nothing is lost.
    pub(crate) async fn receive(&mut self) -> io::Result<Received> {
        loop {
            // No more descriptors before there is room for them.
            self.host.closer.settle().await?;
            // Lets others run on this thread however fast the client sends.
            tokio::task::coop::consume_budget().await;
            match self.receive_some() {
                Ok(Some(received)) => return Ok(received),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut ready = self.fd()?.readable().await?;
                    // Taken back before the next look: what comes after that makes it ready again.
                    ready.clear_ready_matching(Ready::READABLE);
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn receive_some(&mut self) -> io::Result<Option<Received>> {
        let fd = self.fd.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        let mut control = RecvAncillaryBuffer::new(&mut self.ancillary);
        let buffer = &mut [IoSliceMut::new(self.decoder.buffer())];
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let got = recvmsg(fd.get_ref(), buffer, &mut control, flags)?;
        let lost = got.flags.contains(ReturnFlags::CTRUNC);
        // Owned from here on: whatever is not taken is closed.
        let fds = control.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        if got.bytes == 0 {
            self.host.closer.close(fds.flatten());
            return Ok(Some(Received::Closed));
        }
        let advanced = self.decoder.advance(got.bytes, fds.flatten(), lost);
        self.host.closer.close(self.decoder.take_surplus());
        Ok(match advanced {
            Ok(message) => message.map(Received::Message),
            Err(bad) => Some(Received::Broken(bad)),
        })
    }

    /// Sends a message: in one piece if the socket takes it, descriptors with its first byte. Waits while
    /// the client does not read.
    pub(crate) async fn send(&mut self, reply: &Reply) -> io::Result<()> {
        let mut sent = 0;
        while sent < reply.bytes.len() {
            match self.send_some(reply, sent) {
                Ok(n) => sent += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let mut ready = self.fd()?.writable().await?;
                    ready.clear_ready_matching(Ready::WRITABLE);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn send_some(&self, reply: &Reply, sent: usize) -> io::Result<usize> {
        let fds: Vec<BorrowedFd<'_>> = if sent == 0 {
            reply.fds.iter().map(|fd: &Arc<OwnedFd>| fd.as_fd()).collect()
        } else {
            Vec::new()
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let bytes = [IoSlice::new(&reply.bytes[sent..])];
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        Ok(sendmsg(self.fd()?.get_ref(), &bytes, &mut control, flags)?)
    }

    /// Resolves when the client has gone, even with unread requests of it in the socket.
    pub(crate) async fn hung_up(&self) {
        while !self.is_hung_up() {
            // The kernel reports the end as an event of its own; requests that arrive before it only make
            // this loop look once more. `receive` reads before it waits, so it misses nothing.
            let Ok(fd) = self.fd() else { return };
            match fd.readable().await {
                Ok(mut ready) => ready.clear_ready(),
                Err(_) => return,
            }
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.host.closer.close(self.decoder.take_all());
        if let Some(fd) = self.fd.take() {
            self.host.closer.close_connection(fd.into_inner());
        }
    }
}

/// Registers a descriptor with the running tokio runtime.
pub(crate) fn watch(fd: Arc<OwnedFd>, interest: Interest) -> io::Result<AsyncFd<Arc<OwnedFd>>> {
    // SAFETY: the `Arc<OwnedFd>` moves into the `AsyncFd`, keeps the descriptor open as long, and names the
    // same one every time.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(|error| error.into_parts().1)
}

/// Whether the other side of a socket has gone or will send nothing more.
pub(crate) fn is_hung_up(fd: BorrowedFd<'_>) -> bool {
    let gone = PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR;
    let mut fds = [PollFd::new(&fd, gone)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&now)), Ok(1..)) && fds[0].revents().intersects(gone)
}
