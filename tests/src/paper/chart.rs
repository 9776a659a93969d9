//! Lines over two axes, as inline SVG.

use super::svg::{LEFT, Picture, RIGHT, WIDTH, colour};

/// A plot of lines.
#[derive(Debug, Clone, Default)]
pub struct Chart {
    /// For who cannot see it.
    pub title: &'static str,
    /// Below the horizontal axis.
    pub x_label: &'static str,
    /// Above the vertical axis.
    pub y_label: &'static str,
    /// The horizontal axis is logarithmic.
    pub log_x: bool,
    /// A line across at this value, if there is one.
    pub level: Option<f64>,
    /// Lines.
    pub series: Vec<Series>,
    /// Stretches of the horizontal axis that something happens in.
    pub bands: Vec<(f64, f64, String)>,
}

/// A line.
#[derive(Debug, Clone)]
pub struct Series {
    /// In the legend.
    pub name: String,
    /// In order.
    pub points: Vec<(f64, f64)>,
    /// With a dot at each point.
    pub dots: bool,
}

const TOP: f64 = 44.0;
const BOTTOM: f64 = 300.0;

impl Chart {
    /// The picture.
    pub fn draw(&self) -> String {
        let mut picture = Picture::new(346.0);
        let points = || self.series.iter().flat_map(|series| &series.points);
        let x_of = |x: f64| if self.log_x { x.max(1e-9).log10() } else { x };
        let (from, to) = extent(points().map(|point| x_of(point.0)));
        let most = points().map(|point| point.1).chain(self.level).fold(0.0, f64::max).max(1e-9);
        let (step, decimals) = step(most);
        let most = (most / step).ceil() * step;
        let x =
            |value: f64| LEFT + (x_of(value) - from) / (to - from) * (WIDTH - LEFT - RIGHT - 10.0);
        let y = |value: f64| BOTTOM - value / most * (BOTTOM - TOP);
        for (begin, end, what) in &self.bands {
            let width = (x(*end) - x(*begin)).max(2.0);
            let style = "fill=\"var(--c1)\" fill-opacity=\"0.35\"";
            picture.rect((x(*begin), TOP), (width, BOTTOM - TOP), style);
            picture.word((x(*begin) + width / 2.0, TOP - 6.0), "middle", what);
        }
        let mut tick = 0.0;
        while tick <= most * 1.001 {
            picture.line((LEFT, y(tick)), (WIDTH - RIGHT, y(tick)), "var(--grid)", 1.0);
            picture.word((LEFT - 8.0, y(tick) + 4.0), "end", &format!("{tick:.decimals$}"));
            tick += step;
        }
        for value in self.x_ticks(from, to) {
            picture.line((x(value), BOTTOM), (x(value), BOTTOM + 5.0), "var(--ink)", 1.0);
            picture.word((x(value), BOTTOM + 20.0), "middle", &plain(value));
        }
        if let Some(level) = self.level {
            picture.line((LEFT, y(level)), (WIDTH - RIGHT, y(level)), "var(--ink)", 1.5);
        }
        for (index, series) in self.series.iter().enumerate() {
            let colour = colour(3 - index % 4);
            let at: Vec<(f64, f64)> = series.points.iter().map(|p| (x(p.0), y(p.1))).collect();
            for pair in at.windows(2) {
                let [a, b] = pair else { continue };
                picture.line(*a, *b, &colour, 2.0);
            }
            for (x, y) in at.iter().filter(|_| series.dots) {
                let style = format!("fill=\"{colour}\"");
                picture.rect((x - 3.5, y - 3.5), (7.0, 7.0), &style);
            }
            let at = WIDTH - RIGHT - 120.0 * (self.series.len() - index) as f64;
            if self.series.len() > 1 {
                picture.rect((at, 4.0), (12.0, 12.0), &format!("fill=\"{colour}\""));
                picture.word((at + 18.0, 14.0), "start", &series.name);
            }
        }
        picture.word((4.0, 14.0), "start", self.y_label);
        picture.word((f64::midpoint(LEFT, WIDTH), BOTTOM + 40.0), "middle", self.x_label);
        picture.finish(self.title)
    }

    fn x_ticks(&self, from: f64, to: f64) -> Vec<f64> {
        if self.log_x {
            // What was measured, as far as there is room for it.
            let mut ticks: Vec<f64> = Vec::new();
            let points = self.series.iter().flat_map(|series| &series.points);
            let mut at: Vec<f64> = points.map(|point| point.0).collect();
            at.sort_by(f64::total_cmp);
            for x in at {
                let far = |last: &f64| x.log10() - last.log10() > (to - from) / 12.0;
                if ticks.last().is_none_or(far) {
                    ticks.push(x);
                }
            }
            return ticks;
        }
        let (step, _) = step(to - from);
        let first = (from / step).ceil() as i64;
        let last = (to / step).floor() as i64;
        (first..=last).map(|tick| tick as f64 * step).collect()
    }
}

fn extent(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (from, to) = values.fold((f64::INFINITY, f64::NEG_INFINITY), |(from, to), value| {
        (from.min(value), to.max(value))
    });
    match to - from {
        width if width > 0.0 => (from, to),
        _ if from.is_finite() => (from - 0.5, from + 0.5),
        _ => (0.0, 1.0),
    }
}

/// Of 1, 2 or 5 by a power of ten, for four to nine ticks; and its decimals.
fn step(range: f64) -> (f64, usize) {
    let power = (range / 4.0).log10().floor();
    let unit = 10f64.powf(power);
    let step = [5.0, 2.0, 1.0].into_iter().map(|of| of * unit).find(|step| range / step >= 4.0);
    (step.unwrap_or(unit), (-power).clamp(0.0, 9.0) as usize)
}

fn plain(value: f64) -> String {
    if value >= 10_000.0 { format!("{:.0}k", value / 1000.0) } else { format!("{value:.0}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_neither_few_nor_many() {
        for (range, wanted) in
            [(10.0, 2.0), (3.9, 0.5), (47.0, 10.0), (0.4, 0.1), (80_000.0, 20_000.0)]
        {
            let (step, _) = step(range);
            assert!((step - wanted).abs() < 1e-9 * wanted, "{range}: {step}");
        }
    }

    #[test]
    fn a_chart_of_one_point_or_none_is_drawn() {
        let of = |points| Chart {
            series: vec![Series { name: "a".into(), points, dots: true }],
            ..Chart::default()
        };
        for points in [vec![], vec![(3.0, 4.0)], vec![(1.0, 0.0), (2.0, 0.0)]] {
            let drawn = of(points).draw();
            assert!(drawn.starts_with("<svg ") && !drawn.contains("NaN") && !drawn.contains("inf"));
        }
    }
}
