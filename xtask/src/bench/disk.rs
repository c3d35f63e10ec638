//! The areas `null` and `memory`: figures with goals, and curves over the depth.

use super::client::{self, Outcome, Point};
use super::goals::{Copies, Disk, Goal, Limit};
use super::report::{Curve, LATENCY, Report, Row};
use super::{Setting, median};
use anyhow::{Context, Result};

/// Depths of the curves.
const DEPTHS: [u32; 9] = [1, 2, 4, 8, 16, 32, 64, 128, 256];

pub fn run(setting: &Setting, disk: &'static Disk, report: &mut Report) -> Result<()> {
    let server = client::serve(setting, disk.name, setting.poll, disk.device)?;
    if disk.fill {
        client::fill(setting, &server)?;
    }
    let mut outcomes: Vec<Vec<Outcome>> = disk.goals.iter().map(|_| Vec::new()).collect();
    let mut limits: Vec<Vec<f64>> = disk.goals.iter().map(|_| Vec::new()).collect();
    let mut round_trips = Vec::new();
    for _ in 0..setting.pace.runs {
        let now = server.while_halted(|| Limits::measure(setting, disk))?;
        round_trips.extend(now.round_trip);
        for ((goal, outcomes), limits) in disk.goals.iter().zip(&mut outcomes).zip(&mut limits) {
            outcomes.push(client::run(setting, &server, goal.point, setting.pace.seconds)?);
            limits.push(now.of(goal)?);
        }
    }
    let rows = disk.goals.iter().zip(&outcomes).zip(&limits);
    let mut rows: Vec<Row> =
        rows.map(|((goal, outcomes), limits)| row(disk.name, goal, outcomes, limits)).collect();
    for row in &mut rows {
        row.round_trips.clone_from(&round_trips);
    }
    let mut points = Vec::new();
    for depth in DEPTHS {
        let point = Point { rw: "randread", size: "4K", depth, idle_queues: 0 };
        points.push((depth, client::run(setting, &server, point, setting.pace.seconds / 2.0)?));
    }
    report.round_trips.extend(round_trips);
    report.add(rows);
    report.curves.push(Curve::new(disk, points));
    server.stop()
}

/// The limits of a disk's figures, as they are now.
struct Limits {
    round_trip: Option<f64>,
    /// By depth.
    echoes: Vec<(u32, f64)>,
    copies: Vec<(Copies, f64)>,
}

impl Limits {
    fn measure(setting: &Setting, disk: &Disk) -> Result<Self> {
        let mut echoes = Vec::new();
        let mut kinds = Vec::new();
        for goal in disk.goals {
            if let Limit::Echo | Limit::EchoAndCopy(_) = goal.limit {
                echoes.push((goal.point.depth, client::echo(setting, goal.point.depth)?.iops));
            }
            if let Limit::Copy(kind) | Limit::EchoAndCopy(kind) = goal.limit {
                kinds.push(kind);
            }
        }
        let measured = if kinds.is_empty() { Vec::new() } else { client::copies(setting, &kinds)? };
        let copies = kinds.into_iter().zip(measured).collect();
        Ok(Self { round_trip: client::round_trip(setting)?, echoes, copies })
    }

    /// Commands in a second.
    fn of(&self, goal: &Goal) -> Result<f64> {
        let echo = || {
            let found = self.echoes.iter().find(|(depth, _)| *depth == goal.point.depth);
            found.map(|(_, iops)| *iops).context("the limit of this depth")
        };
        let copy = |kind: Copies| {
            let found = self.copies.iter().find(|(other, _)| *other == kind);
            found.map(|(_, copies)| *copies).context("the limit of these copies")
        };
        Ok(match goal.limit {
            Limit::Echo => echo()?,
            Limit::Copy(kind) => copy(kind)?,
            Limit::EchoAndCopy(kind) => 1.0 / (1.0 / echo()? + 1.0 / copy(kind)?),
        })
    }
}

fn row(area: &str, goal: &Goal, outcomes: &[Outcome], limits: &[f64]) -> Row {
    let Point { rw, size, depth, .. } = goal.point;
    let bytes = median(&outcomes.iter().map(|o| o.bytes_per_second / o.iops).collect::<Vec<_>>());
    let scale = if goal.is_bandwidth { bytes } else { 1.0 };
    let values = outcomes.iter().map(|outcome| outcome.iops * scale).collect();
    let limits: Vec<f64> = limits.iter().map(|limit| limit * scale).collect();
    let mut row = Row::new(format!("{area} {size} {rw}, depth {depth}"), goal.is_bandwidth, values);
    row.latencies(outcomes);
    row.limit(
        match goal.limit {
            Limit::Echo => "a server that does nothing",
            Limit::Copy(_) => "copies in a bare loop",
            Limit::EchoAndCopy(_) => "a server that does nothing, and a copy",
        },
        limits,
        goal.of_limit,
    );
    row.spdk(goal.spdk, goal.spdk_p50, goal.times_spdk);
    if goal.p50 > 0.0 {
        let p50 = row.p50_ns;
        row.at_most(LATENCY, p50, goal.p50);
    }
    if let Some(server_ns) = row.server_ns.filter(|_| goal.server_ns > 0.0) {
        row.at_most("ns of server time", server_ns, goal.server_ns);
    }
    row
}
