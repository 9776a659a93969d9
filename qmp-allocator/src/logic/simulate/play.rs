//! One policy over one workload, and what came of it.

use std::collections::BTreeSet;
use std::time::Duration;

use flexvf_protocol::VmName;
use serde::Serialize;

use super::{Demand, Guest, Interval};
use crate::logic::policy::{Candidate, Rules, rank};

/// The host's side of it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Host {
    /// How long a VF that changes hands carries nothing, seconds.
    pub switch_s: f64,
    /// From this rate on a VM wants a VF, packets per second.
    pub wants_pps: f64,
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
    /// Jain's index of the share of each VM's time that it was on a VF, for its weight: 1 if all had the same, 1/n if
    /// one had all. VMs that an operator has pinned are left out.
    pub jain: f64,
}

/// Plays a policy over a workload. In the first interval nobody has a VF.
pub fn play(rules: &Rules, demand: &Demand, host: &Host) -> Outcome {
    let mut candidates: Vec<Candidate> = demand.vms.iter().map(newcomer).collect();
    let start = demand.start.as_ref().filter(|(strategy, _)| *strategy == rules.strategy);
    let mut memory = start.map(|(_, memory)| memory.clone()).unwrap_or_default();
    let decide = |seen: &Interval, holders: &[bool]| {
        for ((candidate, pps), holds) in candidates.iter_mut().zip(&seen.seen_pps).zip(holders) {
            (candidate.rate_pps, candidate.holds_vf) = (*pps, *holds);
        }
        let here = candidates.iter().filter(|candidate| candidate.rate_pps.is_some());
        let here: Vec<Candidate> = here.cloned().collect();
        let ranking = rank(rules, &here, seen.vfs, &mut memory);
        let served: BTreeSet<&VmName> = ranking.chosen().collect();
        candidates.iter().map(|candidate| served.contains(&candidate.vm)).collect()
    };
    outcome(decide, demand, host, rules.interval)
}

/// What came of the decisions that a daemon made, if all of them are known.
pub fn as_decided(demand: &Demand, host: &Host, interval: Duration) -> Option<Outcome> {
    let (_, decided) = demand.intervals.split_last()?;
    if decided.iter().any(|interval| interval.chosen.is_none()) {
        return None;
    }
    let decide = |seen: &Interval, holders: &[bool]| {
        let mut served = vec![false; holders.len()];
        for index in seen.chosen.iter().flatten() {
            served.get_mut(*index).into_iter().for_each(|it| *it = true);
        }
        served
    };
    Some(outcome(decide, demand, host, interval))
}

/// `decide` is told an interval and who has a VF, and answers who is to have one in the next interval.
fn outcome(
    mut decide: impl FnMut(&Interval, &[bool]) -> Vec<bool>,
    demand: &Demand,
    host: &Host,
    interval: Duration,
) -> Outcome {
    let mut vms = vec![Tally::default(); demand.vms.len()];
    let mut holders = vec![false; vms.len()];
    let mut best = 0.0;
    for pair in demand.intervals.windows(2) {
        let [seen, next] = pair else { continue };
        let served = decide(seen, &holders);
        let sent = next.sent_pps.iter().zip(&next.seen_pps);
        let was_and_is = holders.iter().zip(&served);
        for ((tally, (pps, here)), (had, has)) in vms.iter_mut().zip(sent).zip(was_and_is) {
            if here.is_some() {
                tally.interval(*pps, *has, !had, interval, host);
            }
        }
        holders = served;
        best += busiest(next, seen.vfs) * interval.as_secs_f64();
    }
    let carried: f64 = vms.iter().map(|vm| vm.carried).sum();
    let waits = vms.iter().map(|vm| vm.longest_wait).max().unwrap_or(0);
    let open = vms.iter().zip(&demand.vms).filter(|(vm, it)| vm.here > 0 && it.words.pin.is_none());
    Outcome {
        gain: if best > 0.0 { carried / best } else { 1.0 },
        switches: vms.iter().map(|vm| vm.switches).sum(),
        longest_wait_s: waits * interval.as_secs(),
        jain: jain(open.map(|(vm, it)| vm.share() / f64::from(it.words.weight.max(1)))),
    }
}

fn newcomer(guest: &Guest) -> Candidate {
    let Guest { name, words } = guest.clone();
    Candidate { vm: name, rate_pps: None, holds_vf: false, words, switch_took: None }
}

/// What came of one VM.
#[derive(Debug, Clone, Copy, Default)]
struct Tally {
    carried: f64,
    switches: u64,
    here: u64,
    served: u64,
    wait: u64,
    longest_wait: u64,
}

impl Tally {
    fn interval(&mut self, pps: f64, serves: bool, was_on_pv: bool, time: Duration, host: &Host) {
        self.here += 1;
        if serves {
            let lost = if was_on_pv { host.switch_s } else { 0.0 };
            self.carried += pps * (time.as_secs_f64() - lost).max(0.0);
            self.switches += u64::from(was_on_pv);
            self.served += 1;
        }
        self.wait = if serves || pps < host.wants_pps { 0 } else { self.wait + 1 };
        self.longest_wait = self.longest_wait.max(self.wait);
    }

    fn share(&self) -> f64 {
        self.served as f64 / self.here.max(1) as f64
    }
}

/// The most that so many VMs sent together, of those that could have a VF, packets per second.
fn busiest(interval: &Interval, vfs: usize) -> f64 {
    let sent = interval.sent_pps.iter().zip(&interval.seen_pps);
    let mut pps: Vec<f64> = sent.filter(|(_, seen)| seen.is_some()).map(|(pps, _)| *pps).collect();
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
    use crate::logic::policy::tenant::Tenants;
    use crate::logic::policy::{Strategy, Tuning, Words};
    use proptest::prelude::*;

    const HOST: Host = Host { switch_s: 0.0, wants_pps: 1.0 };

    fn demand(vfs: usize, rates: &[&[f64]]) -> Demand {
        let name = |i| format!("vm{i}").parse().unwrap();
        let guest = |i| Guest { name: name(i), words: Words::default() };
        let interval = |pps: &&[f64]| Interval {
            sent_pps: pps.to_vec(),
            seen_pps: pps.iter().map(|pps| Some(*pps)).collect(),
            vfs,
            chosen: None,
        };
        let vms = (0..rates[0].len()).map(guest).collect();
        let intervals = rates.iter().map(interval).collect();
        Demand { vms, intervals, ..Demand::default() }
    }

    fn rules(strategy: Strategy) -> Rules {
        Rules {
            strategy,
            tuning: Tuning::default(),
            interval: Duration::from_secs(100),
            tenants: Tenants::default(),
        }
    }

    #[test]
    fn gain_switches_waits_and_fairness_are_what_a_hand_reckons() {
        let demand = demand(1, &[&[5.0, 1.0], &[5.0, 1.0], &[1.0, 5.0], &[1.0, 5.0]]);
        let host = Host { switch_s: 10.0, ..HOST };
        let outcome = play(&rules(Strategy::Activity), &demand, &host);
        // vm0 5*90, vm0 1*100, vm1 5*90; the best is 5*100 each.
        assert_eq!(outcome.gain, 1000.0 / 1500.0);
        assert_eq!((outcome.switches, outcome.longest_wait_s), (2, 200));
        assert!((outcome.jain - 0.9).abs() < 1e-9, "{outcome:?}");
    }

    #[test]
    fn fairness_is_by_weight() {
        let mut demand = demand(1, &[&[1.0, 1.0][..]; 401]);
        demand.vms[1].words.weight = 3;
        assert!(play(&rules(Strategy::Weighted), &demand, &HOST).jain > 0.999);
        assert!(play(&rules(Strategy::Fair), &demand, &HOST).jain < 0.9);
    }

    #[test]
    fn what_a_daemon_decided_is_reckoned_like_any_policy() {
        let mut demand = demand(1, &[&[5.0, 1.0], &[5.0, 1.0], &[1.0, 5.0], &[1.0, 5.0]]);
        let interval = Duration::from_secs(100);
        assert_eq!(as_decided(&demand, &HOST, interval), None);
        for (interval, chosen) in demand.intervals.iter_mut().zip([0, 0, 1]) {
            interval.chosen = Some(vec![chosen]);
        }
        let decided = as_decided(&demand, &HOST, interval);
        assert_eq!(decided, Some(play(&rules(Strategy::Activity), &demand, &HOST)));
    }

    #[test]
    fn who_is_not_there_neither_waits_nor_is_served() {
        let mut demand = demand(1, &[&[1.0, 1.0][..]; 101]);
        for interval in &mut demand.intervals[..51] {
            (interval.seen_pps[1], interval.sent_pps[1]) = (None, 0.0);
        }
        let outcome = play(&rules(Strategy::Fair), &demand, &HOST);
        // vm0 has all of the first half and half of the second one, vm1 half of the second one. A new one has no
        // VF in its first interval, and may then stand behind the other.
        assert_eq!((outcome.gain, outcome.longest_wait_s), (1.0, 200));
        assert!((0.8..1.0).contains(&outcome.jain), "{outcome:?}");
    }

    proptest! {
        #[test]
        fn no_policy_gains_more_than_the_best_assignment(
            rates in proptest::collection::vec(proptest::collection::vec(0.0..1e5, 6), 2..20), vfs in 1usize..8
        ) {
            let rates: Vec<&[f64]> = rates.iter().map(Vec::as_slice).collect();
            for strategy in Strategy::ALL {
                let outcome = play(&rules(strategy), &demand(vfs, &rates), &HOST);
                prop_assert!((0.0..=1.0 + 1e-9).contains(&outcome.gain), "{outcome:?}");
                prop_assert!((0.0..=1.0 + 1e-9).contains(&outcome.jain), "{outcome:?}");
            }
        }
    }
}
