//! `flexvf replay`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};

use super::simulate::options::Options;
use super::simulate::read as read_csv;
use super::simulate::table::{self, Row, Run};
use crate::io::recording::{is_recording, read};
use crate::logic::recording::gather::{Cut, Gathered, Gatherer};
use crate::logic::simulate::play::as_decided;
use crate::logic::simulate::{Times, measure};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The recorder's folder, one of its files, or a CSV file
    recording: PathBuf,
    /// Seconds between two decisions [default: as the daemon decided; of a CSV file 300]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval_s: Option<u64>,
    /// VFs [default: as many as the daemon had; of a CSV file 63]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    vfs: Option<u32>,
    #[command(flatten)]
    options: Options,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let path = &args.recording;
    let is_csv =
        path.is_file() && !is_recording(path).with_context(|| path.display().to_string())?;
    let runs = if is_csv { vec![args.csv()?] } else { args.recorded()? };
    table::print(&runs, args.json)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn recorded(&self) -> anyhow::Result<Vec<Run>> {
        let mut gatherer = Gatherer::new(Cut {
            interval: self.interval_s.map(Duration::from_secs),
            rate_time_constant: Duration::from_secs(self.options.rate_time_constant_s),
            vfs: self.vfs.map(|vfs| vfs as usize),
            link_mbps: LINK_MBPS,
        });
        for torn in read(&self.recording, &mut gatherer)? {
            eprintln!(
                "{}: the last {} bytes are not whole (the daemon is writing, or was killed); left out",
                torn.file.display(),
                torn.bytes
            );
        }
        let pools = gatherer.finish();
        if pools.is_empty() {
            let path = self.recording.display();
            bail!(
                "{path}: less than two whole intervals; record longer, or give a shorter --interval-s"
            );
        }
        Ok(pools.into_iter().map(|pool| self.pool(pool)).collect())
    }

    fn pool(&self, pool: Gathered) -> Run {
        let Gathered { pool, demand, interval } = pool;
        let decided = as_decided(&demand, &self.options.host(), interval);
        let decided = decided.map(|outcome| Row { policy: "as decided", outcome });
        let policies = decided.into_iter().chain(self.options.rows(&demand, interval)).collect();
        Run {
            workload: format!("{}, pool {pool}", self.recording.display()),
            vms: demand.vms.len(),
            vfs: demand.intervals.iter().map(|interval| interval.vfs).max().unwrap_or(0),
            intervals: demand.intervals.len() - 1,
            policies,
        }
    }

    fn csv(&self) -> anyhow::Result<Run> {
        let mut trace = read_csv(&self.recording)?;
        let interval_s = self.interval_s.unwrap_or(300);
        let times = Times {
            total_s: trace.end_s(),
            interval_s,
            sample_s: 1,
            time_constant_s: self.options.rate_time_constant_s,
        };
        let vfs = self.vfs.unwrap_or(63) as usize;
        let workload = self.recording.display().to_string();
        let demand = measure(&mut trace, &times, vfs, &[1]);
        if demand.intervals.len() < 2 {
            bail!(
                "{workload}: less than two intervals of {interval_s} s; give a shorter --interval-s"
            );
        }
        let policies = self.options.rows(&demand, Duration::from_secs(interval_s));
        let (vms, intervals) = (demand.vms.len(), demand.intervals.len() - 1);
        Ok(Run { workload, vms, vfs, intervals, policies })
    }
}

/// As the daemon's: bounds what guests may have claimed.
const LINK_MBPS: u64 = 100_000;
