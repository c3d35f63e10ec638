//! [`Properties`]: what TPer and host can take (TCG Core 2.01, 5.2.2; Opal 2.01, 4.1.1.1).

use super::args::Args;
use super::session::{DEFAULT_TIMEOUT_MS, MAX_AUTHENTICATIONS, MAX_SESSIONS, TIMEOUTS_MS};
use super::status::{Outcome, Status};
use super::token::Writer;

/// Bytes of the largest ComPacket that the TPer takes, and of the largest that it sends.
pub const MAX_COM_PACKET: u32 = 65_536;
/// The least that a host can take.
const LEAST: u64 = 2048;
/// Names of properties in one call: there are some twenty.
const MOST_NAMES: usize = 64;

/// What the TPer says of itself. MaxComPacketSize comes before MaxIndTokenSize: sedutil stops reading there.
const OWN: [(&str, u64); 19] = [
    ("MaxMethods", 1),
    ("MaxSubpackets", 1),
    ("MaxPackets", 1),
    ("MaxComPacketSize", MAX_COM_PACKET as u64),
    ("MaxResponseComPacketSize", MAX_COM_PACKET as u64),
    ("MaxPacketSize", MAX_COM_PACKET as u64 - 20),
    ("MaxIndTokenSize", MAX_COM_PACKET as u64 - 56),
    ("MaxAggTokenSize", MAX_COM_PACKET as u64 - 56),
    ("MaxSessions", MAX_SESSIONS as u64),
    ("MaxReadSessions", MAX_SESSIONS as u64),
    ("MaxAuthentications", MAX_AUTHENTICATIONS as u64),
    ("MaxTransactionLimit", 1),
    ("DefSessionTimeout", DEFAULT_TIMEOUT_MS),
    ("MaxSessionTimeout", *TIMEOUTS_MS.end()),
    ("MinSessionTimeout", *TIMEOUTS_MS.start()),
    ("ContinuedTokens", 0),
    ("SequenceNumbers", 0),
    ("AckNak", 0),
    ("Asynchronous", 0),
];

/// What a host has said that matters to the TPer, by name, with the least that it can be.
const HOST: [(&str, u64); 7] = [
    ("MaxMethods", 1),
    ("MaxSubpackets", 1),
    ("MaxPackets", 1),
    ("MaxComPacketSize", LEAST),
    ("MaxResponseComPacketSize", LEAST),
    ("MaxPacketSize", LEAST - 20),
    ("MaxIndTokenSize", LEAST - 56),
];
const COM_PACKET: usize = 3;

/// The properties of the host, as far as it has told them.
#[derive(Clone, Debug, Default)]
pub struct Properties {
    values: [Option<u64>; HOST.len()],
    given: bool,
}

impl Properties {
    /// Reads the parameters of a Properties call.
    pub fn read(mut args: Args<'_>) -> Outcome<Self> {
        let mut properties = Self::default();
        let Some(mut host) = args.named()? else {
            args.end()?;
            return Ok(properties);
        };
        properties.given = true;
        if host.uint()? != 0 {
            return Err(Status::InvalidParameter);
        }
        let mut list = host.list()?;
        let mut names = 0;
        while let Some(mut named) = list.named()? {
            let (name, value) = (named.bytes()?, named.uint()?);
            named.end()?;
            names += 1;
            if names > MOST_NAMES {
                return Err(Status::InvalidParameter);
            }
            if let Some(at) = HOST.iter().position(|(known, _)| known.as_bytes() == name) {
                properties.values[at] = Some(value.max(HOST[at].1));
            }
        }
        list.end()?;
        host.end()?;
        args.end()?;
        Ok(properties)
    }

    /// These, and where they say nothing, `earlier` ones.
    pub fn over(&self, earlier: &Self) -> Self {
        let mut values = self.values;
        for (value, earlier) in values.iter_mut().zip(earlier.values) {
            *value = value.or(earlier);
        }
        Self { values, given: true }
    }

    /// Whether the host has told any.
    pub fn is_given(&self) -> bool {
        self.given
    }

    /// Bytes of the largest ComPacket that the host takes.
    pub fn response_limit(&self) -> usize {
        let limit = self.values[COM_PACKET].unwrap_or(LEAST);
        limit.min(u64::from(MAX_COM_PACKET)) as usize
    }

    /// Writes them as a list.
    pub fn write(&self, writer: &mut Writer) {
        writer.list(|list| {
            for ((name, least), value) in HOST.iter().zip(self.values) {
                property(list, name, value.unwrap_or(*least));
            }
        });
    }

    /// Writes the TPer's as a list.
    pub fn write_own(writer: &mut Writer) {
        writer.list(|list| {
            for (name, value) in OWN {
                property(list, name, value);
            }
        });
    }
}

fn property(list: &mut Writer, name: &str, value: u64) {
    list.named(|named| {
        named.bytes(name.as_bytes()).uint(value);
    });
}
