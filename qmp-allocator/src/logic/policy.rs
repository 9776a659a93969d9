//! Who gets the VFs of a pool: a policy ranks its VMs, best first, once an interval.
//!
//! A policy sees candidates and answers an order; how many VFs there are, who is ready to take one
//! and what has to move is not its business but [`super::reconcile`]'s. Adding a policy is one file
//! here and a line in [`Strategy`].

mod activity;
mod fair;

use std::fmt;

use flexvf_protocol::VmName;
use serde::{Deserialize, Serialize};

/// The policies by their names in the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Each VM in its turn (the paper's fair round-robin).
    #[default]
    Fair,
    /// The VMs with the highest packet rates (the paper's activity strategy).
    Activity,
}

impl Strategy {
    /// The name as it stands in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fair => "fair",
            Self::Activity => "activity",
        }
    }
}

/// An operator's word on a VM, which goes before any policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pin {
    /// Before all others.
    Vf,
    /// Never a VF.
    Pv,
}

/// A VM that a policy may rank.
#[derive(Debug, Clone, PartialEq)]
pub struct Candidate {
    /// Its name.
    pub vm: VmName,
    /// Packets per second over the interval that ended; `None` for a VM too new to have one.
    pub rate_pps: Option<f64>,
    /// Has a VF now.
    pub holds_vf: bool,
    /// The operator's word.
    pub pin: Option<Pin>,
}

/// A ranked VM, and why it stands where it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Its name.
    pub vm: VmName,
    /// With the figures that decided.
    pub reason: Reason,
}

/// Why a VM stands where it does. Put into words only for who reads them: a ranking has thousands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The operator's word.
    PinnedToVf,
    /// There is a VF for everyone.
    AllHaveOne {
        /// VMs.
        vms: usize,
        /// VFs.
        vfs: usize,
    },
    /// By its packet rate.
    Rate {
        /// From 1.
        place: usize,
        /// Of how many.
        of: usize,
        /// None for a VM too new to have one.
        pps: Option<f64>,
    },
    /// In its turn, after so many rounds.
    Turn(usize),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PinnedToVf => f.write_str("pinned to a VF"),
            Self::AllHaveOne { vms, vfs } => write!(f, "{vms} VMs, {vfs} VFs: all have one"),
            Self::Rate { place, of, pps: Some(pps) } => {
                write!(f, "rank {place} of {of} at {pps:.0} packets/s")
            }
            Self::Rate { place, of, pps: None } => {
                write!(f, "rank {place} of {of}: not measured yet")
            }
            Self::Turn(0) => f.write_str("its turn"),
            Self::Turn(rounds) => write!(f, "its turn comes in {rounds} rounds"),
        }
    }
}

/// Ranks the VMs of a pool that has `vfs` VFs, best first; VMs pinned to PV are left out.
///
/// `last_served` is where the fair strategy stands; it is moved on. While there are no more VMs than
/// VFs all have one, whatever the strategy (the paper's Algorithm 1).
pub fn rank(
    strategy: Strategy,
    candidates: &[Candidate],
    vfs: usize,
    last_served: &mut Option<VmName>,
) -> Vec<Ranked> {
    let by_pin = |pin| candidates.iter().filter(move |candidate| candidate.pin == pin);
    let mut ranking: Vec<Ranked> = by_pin(Some(Pin::Vf))
        .map(|candidate| Ranked { vm: candidate.vm.clone(), reason: Reason::PinnedToVf })
        .collect();
    let open: Vec<&Candidate> = by_pin(None).collect();
    let left = vfs.saturating_sub(ranking.len());
    if open.len() <= left {
        let reason = Reason::AllHaveOne { vms: ranking.len() + open.len(), vfs };
        ranking.extend(open.iter().map(|c| Ranked { vm: c.vm.clone(), reason }));
        return ranking;
    }
    ranking.extend(match strategy {
        Strategy::Fair => fair::rank(&open, left, last_served),
        Strategy::Activity => activity::rank(&open),
    });
    ranking
}

#[cfg(test)]
mod tests {
    use super::Strategy;
    use super::*;
    use proptest::prelude::*;
    use proptest::strategy::Strategy as _;

    pub(super) fn vm(name: &str, rate_pps: f64) -> Candidate {
        let vm = name.parse().unwrap();
        Candidate { vm, rate_pps: Some(rate_pps), holds_vf: false, pin: None }
    }

    fn names(ranking: &[Ranked]) -> Vec<&str> {
        ranking.iter().map(|ranked| ranked.vm.as_str()).collect()
    }

    #[test]
    fn pins_go_before_any_rate() {
        let mut vms = [vm("idle", 0.0), vm("busy", 9.0), vm("never", 99.0)];
        vms[0].pin = Some(Pin::Vf);
        vms[2].pin = Some(Pin::Pv);
        let ranking = rank(Strategy::Activity, &vms, 1, &mut None);
        assert_eq!(names(&ranking), ["idle", "busy"]);
    }

    #[test]
    fn while_vms_are_no_more_than_vfs_all_have_one() {
        let vms = [vm("a", 0.0), vm("b", 5.0)];
        for strategy in [Strategy::Fair, Strategy::Activity] {
            let ranking = rank(strategy, &vms, 2, &mut None);
            assert_eq!(ranking.len(), 2);
            assert_eq!(ranking[0].reason.to_string(), "2 VMs, 2 VFs: all have one");
        }
    }

    fn pools() -> impl proptest::strategy::Strategy<Value = (Vec<Candidate>, usize)> {
        let pin = proptest::option::weighted(0.2, prop_oneof![Just(Pin::Vf), Just(Pin::Pv)]);
        let one = (proptest::option::of(0.0..1e6), any::<bool>(), pin);
        let all = proptest::collection::vec(one, 0..30).prop_map(|vms| {
            let make = |(i, (rate_pps, holds_vf, pin))| Candidate {
                vm: format!("vm{i}").parse().unwrap(),
                rate_pps,
                holds_vf,
                pin,
            };
            vms.into_iter().enumerate().map(make).collect()
        });
        (all, 0usize..12)
    }

    proptest! {
        #[test]
        fn every_vm_but_those_pinned_to_pv_is_named_exactly_once((vms, vfs) in pools(), fair: bool) {
            let strategy = if fair { Strategy::Fair } else { Strategy::Activity };
            let ranking = rank(strategy, &vms, vfs, &mut None);
            let mut got: Vec<_> = ranking.into_iter().map(|ranked| ranked.vm).collect();
            got.sort();
            let mut expected: Vec<_> =
                vms.iter().filter(|c| c.pin != Some(Pin::Pv)).map(|c| c.vm.clone()).collect();
            expected.sort();
            prop_assert_eq!(got, expected);
        }
    }
}
