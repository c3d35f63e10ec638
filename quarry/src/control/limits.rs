//! Limits as JSON, with the keys of the configuration.

use std::time::Duration;

use nvme_emu::Limits;
use nvme_emu::limits::DEFAULT_BURST;
use serde_json::{Value, json};

use super::params::Params;
use super::rpc::Failure;
use crate::config::parse_limits::{MAX_BURST_MS, MAX_IOPS};
use crate::size;

/// All of them; `null` where there is none.
pub(super) fn show(limits: &Limits) -> Value {
    let Limits { iops, read_iops, write_iops, bandwidth, read_bandwidth, write_bandwidth, burst } = limits;
    json!({
        "iops": iops,
        "read_iops": read_iops,
        "write_iops": write_iops,
        "bandwidth": bandwidth,
        "read_bandwidth": read_bandwidth,
        "write_bandwidth": write_bandwidth,
        "burst_ms": u64::try_from(burst.as_millis()).unwrap_or(u64::MAX),
    })
}

/// `limits` with those that `params` names changed; `null` removes one. At least one has to be named.
pub(super) fn change(mut limits: Limits, params: &mut Params) -> Result<Limits, Failure> {
    let mut named = false;
    for (key, limit) in [
        ("iops", &mut limits.iops),
        ("read_iops", &mut limits.read_iops),
        ("write_iops", &mut limits.write_iops),
    ] {
        let Some(value) = params.take(key) else { continue };
        named = true;
        *limit = integer(key, value, MAX_IOPS)?;
    }
    for (key, limit) in [
        ("bandwidth", &mut limits.bandwidth),
        ("read_bandwidth", &mut limits.read_bandwidth),
        ("write_bandwidth", &mut limits.write_bandwidth),
    ] {
        let Some(value) = params.take(key) else { continue };
        named = true;
        *limit = bandwidth(key, value)?;
    }
    if let Some(value) = params.take("burst_ms") {
        named = true;
        limits.burst = integer("burst_ms", value, MAX_BURST_MS)?.map_or(DEFAULT_BURST, Duration::from_millis);
    }
    if !named {
        return Err(Failure::params("name a limit to change, for example \"iops\": 10000"));
    }
    Ok(limits)
}

fn integer(key: &str, value: Value, most: u64) -> Result<Option<u64>, Failure> {
    if value.is_null() {
        return Ok(None);
    }
    let number = value.as_u64().filter(|number| (1..=most).contains(number));
    let wrong =
        || Failure::params(format!("`{key}` must be a whole number from 1 to {most}, or null for no limit"));
    number.map(Some).ok_or_else(wrong)
}

fn bandwidth(key: &str, value: Value) -> Result<Option<u64>, Failure> {
    let bytes = match value {
        Value::Null => return Ok(None),
        Value::String(text) => {
            size::parse(&text).map_err(|error| Failure::params(format!("`{key}`: {error}")))?
        }
        other => other.as_u64().filter(|bytes| *bytes <= size::MAX_SIZE).unwrap_or(0),
    };
    if bytes == 0 {
        return Err(Failure::params(format!(
            "`{key}` must be bytes a second, for example \"100M\", or null for no limit"
        )));
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changed(limits: &Limits, params: Value) -> Result<Limits, Failure> {
        let Value::Object(params) = params else { panic!() };
        let mut params = Params::new(params);
        let limits = change(limits.clone(), &mut params)?;
        params.finish()?;
        Ok(limits)
    }

    #[test]
    fn only_what_is_named_changes() {
        let first = changed(&Limits::default(), json!({ "iops": 5, "write_bandwidth": "1M" })).unwrap();
        assert_eq!((first.iops, first.write_bandwidth, first.burst), (Some(5), Some(1 << 20), DEFAULT_BURST));
        let second = changed(&first, json!({ "iops": null, "burst_ms": 7, "read_bandwidth": 9 })).unwrap();
        assert_eq!((second.iops, second.write_bandwidth), (None, Some(1 << 20)));
        assert_eq!((second.read_bandwidth, second.burst), (Some(9), Duration::from_millis(7)));
        // What is shown can be set.
        assert_eq!(changed(&Limits::default(), show(&second)), Ok(second.clone()));
        assert_eq!(changed(&second, json!({ "burst_ms": null })).unwrap().burst, DEFAULT_BURST);
    }

    #[test]
    fn mistakes_are_told() {
        for (params, part) in [
            (json!({}), "name a limit"),
            (json!({ "iops": 0 }), "from 1 to 100000000"),
            (json!({ "iops": 1.5 }), "from 1 to 100000000"),
            (json!({ "write_iops": "1000" }), "`write_iops` must be a whole number"),
            (json!({ "burst_ms": 60_001 }), "from 1 to 60000"),
            (json!({ "bandwidth": 0 }), "\"100M\""),
            (json!({ "bandwidth": -1 }), "\"100M\""),
            (json!({ "bandwidth": u64::MAX }), "\"100M\""),
            (json!({ "bandwidth": [] }), "\"100M\""),
            (json!({ "bandwidth": "fast" }), "`fast` is not a size"),
            (json!({ "bandwith": 1, "iops": 1 }), "did you mean `bandwidth`?"),
        ] {
            let failure = changed(&Limits::default(), params.clone()).unwrap_err();
            assert!(failure.message.contains(part), "{params}: {}", failure.message);
        }
    }
}
