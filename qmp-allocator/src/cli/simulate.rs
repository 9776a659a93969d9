//! `flexvf simulate`.

pub(super) mod options;
pub(super) mod table;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::builder::{PossibleValuesParser, TypedValueParser};

use crate::logic::simulate::trace::Trace;
use crate::logic::simulate::workload::{Shape, Workload};
use crate::logic::simulate::{Source, Times, measure};
use options::Options;
use table::Run;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A made-up workload; may be given several times [default: all of them]
    #[arg(long, value_parser = shapes(), value_name = "SHAPE")]
    shape: Vec<Shape>,
    /// A recorded one in place of them: lines of `time_s,vm,pps` under that heading, in the order of time
    #[arg(long, value_name = "FILE", conflicts_with_all = ["shape", "vms", "seed"])]
    csv: Option<PathBuf>,
    /// VMs of a made-up workload
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    vms: u32,
    /// VFs
    #[arg(long, default_value_t = 63, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    vfs: u32,
    /// How long; of a recorded workload no longer than it is
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=8_760))]
    hours: u32,
    /// Seconds between two decisions
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    interval_s: u64,
    /// Seconds between two samples
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=86_400))]
    sample_interval_s: u64,
    /// Decides what a made-up workload is like
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Weights of the VMs, in turn
    #[arg(long, value_name = "W,...", value_delimiter = ',', default_value = "1")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1_000))]
    weights: Vec<u32>,
    #[command(flatten)]
    options: Options,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    ensure!(
        args.interval_s.is_multiple_of(args.sample_interval_s),
        "{} s between decisions are no multiple of {} s between samples; give one",
        args.interval_s,
        args.sample_interval_s
    );
    let shapes = if args.shape.is_empty() { &Shape::ALL[..] } else { &args.shape };
    let mut runs = Vec::new();
    if let Some(file) = &args.csv {
        let trace = read(file)?;
        let total_s = trace.end_s().min(args.total_s());
        runs.push(args.compare(file.display().to_string(), total_s, trace)?);
    } else {
        for shape in shapes {
            let workload = Workload::new(*shape, args.vms as usize, args.interval_s, args.seed);
            runs.push(args.compare(shape.name().to_owned(), args.total_s(), workload)?);
        }
    }
    table::print(&runs, args.json)?;
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn total_s(&self) -> u64 {
        u64::from(self.hours) * 3600
    }

    fn compare(
        &self,
        workload: String,
        total_s: u64,
        mut source: impl Source,
    ) -> anyhow::Result<Run> {
        let times = Times {
            total_s,
            interval_s: self.interval_s,
            sample_s: self.sample_interval_s,
            time_constant_s: self.options.rate_time_constant_s,
        };
        let vfs = self.vfs as usize;
        let demand = measure(&mut source, &times, vfs, &self.weights);
        if demand.intervals.len() < 2 {
            bail!(
                "{workload}: {total_s} s are less than two intervals; give more, or a shorter --interval-s"
            );
        }
        let policies = self.options.rows(&demand, Duration::from_secs(self.interval_s));
        Ok(Run {
            workload,
            vms: demand.vms.len(),
            vfs,
            intervals: demand.intervals.len() - 1,
            policies,
        })
    }
}

fn shapes() -> impl TypedValueParser<Value = Shape> {
    PossibleValuesParser::new(Shape::ALL.map(Shape::name)).try_map(|name| {
        Shape::ALL.into_iter().find(|shape| shape.name() == name).ok_or("no such workload")
    })
}

/// A day of 100 VMs, second by second, is 200 MB.
const MAX_FILE_BYTES: u64 = 1 << 30;

pub(super) fn read(file: &Path) -> anyhow::Result<Trace> {
    let name = file.display().to_string();
    let mut text = String::new();
    let open = File::open(file).with_context(|| name.clone())?;
    open.take(MAX_FILE_BYTES + 1).read_to_string(&mut text).with_context(|| name.clone())?;
    ensure!(text.len() as u64 <= MAX_FILE_BYTES, "{name}: more than 1 GiB; give less");
    Trace::parse(&text).with_context(|| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn args(line: &str) -> Result<Args, clap::Error> {
        let words = std::iter::once("simulate").chain(line.split_whitespace());
        Line::try_parse_from(words).map(|line| line.args)
    }

    #[test]
    fn without_arguments_it_is_the_paper_s_hundred_vms_for_a_day() {
        let args = args("").unwrap();
        assert_eq!((args.vms, args.vfs, args.total_s(), args.interval_s), (100, 63, 86_400, 300));
    }

    #[test]
    fn shapes_are_taken_by_name_and_others_refused() {
        assert_eq!(
            args("--shape flip-flop --shape steady").unwrap().shape,
            [Shape::FlipFlop, Shape::Steady]
        );
        assert!(args("--shape flat").is_err());
        assert!(args("--csv a --vms 3").is_err());
    }

    #[test]
    fn strategies_are_taken_by_name_and_all_of_them_without() {
        let played = |line: &str| {
            let args = args(line).unwrap();
            let workload = Workload::new(Shape::Steady, 4, 300, 1);
            let run = args.compare("steady".into(), 3600, workload).unwrap();
            run.policies.into_iter().map(|row| row.policy).collect::<Vec<_>>()
        };
        assert_eq!(
            played("--strategy fair --strategy hybrid"),
            ["fair", "hybrid", "hybrid, hysteresis"]
        );
        assert_eq!(played("").len(), 6);
        assert!(args("--strategy best").is_err());
    }

    #[test]
    fn under_flip_flop_hysteresis_makes_a_tenth_of_the_switches_at_no_less_gain() {
        let args = args("--vfs 50 --min-hold-s 3600").unwrap();
        let workload = Workload::new(Shape::FlipFlop, 100, 300, 1);
        let run = args.compare("flip-flop".into(), 86_400, workload).unwrap();
        let of = |policy| run.policies.iter().find(|row| row.policy == policy).unwrap().outcome;
        let (plain, steady) = (of("activity"), of("activity, hysteresis"));
        assert!(steady.switches * 10 <= plain.switches, "{steady:?} {plain:?}");
        assert!(steady.gain >= 0.95 * plain.gain, "{steady:?} {plain:?}");
    }

    #[test]
    fn a_file_that_is_no_trace_is_refused_by_its_name_and_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("trace.csv");
        std::fs::write(&file, "time_s,vm,pps\n1,web\n").unwrap();
        let error = format!("{:#}", read(&file).unwrap_err());
        assert!(
            error.ends_with("trace.csv: line 2: \"1,web\" is not time_s,vm,pps; give three fields"),
            "{error}"
        );
    }
}
