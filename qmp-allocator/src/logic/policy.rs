//! Who gets the VFs of a pool: a policy ranks its VMs, best first, once an interval.
//!
//! A policy sees candidates and answers an order; how many VFs there are, who is ready to take one
//! and what has to move is not its business but [`super::reconcile`]'s. Adding a policy is one file
//! here with a `Policy` in it, and a line in [`Strategy`].
//!
//! What a policy remembers is a [`Standing`] for each VM: counts of rounds, so that neither a restart nor a
//! clock changes what they mean.

mod activity;
mod classes;
mod fair;
mod guarantee;
mod hybrid;
mod memory;
mod reason;
mod steady;
mod weighted;
mod words;

use std::time::Duration;

use flexvf_protocol::VmName;
use serde::{Deserialize, Serialize};

use classes::Table;
pub use memory::{Memory, Standing};
pub use reason::{Ranked, Reason};
pub use words::{Pin, Words};

/// The policies by their names in the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Strategy {
    /// Each VM in its turn (the paper's fair round-robin).
    #[default]
    Fair,
    /// The VMs with the highest packet rates (the paper's activity strategy); with hysteresis if
    /// [`Tuning`] asks for it.
    Activity,
    /// Each VM by its weight.
    Weighted,
    /// As activity, but nobody who wants a VF waits longer than [`Tuning::max_wait`].
    Hybrid,
}

impl Strategy {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Fair, Self::Activity, Self::Weighted, Self::Hybrid];

    /// The name as it stands in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fair => "fair",
            Self::Activity => "activity",
            Self::Weighted => "weighted",
            Self::Hybrid => "hybrid",
        }
    }

    const fn policy(self, tuning: &Tuning) -> &'static dyn Policy {
        match self {
            Self::Fair => &fair::Fair,
            Self::Activity if tuning.is_steady() => &steady::Steady,
            Self::Activity => &activity::Activity,
            Self::Weighted => &weighted::Weighted,
            Self::Hybrid => &hybrid::Hybrid,
        }
    }
}

/// What goes beyond the paper; by default nothing does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Tuning {
    /// By how much a VM must be busier than one that has a VF to take it, percent of the other's rate.
    pub margin_percent: u32,
    /// Whoever was given a VF keeps it at least so long.
    pub min_hold: Duration,
    /// How long a plug and an unplug are taken to be for a VM whose switches were not measured yet.
    /// Zero: what a switch costs is not looked at.
    pub switch_cost: Duration,
    /// `hybrid`: how long a VM that wants a VF may be without one.
    pub max_wait: Duration,
    /// `hybrid` and guarantees: from this rate on a VM wants a VF, packets per second.
    pub wants_pps: u32,
    /// Rates are averaged with this time constant. Zero: the mean of each interval.
    pub rate_time_constant: Duration,
}

impl Default for Tuning {
    fn default() -> Self {
        Self {
            margin_percent: 0,
            min_hold: Duration::ZERO,
            switch_cost: Duration::ZERO,
            max_wait: Duration::from_secs(3600),
            wants_pps: 1,
            rate_time_constant: Duration::ZERO,
        }
    }
}

impl Tuning {
    /// Who has a VF has an advantage.
    const fn is_steady(&self) -> bool {
        self.margin_percent > 0 || !self.min_hold.is_zero() || !self.switch_cost.is_zero()
    }
}

/// How a pool's VFs are given away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Which policy.
    pub strategy: Strategy,
    /// What it is set to.
    pub tuning: Tuning,
    /// Between two rounds.
    pub interval: Duration,
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
    /// What the operator says of it.
    pub words: Words,
    /// How long its last switch of the kind that would come next was: back to PV if it has a VF.
    /// `None` if there was none.
    pub switch_took: Option<Duration>,
}

/// A way to rank VMs of whom no pin decides, while they are more than there are VFs.
trait Policy {
    /// Each of them once, best first.
    fn rank(&self, round: Round<'_>) -> Vec<Ranked>;

    /// Whether it looks at what is remembered of single VMs.
    fn remembers(&self) -> bool {
        true
    }
}

/// What a policy is given for one decision.
struct Round<'a> {
    /// By name.
    open: &'a [&'a Candidate],
    /// VFs for them.
    vfs: usize,
    rules: &'a Rules,
    /// Of `open`, in the same order; none for a policy that does not remember.
    standings: &'a mut [Standing],
    /// Where the fair strategy stands.
    last_served: &'a mut Option<VmName>,
}

/// Ranks the VMs of a pool that has `vfs` VFs, best first; VMs pinned to PV are left out.
///
/// Pins to a VF go first, then guarantees, then the higher priority; the policy decides in the one priority
/// that is more VMs than VFs are left for it.
///
/// The first `vfs` of the answer are taken to be served: `memory` is moved on. While there are no more
/// VMs than VFs all have one, whatever the strategy (the paper's Algorithm 1).
pub fn rank(
    rules: &Rules,
    candidates: &[Candidate],
    vfs: usize,
    memory: &mut Memory,
) -> Vec<Ranked> {
    let by_pin = |pin| candidates.iter().filter(move |candidate| candidate.words.pin == pin);
    let mut ranking: Vec<Ranked> = by_pin(Some(Pin::Vf))
        .map(|candidate| Ranked { vm: candidate.vm.clone(), reason: Reason::PinnedToVf })
        .collect();
    let pinned = ranking.len();
    let mut open: Vec<&Candidate> = by_pin(None).collect();
    open.sort_by(|a, b| a.vm.cmp(&b.vm));
    let left = vfs.saturating_sub(pinned);
    let policy = rules.strategy.policy(&rules.tuning);
    let has_guarantees = open.iter().any(|candidate| candidate.words.min_percent > 0);
    let remembers = policy.remembers() || has_guarantees;
    let mut standings = if remembers { memory.recall(&open) } else { Vec::new() };
    if open.len() <= left {
        let reason = Reason::AllHaveOne { vms: pinned + open.len(), vfs };
        ranking.extend(open.iter().map(|c| Ranked { vm: c.vm.clone(), reason }));
    } else {
        let wants = |candidate: &Candidate| rules.tuning.wants(candidate);
        let due = guarantee::due(&open, &mut standings, left, wants);
        ranking.extend(due.iter().filter_map(|index| open.get(*index)).map(|candidate| Ranked {
            vm: candidate.vm.clone(),
            reason: Reason::Guaranteed { percent: candidate.words.min_percent },
        }));
        let table = Table { open: &open, standings: &mut standings, due: &due };
        let last_served = &mut memory.last_served;
        ranking.extend(classes::rank(rules, policy, left - due.len(), table, last_served));
    }
    if remembers {
        let served = ranking.iter().skip(pinned).take(left).map(|ranked| &ranked.vm);
        let mut served: Vec<&VmName> = served.collect();
        served.sort_unstable();
        for (candidate, standing) in open.iter().zip(&mut standings) {
            if candidate.words.min_percent > 0 && served.binary_search(&&candidate.vm).is_ok() {
                guarantee::charge(standing);
            }
        }
        // Waits are remembered where they count.
        let counts = rules.strategy == Strategy::Hybrid;
        let wants = |candidate: &Candidate| counts && rules.tuning.wants(candidate);
        memory.settle(&open, standings, served, wants);
    } else {
        memory.standings.clear();
    }
    ranking
}

impl Tuning {
    /// It would use a VF.
    fn wants(&self, candidate: &Candidate) -> bool {
        candidate.rate_pps.is_some_and(|pps| pps >= f64::from(self.wants_pps))
    }
}

impl Rules {
    /// Whole rounds that fit into `time`.
    fn rounds_within(&self, time: Duration) -> u32 {
        let rounds = time.as_nanos() / self.interval.as_nanos().max(1);
        u32::try_from(rounds).unwrap_or(u32::MAX)
    }

    /// Rounds that cover `time`.
    fn rounds_over(&self, time: Duration) -> u32 {
        let rounds = time.as_nanos().div_ceil(self.interval.as_nanos().max(1));
        u32::try_from(rounds).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
