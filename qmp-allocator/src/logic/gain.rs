//! What a VF is worth to a VM, by its packet rate: the model that [`super::policy`] weighs against what a switch costs.
//!
//! A gain is packet time saved a second: the rate, times how much sooner a packet is through over a VF. The paper
//! calls it the boost and shows it against the packet rate (section 6.3, figure 5). Its figures are of its own machines;
//! `flexvf calibrate` makes them of one's own ([`Curve`]). Only gains of one model are compared with each other.

mod curve;
mod queue;

use serde::{Deserialize, Serialize};

pub use curve::{Curve, MAX_POINTS, Measured, Unfit};
pub use queue::{LINK_PPS, PV_CORE_PPS, Queue};

/// A way to tell a VM's gain by its rate.
pub trait Model {
    /// What a VF is worth to a VM that sends and receives so many packets per second; 0 or more, and never less for
    /// a higher rate.
    fn gain(&self, pps: f64) -> f64;
}

/// The models by their names in the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[expect(
    clippy::large_enum_variant,
    reason = "a daemon has one, copied with its settings a few times a decision"
)]
pub enum Gain {
    /// Each packet gains the same: the rate itself (what the paper's activity strategy maximises).
    #[default]
    Packets,
    /// Paths are queues, and PV's is the slower one.
    Queue,
    /// As it was measured.
    Measured(Curve),
}

impl Gain {
    /// The model.
    pub const fn model(&self) -> &dyn Model {
        match self {
            Self::Packets => &Packets,
            Self::Queue => &Queue,
            Self::Measured(curve) => curve,
        }
    }

    /// Its gains are µs of packet time a second, not packets.
    pub const fn is_time(&self) -> bool {
        !matches!(self, Self::Packets)
    }
}

/// See [`Gain::Packets`].
struct Packets;

impl Model for Packets {
    fn gain(&self, pps: f64) -> f64 {
        pps.max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) fn measured() -> impl Strategy<Value = Vec<Measured>> {
        let point = (1.0..1e6, 0.0..1e5, 0.0..1e5);
        let point = point.prop_map(|(pps, pv_us, vf_us)| Measured { pps, pv_us, vf_us });
        proptest::collection::vec(point, 1..2 * MAX_POINTS)
    }

    proptest! {
        #[test]
        fn no_model_gives_less_for_more_or_less_than_nothing(
            points in measured(), mut rates in proptest::collection::vec(0.0..1e8, 2..30)
        ) {
            rates.sort_by(f64::total_cmp);
            for gain in [Gain::Packets, Gain::Queue, Gain::Measured(Curve::fit(&points).unwrap())] {
                let gains: Vec<f64> = rates.iter().map(|pps| gain.model().gain(*pps)).collect();
                for pair in gains.windows(2) {
                    prop_assert!(pair[0] >= 0.0 && pair[1] >= pair[0] * (1.0 - 1e-12), "{gain:?}: {gains:?}");
                }
                prop_assert_eq!(gain.model().gain(0.0), 0.0);
            }
        }
    }

    #[test]
    fn an_infinite_or_no_rate_breaks_no_model() {
        let curve = Curve::fit(&[Measured { pps: 10.0, pv_us: 2.0, vf_us: 1.0 }]).unwrap();
        for gain in [Gain::Packets, Gain::Queue, Gain::Measured(curve)] {
            for pps in [f64::INFINITY, f64::NEG_INFINITY, f64::NAN, -1.0] {
                assert!(gain.model().gain(pps) >= 0.0, "{gain:?} {pps}");
            }
        }
    }
}
