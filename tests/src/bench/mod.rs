//! Benchmarks: our programs against others', in alternating runs.
//!
//! ```text
//!   suite ──▶ experiments ──▶ drive: ours, peer, ours, peer … ──▶ pairs ──▶ table and JSON
//! ```
//!
//! `flexvf-bench` runs inside the testbed's fast host, started by `scripts/bench`, which also has
//! built everything for release. A result is the median of the pairs' ratios; nothing here judges
//! it. What cannot be measured is told at the end, and then the program fails.

pub mod allocator;
pub mod drive;
pub mod io;
pub mod logic;
pub mod pv;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use clap::{Parser, ValueEnum};

use drive::{Driven, drive};
use io::stage::{Pace, Stage};
use logic::result::Results;
use logic::row::chosen;
use logic::table::table;

/// Our programs against others', in alternating runs; runs on the testbed's fast host (scripts/bench)
#[derive(Debug, Parser)]
#[command(version)]
pub struct Options {
    /// What to measure
    #[arg(value_enum)]
    pub suite: Suite,
    /// Write the results here
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Pairs of runs; of short ones, which most are, five times as many
    #[arg(long, value_name = "N", default_value_t = 6, value_parser = clap::value_parser!(u16).range(1..))]
    pub pairs: u16,
    /// Only the rows of these names, or of names that begin so
    #[arg(long, value_name = "NAME", num_args = 1..)]
    pub only: Vec<String>,
    /// One pair of short runs: to see that everything works, not for results
    #[arg(long)]
    pub quick: bool,
    /// One more option for our program, as --with=--poll-us=50; may be given several times
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    pub with: Vec<String>,
}

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Suite {
    /// qmp-allocator: decisions, processor time, memory, switches, with made-up VMs
    Allocator,
    /// vhost-net-pv: rings, TAP, guests, footprint
    Pv,
}

/// Measures, prints a table, writes the file; whether everything could be measured.
pub fn run(options: &Options) -> Result<bool> {
    let pace = if options.quick { Pace::QUICK } else { Pace::FULL };
    let stage = Stage::from_environment(pace, options.with.clone())?;
    let experiments = match options.suite {
        Suite::Allocator => allocator::experiments(&stage),
        Suite::Pv => pv::experiments(&stage),
    };
    let names: Vec<_> =
        experiments.iter().flat_map(|experiment| experiment.rows()).map(|row| row.name).collect();
    let names = chosen(&names, &options.only).map_err(|error| anyhow!(error))?;
    let pairs = if options.quick { 1 } else { usize::from(options.pairs) };
    let Driven { results, failures } =
        drive(experiments, &names, pairs, |line| eprintln!("bench: {line}"));
    print!("{}", table(&results));
    if let Some(file) = &options.json {
        let results = results.into_iter().map(|(_, outcome)| outcome).collect();
        write_json(file, &Results { results })?;
    }
    for failure in &failures {
        println!("FAILED: {failure}");
    }
    Ok(failures.is_empty())
}

fn write_json(file: &Path, results: &Results) -> Result<()> {
    let text = serde_json::to_string_pretty(results)? + "\n";
    std::fs::write(file, text).with_context(|| format!("write {}", file.display()))
}
