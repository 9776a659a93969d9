//! Plots as inline SVG. Colours are the page's variables, so that they follow light and dark.

use std::fmt::Write;

use super::compare::Compared;
use super::ftp::{Ftp, TRANSFER};
use super::groups::{GROUPS_PPS, Groups, LatencyBox};
use super::switches::Switches;
use super::{Contender, INTERVAL};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 10.0;

/// An SVG picture under construction.
struct Picture {
    height: f64,
    text: String,
}

impl Picture {
    fn new(height: f64) -> Self {
        Self { height, text: String::new() }
    }

    fn rect(&mut self, (x, y): (f64, f64), (width, height): (f64, f64), style: &str) {
        let size = format!("width=\"{width:.1}\" height=\"{height:.1}\"");
        let _ = writeln!(self.text, "<rect x=\"{x:.1}\" y=\"{y:.1}\" {size} {style}/>");
    }

    fn line(&mut self, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str, width: f64) {
        let ends = format!("x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"");
        let _ = writeln!(self.text, "<line {ends} stroke=\"{colour}\" stroke-width=\"{width}\"/>");
    }

    fn word(&mut self, (x, y): (f64, f64), anchor: &str, text: &str) {
        let _ = writeln!(
            self.text,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" font-size=\"12\" fill=\"var(--ink)\">{text}</text>"
        );
    }

    fn finish(self, title: &str) -> String {
        let Self { height, text } = self;
        format!(
            "<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" aria-label=\"{title}\" font-family=\"sans-serif\" xmlns=\"http://www.w3.org/2000/svg\">\n{text}</svg>\n"
        )
    }

    /// What each colour stands for.
    fn legend(&mut self, y: f64, names: &[&str]) {
        for (index, name) in names.iter().enumerate() {
            let x = LEFT + 130.0 * index as f64;
            self.rect((x, y - 10.0), (12.0, 12.0), &format!("fill=\"{}\"", colour(index)));
            self.word((x + 18.0, y), "start", name);
        }
    }
}

/// The page names so many.
fn colour(index: usize) -> String {
    format!("var(--c{})", index % 4)
}

/// Box plots by group: 5th to 95th percentile, quartiles, median.
pub fn latency(groups: &Groups) -> String {
    const TOP: f64 = 34.0;
    const BOTTOM: f64 = 320.0;
    // Decades of µs.
    const LEAST: f64 = -3.0;
    const MOST: f64 = 2.0;
    let mut picture = Picture::new(376.0);
    let y = |us: f64| {
        let decade = us.max(1e-9).log10().clamp(LEAST, MOST);
        BOTTOM - (decade - LEAST) / (MOST - LEAST) * (BOTTOM - TOP)
    };
    for (decade, name) in ["0.001", "0.01", "0.1", "1", "10", "100"].iter().enumerate() {
        let at = y(10f64.powf(LEAST + decade as f64));
        picture.line((LEFT, at), (WIDTH - RIGHT, at), "var(--grid)", 1.0);
        picture.word((LEFT - 8.0, at + 4.0), "end", name);
    }
    picture.word((LEFT - 62.0, 14.0), "start", "µs (log)");
    let names = Contender::ALL.map(Contender::name);
    picture.legend(14.0, &names);
    let slot = (WIDTH - LEFT - RIGHT) / GROUPS_PPS.len() as f64;
    for (group, pps) in GROUPS_PPS.iter().enumerate() {
        let from = LEFT + slot * group as f64;
        let middle = from + slot / 2.0;
        picture.word((middle, BOTTOM + 42.0), "middle", &format!("{:.0} kpps", pps / 1000.0));
        for (index, name) in names.iter().enumerate() {
            let is_it = |it: &&LatencyBox| it.contender == *name && it.group_pps == *pps;
            let Some(found) = groups.boxes.iter().find(is_it) else { continue };
            let x = from + slot * (index as f64 + 1.0) / (names.len() as f64 + 1.0);
            let colour = colour(index);
            let [p5, p25, p50, p75, p95] = found.quantiles_us.map(y);
            picture.line((x, p5), (x, p95), &colour, 1.5);
            for end in [p5, p95] {
                picture.line((x - 6.0, end), (x + 6.0, end), &colour, 1.5);
            }
            let style = format!("fill=\"{colour}\" fill-opacity=\"0.45\" stroke=\"{colour}\"");
            picture.rect((x - 11.0, p75), (22.0, (p25 - p75).max(1.0)), &style);
            picture.line((x - 11.0, p50), (x + 11.0, p50), "var(--ink)", 2.0);
            let on_vf = format!("{:.0}", 100.0 * found.on_vf);
            picture.word((x, BOTTOM + 22.0), "middle", &on_vf);
        }
    }
    picture.word((LEFT - 8.0, BOTTOM + 22.0), "end", "% on VF");
    picture.finish("Latency by group and policy")
}

/// A bar a policy, round by round.
pub fn transfer(ftp: &Ftp) -> String {
    const TOP: f64 = 40.0;
    const ROW: f64 = 34.0;
    let rows = ftp.runs.len() as f64;
    let mut picture = Picture::new(TOP + rows * ROW + 34.0);
    let rounds = ftp.runs.iter().map(|run| run.on_vf.len()).max().unwrap_or(1);
    let cell = (WIDTH - LEFT - RIGHT - 110.0) / rounds as f64;
    let x = |round: usize| LEFT + cell * round as f64;
    for (row, run) in ftp.runs.iter().enumerate() {
        let y = TOP + ROW * row as f64;
        picture.word((LEFT - 8.0, y + 16.0), "end", run.contender);
        for (round, on_vf) in run.on_vf.iter().enumerate() {
            let (fill, opacity) = match (on_vf, TRANSFER.contains(&round)) {
                (true, true) => (colour(row), 1.0),
                (true, false) => (colour(row), 0.35),
                (false, _) => ("var(--grid)".to_owned(), 1.0),
            };
            let style = format!("fill=\"{fill}\" fill-opacity=\"{opacity}\"");
            picture.rect((x(round) + 1.0, y), (cell - 2.0, ROW - 12.0), &style);
        }
        let carried = format!("{:.0} % over a VF", 100.0 * run.carried);
        picture.word((x(rounds) + 8.0, y + 16.0), "start", &carried);
    }
    let end = TOP + rows * ROW;
    for (round, name) in [(TRANSFER.start, "transfer begins"), (TRANSFER.end, "it ends")] {
        picture.line((x(round), TOP - 8.0), (x(round), end), "var(--ink)", 1.5);
        picture.word((x(round) + 4.0, TOP - 14.0), "start", name);
    }
    for round in (0..=rounds).step_by(4) {
        let minutes = round as u64 * INTERVAL.as_secs() / 60;
        picture.word((x(round), end + 16.0), "middle", &format!("{minutes} min"));
    }
    picture.finish("When the transferring VM has a VF")
}

/// A bar a step.
pub fn switches(measured: &[Switches]) -> String {
    const ROW: f64 = 18.0;
    const NAME: f64 = 200.0;
    let steps = || measured.iter().flat_map(|switches| &switches.steps_ms);
    let most = steps().map(|(_, ms)| *ms).fold(1.0, f64::max);
    let height = 10.0 + ROW * steps().count() as f64 + 16.0 * measured.len() as f64;
    let mut picture = Picture::new(height);
    let length = |ms: f64| ms / most * (WIDTH - NAME - 90.0);
    picture.line((NAME, 4.0), (NAME, height - 12.0), "var(--grid)", 1.0);
    let mut y = 10.0;
    for (index, Switches { direction, pool, steps_ms, .. }) in measured.iter().enumerate() {
        picture.word((4.0, y + 11.0), "start", &format!("{pool}, {direction}"));
        for (step, ms) in steps_ms {
            picture.word((NAME - 8.0, y + 11.0), "end", step);
            let style = format!("fill=\"{}\"", colour(index + 2));
            picture.rect((NAME, y), (length(*ms), ROW - 4.0), &style);
            picture.word((NAME + length(*ms) + 6.0, y + 11.0), "start", &format!("{ms:.0} ms"));
            y += ROW;
        }
        y += 16.0;
    }
    picture.finish("What each step of a switch takes")
}

/// A policy has one colour in all figures; with hysteresis a paler one.
fn style_of(policy: &str) -> String {
    let colour = match policy.split(',').next() {
        Some("fair") => colour(2),
        Some("activity") => colour(3),
        Some("weighted") => colour(1),
        _ => colour(0),
    };
    let opacity = if policy.contains("hysteresis") { 0.6 } else { 1.0 };
    format!("fill=\"{colour}\" fill-opacity=\"{opacity}\"")
}

/// A bar a policy and shape.
pub fn gain(shapes: &[Compared]) -> String {
    const ROW: f64 = 17.0;
    const NAME: f64 = 200.0;
    let rows: usize = shapes.iter().map(|shape| shape.policies.len()).sum();
    let height = 30.0 + ROW * rows as f64 + 16.0 * shapes.len() as f64;
    let mut picture = Picture::new(height + 20.0);
    let x = |part: f64| NAME + part * (WIDTH - NAME - 60.0);
    for percent in (0..=100).step_by(25) {
        let at = x(f64::from(percent) / 100.0);
        picture.line((at, 18.0), (at, height), "var(--grid)", 1.0);
        picture.word((at, 12.0), "middle", &format!("{percent} %"));
    }
    let mut y = 34.0;
    for Compared { shape, policies } in shapes {
        picture.word((4.0, y + 10.0), "start", shape);
        for row in policies {
            picture.word((NAME - 8.0, y + 10.0), "end", row.policy);
            let part = row.outcome.gain.clamp(0.0, 1.0);
            let style = style_of(row.policy);
            picture.rect((x(0.0), y), (x(part) - x(0.0), ROW - 4.0), &style);
            picture.word((x(part) + 6.0, y + 10.0), "start", &format!("{:.1}", 100.0 * part));
            y += ROW;
        }
        y += 16.0;
    }
    picture.finish("Gain of each policy on each shape of traffic")
}
