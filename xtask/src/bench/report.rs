//! What was found out: rows of figures with their bounds, as JSON and as tables.

use super::client::Outcome;
use super::counts::Counted;
use super::goals::Disk;
use super::machine::Machine;
use super::micro::Micro;
use super::{Setting, median};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

/// The bound on the median latency.
pub const LATENCY: &str = "p50 in ns";

/// Nanoseconds of a cache line's round trip below which two CPUs are near each other: sharing a cache, as a rule.
const NEAR: f64 = 200.0;
/// How much it may differ within a run without a word about it.
const MOVED: f64 = 2.0;

/// The part of its time that a figure may be disturbed without a word about it.
const DISTURBED: f64 = 0.05;

/// Everything that a run found out.
#[derive(Serialize)]
pub struct Report {
    /// Seconds since 1970.
    pub time: u64,
    pub quick: bool,
    pub machine: Machine,
    /// The reactors' mode.
    pub mode: &'static str,
    pub rows: Vec<Row>,
    /// Nanoseconds of a cache line's round trip between the two CPUs, again and again during the run.
    pub round_trips: Vec<f64>,
    pub curves: Vec<Curve>,
    pub idle: Vec<Idle>,
    pub counts: Option<Counted>,
    pub micro: Vec<Micro>,
}

/// Controllers without I/O, as the client found them.
#[derive(Serialize, Deserialize)]
pub struct Idle {
    #[serde(default)]
    pub name: String,
    pub controllers: usize,
    /// CPU time of the server, as a part of one core.
    pub cpu: f64,
    pub first: Vec<First>,
}

/// The first commands after a pause.
#[derive(Serialize, Deserialize)]
pub struct First {
    pub pause_ms: u64,
    pub commands: usize,
    pub p50_ns: u64,
    pub max_ns: u64,
}

/// The part of a core that they may cost.
const IDLE_CPU: f64 = 0.02;

impl fmt::Display for Idle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let met = if self.cpu < IDLE_CPU { "" } else { "   not met" };
        write!(f, "  {:<30}{:>6.2} % of a core (< 2 %{met})", self.name, self.cpu * 100.0)?;
        for first in &self.first {
            let (p50, max) = (time(first.p50_ns as f64), time(first.max_ns as f64));
            write!(f, "; after {} ms: {p50}, at most {max}", first.pause_ms)?;
        }
        Ok(())
    }
}

/// One figure.
#[derive(Serialize)]
pub struct Row {
    pub name: String,
    /// Bytes in a second, and not commands.
    pub is_bandwidth: bool,
    /// The median of `values`.
    pub value: f64,
    pub values: Vec<f64>,
    pub p50_ns: f64,
    pub p99_ns: f64,
    pub p999_ns: f64,
    pub max_ns: f64,
    /// Of the server's CPU time for each command.
    pub server_ns: Option<f64>,
    /// Of the client's CPU time for each command, where that is of interest.
    pub client_ns: Option<f64>,
    /// For which part of the time other programs kept client or server from running: the median run.
    pub disturbed: f64,
    /// A cache line's round trip before each run, where it was measured.
    pub round_trips: Vec<f64>,
    /// SPDK's figure: two sittings.
    pub spdk: Option<(f64, f64)>,
    pub spdk_p50_ns: Option<(f64, f64)>,
    /// What limits it physically.
    pub limit_name: &'static str,
    pub limit: Option<f64>,
    pub limits: Vec<f64>,
    pub bounds: Vec<Bound>,
}

/// Something that should be so.
#[derive(Serialize)]
pub struct Bound {
    pub what: &'static str,
    pub value: f64,
    pub at_least: Option<f64>,
    pub at_most: Option<f64>,
    pub met: bool,
}

/// A disk's speed over the depth.
#[derive(Serialize)]
pub struct Curve {
    pub disk: &'static str,
    pub points: Vec<(u32, Outcome)>,
    pub spdk: Vec<Spdk>,
}

/// SPDK's figures at one depth: two sittings.
#[derive(Serialize)]
pub struct Spdk {
    pub depth: u32,
    pub iops: (f64, f64),
    /// 0 where they are unknown.
    pub p50_ns: (f64, f64),
}

impl Curve {
    pub fn new(disk: &'static Disk, points: Vec<(u32, Outcome)>) -> Self {
        let goals = disk.goals.iter().filter(|goal| goal.point.rw == "randread" && goal.point.size == "4K");
        let spdk = goals
            .map(|goal| Spdk { depth: goal.point.depth, iops: goal.spdk, p50_ns: goal.spdk_p50 })
            .collect();
        Self { disk: disk.name, points, spdk }
    }
}

impl Row {
    pub fn new(name: String, is_bandwidth: bool, values: Vec<f64>) -> Self {
        Self {
            name,
            is_bandwidth,
            value: median(&values),
            values,
            p50_ns: 0.0,
            p99_ns: 0.0,
            p999_ns: 0.0,
            max_ns: 0.0,
            server_ns: None,
            client_ns: None,
            disturbed: 0.0,
            round_trips: Vec::new(),
            spdk: None,
            spdk_p50_ns: None,
            limit_name: "",
            limit: None,
            limits: Vec::new(),
            bounds: Vec::new(),
        }
    }

    /// Latencies and CPU time: medians over the runs.
    pub fn latencies(&mut self, outcomes: &[Outcome]) {
        let of = |get: fn(&Outcome) -> f64| median(&outcomes.iter().map(get).collect::<Vec<_>>());
        self.p50_ns = of(|o| o.latency_ns.p50);
        self.p99_ns = of(|o| o.latency_ns.p99);
        self.p999_ns = of(|o| o.latency_ns.p999);
        self.max_ns = of(|o| o.latency_ns.max);
        self.disturbed = of(|o| o.disturbed);
        let server: Vec<f64> = outcomes.iter().filter_map(|o| o.server_ns).collect();
        self.server_ns = (!server.is_empty()).then(|| median(&server));
    }

    /// The limit as each run found it; the ratio is the median of the runs' ratios. `at_least` 0 is no bound.
    pub fn limit(&mut self, name: &'static str, limits: Vec<f64>, at_least: f64) {
        self.limit_name = name;
        self.limit = Some(median(&limits));
        self.limits = limits;
        if at_least > 0.0 {
            self.at_least("ratio to limit", self.of_limit().unwrap_or(0.0), at_least);
        }
    }

    /// SPDK's figures, of which the upper one counts.
    pub fn spdk(&mut self, spdk: (f64, f64), p50: (f64, f64), at_least: f64) {
        self.spdk = Some(spdk);
        self.spdk_p50_ns = (p50.1 > 0.0).then_some(p50);
        if at_least > 0.0 {
            self.at_least("ratio to SPDK", self.value / spdk.1, at_least);
        }
    }

    pub fn at_least(&mut self, what: &'static str, value: f64, bound: f64) {
        let met = value >= bound;
        self.bounds.push(Bound { what, value, at_least: Some(bound), at_most: None, met });
    }

    pub fn at_most(&mut self, what: &'static str, value: f64, bound: f64) {
        let met = value <= bound;
        self.bounds.push(Bound { what, value, at_least: None, at_most: Some(bound), met });
    }

    pub fn of_limit(&self) -> Option<f64> {
        let ratios: Vec<f64> =
            self.values.iter().zip(&self.limits).map(|(value, limit)| value / limit).collect();
        (!ratios.is_empty()).then(|| median(&ratios))
    }

    fn amount(&self, value: f64) -> String {
        match (self.is_bandwidth, value) {
            (true, 1e9..) => format!("{:.1} GB/s", value / 1e9),
            (true, _) => format!("{:.0} MB/s", value / 1e6),
            (false, 1e6..) => format!("{:.2} M", value / 1e6),
            (false, 1e4..) => format!("{:.0} k", value / 1e3),
            (false, _) => format!("{value:.0}"),
        }
    }

    fn line(&self) -> String {
        let ratio = |value: Option<f64>, what: &str| {
            let bound = self.bounds.iter().find(|bound| bound.what == what).and_then(|bound| bound.at_least);
            match (value, bound) {
                (None, _) => String::new(),
                (Some(value), Some(bound)) => format!("{value:.2} (≥ {bound})"),
                (Some(value), None) => format!("{value:.2}"),
            }
        };
        let spdk = self.spdk.map_or(String::new(), |(low, high)| {
            if low == high {
                self.amount(high)
            } else {
                format!("{} – {}", self.amount(low), self.amount(high))
            }
        });
        let met = match (self.bounds.is_empty(), self.bounds.iter().all(|bound| bound.met)) {
            (true, _) => "",
            (_, true) => "yes",
            (_, false) => "no",
        };
        format!(
            "{:<36}{:>11}{:>9}{:>9}{:>9}{:>9}{:>9} │{:>21}{:>15} │{:>11}{:>15} │ {met}",
            self.name,
            self.amount(self.value),
            time(self.p50_ns),
            time(self.p99_ns),
            time(self.p999_ns),
            time(self.max_ns),
            self.server_ns.map_or(String::new(), |ns| match ns {
                1e5.. => time(ns),
                _ => format!("{ns:.0} ns"),
            }),
            spdk,
            ratio(self.spdk.map(|(_, high)| self.value / high), "ratio to SPDK"),
            self.limit.map_or(String::new(), |limit| self.amount(limit)),
            ratio(self.of_limit(), "ratio to limit"),
        )
    }
}

/// Nanoseconds in the unit that suits them.
fn time(ns: f64) -> String {
    match ns {
        0.0 => String::new(),
        _ if ns < 1000.0 => format!("{ns:.0} ns"),
        _ => crate::demo::report::time(ns as u64),
    }
}

impl Report {
    pub fn new(setting: &Setting, quick: bool) -> Self {
        Self {
            time: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            quick,
            machine: setting.machine.clone(),
            mode: if setting.poll.is_some() { "poll" } else { "adaptive" },
            rows: Vec::new(),
            round_trips: Vec::new(),
            curves: Vec::new(),
            idle: Vec::new(),
            counts: None,
            micro: Vec::new(),
        }
    }

    /// Adds rows and prints them as a table.
    pub fn add(&mut self, rows: Vec<Row>) {
        println!(
            "\n{:<36}{:>11}{:>9}{:>9}{:>9}{:>9}{:>9} │{:>21}{:>15} │{:>11}{:>15} │ met\n{}",
            "",
            "Quarry",
            "p50",
            "p99",
            "p99.9",
            "max",
            "server",
            "SPDK",
            "ratio",
            "limit",
            "ratio",
            "─".repeat(167)
        );
        for row in &rows {
            println!("{}", row.line());
            if row.disturbed > DISTURBED {
                let part = row.disturbed * 100.0;
                println!("    Other programs took {part:.0} % of the time on these CPUs: this says little.");
            }
            if let Some(ns) = row.client_ns {
                println!("    the client's own CPU time for each command: {}", time(ns));
            }
            for bound in row.bounds.iter().filter(|bound| bound.at_most.is_some() || !bound.met) {
                let (sign, limit) = match (bound.at_least, bound.at_most) {
                    (Some(limit), _) => ("≥", limit),
                    (_, limit) => ("≤", limit.unwrap_or_default()),
                };
                let met = if bound.met { "" } else { "   not met" };
                let floor = match bound.what == LATENCY && !row.round_trips.is_empty() {
                    true => format!(" (a cache line's round trip: {:.0})", median(&row.round_trips)),
                    false => String::new(),
                };
                println!("    {}: {:.2}, should be {sign} {limit:.2}{floor}{met}", bound.what, bound.value);
            }
        }
        self.rows.extend(rows);
    }

    /// What can be said at the end only.
    pub fn finish(&self, machine: &Machine) {
        let (met, all) = self
            .rows
            .iter()
            .flat_map(|row| &row.bounds)
            .fold((0, 0), |(met, all), bound| (met + u32::from(bound.met), all + 1));
        println!();
        if let (Some(low), Some(high)) = (
            self.round_trips.iter().copied().min_by(f64::total_cmp),
            self.round_trips.iter().copied().max_by(f64::total_cmp),
        ) {
            println!(
                "A cache line goes from CPU {} to CPU {} and back in {:.0} ns (median; {low:.0} to {high:.0}): no command is \
                 faster.",
                machine.client_cpu,
                machine.server_cpu,
                median(&self.round_trips)
            );
            if high > low * MOVED {
                println!(
                    "The CPUs were moved during the run: medians are of both kinds. result.json has each run's value and \
                     the round trip before it."
                );
            } else if high < NEAR {
                println!(
                    "They are near each other now. SPDK's latencies look like CPUs that were not: these ratios to SPDK \
                     probably flatter."
                );
            }
        }
        if all > 0 {
            println!("{met} of {all} bounds on time are met.");
        }
    }

    /// How many counted bounds are broken.
    pub fn broken(&self) -> usize {
        self.counts.as_ref().map_or(0, |counted| counted.checks().filter(|check| !check.met).count())
    }
}
