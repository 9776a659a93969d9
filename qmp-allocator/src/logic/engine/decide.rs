//! The end of a round: rates, ranking, and who is to have a VF in the next one.

use std::collections::BTreeMap;
use std::time::Duration;

use flexvf_protocol::VmName;

use super::ask::Considered;
use super::vm::Vm;
use super::{Engine, Settings};
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
            if let Some(candidates) = pools.get_mut(&vm.spec.pool) {
                candidates.extend(vm.candidate(name, Vm::last_pps));
            }
        }
        for (name, candidates) in pools {
            self.rank(now, &name, candidates);
        }
    }

    fn rank(&mut self, now: Duration, name: &str, candidates: Vec<Candidate>) {
        let usable = self.usable(now, name);
        let rules = self.rules(name);
        let Some(pool) = self.pools.get_mut(name) else { return };
        let ranking = policy::rank(&rules, &candidates, usable, &mut pool.memory);
        pool.desired = ranking.into();
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
        members.filter_map(|(name, vm)| vm.candidate(name, &rate_pps)).collect()
    }

    pub(super) fn rules(&self, pool: &str) -> Rules {
        let Settings { strategy, tuning, interval, .. } = self.settings;
        let tenants = self.pools.get(pool).map(|pool| pool.tenants.clone()).unwrap_or_default();
        Rules { strategy, tuning, interval, tenants }
    }
}

impl Vm {
    fn end_interval(&mut self, round: u64) {
        self.last_interval =
            self.meter.end_interval().map(|rate| (round, rate)).or(self.last_interval);
        self.turns += u64::from(self.on_vf());
    }

    /// None for one that is not to be ranked.
    fn candidate(
        &self,
        name: &VmName,
        rate_pps: impl Fn(&Self) -> Option<f64>,
    ) -> Option<Candidate> {
        (!self.unregistered && self.may_be_ranked()).then(|| Candidate {
            vm: name.clone(),
            rate_pps: rate_pps(self),
            holds_vf: self.hold.is_some(),
            words: self.spec.words.clone(),
            switch_took: self.switch_took(),
        })
    }

    /// The rate of the last interval that there were samples in.
    pub(super) fn last_pps(&self) -> Option<f64> {
        self.last_interval.map(|(_, rate)| rate.pps)
    }

    /// The next switch is taken to last as long as the last one of its kind did, which what the guest's memory
    /// costs to pin is part of; the first plug as long as so much memory should take.
    fn switch_took(&self) -> Option<Duration> {
        if self.hold.is_some() { self.to_pv_took } else { self.to_vf_took.or(self.first_plug) }
    }
}
