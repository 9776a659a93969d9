//! One policy over one workload, and what came of it.

use std::collections::BTreeSet;
use std::time::Duration;

use flexvf_protocol::VmName;
use serde::Serialize;

use super::{Demand, Interval};
use crate::logic::policy::{Candidate, Memory, Rules, rank};

/// The host's side of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Host<'a> {
    /// VFs.
    pub vfs: usize,
    /// How long a VF that changes hands carries nothing, seconds.
    pub switch_s: f64,
    /// From this rate on a VM wants a VF, packets per second.
    pub wants_pps: f64,
    /// The VMs' weights; repeated if there are less than VMs.
    pub weights: &'a [u32],
}

/// How a policy did.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Outcome {
    /// Packets that VFs carried, as a part of what the best assignment would have had them carry: in each
    /// interval the VMs that are the busiest in it, known beforehand, and switched at no cost. No policy can reach 1.
    pub gain: f64,
    /// VFs given to a VM that had none.
    pub switches: u64,
    /// The longest time that a VM wanted a VF all along and had none, seconds.
    pub longest_wait_s: u64,
    /// Jain's index of the time on a VF for each VM's weight: 1 if all had the same, 1/n if one had all.
    pub jain: f64,
}

/// Plays a policy over a workload. In the first interval nobody has a VF.
pub fn play(rules: &Rules, demand: &Demand, host: &Host<'_>) -> Outcome {
    let vms = || demand.names.iter().zip(host.weights.iter().cycle());
    let mut candidates: Vec<Candidate> = vms().map(|(vm, weight)| newcomer(vm, *weight)).collect();
    let mut vms = vec![Tally::default(); candidates.len()];
    let (mut memory, mut best) = (Memory::default(), 0.0);
    for pair in demand.intervals.windows(2) {
        let [seen, next] = pair else { continue };
        let served = decide(rules, seen, host.vfs, &mut candidates, &mut memory);
        for ((candidate, tally), pps) in candidates.iter_mut().zip(&mut vms).zip(&next.sent_pps) {
            let serves = served.contains(&candidate.vm);
            tally.interval(*pps, serves, !candidate.holds_vf, rules.interval, host);
            candidate.holds_vf = serves;
        }
        best += busiest(next, host.vfs) * rules.interval.as_secs_f64();
    }
    let carried: f64 = vms.iter().map(|vm| vm.carried).sum();
    let waits = vms.iter().map(|vm| vm.longest_wait).max().unwrap_or(0);
    let shares = vms.iter().zip(&candidates);
    Outcome {
        gain: if best > 0.0 { carried / best } else { 1.0 },
        switches: vms.iter().map(|vm| vm.switches).sum(),
        longest_wait_s: waits * rules.interval.as_secs(),
        jain: jain(shares.map(|(vm, it)| vm.served as f64 / f64::from(it.weight.max(1)))),
    }
}

fn newcomer(vm: &VmName, weight: u32) -> Candidate {
    let vm = vm.clone();
    Candidate {
        vm,
        rate_pps: None,
        holds_vf: false,
        pin: None,
        weight,
        priority: 0,
        min_percent: 0,
        switch_took: None,
    }
}

fn decide(
    rules: &Rules,
    seen: &Interval,
    vfs: usize,
    candidates: &mut [Candidate],
    memory: &mut Memory,
) -> BTreeSet<VmName> {
    for (candidate, pps) in candidates.iter_mut().zip(&seen.seen_pps) {
        candidate.rate_pps = Some(*pps);
    }
    rank(rules, candidates, vfs, memory).into_iter().take(vfs).map(|ranked| ranked.vm).collect()
}

/// What came of one VM.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    carried: f64,
    switches: u64,
    served: u64,
    wait: u64,
    longest_wait: u64,
}

impl Tally {
    fn interval(
        &mut self,
        pps: f64,
        serves: bool,
        was_on_pv: bool,
        time: Duration,
        host: &Host<'_>,
    ) {
        if serves {
            let lost = if was_on_pv { host.switch_s } else { 0.0 };
            self.carried += pps * (time.as_secs_f64() - lost).max(0.0);
            self.switches += u64::from(was_on_pv);
            self.served += 1;
        }
        self.wait = if serves || pps < host.wants_pps { 0 } else { self.wait + 1 };
        self.longest_wait = self.longest_wait.max(self.wait);
    }
}

/// The most that so many VMs sent together, packets per second.
fn busiest(interval: &Interval, vfs: usize) -> f64 {
    let mut pps = interval.sent_pps.clone();
    pps.sort_unstable_by(|a, b| b.total_cmp(a));
    pps.iter().take(vfs).sum()
}

/// Jain, Chiu, Hawe: A quantitative measure of fairness (DEC-TR-301, 1984).
fn jain(values: impl Iterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for value in values {
        (count, sum, squares) = (count + 1.0, sum + value, squares + value * value);
    }
    if squares > 0.0 { sum * sum / (count * squares) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::policy::{Strategy, Tuning};
    use proptest::prelude::*;

    const HOST: Host<'_> = Host { vfs: 1, switch_s: 0.0, wants_pps: 1.0, weights: &[1] };

    fn demand(rates: &[&[f64]]) -> Demand {
        let names = (0..rates[0].len()).map(|i| format!("vm{i}").parse().unwrap()).collect();
        let interval = |pps: &&[f64]| Interval { sent_pps: pps.to_vec(), seen_pps: pps.to_vec() };
        Demand { names, intervals: rates.iter().map(interval).collect() }
    }

    fn rules(strategy: Strategy) -> Rules {
        Rules { strategy, tuning: Tuning::default(), interval: Duration::from_secs(100) }
    }

    #[test]
    fn gain_switches_waits_and_fairness_are_what_a_hand_reckons() {
        let demand = demand(&[&[5.0, 1.0], &[5.0, 1.0], &[1.0, 5.0], &[1.0, 5.0]]);
        let host = Host { switch_s: 10.0, ..HOST };
        let outcome = play(&rules(Strategy::Activity), &demand, &host);
        // vm0 5*90, vm0 1*100, vm1 5*90; the best is 5*100 each.
        assert_eq!(outcome.gain, 1000.0 / 1500.0);
        assert_eq!((outcome.switches, outcome.longest_wait_s), (2, 200));
        assert_eq!(outcome.jain, 9.0 / 10.0);
    }

    #[test]
    fn fairness_is_by_weight() {
        let demand = demand(&[&[1.0, 1.0][..]; 401]);
        let host = Host { weights: &[1, 3], ..HOST };
        assert!(play(&rules(Strategy::Weighted), &demand, &host).jain > 0.999);
        assert!(play(&rules(Strategy::Fair), &demand, &host).jain < 0.9);
    }

    proptest! {
        #[test]
        fn no_policy_gains_more_than_the_best_assignment(
            rates in proptest::collection::vec(proptest::collection::vec(0.0..1e5, 6), 2..20), vfs in 1usize..8
        ) {
            let rates: Vec<&[f64]> = rates.iter().map(Vec::as_slice).collect();
            for strategy in Strategy::ALL {
                let outcome = play(&rules(strategy), &demand(&rates), &Host { vfs, ..HOST });
                prop_assert!((0.0..=1.0 + 1e-9).contains(&outcome.gain), "{outcome:?}");
                prop_assert!((0.0..=1.0 + 1e-9).contains(&outcome.jain), "{outcome:?}");
            }
        }
    }
}
