//! Options of how queues are served, and what this machine says to them.

use std::num::NonZeroU64;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;

use crate::logic::cpu_list::CpuList;
use crate::logic::tuning::{Limit, Tuning};

/// Longest busy-poll: a queue that is asked for more should have a processor for itself, and a
/// poll-mode backend.
const MAX_POLL_US: i64 = 1000;
/// 10 Tbit/s: what is more is a slip of the finger.
const MAX_MBIT: i64 = 10_000_000;

/// Options of how queues are served.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Queues")]
pub struct TuningArgs {
    /// Look for work this long before going to sleep; costs processor time, saves latency
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0)]
    #[arg(value_parser = clap::value_parser!(u16).range(0..=MAX_POLL_US))]
    pub poll_us: u16,
    /// Most packets a second to the guest, in each queue pair, as the wire sees them
    #[arg(long, value_name = "PACKETS")]
    pub rx_pps: Option<NonZeroU64>,
    /// Most packets a second from the guest, in each queue pair, as the wire sees them
    #[arg(long, value_name = "PACKETS")]
    pub tx_pps: Option<NonZeroU64>,
    /// Most Mbit a second to the guest, in each queue pair
    #[arg(long, value_name = "MBIT")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=MAX_MBIT as u64))]
    pub rx_mbit: Option<u64>,
    /// Most Mbit a second from the guest, in each queue pair
    #[arg(long, value_name = "MBIT")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=MAX_MBIT as u64))]
    pub tx_mbit: Option<u64>,
    /// Processors of the queue pairs' threads, in the order of the pairs, such as 2,3 or 4-7
    #[arg(long, value_name = "LIST")]
    pub cpus: Option<CpuList>,
}

impl TuningArgs {
    /// What was asked for, where this machine has it.
    ///
    /// # Errors
    /// A processor is not there, not ours, or has nothing to do.
    pub(super) fn resolve(&self, queue_pairs: usize) -> anyhow::Result<Tuning> {
        let cpus = self.cpus.clone().map(CpuList::into_vec).unwrap_or_default();
        if cpus.len() > queue_pairs {
            bail!("--cpus names {} processors for {queue_pairs} queue pairs", cpus.len());
        }
        if !cpus.is_empty() {
            let allowed =
                sched_getaffinity(Pid::from_raw(0)).context("cannot ask for processors")?;
            check_cpus(&cpus, |cpu| allowed.is_set(cpu).unwrap_or_default())?;
        }
        Ok(Tuning {
            poll: Duration::from_micros(self.poll_us.into()),
            rx_limit: limit(self.rx_pps, self.rx_mbit),
            tx_limit: limit(self.tx_pps, self.tx_mbit),
            cpus,
        })
    }
}

fn limit(packets: Option<NonZeroU64>, mbit: Option<u64>) -> Limit {
    let bits = mbit.and_then(|mbit| NonZeroU64::new(mbit * 1_000_000));
    Limit { packets, bits }
}

fn check_cpus(cpus: &[usize], allowed: impl Fn(usize) -> bool) -> anyhow::Result<()> {
    let Some(cpu) = cpus.iter().find(|cpu| !allowed(**cpu)) else {
        return Ok(());
    };
    let ours: Vec<_> =
        (0..CpuSet::count()).filter(|cpu| allowed(*cpu)).map(|cpu| cpu.to_string()).collect();
    bail!(
        "--cpus: processor {cpu} is not there, is offline, or is kept from this process by its \
         affinity or cpuset; it may use {}",
        ours.join(",")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_in_bits() {
        let tuning = TuningArgs { tx_mbit: Some(25), ..TuningArgs::default() }.resolve(1).unwrap();
        assert_eq!(tuning.tx_limit.bits, NonZeroU64::new(25_000_000));
        assert_eq!(tuning.rx_limit, Limit::default());
    }

    #[test]
    fn a_processor_that_is_not_ours_is_named() {
        let error = check_cpus(&[0, 5], |cpu| cpu < 2).unwrap_err().to_string();
        assert!(error.contains("processor 5 is not there"), "{error}");
        assert!(error.ends_with("it may use 0,1"), "{error}");
    }

    #[test]
    fn more_processors_than_queue_pairs_are_refused() {
        let cpus = Some("0,1".parse().unwrap());
        let error = TuningArgs { cpus, ..TuningArgs::default() }.resolve(1).unwrap_err();
        assert_eq!(error.to_string(), "--cpus names 2 processors for 1 queue pairs");
    }
}
