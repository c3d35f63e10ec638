//! What fio does in the guest, and what its reports say.

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

/// One run of fio.
pub struct Phase {
    pub title: &'static str,
    name: &'static str,
    queue_depth: u32,
    kind: Kind,
    arguments: &'static str,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Measure,
    Verify,
}

/// The sequential write comes first: it fills the part of the disk that the others read.
pub const PHASES: &[Phase] = &[
    Phase {
        title: "128 KiB sequential write",
        name: "seq-write",
        queue_depth: 8,
        kind: Kind::Measure,
        arguments: "--rw=write --bs=128k --size=512M",
    },
    Phase {
        title: "128 KiB sequential read",
        name: "seq-read",
        queue_depth: 8,
        kind: Kind::Measure,
        arguments: "--rw=read --bs=128k --size=512M",
    },
    Phase {
        title: "4 KiB random read",
        name: "rand-read",
        queue_depth: 32,
        kind: Kind::Measure,
        arguments: "--rw=randread --bs=4k --size=512M --norandommap",
    },
    Phase {
        title: "4 KiB random write",
        name: "rand-write",
        queue_depth: 32,
        kind: Kind::Measure,
        arguments: "--rw=randwrite --bs=4k --size=512M --norandommap",
    },
    Phase {
        title: "4 KiB random mix, 70/30",
        name: "rand-mix",
        queue_depth: 32,
        kind: Kind::Measure,
        arguments: "--rw=randrw --rwmixread=70 --bs=4k --size=512M --norandommap",
    },
    Phase {
        title: "verify, 4 to 128 KiB",
        name: "verify",
        queue_depth: 16,
        kind: Kind::Verify,
        arguments: "--rw=randwrite --bsrange=4k-128k --blockalign=4k --offset=1G --size=128M \
                    --verify=crc32c --verify_fatal=1 --do_verify=1 --end_fsync=1",
    },
];

/// One direction of one phase.
#[derive(Clone, Debug, Serialize)]
pub struct Measurement {
    pub name: String,
    pub title: String,
    pub direction: &'static str,
    pub queue_depth: u32,
    pub ios: u64,
    pub iops: f64,
    pub bytes_per_second: f64,
    pub latency_ns: Latency,
    /// How many commands took how long (nanoseconds, count), ascending.
    pub histogram: Vec<(u64, u64)>,
}

/// From the guest's submission to its completion.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Latency {
    pub p50: u64,
    pub p99: u64,
    pub p999: u64,
    pub max: u64,
    pub mean: f64,
}

/// What a phase came to.
pub enum Outcome {
    Measured(Vec<Measurement>),
    /// So much was written, read back and found unchanged.
    Verified {
        bytes: u64,
    },
}

impl Outcome {
    /// For the line that says that the phase is done.
    pub fn summary(&self) -> String {
        match self {
            Self::Measured(some) => some
                .iter()
                .map(|m| {
                    format!(
                        "{} {:.0} IOPS, {:.0} MiB/s",
                        m.direction,
                        m.iops,
                        m.bytes_per_second / (1 << 20) as f64
                    )
                })
                .collect::<Vec<_>>()
                .join("; "),
            Self::Verified { bytes } => {
                format!("{} MiB written and read back, crc32c: no error", bytes >> 20)
            }
        }
    }
}

impl Phase {
    /// The guest's command line.
    pub fn command(&self, seconds: u32) -> String {
        let time = match self.kind {
            Kind::Measure => format!("--time_based --runtime={seconds}"),
            Kind::Verify => String::new(),
        };
        format!(
            "fio --name={} --filename=/dev/nvme0n1 --ioengine=io_uring --direct=1 --iodepth={} {} {time} \
             --lat_percentiles=1 --clat_percentiles=0 --output-format=json+",
            self.name, self.queue_depth, self.arguments
        )
    }

    /// Reads fio's report.
    pub fn read(&self, text: &str) -> Result<Outcome> {
        // Warnings come before the report.
        let start = text.find('{').context("fio printed no report")?;
        let report: Value = serde_json::from_str(&text[start..])?;
        let job = &report["jobs"][0];
        ensure!(job["error"] == 0, "fio's job ended with error {}", job["error"]);
        if self.kind == Kind::Verify {
            let (written, read) = (number(&job["write"]["io_bytes"])?, number(&job["read"]["io_bytes"])?);
            ensure!(written > 0 && read == written, "{written} bytes written, but {read} verified");
            return Ok(Outcome::Verified { bytes: read });
        }
        let mut measured = Vec::new();
        for direction in ["read", "write"] {
            if number(&job[direction]["total_ios"])? > 0 {
                measured.push(self.measurement(direction, &job[direction])?);
            }
        }
        ensure!(!measured.is_empty(), "nothing was read or written");
        Ok(Outcome::Measured(measured))
    }

    fn measurement(&self, direction: &'static str, report: &Value) -> Result<Measurement> {
        let latency = &report["lat_ns"];
        let bins = latency["bins"].as_object().context("no histogram")?;
        let mut histogram = bins
            .iter()
            .map(|(ns, count)| Ok((ns.parse()?, number(count)?)))
            .filter(|bin| !matches!(bin, Ok((_, 0))))
            .collect::<Result<Vec<(u64, u64)>>>()?;
        histogram.sort_unstable();
        let percentile = |p| percentile(&histogram, p).context("an empty histogram");
        Ok(Measurement {
            name: self.name.to_owned(),
            title: self.title.to_owned(),
            direction,
            queue_depth: self.queue_depth,
            ios: number(&report["total_ios"])?,
            iops: report["iops"].as_f64().context("iops")?,
            bytes_per_second: report["bw_bytes"].as_f64().context("bw_bytes")?,
            latency_ns: Latency {
                p50: percentile(0.5)?,
                p99: percentile(0.99)?,
                p999: percentile(0.999)?,
                max: number(&latency["max"])?,
                mean: latency["mean"].as_f64().context("mean")?,
            },
            histogram,
        })
    }
}

fn number(value: &Value) -> Result<u64> {
    value.as_u64().with_context(|| format!("{value} is no number"))
}

/// The least time within which the given part of all commands was done.
fn percentile(histogram: &[(u64, u64)], part: f64) -> Option<u64> {
    let total: u64 = histogram.iter().map(|(_, count)| count).sum();
    let rank = (total as f64 * part).ceil() as u64;
    let mut seen = 0;
    histogram.iter().find_map(|(ns, count)| {
        seen += count;
        (seen >= rank).then_some(*ns)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_a_histogram() {
        let histogram = [(10, 50), (20, 49), (900, 1)];
        assert_eq!(percentile(&histogram, 0.5), Some(10));
        assert_eq!(percentile(&histogram, 0.99), Some(20));
        assert_eq!(percentile(&histogram, 0.999), Some(900));
        assert_eq!(percentile(&[], 0.5), None);
    }

    #[test]
    fn a_verification_that_read_less_than_it_wrote_is_a_failure() {
        let verify = PHASES.last().expect("there are phases");
        let report = |read, error| {
            format!(
                "note\n{{\"jobs\":[{{\"error\":{error},\"read\":{{\"io_bytes\":{read}}},\"write\":{{\"io_bytes\":8}}}}]}}"
            )
        };
        assert!(verify.read(&report(8, 0)).is_ok());
        assert!(verify.read(&report(4, 0)).is_err());
        assert!(verify.read(&report(8, 84)).is_err());
    }
}
