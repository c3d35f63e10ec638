//! VERSION: the protocol version and the capabilities, JSON between two programs that trust each other
//! little.

use serde_json::Value;

use crate::dma::{MAX_REGIONS, PAGE_SIZE};
use crate::frame::MAX_DATA;

/// The version this server speaks.
pub const MAJOR: u16 = 0;
/// The version this server speaks.
pub const MINOR: u16 = 1;
/// Descriptors this server says it takes with a message. (It takes [`crate::frame::MAX_FDS`]; QEMU refuses
/// to be told more than it proposed.)
pub const MAX_MSG_FDS: u32 = 16;
/// Bytes of capabilities that are worth parsing.
const MAX_JSON: usize = 64 << 10;

/// What the client can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientCapabilities {
    /// Bytes it takes as data of one message.
    pub max_data_xfer_size: usize,
    /// Whether it sends REGION_WRITE_MULTI.
    pub write_multiple: bool,
}

/// The client's capabilities are not what the protocol says.
#[derive(Debug, thiserror::Error)]
pub enum BadCapabilities {
    /// The string does not end in its only NUL.
    #[error("not one NUL-terminated string")]
    Terminator,
    /// Too long.
    #[error("{0} bytes of capabilities")]
    TooLong(usize),
    /// Not JSON.
    #[error(transparent)]
    Json(#[from] serde_json::Error),
    /// A member has the wrong type or range.
    #[error("member {0:?} has the wrong type or range")]
    Member(&'static str),
}

impl ClientCapabilities {
    /// Reads what follows the version in the client's message; nothing at all means the defaults.
    pub fn parse(bytes: &[u8]) -> Result<Self, BadCapabilities> {
        let mut parsed = Self { max_data_xfer_size: MAX_DATA, write_multiple: false };
        let Some((&last, text)) = bytes.split_last() else { return Ok(parsed) };
        if last != 0 || text.contains(&0) {
            return Err(BadCapabilities::Terminator);
        }
        if text.len() > MAX_JSON {
            return Err(BadCapabilities::TooLong(text.len()));
        }
        // serde_json refuses what is nested deeper than 128.
        let json: Value = serde_json::from_slice(text)?;
        let object = json.as_object().ok_or(BadCapabilities::Member(""))?;
        let Some(caps) = object.get("capabilities") else { return Ok(parsed) };
        let caps = caps.as_object().ok_or(BadCapabilities::Member("capabilities"))?;
        let number = |name: &'static str, range: std::ops::RangeInclusive<u64>| match caps.get(name) {
            None => Ok(None),
            Some(value) => match value.as_u64() {
                Some(n) if range.contains(&n) => Ok(Some(n)),
                _ => Err(BadCapabilities::Member(name)),
            },
        };
        number("max_msg_fds", 0..=u32::MAX.into())?;
        number("max_dma_maps", 0..=u64::MAX)?;
        number("pgsizes", 0..=u64::MAX)?;
        if let Some(n) = number("max_data_xfer_size", 1..=u64::MAX)? {
            parsed.max_data_xfer_size = usize::try_from(n).map_or(MAX_DATA, |n| n.min(MAX_DATA));
        }
        if let Some(value) = caps.get("write_multiple") {
            parsed.write_multiple = value.as_bool().ok_or(BadCapabilities::Member("write_multiple"))?;
        }
        if let Some(migration) = caps.get("migration") {
            let migration = migration.as_object().ok_or(BadCapabilities::Member("migration"))?;
            let good = migration.get("pgsize").is_none_or(|v| v.as_u64().is_some_and(u64::is_power_of_two));
            if !good {
                return Err(BadCapabilities::Member("migration"));
            }
        }
        Ok(parsed)
    }

    /// The answer: a subset of what was proposed, and short, for QEMU reads no more than it sent (214 bytes
    /// with the header). cloud-hypervisor wants `migration` absent or complete.
    pub fn answer(&self) -> Vec<u8> {
        let multiple = if self.write_multiple { r#","write_multiple":true"# } else { "" };
        format!(
            r#"{{"capabilities":{{"max_msg_fds":{MAX_MSG_FDS},"max_data_xfer_size":{},"max_dma_maps":{MAX_REGIONS},"pgsizes":{PAGE_SIZE}{multiple}}}}}{}"#,
            self.max_data_xfer_size, '\0'
        )
        .into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ClientCapabilities, BadCapabilities> {
        ClientCapabilities::parse(format!("{json}\0").as_bytes())
    }

    #[test]
    fn good_capabilities() {
        let plain = ClientCapabilities { max_data_xfer_size: MAX_DATA, write_multiple: false };
        assert_eq!(ClientCapabilities::parse(b"").unwrap(), plain);
        for json in ["{}", r#"{"capabilities":{}}"#, r#"{"capabilities":{"new":[1,{}]},"other":0}"#] {
            assert_eq!(parse(json).unwrap(), plain);
        }
        let qemu = parse(
            r#"{"capabilities":{"max_data_xfer_size":4096,"write_multiple":true,"migration":{"pgsize":4096}}}"#,
        );
        assert_eq!(qemu.unwrap(), ClientCapabilities { max_data_xfer_size: 4096, write_multiple: true });
        assert!(
            20 + ClientCapabilities { max_data_xfer_size: MAX_DATA, write_multiple: true }.answer().len()
                <= 214
        );
    }

    #[test]
    fn bad_capabilities() {
        for raw in [&b"{}"[..], b"{\0}\0", b"\0", b"{\0\0", b"\xff\0"] {
            assert!(ClientCapabilities::parse(raw).is_err(), "{raw:?}");
        }
        let members =
            ["max_msg_fds", "max_data_xfer_size", "max_dma_maps", "pgsizes", "write_multiple", "migration"];
        for member in members {
            for value in ["-1", "1.5", "\"x\"", "[]", "null", "1e400", "99999999999999999999"] {
                assert!(
                    parse(&format!(r#"{{"capabilities":{{"{member}":{value}}}}}"#)).is_err(),
                    "{member} {value}"
                );
            }
        }
        for json in [
            "[]",
            "1",
            "{",
            r#"{"capabilities}"#,
            r#"{"capabilities":[]}"#,
            r#"{"capabilities":{"max_msg_fds":4294967296}}"#,
            r#"{"capabilities":{"migration":{"pgsize":0}}}"#,
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
        let deep = format!(r#"{{"capabilities":{}{}}}"#, "[".repeat(10_000), "]".repeat(10_000));
        assert!(parse(&deep).is_err());
        assert!(parse(&format!("{{}}{}", " ".repeat(1 << 20))).is_err());
    }
}
