//! The end of a round: rates, ranking, and who is to have a VF in the next one.

use std::time::Duration;

use super::vm::Vm;
use super::{Desired, Engine};
use crate::logic::policy::{self, Candidate, Rules};

impl Engine {
    pub(super) fn decide(&mut self, now: Duration) {
        self.round += 1;
        self.next_round = now + self.settings.interval;
        let round = self.round;
        for vm in self.vms.values_mut() {
            vm.last_interval =
                vm.meter.end_interval().map(|rate| (round, rate)).or(vm.last_interval);
            vm.turns += u64::from(vm.on_vf());
        }
        let names: Vec<String> = self.pools.keys().cloned().collect();
        for name in names {
            self.rank(now, &name);
        }
    }

    fn rank(&mut self, now: Duration, name: &str) {
        let candidates: Vec<Candidate> = self
            .members(name)
            .filter(|(_, vm)| !vm.unregistered && vm.may_be_ranked())
            .map(|(vm, it)| Candidate {
                vm: vm.clone(),
                rate_pps: it.last_interval.map(|(_, rate)| rate.pps),
                holds_vf: it.hold.is_some(),
                pin: it.spec.pin,
                weight: it.spec.weight,
                priority: it.spec.priority,
                min_percent: it.spec.min_percent,
                switch_took: it.switch_took(),
            })
            .collect();
        let usable = self.usable(now, name);
        let rules = Rules {
            strategy: self.settings.strategy,
            tuning: self.settings.tuning,
            interval: self.settings.interval,
        };
        let Some(pool) = self.pools.get_mut(name) else { return };
        let ranking = policy::rank(&rules, &candidates, usable, &mut pool.memory);
        pool.desired = Desired { winners: usable.min(ranking.len()), ranking };
        pool.places_before.clear();
        self.seat_anew(name);
    }
}

impl Vm {
    /// The next switch is taken to last as long as the last one of its kind did: what the guest's
    /// memory costs to pin is in it.
    fn switch_took(&self) -> Option<Duration> {
        if self.hold.is_some() { self.to_pv_took } else { self.to_vf_took }
    }
}
