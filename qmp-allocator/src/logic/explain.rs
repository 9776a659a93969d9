//! What `flexvf plan` and `flexvf explain` tell: decisions in the words of their users.

use std::collections::BTreeMap;

use flexvf_protocol::VmName;
use serde::Serialize;

use super::decision::{Decision, Place};
use super::outlook::{Outlook, Question};
use super::status::Status;
use super::vf::VfId;

/// All that an answer is made of, as it was at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Asked {
    /// How everything is.
    pub status: Status,
    /// The last decision of each pool, if this daemon has made one.
    pub decisions: Vec<Decision>,
    /// What the next one of each pool would go by.
    pub questions: Vec<Question>,
    /// The moment, milliseconds since the host's boot.
    pub at_ms: u64,
}

/// What would change if it were decided now. Field names are an interface: only additions are allowed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Plan {
    /// Name of the strategy.
    pub strategy: &'static str,
    /// Until it is decided, seconds.
    pub next_round_in_s: f64,
    /// By name.
    pub pools: Vec<PoolPlan>,
}

/// In one pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolPlan {
    /// Its name.
    pub pool: String,
    /// VFs that can be given away.
    pub vfs: usize,
    /// VMs that could be ranked.
    pub ranked: usize,
    /// VMs that would keep their VF.
    pub keep: usize,
    /// VMs that would get one, the best first.
    pub get: Vec<Change>,
    /// VMs that would lose theirs, the best first.
    pub lose: Vec<Change>,
}

/// A VM that would get a VF or lose it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// Which.
    pub vm: VmName,
    /// The rate that is gone by, packets per second.
    pub pps: Option<f64>,
    /// Why, in words.
    pub reason: String,
    /// Whose VF it would get, or who would get its VF.
    pub other: Option<VmName>,
    /// Why it could not take one now: another VM would have it meanwhile.
    pub unready: Option<String>,
}

/// Why a VM has a VF or none. Field names are an interface: only additions are allowed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Explanation {
    /// Which.
    pub vm: VmName,
    /// Its pool.
    pub pool: String,
    /// Name of the strategy.
    pub strategy: &'static str,
    /// `pv`, `vf`, `switching` or `down`.
    pub path: &'static str,
    /// The VF that it has.
    pub vf: Option<VfId>,
    /// As in `flexvf status`.
    pub reason: String,
    /// Why it could not take a VF now.
    pub unready: Option<String>,
    /// The last decision; none if this daemon has made none that ranked it.
    pub last: Option<Told>,
    /// As it would be decided now; none if it would not be ranked.
    pub now: Option<Told>,
    /// What would change that.
    pub outlook: Option<Outlook>,
    /// Between two decisions, seconds.
    pub interval_s: f64,
    /// Until the next one, seconds.
    pub next_round_in_s: f64,
}

/// What a decision made of a VM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Told {
    /// Counts decisions.
    pub round: u64,
    /// How long ago, seconds.
    pub ago_s: f64,
    /// It was chosen.
    pub chosen: bool,
    /// From 1.
    pub place: usize,
    /// VMs that were ranked.
    pub of: usize,
    /// VFs that could be given.
    pub vfs: usize,
    /// The rate that was gone by, packets per second.
    pub pps: Option<f64>,
    /// It had a VF before.
    pub had_vf: bool,
    /// In words.
    pub reason: String,
    /// Whose VF it got.
    pub displaces: Option<VmName>,
    /// Who got its VF.
    pub displaced_by: Option<VmName>,
}

impl Asked {
    /// What would change if it were decided now.
    pub fn plan(&self) -> Plan {
        let pool = |question: &Question| {
            let decision = question.decide();
            let change = |place: &Place, other: &Option<VmName>| Change {
                vm: place.vm.clone(),
                pps: place.pps,
                reason: place.reason.to_string(),
                other: other.clone(),
                unready: question.unready.get(&place.vm).cloned(),
            };
            let chosen = decision.vms.iter().take(decision.winners());
            PoolPlan {
                pool: question.pool.clone(),
                vfs: decision.vfs,
                ranked: decision.vms.len(),
                keep: chosen.filter(|place| place.had_vf).count(),
                get: decision.gainers().map(|place| change(place, &place.displaces)).collect(),
                lose: decision.losers().map(|place| change(place, &place.displaced_by)).collect(),
            }
        };
        Plan {
            strategy: self.status.strategy,
            next_round_in_s: self.status.next_round_in_s,
            pools: self.questions.iter().map(pool).collect(),
        }
    }

    /// Why a VM has a VF or none.
    ///
    /// # Errors
    /// There is no such VM; in words.
    pub fn explain(&self, vm: &str) -> Result<Explanation, String> {
        let found = self.status.vms.iter().find(|status| status.vm.as_str() == vm);
        let status = found.ok_or_else(|| {
            format!("there is no VM {vm:?}; `flexvf status` shows those there are")
        })?;
        let told = |decision: &Decision| self.told(decision, &status.vm);
        let question = self.questions.iter().find(|question| question.pool == status.pool);
        let last = self.decisions.iter().find(|decision| decision.pool == status.pool);
        let unready = |of: &BTreeMap<VmName, String>| of.get(&status.vm).cloned();
        Ok(Explanation {
            vm: status.vm.clone(),
            pool: status.pool.clone(),
            strategy: self.status.strategy,
            path: status.path,
            vf: status.vf.clone(),
            reason: status.reason.clone(),
            unready: question.and_then(|question| unready(&question.unready)),
            last: last.and_then(told),
            now: question.and_then(|question| told(&question.decide())),
            outlook: question.and_then(|question| question.outlook(&status.vm)),
            interval_s: self.status.interval_s,
            next_round_in_s: self.status.next_round_in_s,
        })
    }

    fn told(&self, decision: &Decision, vm: &VmName) -> Option<Told> {
        let (index, place) = decision.of(vm)?;
        Some(Told {
            round: decision.round,
            ago_s: self.at_ms.saturating_sub(decision.at_ms) as f64 / 1000.0,
            chosen: decision.chooses(index),
            place: index + 1,
            of: decision.vms.len(),
            vfs: decision.vfs,
            pps: place.pps,
            had_vf: place.had_vf,
            reason: place.reason.to_string(),
            displaces: place.displaces.clone(),
            displaced_by: place.displaced_by.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::engine::Engine;
    use crate::logic::engine::tests::world_after_a_decision;
    use std::time::Duration;

    fn asked(engine: &Engine, now: Duration) -> Asked {
        Asked {
            status: engine.status(now),
            decisions: engine.decisions(),
            questions: engine.questions(now),
            at_ms: u64::try_from(now.as_millis()).unwrap(),
        }
    }

    #[test]
    fn a_loser_is_told_its_place_and_what_it_would_take() {
        let (engine, now) = world_after_a_decision(&[900.0, 500.0, 10.0], 1);
        let told = asked(&engine, now).explain("vm2").unwrap();
        assert_eq!((told.path, told.unready.clone()), ("pv", None));
        let (last, now) = (told.last.unwrap(), told.now.unwrap());
        assert_eq!((last.place, last.of, last.vfs, last.chosen), (3, 3, 1, false));
        assert_eq!((last.round, last.ago_s > 0.0, now.round, now.ago_s), (1, true, 2, 0.0));
        assert!(last.reason.contains("rank 3 of 3"), "{}", last.reason);
        let outlook = told.outlook.unwrap();
        assert!(outlook.turning_pps.unwrap() > now.pps.unwrap() && outlook.turning_round.is_none());
    }

    #[test]
    fn a_plan_names_changes_only_and_nobody_has_to_know_the_vm() {
        let (engine, now) = world_after_a_decision(&[900.0, 500.0, 10.0], 1);
        let asked = asked(&engine, now);
        let plan = asked.plan();
        let [pool] = &plan.pools[..] else { panic!("{plan:?}") };
        assert_eq!((pool.vfs, pool.ranked, pool.keep), (1, 3, 1));
        assert!(pool.get.is_empty() && pool.lose.is_empty(), "{plan:?}");
        let error = asked.explain("nobody").unwrap_err();
        assert_eq!(error, "there is no VM \"nobody\"; `flexvf status` shows those there are");
    }
}
