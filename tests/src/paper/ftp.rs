//! Section 6.4, figure 8: a VM among 100 begins to send, or to receive, a large file.
//!
//! What a policy decides is when it has a VF and for how much of the file. Throughput on either path is the hardware's and not
//! modelled. Rates count both directions alike, so one figure holds for both.

use std::fmt::Write;

use fastrand::Rng;
use serde::Serialize;

use super::groups::GROUPS_PPS;
use super::{Contender, INTERVAL};

/// Full frames of 1538 bytes on a wire of 10 GbE.
pub const FTP_PPS: f64 = 10e9 / (1538.0 * 8.0);
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
    let run = |contender: Contender| {
        // A decision sees the round before; before the first there is none.
        let served = contender.serve(&rates[..ROUNDS - 1], seed);
        let later = served.iter().map(|served| served.last().copied().unwrap_or(false));
        let on_vf: Vec<bool> = std::iter::once(false).chain(later).collect();
        let of_transfer = on_vf.get(TRANSFER).unwrap_or(&[]);
        let count = of_transfer.iter().filter(|vf| **vf).count();
        let first = of_transfer.iter().position(|vf| *vf);
        FtpRun {
            contender: contender.name(),
            carried: count as f64 / TRANSFER.len() as f64,
            first_vf_s: first.map(|rounds| rounds as u64 * INTERVAL.as_secs()),
            on_vf,
        }
    };
    Ftp { runs: Contender::ALL.map(run).into() }
}

impl Ftp {
    /// The figure's data.
    pub fn csv(&self) -> String {
        let mut out = "policy,from_s,transfer,on_vf\n".to_owned();
        for run in &self.runs {
            for (round, on_vf) in run.on_vf.iter().enumerate() {
                let from_s = round as u64 * INTERVAL.as_secs();
                let (transfer, on_vf) = (TRANSFER.contains(&round), *on_vf);
                let _ = writeln!(out, "{},{from_s},{transfer},{on_vf}", run.contender);
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
    }
}
