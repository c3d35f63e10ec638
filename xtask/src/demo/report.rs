//! The demo's result, as JSON and as a table.

use super::fio::Measurement;
use serde::Serialize;
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Everything that a run found out.
#[derive(Serialize)]
pub struct Report {
    /// Seconds since 1970.
    pub time: u64,
    pub host_cpus: usize,
    /// What ran the guest's CPU.
    pub accelerator: &'static str,
    pub guest_kernel: String,
    pub disk_model: String,
    pub disk_bytes: u64,
    pub verified_bytes: u64,
    pub measurements: Vec<Measurement>,
}

impl Report {
    pub fn new(
        disk_model: String,
        disk_bytes: u64,
        guest_kernel: String,
        kvm: bool,
        verified_bytes: u64,
        measurements: Vec<Measurement>,
    ) -> Self {
        Self {
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            host_cpus: std::thread::available_parallelism().map_or(1, usize::from),
            accelerator: if kvm { "kvm" } else { "tcg" },
            guest_kernel,
            disk_model,
            disk_bytes,
            verified_bytes,
            measurements,
        }
    }

    /// What was measured where, in one line.
    pub fn headline(&self) -> String {
        let cpu =
            if self.accelerator == "kvm" { "KVM" } else { "emulated CPU (the guest is the bottleneck)" };
        format!("Linux {}, {cpu}, {} host CPUs", self.guest_kernel, self.host_cpus)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} in {}\n", self.disk_model, self.headline())?;
        writeln!(
            f,
            "{:<26}{:<7}{:>5}{:>9}{:>12}{:>11}{:>11}{:>11}{:>11}",
            "workload", "", "depth", "IOPS", "bandwidth", "p50", "p99", "p99.9", "max"
        )?;
        writeln!(f, "{}", "─".repeat(103))?;
        for m in &self.measurements {
            let latency = &m.latency_ns;
            writeln!(
                f,
                "{:<26}{:<7}{:>5}{:>9.0}{:>12}{:>11}{:>11}{:>11}{:>11}",
                m.title,
                m.direction,
                m.queue_depth,
                m.iops,
                format!("{:.0} MiB/s", m.bytes_per_second / (1 << 20) as f64),
                time(latency.p50),
                time(latency.p99),
                time(latency.p999),
                time(latency.max)
            )?;
        }
        Ok(())
    }
}

/// Nanoseconds in the unit that suits them, three digits.
pub fn time(ns: u64) -> String {
    let (value, unit) = match ns {
        0..1_000 => (ns as f64, "ns"),
        1_000..1_000_000 => (ns as f64 / 1e3, "µs"),
        1_000_000..1_000_000_000 => (ns as f64 / 1e6, "ms"),
        _ => (ns as f64 / 1e9, "s"),
    };
    let decimals = if value < 10.0 { 2 } else { usize::from(value < 100.0) };
    format!("{value:.decimals$} {unit}")
}

#[cfg(test)]
mod tests {
    use super::time;

    #[test]
    fn times_have_three_digits() {
        assert_eq!(
            [12, 1_234, 98_765, 123_456_789, 2_000_000_000].map(time),
            ["12.0 ns", "1.23 µs", "98.8 µs", "123 ms", "2.00 s"]
        );
    }
}
