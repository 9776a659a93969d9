//! What an operator asks of the engine: how it decided last, and what it would decide now. Nothing changes by it.

use std::collections::BTreeMap;
use std::time::Duration;

use super::vm::Vm;
use super::{Engine, Pool};
use crate::logic::decision::Decision;
use crate::logic::outlook::Question;
use crate::logic::policy::{Candidate, Memory};

/// What a decision went by.
#[derive(Debug)]
pub(super) struct Considered {
    pub(super) at: Duration,
    pub(super) round: u64,
    /// By name.
    pub(super) candidates: Vec<Candidate>,
    pub(super) vfs: usize,
}

impl Engine {
    /// The last decision of each pool that this engine has decided on.
    pub fn decisions(&self) -> Vec<Decision> {
        let decision = |(name, pool): (&String, &Pool)| {
            let Considered { at, round, candidates, vfs } = pool.considered.as_ref()?;
            let (strategy, desired) = (self.settings.strategy, &pool.desired);
            let ranking = (&desired.ranking[..], desired.winners);
            Some(Decision::new(name, *round, ms(*at), strategy, *vfs, candidates, ranking))
        };
        self.pools.iter().filter_map(decision).collect()
    }

    /// What each pool's policy remembers.
    pub fn memories(&self) -> impl Iterator<Item = (&str, &Memory)> {
        self.pools.iter().map(|(name, pool)| (name.as_str(), &pool.memory))
    }

    /// What the next decision of each pool would go by, if it were made now.
    pub fn questions(&self, now: Duration) -> Vec<Question> {
        self.pools.iter().map(|(name, pool)| self.question(now, name, pool)).collect()
    }

    fn question(&self, now: Duration, name: &str, pool: &Pool) -> Question {
        // A copy ends its interval; the meter itself goes on.
        let rate_now = |vm: &Vm| vm.meter.clone().end_interval().map(|rate| rate.pps);
        let candidates = self.candidates(name, |vm| rate_now(vm).or_else(|| vm.last_pps()));
        let unready = self.members(name).filter(|(_, vm)| vm.hold.is_none());
        let unready: BTreeMap<_, _> =
            unready.filter_map(|(name, vm)| Some((name.clone(), vm.unready(now)?))).collect();
        Question {
            pool: name.to_owned(),
            round: self.round + 1,
            at_ms: ms(now),
            rules: self.rules(name),
            candidates,
            vfs: self.usable(now, name),
            memory: pool.memory.clone(),
            unready,
        }
    }
}

fn ms(at: Duration) -> u64 {
    u64::try_from(at.as_millis()).unwrap_or(u64::MAX)
}
