//! Pictures of speed over depth, as SVG: Quarry's curves, SPDK's figures beside them.

use super::report::{Curve, Report};
use std::fmt::Write;

const WIDTH: f64 = 1100.0;
const HEIGHT: f64 = 600.0;
/// The plot's edges: left, top, right, bottom.
const PLOT: (f64, f64, f64, f64) = (96.0, 92.0, 790.0, 530.0);
/// Told apart by the colour-blind too (after Okabe and Ito).
const COLOURS: [&str; 4] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7"];

/// A line, or with `is_range` bars from one value to another.
struct Series {
    name: String,
    colour: &'static str,
    dashed: bool,
    is_range: bool,
    /// Depth, value, upper value.
    points: Vec<(u32, f64, f64)>,
}

/// Median and 99th percentile of latency over the depth.
pub fn latency(report: &Report) -> String {
    let mut all = Vec::new();
    for (curve, colour) in report.curves.iter().zip(COLOURS) {
        let series = |name: String, dashed, get: fn(&super::client::Outcome) -> f64| Series {
            name,
            colour,
            dashed,
            is_range: false,
            points: curve.points.iter().map(|(depth, o)| (*depth, get(o), get(o))).collect(),
        };
        all.push(series(format!("{}, p50", curve.disk), false, |o| o.latency_ns.p50));
        all.push(series(format!("{}, p99", curve.disk), true, |o| o.latency_ns.p99));
        let spdk = curve.spdk.iter().filter(|spdk| spdk.p50_ns.1 > 0.0);
        all.push(range(
            curve,
            colour,
            "p50",
            spdk.map(|spdk| (spdk.depth, spdk.p50_ns.0, spdk.p50_ns.1)).collect(),
        ));
    }
    draw("Latency of 4 KiB random reads", report, "latency", nanoseconds, &all)
}

/// Commands in a second over the depth.
pub fn throughput(report: &Report) -> String {
    let mut all = Vec::new();
    for (curve, colour) in report.curves.iter().zip(COLOURS) {
        all.push(Series {
            name: curve.disk.to_owned(),
            colour,
            dashed: false,
            is_range: false,
            points: curve.points.iter().map(|(depth, o)| (*depth, o.iops, o.iops)).collect(),
        });
        let spdk = curve.spdk.iter().map(|spdk| (spdk.depth, spdk.iops.0, spdk.iops.1)).collect();
        all.push(range(curve, colour, "", spdk));
    }
    draw("4 KiB random reads in a second", report, "IOPS", commands, &all)
}

fn range(curve: &Curve, colour: &'static str, what: &str, points: Vec<(u32, f64, f64)>) -> Series {
    let name = format!("{}, SPDK {what}", curve.disk).trim_end().to_owned();
    Series { name, colour, dashed: false, is_range: true, points }
}

fn nanoseconds(value: f64) -> String {
    match value {
        1e6.. => format!("{} ms", value / 1e6),
        1e3.. => format!("{} µs", value / 1e3),
        _ => format!("{value} ns"),
    }
}

fn commands(value: f64) -> String {
    match value {
        1e6.. => format!("{} M", value / 1e6),
        _ => format!("{} k", value / 1e3),
    }
}

/// Both axes logarithmic: the depth to the right, the value upwards.
struct Axes {
    /// Powers of two.
    deepest: f64,
    /// Powers of ten, with halves at 3.
    low: f64,
    high: f64,
}

impl Axes {
    fn over(all: &[Series]) -> Self {
        let points = || all.iter().flat_map(|series| &series.points);
        let least = points().map(|(_, low, _)| *low).filter(|low| *low > 0.0).fold(f64::MAX, f64::min);
        let most = points().map(|(_, _, high)| *high).fold(0.0, f64::max);
        let deepest = points().map(|(depth, ..)| *depth).max().unwrap_or(1).max(2);
        // A third of a decade: 1, 2, 5.
        let (least, most) = if most > 0.0 { (least.log10(), most.log10()) } else { (0.0, 1.0) };
        let (low, high) = ((least * 3.0).floor() / 3.0, (most * 3.0).ceil() / 3.0);
        Self { deepest: f64::from(deepest).log2(), low, high: high.max(low + 1.0) }
    }

    fn x(&self, depth: u32) -> f64 {
        PLOT.0 + (PLOT.2 - PLOT.0) * f64::from(depth).log2() / self.deepest
    }

    fn y(&self, value: f64) -> f64 {
        PLOT.3 - (PLOT.3 - PLOT.1) * (value.max(1.0).log10() - self.low) / (self.high - self.low)
    }

    fn grid(&self, svg: &mut String, label: fn(f64) -> String) {
        let (left, top, right, bottom) = PLOT;
        for power in 0..=self.deepest as u32 {
            let x = self.x(1 << power);
            let _ = writeln!(
                svg,
                r##"<path d="M{x:.1} {top}V{bottom}" stroke="#eee"/><text x="{x:.1}" y="{}" text-anchor="middle">{}</text>"##,
                bottom + 22.0,
                1u32 << power
            );
        }
        for decade in self.low.floor() as i32..=self.high.ceil() as i32 {
            for step in [1.0, 2.0, 5.0] {
                let value = step * 10f64.powi(decade);
                if (self.low - 1e-9..=self.high + 1e-9).contains(&value.log10()) {
                    let y = self.y(value);
                    let colour = if step == 1.0 { "#ccc" } else { "#eee" };
                    let _ = writeln!(
                        svg,
                        r#"<path d="M{left} {y:.1}H{right}" stroke="{colour}"/><text x="{}" y="{:.1}" text-anchor="end">{}</text>"#,
                        left - 10.0,
                        y + 5.0,
                        label(value)
                    );
                }
            }
        }
        let _ = writeln!(svg, r##"<path d="M{left} {top}V{bottom}H{right}" stroke="#333" fill="none"/>"##);
    }

    fn series(&self, svg: &mut String, series: &Series) {
        let colour = series.colour;
        if series.is_range {
            for (depth, low, high) in &series.points {
                let (x, low, high) = (self.x(*depth), self.y(*low), self.y(*high));
                // Never thinner than can be seen.
                let height = (low - high).max(4.0);
                let _ = writeln!(
                    svg,
                    r#"<rect x="{:.1}" y="{:.1}" width="14" height="{height:.1}" fill="{colour}" fill-opacity="0.35"/>"#,
                    x - 7.0,
                    (low + high - height) / 2.0
                );
            }
            return;
        }
        let mut path = String::new();
        for (depth, value, _) in &series.points {
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", self.x(*depth), self.y(*value));
        }
        let dashes = if series.dashed { r#" stroke-dasharray="7 4""# } else { "" };
        let _ =
            writeln!(svg, r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.4"{dashes}/>"#);
    }
}

fn draw(title: &str, report: &Report, quantity: &str, label: fn(f64) -> String, all: &[Series]) -> String {
    let axes = Axes::over(all);
    let (left, top, right, bottom) = PLOT;
    let below = format!(
        "{}: server on CPU {}, client on CPU {}, mode {}",
        report.machine.model, report.machine.server_cpu, report.machine.client_cpu, report.mode
    );
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="DejaVu Sans, Verdana, sans-serif" font-size="14" fill="#333">
<rect width="100%" height="100%" fill="white"/>
<text x="{left}" y="38" font-size="21" fill="#111">{title}</text>
<text x="{left}" y="64" fill="#666">{}</text>
"##,
        crate::demo::picture::escape(&below)
    );
    axes.grid(&mut svg, label);
    for series in all {
        axes.series(&mut svg, series);
    }
    let _ = writeln!(
        svg,
        r#"<text x="{}" y="{}" text-anchor="middle">commands in flight</text>
<text transform="translate(24 {}) rotate(-90)" text-anchor="middle">{quantity}</text>"#,
        (left + right) / 2.0,
        bottom + 50.0,
        (top + bottom) / 2.0
    );
    let mut y = top - 8.0;
    for Series { name, colour, dashed, is_range, .. } in all.iter().filter(|series| !series.points.is_empty())
    {
        y += 26.0;
        let (x, name) = (right + 28.0, crate::demo::picture::escape(name));
        let sign = match is_range {
            true => format!(
                r#"<rect x="{}" y="{}" width="14" height="12" fill="{colour}" fill-opacity="0.35"/>"#,
                x + 11.0,
                y - 11.0
            ),
            false => {
                let dashes = if *dashed { r#" stroke-dasharray="7 4""# } else { "" };
                format!(r#"<path d="M{x} {}h36" stroke="{colour}" stroke-width="2.4"{dashes}/>"#, y - 5.0)
            }
        };
        let _ = writeln!(svg, r#"{sign}<text x="{}" y="{y}">{name}</text>"#, x + 46.0);
    }
    svg + "</svg>\n"
}
