//! A gain as it was measured: both paths' times at several rates, and between them straight lines.
//!
//! The fit is the isotonic one (the least squares of all gains that never fall with the rate: adjacent points that
//! do are pooled), from a gain of 0 at rate 0. So a measurement's scatter never ranks a VM before a busier one, and a path that
//! turned out no faster gains nothing. Beyond the last point each packet gains what it does there.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::Model;

/// What a curve keeps; more than can be told apart by measuring.
pub const MAX_POINTS: usize = 16;

/// A packet's time over both paths at a rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Measured {
    /// Packets per second, both directions.
    pub pps: f64,
    /// Over PV, µs one way.
    pub pv_us: f64,
    /// Over a VF, µs one way.
    pub vf_us: f64,
}

/// Why no curve can be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unfit {
    /// There is no point.
    Empty,
    /// A point, counted from 1, is no rate above 0 with two times.
    Point(usize),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("no point was measured"),
            Self::Point(number) => write!(
                f,
                "point {number} is none: pps is 1 to {MAX_PPS:.0}, and both times are 0 to {MAX_US:.0} µs"
            ),
        }
    }
}

impl std::error::Error for Unfit {}

/// What a VF is worth by rate: nanoseconds a second at some rates, both ascending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<(u32, u64)>", into = "Vec<(u32, u64)>")]
pub struct Curve {
    points: [(u32, u64); MAX_POINTS],
    used: usize,
}

/// More than any link carries.
const MAX_PPS: f64 = 1e9;
/// An hour.
const MAX_US: f64 = 3.6e9;

impl Curve {
    /// Through what was measured, in any order.
    ///
    /// # Errors
    /// There is nothing in it, or something that is no measurement.
    pub fn fit(measured: &[Measured]) -> Result<Self, Unfit> {
        if let Some(at) = measured.iter().position(|point| !point.is_one()) {
            return Err(Unfit::Point(at + 1));
        }
        let mut points = measured.to_vec();
        points.sort_by(|a, b| a.pps.total_cmp(&b.pps));
        // Runs of neighbours whose gains fall, as their means.
        let mut runs: Vec<Run> = Vec::new();
        for of in points.chunks(points.len().div_ceil(MAX_POINTS).max(1)) {
            let mut last = Run::of(of);
            while let Some(before) = runs.pop_if(|before| before.is_to_be_pooled_with(&last)) {
                last = before.with(&last);
            }
            runs.push(last);
        }
        let ascending = runs.iter().map(|run| (run.pps as u32, run.gain_ns.max(0.0) as u64));
        Self::try_from(ascending.collect::<Vec<_>>())
    }

    /// The rates and the gains there, nanoseconds a second.
    pub fn points(&self) -> &[(u32, u64)] {
        self.points.get(..self.used).unwrap_or(&[])
    }
}

impl Model for Curve {
    fn gain(&self, pps: f64) -> f64 {
        let pps = if pps > 0.0 { pps.min(MAX_PPS) } else { 0.0 };
        let (mut before, mut slope) = ((0.0, 0.0), 0.0);
        for (at, gain_ns) in self.points() {
            let (at, gain) = (f64::from(*at), *gain_ns as f64 / 1000.0);
            slope = gain / at;
            if pps <= at {
                let part = (pps - before.0) / (at - before.0);
                return before.1 + part * (gain - before.1);
            }
            before = (at, gain);
        }
        before.1 + (pps - before.0) * slope
    }
}

impl TryFrom<Vec<(u32, u64)>> for Curve {
    type Error = Unfit;

    fn try_from(found: Vec<(u32, u64)>) -> Result<Self, Unfit> {
        let mut points = [(0, 0); MAX_POINTS];
        let mut used = 0;
        let mut before = (0, 0);
        for (number, point) in found.into_iter().enumerate() {
            let is_next = point.0 > before.0 && point.1 >= before.1;
            match points.get_mut(number).filter(|_| is_next) {
                Some(place) => *place = point,
                None => return Err(Unfit::Point(number + 1)),
            }
            (before, used) = (point, number + 1);
        }
        if used == 0 { Err(Unfit::Empty) } else { Ok(Self { points, used }) }
    }
}

impl From<Curve> for Vec<(u32, u64)> {
    fn from(curve: Curve) -> Self {
        curve.points().to_vec()
    }
}

impl Measured {
    fn is_one(&self) -> bool {
        let times = 0.0..=MAX_US;
        (1.0..=MAX_PPS).contains(&self.pps)
            && times.contains(&self.pv_us)
            && times.contains(&self.vf_us)
    }
}

/// Neighbours, as their mean.
#[derive(Debug, Clone, Copy)]
struct Run {
    count: f64,
    pps: f64,
    gain_ns: f64,
}

impl Run {
    fn of(points: &[Measured]) -> Self {
        let one = |it: &Measured| Self {
            count: 1.0,
            pps: it.pps,
            gain_ns: it.pps * (it.pv_us - it.vf_us) * 1000.0,
        };
        let none = Self { count: 0.0, pps: 0.0, gain_ns: 0.0 };
        points.iter().map(one).fold(none, |sum, it| sum.with(&it))
    }

    fn is_to_be_pooled_with(&self, next: &Self) -> bool {
        // Points are at whole packets per second.
        self.gain_ns >= next.gain_ns || self.pps as u32 == next.pps as u32
    }

    fn with(&self, other: &Self) -> Self {
        let count = self.count + other.count;
        let mean = |a: f64, b: f64| (a * self.count + b * other.count) / count;
        Self { count, pps: mean(self.pps, other.pps), gain_ns: mean(self.gain_ns, other.gain_ns) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::measured;
    use super::*;
    use proptest::prelude::*;

    fn at(pps: f64, pv_us: f64, vf_us: f64) -> Measured {
        Measured { pps, pv_us, vf_us }
    }

    #[test]
    fn between_points_it_is_straight_and_beyond_them_each_packet_gains_the_same() {
        let curve = Curve::fit(&[at(1000.0, 30.0, 10.0), at(100.0, 15.0, 10.0)]).unwrap();
        assert_eq!(curve.points(), [(100, 500_000), (1000, 20_000_000)]);
        let gains = [0.0, 50.0, 100.0, 550.0, 1000.0, 3000.0].map(|pps| curve.gain(pps));
        assert_eq!(gains, [0.0, 250.0, 500.0, 10_250.0, 20_000.0, 60_000.0]);
    }

    #[test]
    fn what_falls_is_pooled_and_a_slower_vf_gains_nothing() {
        let curve = Curve::fit(&[at(10.0, 5.0, 9.0), at(100.0, 9.0, 5.0), at(200.0, 6.0, 5.0)]);
        // 400 and 200 µs a second, as their mean at the mean rate.
        assert_eq!(curve.unwrap().points(), [(10, 0), (150, 300_000)]);
        let slower = Curve::fit(&[at(10.0, 5.0, 9.0)]).unwrap();
        assert_eq!(slower.gain(1e6), 0.0);
    }

    #[test]
    fn what_is_no_measurement_is_refused_by_its_number() {
        assert_eq!(Curve::fit(&[]), Err(Unfit::Empty));
        for bad in [at(0.0, 1.0, 1.0), at(1.0, -1.0, 1.0), at(1.0, 1.0, f64::NAN)] {
            assert_eq!(Curve::fit(&[at(1.0, 1.0, 1.0), bad]), Err(Unfit::Point(2)));
        }
        for text in ["[]", "[[0, 1]]", "[[2, 1], [2, 1]]", "[[1, 2], [2, 1]]"] {
            assert!(serde_json::from_str::<Curve>(text).is_err(), "{text}");
        }
        let many = serde_json::to_string(&(1..=MAX_POINTS + 1).map(|i| (i, 0)).collect::<Vec<_>>());
        assert!(serde_json::from_str::<Curve>(&many.unwrap()).is_err());
    }

    proptest! {
        #[test]
        fn every_fit_can_be_written_and_read_and_goes_through_its_points(points in measured()) {
            let curve = Curve::fit(&points).unwrap();
            let text = serde_json::to_string(&curve).unwrap();
            prop_assert_eq!(serde_json::from_str::<Curve>(&text).unwrap(), curve);
            for (pps, gain_ns) in curve.points() {
                let gain = curve.gain(f64::from(*pps));
                prop_assert!((gain - *gain_ns as f64 / 1000.0).abs() <= 1e-6 * gain.max(1.0));
            }
        }

        #[test]
        fn gains_that_never_fall_are_kept_as_they_are(steps in proptest::collection::vec((1u32..1000, 0u32..1000), 1..MAX_POINTS)) {
            let (mut pps, mut gain_us) = (0, 0);
            let points: Vec<Measured> = steps.iter().map(|(more_pps, more_us)| {
                (pps, gain_us) = (pps + more_pps, gain_us + more_us + 1);
                at(f64::from(pps), f64::from(gain_us) / f64::from(pps), 0.0)
            }).collect();
            let curve = Curve::fit(&points).unwrap();
            for point in &points {
                let wanted = point.pps * point.pv_us;
                prop_assert!((curve.gain(point.pps) - wanted).abs() <= 1e-3 * wanted, "{curve:?}");
            }
        }
    }
}
