//! A decision as it is told and kept: what it went by, whom it chose and why, and who gives way to whom.
//!
//! Left out: what came of it. A VM that was chosen and cannot take a VF leaves it to the next one
//! ([`super::reconcile`]).

use flexvf_protocol::VmName;
use serde::{Deserialize, Serialize};

use super::policy::{Candidate, Ranked, Reason, Strategy, Words};

/// Of one pool, in one round. Field names are an interface (recordings, `--json`): only additions are allowed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    /// Which pool.
    pub pool: String,
    /// Counted over all daemons that knew of each other by the state file.
    pub round: u64,
    /// When, milliseconds since the host's boot.
    pub at_ms: u64,
    /// Which policy.
    pub strategy: Strategy,
    /// VFs that could be given away.
    pub vfs: usize,
    /// VFs that are kept from all who could else have them.
    #[serde(default, skip_serializing_if = "is_default")]
    pub unused: usize,
    /// VMs that were ranked, best first. The first `vfs` of them are chosen, less `unused`.
    pub vms: Vec<Place>,
}

/// What a decision made of one VM.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Place {
    /// Which.
    pub vm: VmName,
    /// The rate that was gone by, packets per second; none for a VM too new to have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pps: Option<f64>,
    /// It had a VF.
    #[serde(default, skip_serializing_if = "is_default")]
    pub had_vf: bool,
    /// What the operator said of it.
    #[serde(flatten)]
    pub words: Words,
    /// Why it stands here.
    pub reason: Reason,
    /// Whose VF it is to get; none if it has one, or gets one that nobody had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub displaces: Option<VmName>,
    /// Who is to get its VF.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub displaced_by: Option<VmName>,
}

impl Decision {
    /// The decision that ranked these candidates so, and chose so many of the first. `candidates` are in the order of
    /// their names.
    pub fn new(
        pool: &str,
        round: u64,
        at_ms: u64,
        strategy: Strategy,
        vfs: usize,
        candidates: &[Candidate],
        (ranking, chosen): (&[Ranked], usize),
    ) -> Self {
        let vms = ranking.iter().filter_map(|ranked| {
            let found =
                candidates.binary_search_by(|candidate| candidate.vm.cmp(&ranked.vm)).ok()?;
            let candidate = candidates.get(found)?;
            Some(Place {
                vm: ranked.vm.clone(),
                pps: candidate.rate_pps,
                had_vf: candidate.holds_vf,
                words: candidate.words.clone(),
                reason: ranked.reason,
                displaces: None,
                displaced_by: None,
            })
        });
        let holders = candidates.iter().filter(|candidate| candidate.holds_vf).count();
        let pool = pool.to_owned();
        let vms: Vec<Place> = vms.collect();
        let unused = vfs.min(vms.len()).saturating_sub(chosen);
        let mut decision = Self { pool, round, at_ms, strategy, vfs, unused, vms };
        decision.displace(vfs.saturating_sub(holders));
        decision
    }

    /// Whether the VM at this place, from 0, was chosen.
    pub fn chooses(&self, place: usize) -> bool {
        place < self.winners()
    }

    /// VMs that were chosen.
    pub fn winners(&self) -> usize {
        self.vfs.min(self.vms.len()).saturating_sub(self.unused)
    }

    /// A VM's place from 0, and what was made of it.
    pub fn of(&self, vm: &VmName) -> Option<(usize, &Place)> {
        self.vms.iter().enumerate().find(|(_, place)| place.vm == *vm)
    }

    /// VMs that are to get a VF, best first.
    pub fn gainers(&self) -> impl Iterator<Item = &Place> {
        self.vms.iter().take(self.winners()).filter(|place| !place.had_vf)
    }

    /// VMs that had a VF and are not chosen, best first.
    pub fn losers(&self) -> impl Iterator<Item = &Place> {
        self.vms.iter().skip(self.winners()).filter(|place| place.had_vf)
    }

    /// Free VFs are given first; then the worst loser gives way to the best who has none yet.
    fn displace(&mut self, free: usize) {
        let winners = self.winners();
        let (chosen, others) = self.vms.split_at_mut(winners);
        let gainers = chosen.iter_mut().filter(|place| !place.had_vf).skip(free);
        let losers = others.iter_mut().rev().filter(|place| place.had_vf);
        for (gainer, loser) in gainers.zip(losers) {
            gainer.displaces = Some(loser.vm.clone());
            loser.displaced_by = Some(gainer.vm.clone());
        }
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::logic::policy::tenant::Tenants;
    use crate::logic::policy::{Memory, Rules, Strategy, Tuning, rank};
    use proptest::prelude::*;
    use std::time::Duration;

    /// Names in the order of their letters.
    pub(in crate::logic) fn decision(vms: &[(&str, f64, bool)], vfs: usize) -> Decision {
        let candidates: Vec<Candidate> = vms
            .iter()
            .map(|(name, pps, holds_vf)| Candidate {
                vm: name.parse().unwrap(),
                rate_pps: Some(*pps),
                holds_vf: *holds_vf,
                words: Words::default(),
                switch_took: None,
            })
            .collect();
        let rules = Rules {
            strategy: Strategy::Activity,
            tuning: Tuning::default(),
            interval: Duration::from_secs(300),
            tenants: Tenants::default(),
        };
        let ranking = rank(&rules, &candidates, vfs, &mut Memory::default());
        let ranking = (&ranking.vms[..], ranking.winners);
        Decision::new("default", 1, 5, Strategy::Activity, vfs, &candidates, ranking)
    }

    #[test]
    fn a_free_vf_displaces_nobody_and_then_the_worst_goes_first() {
        let vms = [
            ("a", 9.0, false),
            ("b", 8.0, false),
            ("c", 7.0, true),
            ("d", 2.0, true),
            ("e", 1.0, true),
        ];
        // Four VFs: one is free.
        let mut told = decision(&vms[..4], 3);
        assert_eq!(told.gainers().map(|it| it.vm.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(told.vms[0].displaces, None);
        assert_eq!(told.vms[1].displaces.as_ref().unwrap().as_str(), "d");
        assert_eq!(told.losers().next().unwrap().displaced_by.as_ref().unwrap().as_str(), "b");
        // Three VFs, all of them held.
        told = decision(&vms, 3);
        assert_eq!(told.vms[0].displaces.as_ref().unwrap().as_str(), "e");
        assert_eq!(told.vms[1].displaces.as_ref().unwrap().as_str(), "d");
    }

    #[test]
    fn what_is_written_is_short_and_reads_back() {
        let told = decision(&[("a", 9.0, false), ("b", 8.5, true)], 1);
        let text = serde_json::to_string(&told).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"pool":"default","round":1,"at_ms":5,"strategy":"activity","vfs":1,"vms":["#,
                r#"{"vm":"a","pps":9.0,"reason":{"rate":{"place":1,"of":2,"pps":9.0}},"displaces":"b"},"#,
                r#"{"vm":"b","pps":8.5,"had_vf":true,"reason":{"rate":{"place":2,"of":2,"pps":8.5}},"displaced_by":"a"}]}"#
            )
        );
        assert_eq!(serde_json::from_str::<Decision>(&text).unwrap(), told);
    }

    proptest! {
        #[test]
        fn each_loser_gives_way_to_one_and_no_vf_is_given_twice(
            vms in proptest::collection::vec((0.0..100.0, any::<bool>()), 1..20), vfs in 0usize..20
        ) {
            let names: Vec<String> = (0..vms.len()).map(|i| format!("vm{i:02}")).collect();
            let vms: Vec<_> = names.iter().zip(&vms).map(|(name, (pps, vf))| (name.as_str(), *pps, *vf)).collect();
            let told = decision(&vms, vfs);
            let displaced: Vec<_> = told.vms.iter().filter_map(|place| place.displaces.clone()).collect();
            for vm in &displaced {
                let (place, loser) = told.of(vm).unwrap();
                prop_assert!(!told.chooses(place) && loser.had_vf);
                prop_assert_eq!(displaced.iter().filter(|it| *it == vm).count(), 1);
            }
            let holders = vms.iter().filter(|(.., holds)| *holds).count();
            let from_free = told.gainers().filter(|place| place.displaces.is_none()).count();
            prop_assert!(from_free <= vfs.saturating_sub(holders), "{told:?}");
        }
    }
}
