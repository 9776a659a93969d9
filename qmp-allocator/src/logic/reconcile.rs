//! What a pool's VMs have, against what they are to have: the next steps.
//!
//! A pure function of what is seen now. It may be called at any time: whatever earlier steps came to,
//! it starts from what is so. It never moves a VM that is on its way,
//! and it takes a VF from a VM only for a better-ranked one that could use it at once.
//! It is shown only the VMs that have a VF and the first of those that could take one, so it costs
//! the same whatever the number of VMs.

mod cap;
mod near;

use flexvf_protocol::VmName;

pub use cap::Cap;
use cap::Had;
pub use near::near;

use super::policy::{Ranked, Ranking, Reason};
use super::vf::VfId;

/// Whom a policy chose: the first `winners` of the ranking, and who is next if a VF is left over.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Desired {
    /// Best first.
    pub ranking: Vec<Ranked>,
    /// How many of them are to have a VF.
    pub winners: usize,
    /// How many of the last may not have one, not even one that is left over.
    pub barred: usize,
    /// VFs that are to stay free.
    pub kept: usize,
}

impl From<Ranking> for Desired {
    fn from(ranking: Ranking) -> Self {
        let Ranking { vms, winners, barred, kept } = ranking;
        Self { ranking: vms, winners, barred, kept }
    }
}

impl Desired {
    /// From this place on nobody may have a VF.
    pub fn bar(&self) -> usize {
        self.ranking.len().saturating_sub(self.barred)
    }
}

/// A VM that has a VF, or is on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its name.
    pub vm: VmName,
    /// In the ranking, from 0.
    pub place: Option<usize>,
    /// How it has it.
    pub hold: Hold,
    /// Must not keep a VF, for this reason (pinned to PV, its registration is gone).
    pub must_leave: Option<String>,
    /// Its tenant's bound, if that has one.
    pub cap: Option<Cap>,
}

/// How a VM has a VF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It runs over it.
    Vf,
    /// On its way to it.
    Arriving,
    /// On its way back: its VF will be free.
    Leaving,
    /// Quarantined: it will not come back soon.
    Stuck,
}

/// A VM on PV that could take a VF now: QEMU and agent answer, a root port is empty, no failed try was a
/// moment ago, and nothing forbids it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taker {
    /// Its name.
    pub vm: VmName,
    /// In the ranking, from 0; none for a VM that is newer than it.
    pub place: Option<usize>,
    /// Its tenant's bound, if that has one.
    pub cap: Option<Cap>,
}

/// A pool as seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolView {
    /// By name.
    pub holders: Vec<Holder>,
    /// In the order of the ranking, then newer ones by name; as many as there could be VFs for.
    pub takers: Vec<Taker>,
    /// VMs of the pool.
    pub all: usize,
    /// Of them those that may keep a VF.
    pub staying: usize,
    /// VFs that may be given away, the best first.
    pub free: Vec<VfId>,
    /// VFs that the pool can use at all: free ones and those that VMs have.
    pub usable: usize,
    /// Switches that may be begun now.
    pub budget: usize,
}

/// One switch to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Plug this VF into that VM.
    Give {
        /// Who gets it.
        vm: VmName,
        /// What.
        vf: VfId,
        /// In words.
        reason: String,
    },
    /// Take the VF back.
    Take {
        /// From whom.
        vm: VmName,
        /// In words.
        reason: String,
    },
}

impl Hold {
    /// A switch is under way.
    pub const fn is_moving(self) -> bool {
        matches!(self, Self::Arriving | Self::Leaving)
    }
}

/// The switches to begin now.
pub fn reconcile(seen: &PoolView, desired: &Desired) -> Vec<Step> {
    // A VF that has failed since the decision costs the last winner its place, not the first.
    let winners = desired.winners.min(seen.usable);
    let wins = |place: Option<usize>| place.is_some_and(|place| place < winners);
    let (needy, others) = seen.takers.split_at(seen.takers.partition_point(|it| wins(it.place)));
    // What is kept free gives way to winners.
    let kept = desired.kept.min(seen.usable - winners);
    let leaving = seen.holders.iter().filter(|holder| holder.hold == Hold::Leaving).count();

    let takeable = seen.holders.iter().filter(|holder| holder.hold == Hold::Vf);
    let (mut taken, mut losers) = (Vec::new(), Vec::new());
    for holder in takeable {
        match must_leave(holder, desired) {
            Some(reason) => taken.push((holder, reason)),
            None if !wins(holder.place) => losers.push(holder),
            None => {}
        }
    }
    losers.sort_by_key(|holder| std::cmp::Reverse(holder.place.unwrap_or(usize::MAX)));
    let stays = |it: &&Holder| {
        it.hold != Hold::Leaving && !taken.iter().any(|(holder, _)| holder.vm == it.vm)
    };
    let is_sure = |it: &&Holder| it.hold != Hold::Vf || wins(it.place);
    let mut sure = Had::of(seen.holders.iter().filter(stays).filter(is_sure));
    let needy: Vec<&Taker> =
        needy.iter().filter(|taker| sure.one_more(taker.cap.as_ref())).collect();
    let mut had = Had::of(seen.holders.iter().filter(stays));
    for taker in &needy {
        // Its own tenant's least gives way to it, though there may be a VF for both.
        if !had.one_more(taker.cap.as_ref())
            && let Some(least) = losers.iter().position(|it| same_tenant(it, taker))
        {
            let loser = losers.remove(least);
            taken.push((loser, reason_to_take(loser, &[*taker], desired)));
        }
    }
    let coming = seen.free.len() + leaving + taken.len();
    let more = losers.into_iter().take((needy.len() + kept).saturating_sub(coming));
    taken.extend(more.map(|loser| (loser, reason_to_take(loser, &needy, desired))));
    let takes = taken.into_iter();
    let mut steps: Vec<Step> =
        takes.map(|(holder, reason)| Step::Take { vm: holder.vm.clone(), reason }).collect();
    steps.extend(gives(seen, &needy, others, kept, desired));
    steps.truncate(seen.budget);
    steps
}

/// Free VFs for the needy; what they and the reserves leave over, for others. No tenant has more than it may at any time.
fn gives(
    seen: &PoolView,
    needy: &[&Taker],
    others: &[Taker],
    kept: usize,
    desired: &Desired,
) -> Vec<Step> {
    let spare = seen.free.len().saturating_sub(needy.len() + kept);
    let mut had = Had::of(seen.holders.iter());
    let takers = needy.iter().filter(|taker| had.one_more(taker.cap.as_ref()));
    let mut takers: Vec<(&Taker, String)> = takers
        .map(|taker| (*taker, reason_of(desired, taker.place)))
        .take(seen.free.len())
        .collect();
    let others = spare_takers(seen, others, desired);
    takers.extend(others.filter(|(taker, _)| had.one_more(taker.cap.as_ref())).take(spare));
    let given = takers.into_iter().zip(&seen.free);
    given
        .map(|((taker, reason), vf)| Step::Give { vm: taker.vm.clone(), vf: vf.clone(), reason })
        .collect()
}

fn must_leave(holder: &Holder, desired: &Desired) -> Option<String> {
    let barred = holder.place.filter(|place| *place >= desired.bar());
    holder.must_leave.clone().or_else(|| barred.map(|place| reason_of(desired, Some(place))))
}

fn same_tenant(holder: &Holder, taker: &Taker) -> bool {
    holder.cap.as_ref().zip(taker.cap.as_ref()).is_some_and(|(a, b)| a.tenant == b.tenant)
}

fn reason_of(desired: &Desired, place: Option<usize>) -> String {
    let ranked = place.and_then(|place| desired.ranking.get(place));
    ranked.map_or_else(|| "not ranked".to_owned(), |ranked| ranked.reason.to_string())
}

fn reason_to_take(loser: &Holder, needy: &[&Taker], desired: &Desired) -> String {
    let own = reason_of(desired, loser.place);
    match needy {
        [taker] => format!("{own}; {} takes it: {}", taker.vm, reason_of(desired, taker.place)),
        _ => own,
    }
}

/// Who may have what the winners leave over: the rest of the ranking, and VMs newer than it only
/// while there is a VF for everyone (a new VM starts on PV: the paper's Algorithm 1).
fn spare_takers<'a>(
    seen: &'a PoolView,
    others: &'a [Taker],
    desired: &'a Desired,
) -> impl Iterator<Item = (&'a Taker, String)> {
    let all_fit = seen.staying <= seen.usable;
    others.iter().filter(move |taker| taker.place.is_some() || all_fit).map(|taker| {
        let reason = match taker.place {
            Some(place) => format!("a VF is left over; {}", reason_of(desired, Some(place))),
            None => Reason::AllHaveOne { vms: seen.all, vfs: seen.usable }.to_string(),
        };
        (taker, reason)
    })
}

#[cfg(test)]
mod tests;
