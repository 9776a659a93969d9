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
mod quota;
mod reason;
mod steady;
pub mod tenant;
mod two_level;
mod weighted;
mod words;

use std::time::Duration;

use flexvf_protocol::VmName;
use serde::{Deserialize, Serialize};

use super::gain::Gain;
use classes::Table;
pub use memory::{Memory, Standing};
use quota::{Choice, Quotas};
use reason::Placed;
pub use reason::{Ranked, Ranking, Reason};
use tenant::Tenants;
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

    fn policy(self, tuning: &Tuning, tenants: &Tenants) -> &'static dyn Policy {
        match self {
            Self::Fair if tenants.are_limited() => &weighted::Alike,
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
    /// What a VF is worth by the rate.
    pub gain: Gain,
    /// What each GiB of a guest's memory is taken to add to a plug, for a VM whose plug was not measured yet.
    pub pin_per_gib: Duration,
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
            gain: Gain::Packets,
            pin_per_gib: PIN_PER_GIB,
        }
    }
}

/// 1 GiB took 0.56 s to pin and 64 GiB 16 s (Linux commit 4d83de6da265).
const PIN_PER_GIB: Duration = Duration::from_millis(245);

impl Tuning {
    /// More is weighed than rates.
    const fn is_steady(&self) -> bool {
        let favours_holders =
            self.margin_percent > 0 || !self.min_hold.is_zero() || !self.switch_cost.is_zero();
        favours_holders || self.gain.is_time()
    }

    /// How long a VM's first plug is taken to be, whose guest has so much memory.
    pub fn plug_estimate(&self, memory_bytes: u64) -> Duration {
        let gib = memory_bytes as f64 / f64::from(1 << 30);
        self.switch_cost / 2
            + Duration::try_from_secs_f64(self.pin_per_gib.as_secs_f64() * gib)
                .unwrap_or(Duration::MAX / 4)
    }
}

/// How a pool's VFs are given away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rules {
    /// Which policy.
    pub strategy: Strategy,
    /// What it is set to.
    pub tuning: Tuning,
    /// Between two rounds.
    pub interval: Duration,
    /// What the pool's tenants are due.
    pub tenants: Tenants,
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
    fn rank(&self, round: Round<'_>) -> Vec<Placed>;

    /// Whether it looks at what is remembered of single VMs.
    fn remembers(&self) -> bool {
        true
    }
}

/// What a policy is given for one decision.
struct Round<'a> {
    /// By name.
    open: &'a [&'a Candidate],
    /// Their indices among all whom no pin decides.
    members: &'a [usize],
    /// VFs for them.
    vfs: usize,
    rules: &'a Rules,
    /// Of `open`, in the same order; none for a policy that does not remember.
    standings: &'a mut [Standing],
    quotas: &'a mut Quotas,
    /// Where the fair strategy stands.
    last_served: &'a mut Option<VmName>,
}

/// Ranks the VMs of a pool that has `vfs` VFs; VMs pinned to PV are left out.
///
/// Pins to a VF go first, then guarantees, then the higher priority; the policy decides in the one priority
/// that is more VMs than VFs are left for it. What tenants are due is held against that order.
///
/// The winners are taken to be served: `memory` is moved on. While there are no more
/// VMs than VFs all have one, whatever the strategy (the paper's Algorithm 1).
pub fn rank(rules: &Rules, candidates: &[Candidate], vfs: usize, memory: &mut Memory) -> Ranking {
    let by_pin = |pin| candidates.iter().filter(move |candidate| candidate.words.pin == pin);
    let mut pinned: Vec<&Candidate> = by_pin(Some(Pin::Vf)).collect();
    pinned.sort_by(|a, b| b.words.priority.cmp(&a.words.priority).then_with(|| a.vm.cmp(&b.vm)));
    let mut open: Vec<&Candidate> = by_pin(None).collect();
    open.sort_by(|a, b| a.vm.cmp(&b.vm));
    let left = vfs.saturating_sub(pinned.len());
    let Rules { strategy, tuning, tenants, .. } = rules;
    let wants = |candidate: &Candidate| tuning.wants(candidate);
    let mut quotas = Quotas::new(tenants, &pinned, &open, left, wants);
    let policy = strategy.policy(tuning, tenants);
    let has_guarantees = open.iter().any(|candidate| candidate.words.min_percent > 0);
    let remembers = policy.remembers() || has_guarantees;
    let mut standings = if remembers { memory.recall(&open) } else { Vec::new() };
    quotas.set_owed(memory.recall_tenants(tenants));
    let all = Reason::AllHaveOne { vms: pinned.len() + open.len(), vfs };
    let order = if quotas.are_none() && open.len() <= left {
        (0..open.len()).map(|index| Placed::free(index, all)).collect()
    } else {
        let (standings, quotas) = (&mut standings[..], &mut quotas);
        in_order(rules, policy, left, (&open, standings, quotas), &mut memory.last_served)
    };
    let Choice { mut order, served, barred, kept } = quotas.choose(order, left);
    if served == open.len() {
        order.iter_mut().for_each(|placed| placed.reason = all);
    }
    let chosen = order.get(..served).unwrap_or_default();
    chosen.iter().for_each(|placed| quotas.charge(placed));
    memory.settle_tenants(tenants, quotas.owed());
    if remembers {
        let mut is_served = vec![false; open.len()];
        for Placed { index, charge, .. } in chosen {
            is_served.get_mut(*index).into_iter().for_each(|it| *it = true);
            let (Some(standing), Some(vm)) = (standings.get_mut(*index), open.get(*index)) else {
                continue;
            };
            standing.owed -= charge;
            if vm.words.min_percent > 0 {
                guarantee::charge(standing);
            }
        }
        // Waits are remembered where they count.
        let counts = *strategy == Strategy::Hybrid;
        let wants = |candidate: &Candidate| counts && tuning.wants(candidate);
        memory.settle(&open, standings, &is_served, wants);
    } else {
        memory.standings.clear();
    }
    let of = pinned.len();
    let pinned = pinned.iter().enumerate().map(|(place, candidate)| {
        let beyond = Reason::PinnedBeyond { place: place + 1, of, vfs };
        let reason = if of > vfs { beyond } else { Reason::PinnedToVf };
        Ranked { vm: candidate.vm.clone(), reason }
    });
    let open = order.iter().filter_map(|placed| {
        Some(Ranked { vm: open.get(placed.index)?.vm.clone(), reason: placed.reason })
    });
    Ranking { vms: pinned.chain(open).collect(), winners: vfs.min(of) + served, barred, kept }
}

/// Those whose guarantee is due, then the others by priority and policy.
fn in_order(
    rules: &Rules,
    policy: &dyn Policy,
    vfs: usize,
    (open, standings, quotas): (&[&Candidate], &mut [Standing], &mut Quotas),
    last_served: &mut Option<VmName>,
) -> Vec<Placed> {
    let due = guarantee::due(open, standings, vfs, |vm| rules.tuning.wants(vm));
    let guaranteed = due.iter().filter_map(|index| {
        let percent = open.get(*index)?.words.min_percent;
        Some(Placed::free(*index, Reason::Guaranteed { percent }))
    });
    let mut order: Vec<Placed> = guaranteed.collect();
    let for_others = vfs.saturating_sub(due.len()).saturating_sub(quotas.kept());
    let table = Table { open, standings, quotas, due: &due };
    order.extend(classes::rank(rules, policy, for_others, table, last_served));
    order
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
