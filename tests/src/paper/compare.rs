//! All policies over all shapes of traffic, as `flexvf simulate` compares them.

use std::fmt::Write;
use std::time::Duration;

use qmp_allocator::logic::policy::tenant::Tenants;
use qmp_allocator::logic::policy::{Rules, Strategy, Tuning};
use qmp_allocator::logic::simulate::play::{Host, Outcome, play as play_policy};
use qmp_allocator::logic::simulate::workload::{Shape, Workload};
use qmp_allocator::logic::simulate::{Times, measure};
use serde::Serialize;

use super::{INTERVAL, VFS};

const VMS: usize = 100;
const DAY_S: u64 = 86_400;
/// As `flexvf simulate` does by default.
const SWITCH_S: u64 = 4;

/// One shape and how the policies did.
#[derive(Debug, Serialize)]
pub struct Compared {
    /// Its name.
    pub shape: &'static str,
    /// By policy.
    pub policies: Vec<Row>,
}

/// A policy.
#[derive(Debug, Serialize)]
pub struct Row {
    /// Its name.
    pub policy: &'static str,
    /// What came of it.
    #[serde(flatten)]
    pub outcome: Outcome,
}

/// Plays a day of each shape.
pub fn play(seed: u64) -> Vec<Compared> {
    let times =
        Times { total_s: DAY_S, interval_s: INTERVAL.as_secs(), sample_s: 1, time_constant_s: 0 };
    let host = Host { switch_s: SWITCH_S as f64, wants_pps: 1.0 };
    let shape = |shape: Shape| {
        let mut workload = Workload::new(shape, VMS, INTERVAL.as_secs(), seed);
        let demand = measure(&mut workload, &times, VFS, &[1]);
        let row = |(policy, strategy, tuning)| {
            let rules = Rules { strategy, tuning, interval: INTERVAL, tenants: Tenants::default() };
            Row { policy, outcome: play_policy(&rules, &demand, &host) }
        };
        Compared { shape: shape.name(), policies: policies().map(row).into() }
    };
    Shape::ALL.map(shape).into()
}

fn policies() -> [(&'static str, Strategy, Tuning); 6] {
    let plain = Tuning::default();
    let steady = Tuning {
        margin_percent: 20,
        min_hold: Duration::from_secs(900),
        switch_cost: Duration::from_secs(SWITCH_S),
        ..plain
    };
    [
        ("fair", Strategy::Fair, plain),
        ("weighted", Strategy::Weighted, plain),
        ("activity", Strategy::Activity, plain),
        ("activity, hysteresis", Strategy::Activity, steady),
        ("hybrid", Strategy::Hybrid, plain),
        ("hybrid, hysteresis", Strategy::Hybrid, steady),
    ]
}

/// The figure's data.
pub fn csv(shapes: &[Compared]) -> String {
    let mut out = "shape,policy,gain,switches,longest_wait_s,jain\n".to_owned();
    for Compared { shape, policies } in shapes {
        for Row { policy, outcome: Outcome { gain, switches, longest_wait_s, jain } } in policies {
            let policy = policy.replace(", ", " with ");
            let _ =
                writeln!(out, "{shape},{policy},{gain:.4},{switches},{longest_wait_s},{jain:.4}");
        }
    }
    out
}
