//! `limits`: of a namespace or a controller.

use std::time::Duration;

use nvme_emu::Limits;

use super::reader::Section;

/// The most commands a second that can be written.
pub(crate) const MAX_IOPS: u64 = 100_000_000;
/// The longest burst, in milliseconds.
pub(crate) const MAX_BURST_MS: u64 = 60_000;

const EXAMPLE: &str = "{ iops = 10000, bandwidth = \"100M\" }";

/// The limits in `section`; none if it has no such key.
pub(super) fn limits(section: &Section<'_>) -> Limits {
    let Some(section) = section.section("limits", EXAMPLE) else { return Limits::default() };
    let iops = |key| section.integer(key, 1..=MAX_IOPS).map(|n| n.value);
    let bandwidth = |key| bandwidth(&section, key);
    let limits = Limits {
        iops: iops("iops"),
        read_iops: iops("read_iops"),
        write_iops: iops("write_iops"),
        bandwidth: bandwidth("bandwidth"),
        read_bandwidth: bandwidth("read_bandwidth"),
        write_bandwidth: bandwidth("write_bandwidth"),
        burst: section
            .integer("burst_ms", 1..=MAX_BURST_MS)
            .map_or(nvme_emu::limits::DEFAULT_BURST, |n| Duration::from_millis(n.value)),
    };
    let rates = ["iops", "read_iops", "write_iops", "bandwidth", "read_bandwidth", "write_bandwidth"];
    if rates.iter().all(|key| section.get(key).is_none()) {
        section.sink().error(
            section.spot(),
            "nothing is limited here",
            format!("write for example limits = {EXAMPLE}, or remove `limits`"),
        );
    }
    section.finish();
    limits
}

fn bandwidth(section: &Section<'_>, key: &'static str) -> Option<u64> {
    let size = section.size(key)?;
    if size.value == 0 {
        let help = format!("remove `{key}` for no limit, or write for example {key} = \"100M\"");
        section.sink().error(&size.spot, "with no bytes a second nothing could be done", help);
        return None;
    }
    Some(size.value)
}
