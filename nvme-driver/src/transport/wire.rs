//! [`Wire`]: vfio-user spoken by ourselves, one message at a time, with timeouts and error numbers.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use super::{MapAccess, MappableArea, Transport, irq_flags};
use crate::error::{Error, Result};
use crate::memory::Arena;

/// How long a reply may take. Longer than any server should ever need.
pub const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// The most descriptors in one message.
const MAX_FDS: usize = 16;
/// The largest reply payload that is believed.
const MAX_PAYLOAD: usize = (1 << 20) + 4096;

/// Message types used here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Message {
    /// VERSION.
    Version = 1,
    /// DMA_MAP.
    DmaMap = 2,
    /// DMA_UNMAP.
    DmaUnmap = 3,
    /// DEVICE_GET_REGION_INFO.
    GetRegionInfo = 5,
    /// DEVICE_GET_IRQ_INFO.
    GetIrqInfo = 7,
    /// DEVICE_SET_IRQS.
    SetIrqs = 8,
    /// REGION_READ.
    RegionRead = 9,
    /// REGION_WRITE.
    RegionWrite = 10,
    /// DEVICE_RESET.
    DeviceReset = 13,
}

impl Message {
    fn name(self) -> &'static str {
        match self {
            Self::Version => "VERSION",
            Self::DmaMap => "DMA_MAP",
            Self::DmaUnmap => "DMA_UNMAP",
            Self::GetRegionInfo => "DEVICE_GET_REGION_INFO",
            Self::GetIrqInfo => "DEVICE_GET_IRQ_INFO",
            Self::SetIrqs => "DEVICE_SET_IRQS",
            Self::RegionRead => "REGION_READ",
            Self::RegionWrite => "REGION_WRITE",
            Self::DeviceReset => "DEVICE_RESET",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Header {
    id: u16,
    command: u16,
    size: u32,
    flags: u32,
    error: u32,
}

const HEADER: usize = size_of::<Header>();
const TYPE_MASK: u32 = 0xF;
const TYPE_REPLY: u32 = 1;
const FLAG_ERROR: u32 = 1 << 5;

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DmaMap {
    argsz: u32,
    flags: u32,
    offset: u64,
    address: u64,
    size: u64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct DmaUnmap {
    argsz: u32,
    flags: u32,
    address: u64,
    size: u64,
}

#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RegionInfo {
    argsz: u32,
    flags: u32,
    index: u32,
    cap_offset: u32,
    size: u64,
    offset: u64,
}

#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct RegionAccess {
    offset: u64,
    region: u32,
    count: u32,
}

/// A reply without its header.
#[derive(Debug)]
pub struct Reply {
    /// What follows the header.
    pub payload: Vec<u8>,
    /// Descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// A connection to a vfio-user server.
#[derive(Debug)]
pub struct Wire {
    stream: UnixStream,
    next_id: u16,
}

impl Wire {
    /// Connects and agrees on a version.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(REPLY_TIMEOUT))?;
        stream.set_write_timeout(Some(REPLY_TIMEOUT))?;
        let mut wire = Self { stream, next_id: 0 };
        let mut version = vec![0, 0, 1, 0];
        version.extend_from_slice(
            br#"{"capabilities":{"max_msg_fds":16,"max_data_xfer_size":1048576,"pgsizes":4096}}"#,
        );
        version.push(0);
        wire.call(Message::Version, &[&version], &[])?;
        Ok(wire)
    }

    /// The socket, for what is not foreseen here.
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends one message and waits for its reply. An error reply is [`Error::Refused`].
    pub fn call(&mut self, message: Message, payload: &[&[u8]], fds: &[BorrowedFd<'_>]) -> Result<Reply> {
        let id = self.send(message, payload, fds)?;
        self.receive(id, message)
    }

    /// Sends one message without waiting. Returns its identifier, for [`Self::receive`].
    pub fn send(&mut self, message: Message, payload: &[&[u8]], fds: &[BorrowedFd<'_>]) -> Result<u16> {
        let id = self.next_id;
        self.next_id = id.wrapping_add(1);
        let size = HEADER + payload.iter().map(|part| part.len()).sum::<usize>();
        let header = Header { id, command: message as u16, size: size as u32, ..Header::default() };
        let mut bytes = Vec::with_capacity(size);
        bytes.extend_from_slice(header.as_bytes());
        payload.iter().for_each(|part| bytes.extend_from_slice(part));

        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
            return Err(Error::Unsupported("more than 16 descriptors in one message"));
        }
        let mut sent = sendmsg(&self.stream, &[IoSlice::new(&bytes)], &mut control, SendFlags::NOSIGNAL)?;
        while sent < bytes.len() {
            let mut none = SendAncillaryBuffer::default();
            sent += sendmsg(&self.stream, &[IoSlice::new(&bytes[sent..])], &mut none, SendFlags::NOSIGNAL)?;
        }
        Ok(id)
    }

    /// Waits for the reply to message `id`, which must be the next one.
    pub fn receive(&mut self, id: u16, message: Message) -> Result<Reply> {
        let mut fds = Vec::new();
        let mut header = Header::default();
        self.fill(header.as_mut_bytes(), &mut fds, message)?;
        if header.id != id || header.command != message as u16 || header.flags & TYPE_MASK != TYPE_REPLY {
            return Err(Error::Protocol(format!("{header:?} is no reply to {} {id}", message.name())));
        }
        let size = header.size as usize;
        if !(HEADER..=HEADER + MAX_PAYLOAD).contains(&size) {
            return Err(Error::Protocol(format!("a reply to {} of {size} bytes", message.name())));
        }
        let mut payload = vec![0; size - HEADER];
        self.fill(&mut payload, &mut fds, message)?;
        if header.flags & FLAG_ERROR != 0 {
            let cause = io::Error::from_raw_os_error(header.error.cast_signed());
            return Err(Error::Refused { message: message.name(), cause });
        }
        Ok(Reply { payload, fds })
    }

    fn fill(&mut self, mut data: &mut [u8], fds: &mut Vec<OwnedFd>, message: Message) -> Result<()> {
        while !data.is_empty() {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
            let mut control = RecvAncillaryBuffer::new(&mut space);
            let received =
                recvmsg(&self.stream, &mut [IoSliceMut::new(data)], &mut control, RecvFlags::CMSG_CLOEXEC);
            let got = match received {
                Ok(received) => received.bytes,
                Err(rustix::io::Errno::AGAIN) => {
                    let what = format!("reply to {}", message.name());
                    return Err(Error::Timeout { what, after: REPLY_TIMEOUT });
                }
                Err(rustix::io::Errno::INTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            for item in control.drain() {
                if let RecvAncillaryMessage::ScmRights(arrived) = item {
                    fds.extend(arrived);
                }
            }
            if got == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            data = &mut data[got..];
        }
        Ok(())
    }

    /// DMA_MAP of any range of an arena to any address.
    pub fn map_range(
        &mut self,
        arena: &Arena,
        access: MapAccess,
        offset: u64,
        address: u64,
        size: u64,
    ) -> Result<()> {
        let flags = u32::from(access.read) | u32::from(access.write) << 1;
        let map = DmaMap { argsz: size_of::<DmaMap>() as u32, flags, offset, address, size };
        let fds = [arena.fd()];
        self.call(Message::DmaMap, &[map.as_bytes()], if access.descriptor { &fds } else { &[] })?;
        Ok(())
    }

    fn set_irqs(&mut self, flags: u32, index: u32, start: u32, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let words = [20, flags, index, start, fds.len() as u32];
        self.call(Message::SetIrqs, &[words.as_bytes()], fds)?;
        Ok(())
    }

    fn fixed<T: FromBytes>(reply: &Reply) -> Result<T> {
        T::read_from_prefix(&reply.payload)
            .map(|(value, _)| value)
            .map_err(|_| Error::Protocol(format!("a reply of only {} bytes", reply.payload.len())))
    }
}

impl Transport for Wire {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<()> {
        let access = RegionAccess { offset, region, count: data.len() as u32 };
        let reply = self.call(Message::RegionRead, &[access.as_bytes()], &[])?;
        let read = reply.payload.get(size_of::<RegionAccess>()..).filter(|read| read.len() == data.len());
        data.copy_from_slice(
            read.ok_or_else(|| Error::Protocol("REGION_READ of another length".to_owned()))?,
        );
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<()> {
        let access = RegionAccess { offset, region, count: data.len() as u32 };
        self.call(Message::RegionWrite, &[access.as_bytes(), data], &[])?;
        Ok(())
    }

    fn mappable(&mut self, region: u32) -> Result<Vec<MappableArea>> {
        const HAS_CAPABILITIES: u32 = 1 << 3;
        const SPARSE_MMAP: u16 = 1;
        let ask = RegionInfo { argsz: 4064, index: region, ..RegionInfo::default() };
        let reply = self.call(Message::GetRegionInfo, &[ask.as_bytes()], &[])?;
        let info: RegionInfo = Self::fixed(&reply)?;
        let Some(fd) = reply.fds.into_iter().next() else { return Ok(Vec::new()) };
        let area = |offset: u64, len: u64| -> Result<MappableArea> {
            Ok(MappableArea { offset, len, fd: fd.try_clone()?, fd_offset: info.offset + offset })
        };
        if info.flags & HAS_CAPABILITIES == 0 {
            return Ok(vec![area(0, info.size)?]);
        }
        let truncated = || Error::Protocol("truncated region capability".to_owned());
        let mut areas = Vec::new();
        let mut next = info.cap_offset as usize;
        while next != 0 {
            let capability = reply.payload.get(next..).ok_or_else(truncated)?;
            let ([id, _version], rest) = <[u16; 2]>::read_from_prefix(capability).map_err(|_| truncated())?;
            let ([following, count, _], rest) =
                <[u32; 3]>::read_from_prefix(rest).map_err(|_| truncated())?;
            if id == SPARSE_MMAP {
                let pairs = rest.get(..count as usize * 16).ok_or_else(truncated)?;
                for pair in pairs.as_chunks::<16>().0 {
                    let [offset, len]: [u64; 2] = zerocopy::transmute!(*pair);
                    areas.push(area(offset, len)?);
                }
            }
            // Capabilities that do not advance would be a loop.
            next = if following as usize > next { following as usize } else { 0 };
        }
        Ok(areas)
    }

    fn dma_map(&mut self, arena: &Arena, access: MapAccess) -> Result<()> {
        self.map_range(arena, access, 0, arena.iova(), arena.len() as u64)
    }

    fn dma_unmap(&mut self, address: u64, size: u64) -> Result<()> {
        let unmap = DmaUnmap { argsz: size_of::<DmaUnmap>() as u32, flags: 0, address, size };
        self.call(Message::DmaUnmap, &[unmap.as_bytes()], &[])?;
        Ok(())
    }

    fn irq_count(&mut self, index: u32) -> Result<u32> {
        let reply = self.call(Message::GetIrqInfo, &[[16, 0, index, 0].as_bytes()], &[])?;
        let [_argsz, _flags, _index, count]: [u32; 4] = Self::fixed(&reply)?;
        Ok(count)
    }

    fn connect_irqs(&mut self, index: u32, start: u32, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let mut at = start;
        for some in fds.chunks(MAX_FDS) {
            self.set_irqs(irq_flags::DATA_EVENTFD | irq_flags::ACTION_TRIGGER, index, at, some)?;
            at += some.len() as u32;
        }
        Ok(())
    }

    fn disable_irqs(&mut self, index: u32) -> Result<()> {
        self.set_irqs(irq_flags::DATA_NONE | irq_flags::ACTION_TRIGGER, index, 0, &[])
    }

    fn reset(&mut self) -> Result<()> {
        self.call(Message::DeviceReset, &[], &[])?;
        Ok(())
    }

    fn disconnect(&mut self) {
        // An error means that the server was faster.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl AsFd for Wire {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
