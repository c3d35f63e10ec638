//! [`Decoder`]: cuts a byte stream with descriptors into messages. Does no input itself.
//!
//! It never asks for more than the rest of the message it is at, so a descriptor that arrives belongs to
//! that message. Nothing is allocated for bytes that have not arrived, but for one chunk.

use std::os::fd::OwnedFd;

use zerocopy::{FromBytes, IntoBytes};

use crate::wire::{HEADER, Header};

/// Bytes of data a message may carry (capability `max_data_xfer_size`).
pub const MAX_DATA: usize = 1 << 20;
/// Bytes of a message: the data, and the largest header before it.
pub const MAX_MESSAGE: usize = MAX_DATA + 64;
/// Descriptors taken with one message: what one sendmsg(2) can carry (SCM_MAX_FD). More are closed.
pub const MAX_FDS: usize = 253;
/// The body is read in pieces of this size.
const CHUNK: usize = 64 << 10;

/// A whole message.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// What follows the header.
    pub payload: Vec<u8>,
    /// Descriptors that came with it. Closed unless taken out, which may take as long as the sender likes.
    pub fds: Vec<OwnedFd>,
    /// Whether descriptors were lost: more came than a message may have.
    pub fds_lost: bool,
}

/// The header announces a size that no message has. The stream cannot be followed any further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("message of {} bytes", .0.size)]
pub struct BadSize(
    /// The header in question.
    pub Header,
);

/// Collects one message after another.
#[derive(Debug, Default)]
pub struct Decoder {
    header: Header,
    /// Bytes of the header that have arrived.
    have: usize,
    payload: Vec<u8>,
    /// Bytes of the payload that have arrived.
    filled: usize,
    fds: Vec<OwnedFd>,
    fds_lost: bool,
    /// More than a message may have.
    surplus: Vec<OwnedFd>,
}

impl Decoder {
    /// At the start of a message.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether part of a message has arrived.
    pub fn is_inside(&self) -> bool {
        self.have > 0 || !self.fds.is_empty()
    }

    /// Takes out the descriptors that no message can have. The caller closes them.
    pub fn take_surplus(&mut self) -> Vec<OwnedFd> {
        std::mem::take(&mut self.surplus)
    }

    /// Takes out the descriptors of a message that is not to be completed, too.
    pub fn take_all(&mut self) -> Vec<OwnedFd> {
        let mut all = self.take_surplus();
        all.append(&mut self.fds);
        all
    }

    /// Where the next bytes belong. Never empty.
    pub fn buffer(&mut self) -> &mut [u8] {
        if self.have < HEADER {
            return &mut self.header.as_mut_bytes()[self.have..];
        }
        let size = (self.header.size as usize).saturating_sub(HEADER);
        let until = size.min(self.filled + CHUNK);
        self.payload.resize(until, 0);
        &mut self.payload[self.filled..until]
    }

    /// Takes note that `count` bytes were put into [`Self::buffer`], and that `fds` came with them.
    /// `lost` says that there were more descriptors than could be received (MSG_CTRUNC).
    pub fn advance(
        &mut self,
        count: usize,
        fds: impl IntoIterator<Item = OwnedFd>,
        lost: bool,
    ) -> Result<Option<Message>, BadSize> {
        self.fds_lost |= lost;
        for fd in fds {
            if self.fds.len() < MAX_FDS {
                self.fds.push(fd);
            } else {
                self.fds_lost = true;
                self.surplus.push(fd);
            }
        }
        if self.have < HEADER {
            self.have = (self.have + count).min(HEADER);
            if self.have < HEADER {
                return Ok(None);
            }
            if !(HEADER..=MAX_MESSAGE).contains(&(self.header.size as usize)) {
                return Err(BadSize(self.header));
            }
        } else {
            self.filled = (self.filled + count).min(self.payload.len());
        }
        if HEADER + self.filled < self.header.size as usize {
            return Ok(None);
        }
        let surplus = std::mem::take(&mut self.surplus);
        let done = std::mem::replace(self, Self { surplus, ..Self::default() });
        Ok(Some(Message {
            header: done.header,
            payload: done.payload,
            fds: done.fds,
            fds_lost: done.fds_lost,
        }))
    }
}

impl Message {
    /// The fixed structure a payload begins with.
    pub(crate) fn fixed<T: FromBytes>(&self) -> Option<T> {
        T::read_from_prefix(&self.payload).ok().map(|(fixed, _)| fixed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    fn feed(decoder: &mut Decoder, mut bytes: &[u8], step: usize) -> Result<Vec<Message>, BadSize> {
        let mut messages = Vec::new();
        while !bytes.is_empty() {
            let room = decoder.buffer();
            let n = room.len().min(step).min(bytes.len());
            room[..n].copy_from_slice(&bytes[..n]);
            bytes = &bytes[n..];
            messages.extend(decoder.advance(n, [], false)?);
        }
        Ok(messages)
    }

    fn message(id: u16, payload: &[u8]) -> Vec<u8> {
        let size = (HEADER + payload.len()) as u32;
        let header = Header { id, command: 9, size, flags: 0, error: 0 };
        [header.as_bytes(), payload].concat()
    }

    #[test]
    fn messages_come_out_whole_however_they_are_cut() {
        let stream =
            [message(1, b""), message(2, b"abc"), message(3, &[7; 200_000]), message(4, b"")].concat();
        for step in [1, 2, 15, 16, 17, 4096, usize::MAX] {
            let mut decoder = Decoder::new();
            let got = feed(&mut decoder, &stream, step).unwrap();
            let seen: Vec<_> = got.iter().map(|m| (m.header.id, m.payload.len())).collect();
            assert_eq!(seen, [(1, 0), (2, 3), (3, 200_000), (4, 0)]);
            assert!(!decoder.is_inside());
        }
    }

    #[test]
    fn sizes_are_bounded_before_anything_is_allocated() {
        for size in [0, 1, 15, MAX_MESSAGE as u32 + 1, u32::MAX] {
            let header = Header { size, ..Header::default() };
            let mut decoder = Decoder::new();
            assert_eq!(feed(&mut decoder, header.as_bytes(), 16).unwrap_err(), BadSize(header));
        }
        let header = Header { size: MAX_MESSAGE as u32, ..Header::default() };
        let mut decoder = Decoder::new();
        feed(&mut decoder, header.as_bytes(), 16).unwrap();
        assert_eq!(decoder.buffer().len(), CHUNK);
        assert!(decoder.payload.capacity() <= 2 * CHUNK);
    }

    #[test]
    fn descriptors_beyond_the_limit_are_handed_out_apart() {
        let mut decoder = Decoder::new();
        let fds = || (0..200).map(|_| std::io::stdout().as_fd().try_clone_to_owned().unwrap());
        decoder.buffer()[0] = 0;
        decoder.advance(1, fds(), false).unwrap();
        decoder.advance(1, fds(), false).unwrap();
        assert_eq!(decoder.fds.len(), MAX_FDS);
        assert!(decoder.fds_lost);
        assert_eq!(decoder.take_surplus().len(), 400 - MAX_FDS);
        assert_eq!(decoder.take_all().len(), MAX_FDS);
    }
}
