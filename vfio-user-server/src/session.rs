//! [`Session`]: one client's requests, turned into replies. Does no input or output itself: messages go in,
//! bytes and descriptors come out, and what takes time is handed to the caller as a future.
//!
//! Errors are a reply of a header alone with an errno. cloud-hypervisor's client reads fixed sizes whatever
//! the header says, so the requests it waits for (REGION_READ and REGION_WRITE, DEVICE_GET_IRQ_INFO,
//! DMA_UNMAP) fail only where no sane client goes: reads outside of a region are all ones, writes nothing.

mod dma;
mod info;
mod irqs;
mod regions;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use zerocopy::{Immutable, IntoBytes};

use crate::dma::Retired;
use crate::frame::Message;
use crate::function::{PciFunction, Quiesced, Reset};
use crate::pci::{ConfigSpace, msix::MsixBar};
use crate::version::{self, ClientCapabilities};
use crate::wire::{HEADER, Header, Version, command, flags};
use crate::{DmaSpace, Host, Interrupts};

/// An errno for the client.
pub(crate) type Errno = i32;

/// A message to send.
#[derive(Debug, Default)]
pub struct Reply {
    /// The whole message.
    pub bytes: Vec<u8>,
    /// Descriptors to send with its first byte.
    pub fds: Vec<Arc<OwnedFd>>,
}

/// What came of a request.
#[derive(Debug, Default)]
pub struct Output {
    /// What to send, unless the client did not want it.
    pub reply: Option<Reply>,
    /// Whether to end the connection after that.
    pub close: bool,
}

/// What the caller has to do next.
pub enum Progress {
    /// Send this and go on with the next message.
    Done(Output),
    /// Wait, then call [`Session::resume`]. No other message may be handled before.
    Wait(Wait),
}

/// Something that takes time.
pub struct Wait {
    /// Resolves when it is done.
    pub done: Quiesced,
    /// Go on at this time even if it is not.
    pub deadline: Option<Instant>,
}

/// What [`Session::resume`] goes on with.
enum Pending {
    /// Answer, once what left the DMA table is out of reach.
    Unmap { retired: Retired, body: Vec<u8>, asked: Instant },
    /// Answer with what came of it. `held`: something went on using the memory.
    Unmapped { result: Arc<Mutex<Option<io::Result<usize>>>>, body: Vec<u8>, held: bool },
    /// Answer.
    Answer { body: Vec<u8> },
    /// Go on with a REGION_WRITE_MULTI at this write.
    Multi { message: Message, next: usize },
}

/// What a handler came to.
enum Handled {
    /// Answer with this body and these descriptors.
    Answer(Vec<u8>, Vec<Arc<OwnedFd>>),
    /// Wait, then go on.
    Wait(Wait, Pending),
}

impl Handled {
    /// An answer of nothing but a header.
    const EMPTY: Self = Self::Answer(Vec::new(), Vec::new());

    fn answer(body: &(impl IntoBytes + Immutable)) -> Self {
        Self::Answer(body.as_bytes().to_vec(), Vec::new())
    }
}

/// One connection's state.
pub struct Session {
    host: Arc<Host>,
    function: Arc<dyn PciFunction>,
    config: ConfigSpace,
    msix: MsixBar,
    /// Set by VERSION.
    client: Option<ClientCapabilities>,
    /// The request that is being waited for.
    pending: Option<(Header, Pending)>,
}

impl Session {
    /// A fresh connection to a function in its power-on state.
    pub fn new(host: Arc<Host>, function: Arc<dyn PciFunction>) -> Self {
        let info = function.info();
        Self {
            config: ConfigSpace::new(info),
            msix: MsixBar::new(info.msix_vectors),
            host,
            function,
            client: None,
            pending: None,
        }
    }

    /// Handles one message. Descriptors that it does not need are closed, on another thread.
    pub fn handle(&mut self, mut message: Message) -> Progress {
        let takes = matches!(message.header.command, command::DMA_MAP | command::DEVICE_SET_IRQS);
        let mut fds = std::mem::take(&mut message.fds);
        if !takes {
            self.host.closer.close(fds.drain(..));
        }
        let progress = self.dispatch(message, &mut fds);
        self.host.closer.close(fds);
        progress
    }

    /// Takes out of `fds` what it keeps.
    fn dispatch(&mut self, message: Message, fds: &mut Vec<OwnedFd>) -> Progress {
        let header = message.header;
        debug_assert!(self.pending.is_none(), "a request is being waited for");
        if header.flags & flags::TYPE == flags::REPLY {
            // This server asks nothing, so nothing can be answered.
            self.complain(header, "unsolicited reply");
            return Progress::Done(Output::default());
        }
        if header.flags & flags::TYPE != flags::COMMAND {
            return self.fail(header, libc::EINVAL, "unknown message type", false);
        }
        if self.client.is_none() {
            // Nothing is agreed on, so after an error there is nothing to go on with.
            return match self.negotiate(&message) {
                Ok(handled) => self.conclude(header, handled),
                Err(errno) => self.fail(header, errno, "no agreement on a version", true),
            };
        }
        if message.fds_lost {
            return self.fail(header, libc::EMFILE, "descriptors were lost", false);
        }
        let handled = match header.command {
            command::VERSION => Err(libc::EINVAL),
            command::DMA_MAP => self.dma_map(&message, fds),
            command::DMA_UNMAP => self.dma_unmap(&message),
            command::DEVICE_GET_INFO => self.device_info(&message),
            command::DEVICE_GET_REGION_INFO => self.region_info(&message),
            command::DEVICE_GET_REGION_IO_FDS => self.region_io_fds(&message),
            command::DEVICE_GET_IRQ_INFO => self.irq_info(&message),
            command::DEVICE_SET_IRQS => self.set_irqs(&message, fds),
            command::REGION_READ => self.region_read(&message),
            command::REGION_WRITE => self.region_write(&message),
            command::REGION_WRITE_MULTI => self.region_write_multi(message, 0),
            command::DEVICE_RESET => {
                Ok(Handled::Wait(self.reset(Reset::Device), Pending::Answer { body: Vec::new() }))
            }
            _ => Err(libc::ENOTSUP),
        };
        match handled {
            Ok(handled) => self.conclude(header, handled),
            Err(errno) => self.fail(header, errno, "request refused", false),
        }
    }

    /// Goes on after [`Progress::Wait`].
    pub fn resume(&mut self) -> Progress {
        let Some((header, pending)) = self.pending.take() else {
            return Progress::Done(Output::default());
        };
        match pending {
            Pending::Unmap { retired, body, asked } => {
                let handled = Self::unmap(retired, body, asked);
                self.conclude(header, handled)
            }
            Pending::Unmapped { result, body, held } => {
                let result = result.lock().unwrap_or_else(PoisonError::into_inner).take();
                self.unmapped(header, result.unwrap_or(Ok(0)), body, held)
            }
            Pending::Answer { body } => self.conclude(header, Handled::Answer(body, Vec::new())),
            Pending::Multi { message, next } => match self.region_write_multi(message, next) {
                Ok(handled) => self.conclude(header, handled),
                Err(errno) => self.fail(header, errno, "request refused", false),
            },
        }
    }

    /// The answer to a header after which the stream cannot be followed.
    pub fn reject(&mut self, header: Header) -> Output {
        match self.fail(header, libc::EINVAL, "impossible message size", true) {
            Progress::Done(output) => output,
            Progress::Wait(_) => Output { reply: None, close: true },
        }
    }

    fn conclude(&mut self, header: Header, handled: Handled) -> Progress {
        let (body, fds) = match handled {
            Handled::Answer(body, fds) => (body, fds),
            Handled::Wait(wait, pending) => {
                self.pending = Some((header, pending));
                return Progress::Wait(wait);
            }
        };
        if header.flags & flags::NO_REPLY != 0 {
            return Progress::Done(Output::default());
        }
        let answer = Header { size: (HEADER + body.len()) as u32, flags: flags::REPLY, error: 0, ..header };
        let mut bytes = Vec::with_capacity(HEADER + body.len());
        bytes.extend_from_slice(answer.as_bytes());
        bytes.extend_from_slice(&body);
        Progress::Done(Output { reply: Some(Reply { bytes, fds }), close: false })
    }

    fn fail(&mut self, header: Header, errno: Errno, what: &str, close: bool) -> Progress {
        if let Some(suppressed) = self.host.complaints.check() {
            let error = std::io::Error::from_raw_os_error(errno);
            tracing::warn!(command = header.command, size = header.size, %error, suppressed, "vfio-user client: {what}");
        }
        if header.flags & flags::NO_REPLY != 0 || header.flags & flags::TYPE == flags::REPLY {
            return Progress::Done(Output { reply: None, close });
        }
        let answer =
            Header { size: HEADER as u32, flags: flags::REPLY | flags::ERROR, error: errno as u32, ..header };
        let reply = Reply { bytes: answer.as_bytes().to_vec(), fds: Vec::new() };
        Progress::Done(Output { reply: Some(reply), close })
    }

    fn complain(&self, header: Header, what: &str) {
        if let Some(suppressed) = self.host.complaints.check() {
            tracing::warn!(
                command = header.command,
                size = header.size,
                suppressed,
                "vfio-user client: {what}"
            );
        }
    }

    fn negotiate(&mut self, message: &Message) -> Result<Handled, Errno> {
        if message.header.command != command::VERSION {
            return Err(libc::EINVAL);
        }
        let theirs: Version = message.fixed().ok_or(libc::EINVAL)?;
        if theirs.major != version::MAJOR {
            return Err(libc::EINVAL);
        }
        let client =
            ClientCapabilities::parse(&message.payload[size_of::<Version>()..]).map_err(|error| {
                tracing::debug!(%error, "capabilities");
                libc::EINVAL
            })?;
        let ours = Version { major: version::MAJOR, minor: theirs.minor.min(version::MINOR) };
        self.client = Some(client);
        Ok(Handled::Answer([ours.as_bytes(), &client.answer()].concat(), Vec::new()))
    }

    /// Starts a reset.
    fn reset(&mut self, kind: Reset) -> Wait {
        tracing::debug!(?kind, "reset");
        // No DMA from here on: the function sees the switch before it is asked to stop.
        self.host.set_bus_master(false);
        let (reset, host) = (self.function.reset(kind), self.host.clone());
        let done = Box::pin(async move {
            reset.await;
            host.interrupts.forget_pending();
        });
        self.config.reset();
        self.msix.reset();
        self.apply_config();
        Wait { done, deadline: None }
    }

    /// Carries out what the configuration space says.
    fn apply_config(&self) {
        if self.host.bus_master() != self.config.bus_master() {
            self.host.set_bus_master(self.config.bus_master());
            self.function.host_changed();
        }
        self.interrupts().set_intx_disabled(self.config.intx_disabled());
    }

    fn interrupts(&self) -> &Interrupts {
        &self.host.interrupts
    }

    fn dma(&self) -> &DmaSpace {
        &self.host.dma
    }
}
