//! The paper's evaluation (section 6.4), as far as policies decide it: a report with plots.
//!
//! The policies are the product's own, asked round by round. What is not theirs is a model
//! ([`model`]), and said to be one wherever a figure rests on it. What the testbed has measured (sections 6.2 and 6.3, figures 5
//! and 6) is added from the files that its runs leave ([`measured`]); nothing is measured here.

pub mod boost;
pub mod chart;
pub mod compare;
pub mod database;
pub mod footprint;
pub mod ftp;
pub mod groups;
pub mod measured;
pub mod model;
pub mod order;
pub mod report;
pub mod svg;
pub mod switches;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use fastrand::Rng;
use flexvf_protocol::VmName;
use measured::Measured;
use qmp_allocator::logic::policy::tenant::Tenants;
use qmp_allocator::logic::policy::{Candidate, Memory, Rules, Strategy, Tuning, Words, rank};
use report::Report;

/// Figures of the paper, played with the product's policies
#[derive(Debug, Parser)]
#[command(name = "flexvf-paper")]
pub struct Options {
    /// Folder for report.html, a CSV file a figure, and summary.json
    #[arg(long)]
    pub out: PathBuf,
    /// What a run on the testbed has left, for what was measured: a result of `scripts/demo --json` or of the scenario
    /// switches, its footprint.json, a curve of `flexvf calibrate`, the scenario database's database.json; may be
    /// given several times
    #[arg(long, value_name = "FILE")]
    pub measured: Vec<PathBuf>,
    /// Decides everything that is random
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
}

/// The paper's T.
pub const INTERVAL: Duration = Duration::from_secs(300);
/// VFs of a common 10 GbE port.
pub const VFS: usize = 63;

/// Who gets the VFs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Contender {
    /// Nobody.
    PvOnly,
    /// Anybody, each round anew.
    Random,
    /// The paper's fair strategy, or its activity strategy.
    Policy(Strategy),
}

impl Contender {
    /// Those of the paper, in its order.
    pub const ALL: [Self; 4] = [
        Self::PvOnly,
        Self::Random,
        Self::Policy(Strategy::Fair),
        Self::Policy(Strategy::Activity),
    ];

    /// Its name in figures.
    pub const fn name(self) -> &'static str {
        match self {
            Self::PvOnly => "PV only",
            Self::Random => "random",
            Self::Policy(strategy) => strategy.name(),
        }
    }

    /// Who has a VF in each round, given the rates that were seen in the round before it.
    pub fn serve(self, seen_pps: &[Vec<f64>], seed: u64) -> Vec<Vec<bool>> {
        let mut rng = Rng::with_seed(seed);
        let mut memory = Memory::default();
        let mut holders: Vec<bool> = Vec::new();
        let round = |pps: &Vec<f64>| {
            holders.resize(pps.len(), false);
            holders = match self {
                Self::PvOnly => vec![false; pps.len()],
                Self::Random => {
                    let chosen: BTreeSet<usize> =
                        rng.choose_multiple(0..pps.len(), VFS).into_iter().collect();
                    (0..pps.len()).map(|vm| chosen.contains(&vm)).collect()
                }
                Self::Policy(strategy) => {
                    let (tuning, tenants) = (Tuning::default(), Tenants::default());
                    let rules = Rules { strategy, tuning, interval: INTERVAL, tenants };
                    let candidates = candidates(pps, &holders);
                    let ranking = rank(&rules, &candidates, VFS, &mut memory);
                    let first: BTreeSet<&VmName> = ranking.chosen().collect();
                    candidates.iter().map(|candidate| first.contains(&candidate.vm)).collect()
                }
            };
            holders.clone()
        };
        seen_pps.iter().map(round).collect()
    }
}

fn candidates(pps: &[f64], holders: &[bool]) -> Vec<Candidate> {
    let candidate = |(index, (pps, holds_vf)): (usize, (&f64, &bool))| {
        Some(Candidate {
            vm: format!("vm{index:03}").parse().ok()?,
            rate_pps: Some(*pps),
            holds_vf: *holds_vf,
            words: Words::default(),
            switch_took: None,
        })
    };
    pps.iter().zip(holders).enumerate().filter_map(candidate).collect()
}

/// Writes the report.
pub fn run(options: &Options) -> Result<()> {
    let out = &options.out;
    std::fs::create_dir_all(out).with_context(|| format!("make {}", out.display()))?;
    let mut measured = Measured::default();
    for file in &options.measured {
        measured.read(file)?;
    }
    let groups = groups::play(options.seed);
    let ftp = ftp::play(options.seed);
    let shapes = compare::play(options.seed);
    let mut files = vec![
        ("figure7.csv", groups.csv()),
        ("figure8.csv", ftp.csv()),
        ("policies.csv", compare::csv(&shapes)),
    ];
    if !measured.switches.is_empty() {
        files.push(("switches.csv", switches::csv(&measured.switches)));
    }
    if !measured.footprints.is_empty() {
        files.push(("footprint.csv", footprint::csv(&measured.footprints)));
    }
    if !measured.calibrations.is_empty() {
        files.push(("figure5.csv", boost::csv(&measured.calibrations)));
    }
    if let Some(database) = &measured.database {
        files.push(("figure6.csv", database::csv(database)));
    }
    let report = Report { seed: options.seed, groups, ftp, shapes, measured };
    files.push(("summary.json", report.summary()? + "\n"));
    files.push(("report.html", report.html()));
    for (name, text) in files {
        let file = out.join(name);
        std::fs::write(&file, text).with_context(|| format!("write {}", file.display()))?;
        println!("{}", file.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_contender_but_pv_serves_as_many_as_there_are_vfs() {
        let seen = vec![vec![1.0; 100]; 5];
        for contender in Contender::ALL {
            let wanted = if contender == Contender::PvOnly { 0 } else { VFS };
            for served in contender.serve(&seen, 1) {
                assert_eq!(served.iter().filter(|it| **it).count(), wanted, "{contender:?}");
            }
        }
    }
}
