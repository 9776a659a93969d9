//! Section 6.4, figure 7: 100 VMs in four groups on 63 VFs, latency by group.

use std::fmt::Write;

use fastrand::Rng;
use serde::Serialize;

use super::model::{Paths, pv_cores};
use super::{Contender, VFS};

/// Packets a second of each group's VMs.
pub const GROUPS_PPS: [f64; 4] = [20e3, 40e3, 80e3, 100e3];
const VMS: usize = 100;
/// A day.
const ROUNDS: usize = 288;
/// Of each VM and round.
const PACKETS: usize = 20;
/// Rates are within so much of their group's.
const JITTER: f64 = 0.05;

/// All of the figure.
#[derive(Debug, Serialize)]
pub struct Groups {
    /// Cores for PV in the model.
    pub pv_cores: f64,
    /// By contender, then by group.
    pub boxes: Vec<LatencyBox>,
    /// By contender.
    pub totals: Vec<Total>,
}

/// One box of the plot, µs.
#[derive(Debug, Serialize)]
pub struct LatencyBox {
    /// Who gave the VFs.
    pub contender: &'static str,
    /// Packets a second of the group's VMs.
    pub group_pps: f64,
    /// Part of their time on a VF.
    pub on_vf: f64,
    /// The 5th, 25th, 50th, 75th and 95th percentile.
    pub quantiles_us: [f64; 5],
    /// On average.
    pub mean_us: f64,
}

/// A contender over all groups.
#[derive(Debug, Serialize)]
pub struct Total {
    /// Who gave the VFs.
    pub contender: &'static str,
    /// Part of all packets that VFs carried.
    pub carried: f64,
    /// Of all packets, µs.
    pub mean_us: f64,
}

/// Plays it.
pub fn play(seed: u64) -> Groups {
    let mut rng = Rng::with_seed(seed);
    let group = |vm: usize| vm % GROUPS_PPS.len();
    // One more round than is played: a decision sees the round before.
    let rates: Vec<Vec<f64>> = (0..=ROUNDS)
        .map(|_| {
            let pps = |vm| GROUPS_PPS[group(vm)] * (1.0 - JITTER + 2.0 * JITTER * rng.f64());
            (0..VMS).map(pps).collect()
        })
        .collect();
    let all: f64 = (0..VMS).map(|vm| GROUPS_PPS[group(vm)] * (1.0 + JITTER)).sum();
    let cores = pv_cores(all);
    let mut played = Groups { pv_cores: cores, boxes: Vec::new(), totals: Vec::new() };
    for contender in Contender::ALL {
        let served = contender.serve(&rates[..ROUNDS], seed);
        let mut times = vec![Vec::new(); GROUPS_PPS.len()];
        let mut on_vf = vec![0; GROUPS_PPS.len()];
        let (mut sent, mut carried, mut waited_us) = (0.0, 0.0, 0.0);
        for (served, pps) in served.iter().zip(&rates[1..]) {
            let over_vf: f64 = served.iter().zip(pps).filter(|(vf, _)| **vf).map(|it| it.1).sum();
            let total: f64 = pps.iter().sum();
            let paths = Paths::new(total - over_vf, over_vf, cores);
            (sent, carried) = (sent + total, carried + over_vf);
            for (vm, (vf, pps)) in served.iter().zip(pps).enumerate() {
                waited_us += pps * paths.mean_us(*vf);
                on_vf[group(vm)] += usize::from(*vf);
                times[group(vm)].extend((0..PACKETS).map(|_| paths.within_us(*vf, rng.f64())));
            }
        }
        let (contender, per_group) = (contender.name(), (ROUNDS * VMS / GROUPS_PPS.len()) as f64);
        for ((times, on_vf), group_pps) in times.iter_mut().zip(on_vf).zip(GROUPS_PPS) {
            let on_vf = f64::from(u32::try_from(on_vf).unwrap_or(u32::MAX)) / per_group;
            let mean_us = times.iter().sum::<f64>() / times.len() as f64;
            let quantiles_us = [0.05, 0.25, 0.5, 0.75, 0.95].map(|part| quantile(times, part));
            let of = LatencyBox { contender, group_pps, on_vf, quantiles_us, mean_us };
            played.boxes.push(of);
        }
        let (carried, mean_us) = (carried / sent, waited_us / sent);
        played.totals.push(Total { contender, carried, mean_us });
    }
    played
}

fn quantile(values: &mut [f64], part: f64) -> f64 {
    let at = ((values.len() - 1) as f64 * part).round() as usize;
    *values.select_nth_unstable_by(at, f64::total_cmp).1
}

impl Groups {
    /// The figure's data.
    pub fn csv(&self) -> String {
        let mut out =
            "policy,group_pps,part_of_time_on_vf,p5_us,p25_us,p50_us,p75_us,p95_us,mean_us\n"
                .to_owned();
        for LatencyBox { contender, group_pps, on_vf, quantiles_us, mean_us } in &self.boxes {
            let quantiles = quantiles_us.map(|us| format!("{us:.4}")).join(",");
            let _ = writeln!(out, "{contender},{group_pps},{on_vf:.4},{quantiles},{mean_us:.4}");
        }
        out
    }

    /// VMs and VFs, in words.
    pub fn what() -> String {
        format!("{VMS} VMs in four groups, {VFS} VFs, {ROUNDS} rounds of 300 s")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_winners_is_the_paper_s() {
        let played = play(3);
        let mean = |name| played.totals.iter().find(|it| it.contender == name).unwrap().mean_us;
        assert!(mean("activity") < mean("fair").min(mean("random")));
        assert!(mean("fair").max(mean("random")) < mean("PV only"));
        let on_vf = |name, group: usize| {
            played.boxes.iter().filter(|it| it.contender == name).nth(group).unwrap().on_vf
        };
        assert!((on_vf("fair", 0) - 0.63).abs() < 0.01 && on_vf("activity", 0) == 0.0);
        assert!(on_vf("activity", 3) == 1.0 && on_vf("activity", 2) == 1.0);
    }
}
