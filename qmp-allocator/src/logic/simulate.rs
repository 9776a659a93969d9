//! Policies against workloads, without a host: who would have had the VFs, and what would it have been worth?
//!
//! A [`workload`] says how many packets each VM sends in each second. They are measured as the daemon
//! measures them ([`super::rate`]), once for all policies; then each policy decides interval by interval
//! ([`play`]). A decision sees the interval that ended and holds for the next one. Left out: everything that
//! can fail, and that a VM's traffic might grow on a VF.

pub mod play;
pub mod trace;
pub mod workload;

use std::time::Duration;

use flexvf_protocol::VmName;

use super::policy::tenant::Tenants;
use super::policy::{Memory, Strategy, Words};
use super::rate::{Count, RateMeter, Sample, Trust};

/// Something that says how busy VMs are.
pub trait Source {
    /// The VMs.
    fn names(&self) -> Vec<VmName>;

    /// Packets per second of each from then on, in the order of the names. Asked in the order of time.
    fn rates_at(&mut self, second: u64, pps: &mut [f64]);
}

/// How time is cut up, seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// All of it.
    pub total_s: u64,
    /// Between two decisions.
    pub interval_s: u64,
    /// Between two samples; rates stand still in between.
    pub sample_s: u64,
    /// Of the average over rates; 0 for the mean of each interval.
    pub time_constant_s: u64,
}

/// A workload, measured.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Demand {
    /// The VMs.
    pub vms: Vec<Guest>,
    /// Interval by interval.
    pub intervals: Vec<Interval>,
    /// What its tenants are due.
    pub tenants: Tenants,
    /// What one strategy remembers at the beginning.
    pub start: Option<(Strategy, Memory)>,
}

/// One of its VMs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guest {
    /// Its name.
    pub name: VmName,
    /// What the operator says of it.
    pub words: Words,
}

/// What the VMs sent in one interval, in their order, packets per second.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Interval {
    /// On average.
    pub sent_pps: Vec<f64>,
    /// As a decision at its end sees it; none of a VM that was not there, or could not have a VF.
    pub seen_pps: Vec<Option<f64>>,
    /// VFs that the decision at its end can give.
    pub vfs: usize,
    /// Whom a daemon chose at its end, where that is known.
    pub chosen: Option<Vec<usize>>,
}

/// Lets a source run on a host with so many VFs, and measures it. The VMs have these weights, in turn.
pub fn measure(source: &mut dyn Source, times: &Times, vfs: usize, weights: &[u32]) -> Demand {
    let names = source.names();
    let time_constant = Duration::from_secs(times.time_constant_s);
    let meter = || RateMeter::new(LINK_MBPS).with_time_constant(time_constant);
    let mut meters: Vec<(RateMeter, f64)> = names.iter().map(|_| (meter(), 0.0)).collect();
    let mut pps = vec![0.0; names.len()];
    let sample_s = times.sample_s.max(1);
    let samples = times.interval_s.max(1).div_ceil(sample_s);
    let weights = weights.iter().copied().chain([1]).take(weights.len().max(1)).cycle();
    let vms = names.into_iter().zip(weights);
    let vms = vms
        .map(|(name, weight)| Guest { name, words: Words { weight, ..Words::default() } })
        .collect();
    let mut demand = Demand { vms, ..Demand::default() };
    let mut second = 0;
    sample(&mut meters, second);
    while second + samples * sample_s <= times.total_s {
        let mut sent_pps = vec![0.0; pps.len()];
        for _ in 0..samples {
            source.rates_at(second, &mut pps);
            second += sample_s;
            for (((_, packets), sent), pps) in meters.iter_mut().zip(&mut sent_pps).zip(&pps) {
                *packets += pps * sample_s as f64;
                *sent += pps / samples as f64;
            }
            sample(&mut meters, second);
        }
        let seen = meters.iter_mut().map(|(meter, _)| meter.end_interval());
        let seen_pps = seen.map(|rate| rate.map(|rate| rate.pps)).collect();
        demand.intervals.push(Interval { sent_pps, seen_pps, vfs, chosen: None });
    }
    demand
}

fn sample(meters: &mut [(RateMeter, f64)], second: u64) {
    for (meter, packets) in meters {
        let count = Count { epoch: 0, packets: *packets as u64, trust: Trust::Host };
        let at = Duration::from_secs(second);
        meter.on_sample(Sample { at, pv: Some(count), vf: None });
    }
}

/// The host counts: no bound is needed.
const LINK_MBPS: u64 = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    struct Ramp;

    impl Source for Ramp {
        fn names(&self) -> Vec<VmName> {
            vec!["ramp".parse().unwrap()]
        }

        fn rates_at(&mut self, second: u64, pps: &mut [f64]) {
            pps[0] = second as f64;
        }
    }

    #[test]
    fn an_interval_is_measured_as_its_mean_and_a_part_of_one_is_left_out() {
        let times = Times { total_s: 25, interval_s: 10, sample_s: 1, time_constant_s: 0 };
        let demand = measure(&mut Ramp, &times, 1, &[1]);
        let seen: Vec<f64> = demand.intervals.iter().map(|it| it.seen_pps[0].unwrap()).collect();
        assert_eq!(seen, [4.5, 14.5]);
        for interval in &demand.intervals {
            assert!((interval.sent_pps[0] - interval.seen_pps[0].unwrap()).abs() < 1e-9);
        }
    }

    #[test]
    fn with_a_time_constant_a_decision_sees_an_average_that_lags() {
        let times = Times { total_s: 20, interval_s: 10, sample_s: 1, time_constant_s: 30 };
        let last = measure(&mut Ramp, &times, 1, &[1]).intervals.pop().unwrap();
        assert!(last.seen_pps[0].unwrap() < last.sent_pps[0] - 5.0, "{last:?}");
    }
}
