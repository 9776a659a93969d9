//! What would be decided now, and what it would take for a VM to get a VF or to lose it.
//!
//! Nothing is assumed of a policy: it is asked again with other rates, and for the rounds to come, on copies of all it goes
//! by. That takes many rankings, so it is for whoever asks, and never done in the daemon's own thread.

use std::collections::BTreeMap;

use flexvf_protocol::VmName;
use serde::Serialize;

use super::decision::Decision;
use super::policy::{Candidate, Memory, Pin, Rules, rank};

/// All that a pool's next decision would go by, if it were made now.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// Which pool.
    pub pool: String,
    /// The round that would be decided.
    pub round: u64,
    /// Now, milliseconds since the host's boot.
    pub at_ms: u64,
    /// How the pool's VFs are given away.
    pub rules: Rules,
    /// By name.
    pub candidates: Vec<Candidate>,
    /// VFs that can be given away.
    pub vfs: usize,
    /// What the policy remembers.
    pub memory: Memory,
    /// VMs that could not take a VF now, ranked or not, and why.
    pub unready: BTreeMap<VmName, String>,
}

/// What it would take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Outlook {
    /// It would be chosen, if the decision were made now.
    pub chosen: bool,
    /// Who is not chosen would be from this rate on, who is chosen would not be up to this one; none if no
    /// rate changes it. Packets per second, all else as it is.
    pub turning_pps: Option<f64>,
    /// If all rates stay, it changes in so many rounds, the next decision being the first; none if not within
    /// those that were looked at.
    pub turning_round: Option<u32>,
    /// Rounds that were looked at.
    pub rounds_looked_at: u32,
}

/// More than any link carries.
const MAX_PPS: f64 = 1e9;
/// Rates are told to within this part of them.
const PRECISION: f64 = 1e-3;
/// A day of the paper's intervals.
const MAX_ROUNDS: u32 = 288;
/// Candidates ranked while looking ahead, all rounds together: a second of a processor, about.
const MAX_RANKED: usize = 2_000_000;

impl Question {
    /// What would be decided now.
    pub fn decide(&self) -> Decision {
        let ranking = rank(&self.rules, &self.candidates, self.vfs, &mut self.memory.clone());
        let strategy = self.rules.strategy;
        let Self { pool, round, at_ms, vfs, candidates, .. } = self;
        let ranking = (&ranking.vms[..], ranking.winners);
        Decision::new(pool, *round, *at_ms, strategy, *vfs, candidates, ranking)
    }

    /// What it would take for a VM to get a VF or to lose it; none of a VM that is not ranked.
    pub fn outlook(&self, vm: &VmName) -> Option<Outlook> {
        let index = self.candidates.binary_search_by(|candidate| candidate.vm.cmp(vm)).ok()?;
        let candidate = self.candidates.get(index)?;
        if candidate.words.pin == Some(Pin::Pv) {
            return None;
        }
        let mut asked = self.candidates.clone();
        let chosen = self.chooses(vm, &asked, &mut self.memory.clone());
        let turning_pps = self.turning_pps(index, chosen, candidate.rate_pps.unwrap_or(0.0));
        let per_round = asked.len().max(1);
        let rounds_looked_at =
            MAX_ROUNDS.min(u32::try_from(MAX_RANKED / per_round).unwrap_or(u32::MAX)).max(1);
        let mut memory = self.memory.clone();
        let turns = |_: &u32| self.advance(vm, &mut asked, &mut memory) != chosen;
        let turning_round = (1..=rounds_looked_at).find(turns);
        Some(Outlook { chosen, turning_pps, turning_round, rounds_looked_at })
    }

    /// The rate at which the decision on a VM turns, with all else as it is.
    fn turning_pps(&self, index: usize, chosen: bool, pps: f64) -> Option<f64> {
        let mut asked = self.candidates.clone();
        let vm = self.candidates.get(index)?.vm.clone();
        let mut chosen_at = |pps: f64| {
            if let Some(candidate) = asked.get_mut(index) {
                candidate.rate_pps = Some(pps);
            }
            self.chooses(&vm, &asked, &mut self.memory.clone())
        };
        let (mut loses, mut wins) = if chosen { (0.0, pps) } else { (pps, MAX_PPS) };
        if chosen_at(loses) || !chosen_at(wins) {
            return None;
        }
        while wins - loses > PRECISION * wins.max(1.0) {
            // By the ratio while that is large: rates are thousands as often as millions.
            let middle = if wins > 4.0 * (loses + 1.0) {
                ((loses + 1.0) * wins).sqrt()
            } else {
                f64::midpoint(loses, wins)
            };
            if chosen_at(middle) {
                wins = middle;
            } else {
                loses = middle;
            }
        }
        Some(if chosen { loses } else { wins })
    }

    fn chooses(&self, vm: &VmName, candidates: &[Candidate], memory: &mut Memory) -> bool {
        let ranking = rank(&self.rules, candidates, self.vfs, memory);
        ranking.chosen().any(|chosen| chosen == vm)
    }

    /// Plays a round in which every switch works.
    fn advance(&self, vm: &VmName, candidates: &mut [Candidate], memory: &mut Memory) -> bool {
        let ranking = rank(&self.rules, candidates, self.vfs, memory);
        for candidate in candidates.iter_mut() {
            candidate.holds_vf = false;
        }
        for chosen in ranking.chosen() {
            let found = candidates.binary_search_by(|candidate| candidate.vm.cmp(chosen));
            let found = found.ok().and_then(|index| candidates.get_mut(index));
            found.into_iter().for_each(|candidate| candidate.holds_vf = true);
        }
        ranking.chosen().any(|chosen| chosen == vm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::policy::tenant::Tenants;
    use crate::logic::policy::{Strategy, Tuning, Words};
    use std::time::Duration;

    fn question(
        strategy: Strategy,
        tuning: Tuning,
        vms: &[(&str, f64, bool)],
        vfs: usize,
    ) -> Question {
        let candidate = |(name, pps, holds_vf): &(&str, f64, bool)| Candidate {
            vm: name.parse().unwrap(),
            rate_pps: Some(*pps),
            holds_vf: *holds_vf,
            words: Words::default(),
            switch_took: None,
        };
        Question {
            pool: "default".into(),
            round: 3,
            at_ms: 0,
            rules: Rules {
                strategy,
                tuning,
                interval: Duration::from_secs(300),
                tenants: Tenants::default(),
            },
            candidates: vms.iter().map(candidate).collect(),
            vfs,
            memory: Memory::default(),
            unready: BTreeMap::new(),
        }
    }

    fn outlook(question: &Question, vm: &str) -> Outlook {
        question.outlook(&vm.parse().unwrap()).unwrap()
    }

    const VMS: [(&str, f64, bool); 3] =
        [("a", 900.0, true), ("b", 500.0, false), ("c", 10.0, false)];

    #[test]
    fn under_activity_the_rate_to_beat_is_the_last_winner_s() {
        let question = question(Strategy::Activity, Tuning::default(), &VMS, 1);
        let loser = outlook(&question, "c");
        assert!(!loser.chosen && loser.turning_round.is_none());
        let pps = loser.turning_pps.unwrap();
        assert!((900.0..901.0).contains(&pps), "{pps}");
        let winner = outlook(&question, "a");
        let pps = winner.turning_pps.unwrap();
        assert!(winner.chosen && (499.0..=500.0).contains(&pps), "{pps}");
    }

    #[test]
    fn a_margin_raises_the_rate_to_beat() {
        let tuning = Tuning { margin_percent: 20, ..Tuning::default() };
        let pps = outlook(&question(Strategy::Activity, tuning, &VMS, 1), "b").turning_pps.unwrap();
        assert!((1080.0..1082.0).contains(&pps), "{pps}");
    }

    #[test]
    fn under_fair_no_rate_helps_and_the_turn_is_known() {
        let question = question(Strategy::Fair, Tuning::default(), &VMS, 1);
        let third = outlook(&question, "c");
        assert_eq!((third.chosen, third.turning_pps, third.turning_round), (false, None, Some(3)));
        let first = outlook(&question, "a");
        assert_eq!((first.chosen, first.turning_pps, first.turning_round), (true, None, Some(2)));
    }

    #[test]
    fn with_a_vf_for_all_nothing_changes_it() {
        let question = question(Strategy::Activity, Tuning::default(), &VMS, 3);
        let outlook = outlook(&question, "c");
        assert!(outlook.chosen && outlook.turning_pps.is_none() && outlook.turning_round.is_none());
    }

    #[test]
    fn what_is_asked_changes_nothing() {
        let asked = question(Strategy::Fair, Tuning::default(), &VMS, 1);
        let before = asked.clone();
        let told = asked.decide();
        assert_eq!((told.round, told.vms.len(), asked.decide()), (3, 3, told));
        assert_eq!(asked, before);
    }
}
