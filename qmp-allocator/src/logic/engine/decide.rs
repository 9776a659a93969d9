//! The end of a round: rates, ranking, and who is to have a VF in the next one.

use std::time::Duration;

use flexvf_protocol::VmName;

use super::ask::Considered;
use super::vm::Vm;
use super::{Desired, Engine, Settings};
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
        let candidates = self.candidates(name, Vm::last_pps);
        let usable = self.usable(now, name);
        let rules = self.rules();
        let Some(pool) = self.pools.get_mut(name) else { return };
        let ranking = policy::rank(&rules, &candidates, usable, &mut pool.memory);
        pool.desired = Desired { winners: usable.min(ranking.len()), ranking };
        pool.places_before.clear();
        let round = self.round;
        pool.considered = Some(Considered { at: now, round, candidates, vfs: usable });
        self.seat_anew(name);
    }

    /// Who may be ranked, by name.
    pub(super) fn candidates(
        &self,
        pool: &str,
        rate_pps: impl Fn(&Vm) -> Option<f64>,
    ) -> Vec<Candidate> {
        let members = self.members(pool);
        let open = members.filter(|(_, vm)| !vm.unregistered && vm.may_be_ranked());
        let candidate = |(name, vm): (&VmName, &Vm)| Candidate {
            vm: name.clone(),
            rate_pps: rate_pps(vm),
            holds_vf: vm.hold.is_some(),
            pin: vm.spec.pin,
            weight: vm.spec.weight,
            switch_took: vm.switch_took(),
        };
        open.map(candidate).collect()
    }

    pub(super) const fn rules(&self) -> Rules {
        let Settings { strategy, tuning, interval, .. } = self.settings;
        Rules { strategy, tuning, interval }
    }
}

impl Vm {
    /// The rate of the last interval that there were samples in.
    pub(super) fn last_pps(&self) -> Option<f64> {
        self.last_interval.map(|(_, rate)| rate.pps)
    }

    /// The next switch is taken to last as long as the last one of its kind did: what the guest's
    /// memory costs to pin is in it.
    fn switch_took(&self) -> Option<Duration> {
        if self.hold.is_some() { self.to_pv_took } else { self.to_vf_took }
    }
}
