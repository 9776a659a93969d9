//! The end of a round: rates, ranking, and who is to have a VF in the next one.

use std::collections::BTreeMap;
use std::time::Duration;

use flexvf_protocol::VmName;

use super::vm::Vm;
use super::{Desired, Engine};
use crate::logic::policy::{self, Candidate, Rules};

impl Engine {
    pub(super) fn decide(&mut self, now: Duration) {
        self.round += 1;
        self.next_round = now + self.settings.interval;
        let round = self.round;
        let mut pools: BTreeMap<String, Vec<Candidate>> =
            self.pools.keys().map(|name| (name.clone(), Vec::new())).collect();
        // One walk: thousands of VMs do not fit into a cache, and are fetched from memory each time.
        for (name, vm) in &mut self.vms {
            vm.end_interval(round);
            if vm.unregistered || !vm.may_be_ranked() {
                continue;
            }
            if let Some(candidates) = pools.get_mut(&vm.spec.pool) {
                candidates.push(vm.candidate(name));
            }
        }
        for (name, candidates) in pools {
            self.rank(now, &name, &candidates);
        }
    }

    fn rank(&mut self, now: Duration, name: &str, candidates: &[Candidate]) {
        let usable = self.usable(now, name);
        let rules = Rules {
            strategy: self.settings.strategy,
            tuning: self.settings.tuning,
            interval: self.settings.interval,
        };
        let Some(pool) = self.pools.get_mut(name) else { return };
        let ranking = policy::rank(&rules, candidates, usable, &mut pool.memory);
        pool.desired = Desired { winners: usable.min(ranking.len()), ranking };
        pool.places_before.clear();
        self.seat_anew(name);
    }
}

impl Vm {
    fn end_interval(&mut self, round: u64) {
        self.last_interval =
            self.meter.end_interval().map(|rate| (round, rate)).or(self.last_interval);
        self.turns += u64::from(self.on_vf());
    }

    fn candidate(&self, name: &VmName) -> Candidate {
        Candidate {
            vm: name.clone(),
            rate_pps: self.last_interval.map(|(_, rate)| rate.pps),
            holds_vf: self.hold.is_some(),
            pin: self.spec.pin,
            weight: self.spec.weight,
            switch_took: self.switch_took(),
        }
    }

    /// The next switch is taken to last as long as the last one of its kind did: what the guest's
    /// memory costs to pin is in it.
    fn switch_took(&self) -> Option<Duration> {
        if self.hold.is_some() { self.to_pv_took } else { self.to_vf_took }
    }
}
