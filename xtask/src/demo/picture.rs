//! A picture of the latency distribution: for each workload the time within which a growing part of its commands was
//! done. The horizontal axis gives every further nine the same room, since it is the slow few that matter.

use super::fio::Measurement;
use super::report::{Report, time};
use anyhow::{Context, Result};
use resvg::{tiny_skia, usvg};
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::Arc;

const WIDTH: f64 = 1300.0;
const HEIGHT: f64 = 640.0;
/// The plot's edges: left, top, right, bottom.
const PLOT: (f64, f64, f64, f64) = (92.0, 84.0, 940.0, 566.0);
/// Dark, and told apart by the colour-blind too (after Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
const SCALE: f32 = 2.0;

/// Draws the picture as SVG.
pub fn draw(report: &Report) -> String {
    let axes = Axes::over(&report.measurements);
    let mut svg = format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="DejaVu Sans, Verdana, sans-serif" font-size="14" fill="#333">
<rect width="100%" height="100%" fill="white"/>
<text x="{0}" y="36" font-size="21" fill="#111">Latency of NVMe commands, as the guest sees it</text>
<text x="{0}" y="62" fill="#666">{1}</text>
"##,
        PLOT.0,
        escape(&format!("{} in {}", report.disk_model, report.headline()))
    );
    axes.grid(&mut svg);
    for (measurement, colour) in report.measurements.iter().zip(COLOURS.iter().cycle()) {
        axes.curve(&mut svg, measurement, colour);
    }
    legend(&mut svg, &report.measurements);
    svg + "</svg>\n"
}

/// Renders the SVG as PNG. The font comes from a file, so that it looks the same on every machine.
pub fn render(svg: &str, font: &Path, to: &Path) -> Result<()> {
    let mut fonts = usvg::fontdb::Database::new();
    fonts.load_font_data(fs::read(font).with_context(|| font.display().to_string())?);
    let options = usvg::Options { fontdb: Arc::new(fonts), ..usvg::Options::default() };
    let tree = usvg::Tree::from_str(svg, &options)?;
    let size = tree.size().to_int_size().scale_by(SCALE).context("the picture has a size")?;
    let mut pixels = tiny_skia::Pixmap::new(size.width(), size.height()).context("the picture has a size")?;
    resvg::render(&tree, tiny_skia::Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
    Ok(pixels.save_png(to)?)
}

/// The scales: nines to the right, decades of time upwards.
struct Axes {
    nines: f64,
    low: f64,
    high: f64,
}

impl Axes {
    fn over(measurements: &[Measurement]) -> Self {
        let most = measurements.iter().map(|m| m.ios).max().unwrap_or(1);
        let shortest =
            measurements.iter().filter_map(|m| m.histogram.first()).map(|(ns, _)| *ns).min().unwrap_or(1_000);
        let longest = measurements.iter().map(|m| m.latency_ns.max).max().unwrap_or(1_000_000);
        let low = (shortest.max(1) as f64).log10().floor();
        // As many nines as there are commands to speak of; whole decades of time.
        Self {
            nines: (most.max(10) as f64).log10().clamp(2.0, 5.0),
            low,
            high: (longest as f64).log10().ceil().max(low + 1.0),
        }
    }

    /// `slower` is the part of the commands that took longer.
    fn x(&self, slower: f64) -> f64 {
        PLOT.0 + (PLOT.2 - PLOT.0) * (-slower.log10()).clamp(0.0, self.nines) / self.nines
    }

    fn y(&self, ns: f64) -> f64 {
        PLOT.3 - (PLOT.3 - PLOT.1) * (ns.max(1.0).log10() - self.low) / (self.high - self.low)
    }

    fn grid(&self, svg: &mut String) {
        let (left, top, right, bottom) = PLOT;
        let mut line = |x1: f64, y1: f64, x2: f64, y2: f64, colour: &str| {
            let _ = writeln!(svg, r#"<path d="M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}" stroke="{colour}"/>"#);
        };
        let decades = self.low as i32..=self.high as i32;
        for decade in decades.clone() {
            for step in 1..10 {
                let ns = f64::from(step) * 10_f64.powi(decade);
                if ns.log10() <= self.high {
                    line(left, self.y(ns), right, self.y(ns), if step == 1 { "#ccc" } else { "#f1f1f1" });
                }
            }
        }
        let marks = [
            (1.0, "0 %"),
            (0.5, "50 %"),
            (0.1, "90 %"),
            (0.01, "99 %"),
            (0.001, "99.9 %"),
            (1e-4, "99.99 %"),
            (1e-5, "99.999 %"),
        ];
        let marks = marks.iter().filter(|(slower, _)| -f64::log10(*slower) <= self.nines + 1e-9);
        for (slower, _) in marks.clone() {
            line(self.x(*slower), top, self.x(*slower), bottom, "#ccc");
        }
        line(left, bottom, right, bottom, "#333");
        line(left, top, left, bottom, "#333");
        for (slower, label) in marks {
            let _ = writeln!(
                svg,
                r#"<text x="{:.1}" y="{}" text-anchor="middle">{label}</text>"#,
                self.x(*slower),
                bottom + 22.0
            );
        }
        for decade in decades {
            let ns = 10_u64.pow(decade.clamp(0, 18) as u32);
            let label = time(ns).replace(".00", "").replace(".0", "");
            let y = self.y(ns as f64) + 5.0;
            let _ = writeln!(svg, r#"<text x="{}" y="{y:.1}" text-anchor="end">{label}</text>"#, left - 10.0);
        }
        let (middle, height) = ((left + right) / 2.0, (top + bottom) / 2.0);
        let _ = writeln!(
            svg,
            r#"<text x="{middle}" y="{}" text-anchor="middle">part of the commands that were done within that time</text>
<text transform="translate(26 {height}) rotate(-90)" text-anchor="middle">latency</text>"#,
            bottom + 52.0
        );
    }

    fn curve(&self, svg: &mut String, measurement: &Measurement, colour: &str) {
        let total: u64 = measurement.histogram.iter().map(|(_, count)| count).sum();
        let mut seen = 0;
        let mut path = String::new();
        for (ns, count) in &measurement.histogram {
            let before = (total - seen) as f64 / total as f64;
            seen += count;
            // Between two commands lies nothing that was measured: the last one ends at "all but one".
            let after = ((total - seen) as f64).max(1.0) / total as f64;
            let command = if path.is_empty() { 'M' } else { 'L' };
            let _ = write!(path, "{command}{:.1} {:.1}", self.x(before), self.y(*ns as f64));
            let _ = write!(path, "L{:.1} {:.1}", self.x(after), self.y(*ns as f64));
        }
        let dashes = if measurement.direction == "write" { r#" stroke-dasharray="7 4""# } else { "" };
        let _ = writeln!(
            svg,
            r#"<path d="{path}" fill="none" stroke="{colour}" stroke-width="2.4" stroke-linejoin="round"{dashes}/>"#
        );
    }
}

/// Beside the plot, in the order of the measurements.
fn legend(svg: &mut String, measurements: &[Measurement]) {
    let (x, mut y) = (PLOT.2 + 16.0, PLOT.1 - 14.0);
    for (m, colour) in measurements.iter().zip(COLOURS.iter().cycle()) {
        y += 26.0;
        let dashes = if m.direction == "write" { r#" stroke-dasharray="7 4""# } else { "" };
        let name =
            if m.name == "rand-mix" { format!("4 KiB mix, its {}s", m.direction) } else { m.title.clone() };
        let _ = writeln!(
            svg,
            r#"<path d="M{} {}h36" stroke="{colour}" stroke-width="2.4"{dashes}/><text x="{}" y="{y}">{}, depth {}</text>"#,
            x + 12.0,
            y - 5.0,
            x + 60.0,
            escape(&name),
            m.queue_depth
        );
    }
}

/// Text as XML has it.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
