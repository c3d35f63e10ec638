//! The area `queues`: what idle queues cost those that are not.

use super::Setting;
use super::client::{self, Point};
use super::goals::NULL;
use super::report::{Report, Row};
use anyhow::Result;

/// Queues that are there and idle.
const IDLE: u32 = 127;

pub fn run(setting: &Setting, report: &mut Report) -> Result<()> {
    let server = client::serve(setting, "queues", setting.poll, NULL.device)?;
    let mut rows = Vec::new();
    for depth in [1, 32] {
        let (mut alone, mut among) = (Vec::new(), Vec::new());
        for _ in 0..setting.pace.runs {
            for (idle_queues, outcomes) in [(0, &mut alone), (IDLE, &mut among)] {
                let point = Point { rw: "randread", size: "4K", depth, idle_queues };
                outcomes.push(client::run(setting, &server, point, setting.pace.seconds)?);
            }
        }
        let name = format!("null 4K, depth {depth}, {IDLE} queues idle");
        let mut row = Row::new(name, false, among.iter().map(|outcome| outcome.iops).collect());
        row.latencies(&among);
        row.limit("one queue alone", alone.iter().map(|outcome| outcome.iops).collect(), 0.9);
        rows.push(row);
    }
    report.add(rows);
    server.stop()
}
