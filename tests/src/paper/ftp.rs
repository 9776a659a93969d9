//! Section 6.4, figure 8: a VM among 100 begins to send, or to receive, a large file.
//!
//! What a policy decides is when it has a VF and for how much of the file. Rates count both directions alike, so that this is
//! the same for both; how fast the file moves then is modelled for each direction ([`transfer_gbit`]).

use std::fmt::Write;

use fastrand::Rng;
use serde::Serialize;

use super::groups::GROUPS_PPS;
use super::model::{FULL_FRAMES_PPS, Toward, pv_cores, transfer_gbit, transfer_us};
use super::order::{Entry, Scale, overall};
use super::{Contender, INTERVAL};

/// What the transfer is seen as: full frames on a wire of 10 GbE.
pub const FTP_PPS: f64 = FULL_FRAMES_PPS;
const OTHERS: usize = 99;
/// The transfer's first round and the one after its last.
pub const TRANSFER: std::ops::Range<usize> = 4..16;
/// Rounds that are played.
pub const ROUNDS: usize = 20;
/// Between transfers.
const IDLE_PPS: f64 = 50.0;

/// All of the figure.
#[derive(Debug, Serialize)]
pub struct Ftp {
    /// By contender.
    pub runs: Vec<FtpRun>,
}

/// One contender.
#[derive(Debug, Serialize)]
pub struct FtpRun {
    /// Who gave the VFs.
    pub contender: &'static str,
    /// Round by round, whether the VM had a VF.
    pub on_vf: Vec<bool>,
    /// Part of the file that went over a VF.
    pub carried: f64,
    /// From the transfer's begin to the first VF that the transfer itself brought or met, seconds; none if there was none.
    pub first_vf_s: Option<u64>,
    /// Modelled: how fast the file moved on average, from the VM and to it, Gbit of payload a second.
    pub gbit_per_s: [f64; 2],
    /// Modelled: the time of one of its packets on average, from the VM and to it, µs.
    pub packet_us: [f64; 2],
    /// The speed and the time round by round; 0 where there is no transfer.
    pub rounds: Vec<Round>,
}

/// A round of the transfer, from the VM and to it.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Round {
    /// Gbit of payload a second.
    pub gbit_per_s: [f64; 2],
    /// Of a packet on average, µs.
    pub packet_us: [f64; 2],
}

/// Plays it.
pub fn play(seed: u64) -> Ftp {
    let mut rng = Rng::with_seed(seed);
    let round = |round: usize| {
        let others = (0..OTHERS).map(|vm| GROUPS_PPS[vm % GROUPS_PPS.len()]);
        let mut pps: Vec<f64> = others.map(|pps| pps * (0.95 + 0.1 * rng.f64())).collect();
        pps.push(if TRANSFER.contains(&round) { FTP_PPS } else { IDLE_PPS });
        pps
    };
    let rates: Vec<Vec<f64>> = (0..ROUNDS).map(round).collect();
    let others = |pps: &[f64]| pps.iter().take(OTHERS).sum::<f64>();
    let cores = pv_cores(rates.iter().map(|pps| others(pps)).fold(0.0, f64::max) + FTP_PPS);
    let run = |contender: Contender| {
        // A decision sees the round before; before the first there is none.
        let served = contender.serve(&rates[..ROUNDS - 1], seed);
        let later = served.iter().map(|served| served.last().copied().unwrap_or(false));
        let on_vf: Vec<bool> = std::iter::once(false).chain(later).collect();
        let reached = |round: usize| -> Option<Round> {
            let (pps, has) = (rates.get(round)?, *on_vf.get(round)?);
            let none = vec![false; OTHERS];
            let served = round.checked_sub(1).and_then(|before| served.get(before));
            let on_pv = pps.iter().zip(served.unwrap_or(&none)).take(OTHERS);
            let on_pv: f64 = on_pv.filter(|(_, vf)| !**vf).map(|(pps, _)| pps).sum();
            let all = others(pps);
            let speed = |toward| transfer_gbit(has, toward, all, on_pv, cores);
            let time = |toward| transfer_us(has, toward, all, on_pv, cores);
            Some(if TRANSFER.contains(&round) {
                Round { gbit_per_s: Toward::ALL.map(speed), packet_us: Toward::ALL.map(time) }
            } else {
                Round::default()
            })
        };
        let rounds: Vec<Round> = (0..ROUNDS).filter_map(reached).collect();
        let mean = |of: fn(&Round) -> [f64; 2]| {
            let sum =
                |toward: Toward| rounds.iter().map(|round| of(round)[toward as usize]).sum::<f64>();
            Toward::ALL.map(|toward| sum(toward) / TRANSFER.len() as f64)
        };
        let of_transfer = on_vf.get(TRANSFER).unwrap_or(&[]);
        let count = of_transfer.iter().filter(|vf| **vf).count();
        let first = of_transfer.iter().position(|vf| *vf);
        FtpRun {
            contender: contender.name(),
            carried: count as f64 / TRANSFER.len() as f64,
            first_vf_s: first.map(|rounds| rounds as u64 * INTERVAL.as_secs()),
            gbit_per_s: mean(|round| round.gbit_per_s),
            packet_us: mean(|round| round.packet_us),
            rounds,
            on_vf,
        }
    };
    Ftp { runs: Contender::ALL.map(run).into() }
}

impl Ftp {
    /// Who had more of the file on a VF, and who moved it faster, in each direction.
    pub fn order(&self) -> String {
        let by = |scale: Scale, value: &dyn Fn(&FtpRun) -> f64| {
            let entry =
                |run: &FtpRun| Entry { name: run.contender, value: value(run), on_vf: run.carried };
            overall(&self.runs.iter().map(entry).collect::<Vec<_>>(), scale)
        };
        const PART: Scale = Scale { larger_wins: true, unit: "of the file" };
        const SPEED: Scale = Scale { larger_wins: true, unit: "Gbit/s" };
        const TIME: Scale = Scale { larger_wins: false, unit: "µs" };
        let mut told =
            format!("By the part of the file that a VF carried: {}", by(PART, &|run| run.carried));
        for (toward, name) in Toward::ALL.into_iter().zip(["from", "to"]) {
            let time = by(TIME, &|run| run.packet_us[toward as usize]);
            let speed = by(SPEED, &|run| run.gbit_per_s[toward as usize]);
            let _ = write!(
                told,
                " By a packet's time, {name} the VM: {time} By its speed, {name} the VM: {speed}"
            );
        }
        told
    }

    /// The figure's data.
    pub fn csv(&self) -> String {
        let mut out =
            "policy,from_s,transfer,on_vf,from_vm_gbit_per_s,to_vm_gbit_per_s,from_vm_packet_us,to_vm_packet_us\n".to_owned();
        for run in &self.runs {
            let rounds = run.on_vf.iter().zip(&run.rounds);
            for (round, (on_vf, reached)) in rounds.enumerate() {
                let from_s = round as u64 * INTERVAL.as_secs();
                let (transfer, on_vf) = (TRANSFER.contains(&round), *on_vf);
                let Round { gbit_per_s: [from, to], packet_us: [from_us, to_us] } = reached;
                let _ = writeln!(
                    out,
                    "{},{from_s},{transfer},{on_vf},{from:.4},{to:.4},{from_us:.4},{to_us:.4}",
                    run.contender
                );
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activity_notices_the_transfer_after_one_round_and_keeps_to_it() {
        let played = play(5);
        let of = |name| played.runs.iter().find(|run| run.contender == name).unwrap();
        assert_eq!((of("activity").first_vf_s, of("PV only").first_vf_s), (Some(300), None));
        assert!((of("activity").carried - 11.0 / 12.0).abs() < 1e-9);
        assert!((0.5..0.8).contains(&of("fair").carried));
        for toward in [0, 1] {
            let speed = |name| of(name).gbit_per_s[toward];
            assert!(speed("activity") >= speed("fair") && speed("fair") >= speed("PV only"));
            assert!(speed("PV only") > 0.0 && speed("activity") < 9.5);
            let time = |name| of(name).packet_us[toward];
            assert!(time("activity") < time("fair") && time("fair") < time("PV only"));
        }
        let told = played.order();
        assert!(
            told.starts_with("By the part of the file that a VF carried: activity, then "),
            "{told}"
        );
        assert!(
            told.contains("PV only: the order that the paper's argument leads to. By"),
            "{told}"
        );
    }
}
