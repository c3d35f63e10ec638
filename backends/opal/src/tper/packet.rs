//! ComPacket, Packet and Subpacket (TCG Core 2.01, 3.2.3): the frames around the data stream.

/// Bytes of the three headers.
pub const HEADERS: usize = COM_PACKET + PACKET + SUB_PACKET;

/// Bytes of a ComPacket's header.
pub const COM_PACKET: usize = 20;
const PACKET: usize = 24;
const SUB_PACKET: usize = 12;

/// The kind of a subpacket with data; others are credit controls (3.2.3.4.2), for which this TPer has no use.
const DATA: u16 = 0;

/// A Packet of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    /// TPer session number; 0 with HSN 0 is the session manager.
    pub tsn: u32,
    /// Host session number.
    pub hsn: u32,
    /// The payload of its data subpackets.
    pub payload: Payload<'a>,
}

/// Data subpackets, one after the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payload<'a>(&'a [u8]);

/// The frames do not fit into each other. The ComPacket is discarded (3.3.10.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

fn be16(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

fn be32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// A header, its payload, and what follows.
type Split<'a> = (&'a [u8], &'a [u8], &'a [u8]);

/// Splits a header and the payload, whose length stands in the header's last four bytes, off `bytes`.
fn split(bytes: &[u8], header: usize) -> Result<Split<'_>, Malformed> {
    let (head, rest) = bytes.split_at_checked(header).ok_or(Malformed)?;
    let len = usize::try_from(be32(head, header - 4)).map_err(|_| Malformed)?;
    let (payload, rest) = rest.split_at_checked(len).ok_or(Malformed)?;
    Ok((head, payload, rest))
}

/// The ComID in a ComPacket, with its extension.
pub fn com_id(bytes: &[u8]) -> Option<(u16, u16)> {
    (bytes.len() >= COM_PACKET).then(|| (be16(bytes, 4), be16(bytes, 6)))
}

/// The Packets of a ComPacket (of which `bytes` is all that was sent, with padding behind it). A ComPacket without any is
/// valid.
pub fn packets(bytes: &[u8]) -> Result<Vec<Packet<'_>>, Malformed> {
    let (_, mut left, _) = split(bytes, COM_PACKET)?;
    let mut packets = Vec::new();
    while !left.is_empty() {
        let (head, payload, rest) = split(left, PACKET)?;
        packets.push(Packet { tsn: be32(head, 0), hsn: be32(head, 4), payload: Payload::check(payload)? });
        left = rest;
    }
    Ok(packets)
}

impl<'a> Payload<'a> {
    fn check(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let mut left = bytes;
        while !left.is_empty() {
            left = Self::sub_packet(left)?.2;
        }
        Ok(Self(bytes))
    }

    /// The first subpacket's kind and data, and what follows its padding to a multiple of four bytes.
    fn sub_packet(bytes: &[u8]) -> Result<(u16, &[u8], &[u8]), Malformed> {
        let (head, data, rest) = split(bytes, SUB_PACKET)?;
        let padding = data.len().next_multiple_of(4) - data.len();
        Ok((be16(head, 6), data, rest.get(padding..).ok_or(Malformed)?))
    }

    /// Its data: one stream, for a method call may be spread over subpackets.
    pub fn stream(&self) -> Vec<u8> {
        let (mut left, mut stream) = (self.0, Vec::new());
        while let Ok((kind, data, rest)) = Self::sub_packet(left) {
            if kind == DATA {
                stream.extend_from_slice(data);
            }
            left = rest;
        }
        stream
    }
}

/// The header of a ComPacket that carries nothing: how much there would be, and how much room it takes (3.3.10.2.1).
pub fn empty(com_id: u16, outstanding: u32, min_transfer: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(COM_PACKET);
    bytes.extend([0; 4]);
    bytes.extend(com_id.to_be_bytes());
    bytes.extend([0; 2]);
    bytes.extend(outstanding.to_be_bytes());
    bytes.extend(min_transfer.to_be_bytes());
    bytes.extend([0; 4]);
    bytes
}

/// A ComPacket with one Packet for each stream.
pub fn build(com_id: u16, streams: &[(u32, u32, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = empty(com_id, 0, 0);
    for (tsn, hsn, stream) in streams {
        let padded = stream.len().next_multiple_of(4);
        bytes.extend(tsn.to_be_bytes());
        bytes.extend(hsn.to_be_bytes());
        bytes.extend([0; 12]);
        bytes.extend(((SUB_PACKET + padded) as u32).to_be_bytes());
        bytes.extend([0; 8]);
        bytes.extend((stream.len() as u32).to_be_bytes());
        bytes.extend_from_slice(stream);
        bytes.resize(bytes.len() + padded - stream.len(), 0);
    }
    let len = (bytes.len() - COM_PACKET) as u32;
    bytes[COM_PACKET - 4..COM_PACKET].copy_from_slice(&len.to_be_bytes());
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn frames_go_around_a_stream_and_come_off() {
        for len in 0..9 {
            let stream: Vec<u8> = (0..len).collect();
            let bytes = build(0x1000, &[(0x1001, 0x69, stream.clone())]);
            assert_eq!(bytes.len() % 4, 0);
            assert_eq!(com_id(&bytes), Some((0x1000, 0)));
            let packets = packets(&bytes).unwrap();
            assert_eq!((packets.len(), packets[0].tsn, packets[0].hsn), (1, 0x1001, 0x69));
            assert_eq!(packets[0].payload.stream(), stream);
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let good = build(0x1000, &[(1, 2, vec![1, 2, 3, 4])]);
        for at in [16, 40, 52] {
            for wrong in [1_u32, 5, 0x7FFF_FFFF, u32::MAX] {
                if (at, wrong) == (52, u32::MAX) {
                    continue; // three bytes, and one of padding
                }
                let mut bytes = good.clone();
                let old = be32(&bytes, at);
                bytes[at..at + 4].copy_from_slice(&old.wrapping_add(wrong).to_be_bytes());
                assert_eq!(packets(&bytes), Err(Malformed), "length at {at} plus {wrong}");
            }
        }
        assert_eq!(packets(&good[..good.len() - 1]), Err(Malformed));
        assert_eq!(packets(&good[..19]), Err(Malformed));
        assert_eq!(packets(&empty(0x1000, 0, 0)), Ok(Vec::new()));
        // Two subpackets are one stream; what is no data is left out.
        let mut two = good.clone();
        two.extend([0, 0, 0, 0, 0, 0, 0x80, 1, 0, 0, 0, 4, 9, 9, 9, 9]);
        two.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 5, 6, 0, 0]);
        let len = two.len() as u32;
        two[16..20].copy_from_slice(&(len - 20).to_be_bytes());
        two[40..44].copy_from_slice(&(len - 44).to_be_bytes());
        assert_eq!(packets(&two).unwrap()[0].payload.stream(), [1, 2, 3, 4, 5, 6]);
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes: Vec<u8>) {
            for packet in packets(&bytes).unwrap_or_default() {
                prop_assert!(packet.payload.stream().len() <= bytes.len());
            }
        }
    }
}
