//! Answers of the control socket as text for people. What is missing in one shows as `-`.

use std::fmt::Write as _;

use serde_json::Value;

use crate::size::Size;

/// The answer to `status`.
pub fn status(status: &Value) -> String {
    let seconds = status["uptime_s"].as_u64().unwrap_or(0);
    let mut out = format!(
        "quarry {}, pid {}, up {}\n\n",
        text(&status["version"]),
        text(&status["pid"]),
        uptime(seconds)
    );
    let mut reactors = Table::new(&["REACTOR", "CPU", "MODE", "BUSY", "SLEEPS", "SLEPT"]);
    for reactor in list(&status["reactors"]) {
        let load = &reactor["load"];
        reactors.row([
            text(&reactor["name"]),
            text(&reactor["cpu"]),
            text(&reactor["mode"]),
            share(&load["busy_turns"], &load["turns"]),
            text(&load["sleeps"]),
            load["slept_ns"].as_u64().map_or(MISSING.to_owned(), |ns| format!("{:.1} s", ns as f64 / 1e9)),
        ]);
    }
    let mut controllers = Table::new(&[
        "CONTROLLER",
        "SOCKET",
        "CLIENT",
        "QUEUES",
        "READS",
        "WRITES",
        "READ",
        "WRITTEN",
        "ERRORS",
    ]);
    let mut queues = Table::new(&["CONTROLLER", "SQ", "CQ", "REACTOR"]);
    for controller in list(&status["controllers"]) {
        let (name, counters) = (text(&controller["name"]), &controller["counters"]);
        controllers.row([
            name.clone(),
            text(&controller["socket"]),
            match (controller["connected"].as_bool(), controller["enabled"].as_bool()) {
                (_, Some(true)) => "running".to_owned(),
                (Some(true), _) => "connected".to_owned(),
                _ => "none".to_owned(),
            },
            list(&controller["queues"]).len().to_string(),
            text(&counters["reads"]),
            text(&counters["writes"]),
            bytes(&counters["bytes_read"]),
            bytes(&counters["bytes_written"]),
            text(&counters["media_errors"]),
        ]);
        for queue in list(&controller["queues"]) {
            queues.row([name.clone(), text(&queue["sqid"]), text(&queue["cqid"]), text(&queue["reactor"])]);
        }
    }
    out.push_str(&reactors.show());
    out.push('\n');
    out.push_str(&controllers.show());
    if !queues.rows.is_empty() {
        out.push('\n');
        out.push_str(&queues.show());
    }
    out
}

/// The answer to `limits.get` and `limits.set`.
pub fn limits(limits: &Value) -> String {
    let mut table = Table::new(&["LIMIT", "VALUE"]);
    for key in
        ["iops", "read_iops", "write_iops", "bandwidth", "read_bandwidth", "write_bandwidth", "burst_ms"]
    {
        let value = match limits[key].as_u64() {
            Some(bytes) if key.ends_with("bandwidth") => format!("{} a second", Size(bytes)),
            Some(number) if key == "burst_ms" => number.to_string(),
            Some(number) => format!("{number} a second"),
            None => "none".to_owned(),
        };
        table.row([key.to_owned(), value]);
    }
    table.show()
}

const MISSING: &str = "-";

fn list(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A cell: nothing in it can move the cursor or break the line.
fn text(value: &Value) -> String {
    match value {
        Value::Null => MISSING.to_owned(),
        Value::String(text) => text.chars().map(|c| if c.is_control() { '?' } else { c }).collect(),
        other => other.to_string(),
    }
}

fn share(part: &Value, whole: &Value) -> String {
    match (part.as_u64(), whole.as_u64()) {
        (Some(part), Some(whole)) if whole > 0 => format!("{:.0} %", 100.0 * part as f64 / whole as f64),
        _ => MISSING.to_owned(),
    }
}

/// Rounded: for reading, not for calculating.
fn bytes(value: &Value) -> String {
    let Some(bytes) = value.as_u64() else { return MISSING.to_owned() };
    let (mut amount, mut unit) = (bytes as f64, "B");
    for next in ["K", "M", "G", "T", "P", "E"] {
        if amount < 1024.0 {
            break;
        }
        (amount, unit) = (amount / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{amount:.1} {unit}") }
}

fn uptime(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, ..) => format!("{hours} h {minutes} min"),
        _ => format!("{days} d {hours} h"),
    }
}

/// Columns two spaces apart, as wide as their widest cell.
struct Table<const N: usize> {
    rows: Vec<[String; N]>,
    heads: [&'static str; N],
}

impl<const N: usize> Table<N> {
    fn new(heads: &[&'static str; N]) -> Self {
        Self { rows: Vec::new(), heads: *heads }
    }

    fn row(&mut self, row: [String; N]) {
        self.rows.push(row);
    }

    fn show(&self) -> String {
        let heads = self.heads.map(str::to_owned);
        let rows = || std::iter::once(&heads).chain(&self.rows);
        let width = |column: usize| rows().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: [usize; N] = std::array::from_fn(width);
        let mut out = String::new();
        for row in rows() {
            let mut line = String::new();
            for (cell, width) in row.iter().zip(widths) {
                let _ = write!(line, "{cell:width$}  ");
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_status_is_a_few_tables() {
        let shown = status(&json!({
            "version": "1.2.3", "pid": 77, "uptime_s": 7380,
            "reactors": [{
                "name": "reactor-0", "cpu": 3, "mode": "adaptive",
                "load": { "turns": 200, "busy_turns": 50, "sleeps": 9, "slept_ns": 1_500_000_000u64 },
            }, { "name": "reactor-1", "cpu": null, "mode": "poll" }],
            "controllers": [{
                "name": "vm\n\u{1b}[2J", "socket": "/run/quarry/vm.sock", "connected": true, "enabled": true,
                "queues": [{ "sqid": 1, "cqid": 1, "reactor": "reactor-0" }],
                "counters": { "reads": 10, "writes": 2, "bytes_read": 1_610_612_736u64, "bytes_written": 1000,
                    "media_errors": 0 },
            }],
        }));
        assert_eq!(
            shown,
            "quarry 1.2.3, pid 77, up 2 h 3 min\n\n\
             REACTOR    CPU  MODE      BUSY  SLEEPS  SLEPT\n\
             reactor-0  3    adaptive  25 %  9       1.5 s\n\
             reactor-1  -    poll      -     -       -\n\n\
             CONTROLLER  SOCKET               CLIENT   QUEUES  READS  WRITES  READ   WRITTEN  ERRORS\n\
             vm??[2J     /run/quarry/vm.sock  running  1       10     2       1.5 G  1000 B   0\n\n\
             CONTROLLER  SQ  CQ  REACTOR\n\
             vm??[2J     1   1   reactor-0\n"
        );
        // Whatever it is that answers.
        for other in [json!(null), json!([1]), json!({ "reactors": 1, "controllers": [1, {}] })] {
            assert!(status(&other).starts_with("quarry "));
        }
    }

    #[test]
    fn limits_are_a_table() {
        assert_eq!(
            limits(&json!({ "iops": 1000, "bandwidth": 100 << 20, "burst_ms": 100 })),
            "LIMIT            VALUE\n\
             iops             1000 a second\n\
             read_iops        none\n\
             write_iops       none\n\
             bandwidth        100M a second\n\
             read_bandwidth   none\n\
             write_bandwidth  none\n\
             burst_ms         100\n"
        );
    }

    #[test]
    fn times_are_short() {
        for (seconds, shown) in [(5, "5 s"), (60, "1 min"), (3600, "1 h 0 min"), (90_000, "1 d 1 h")] {
            assert_eq!(uptime(seconds), shown);
        }
    }
}
