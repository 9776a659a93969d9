//! The busiest VMs first, with hysteresis: a VF changes hands only where that is worth it.
//!
//! Compared is what the VMs are expected to gain from a VF in the next round, by the model that is set
//! ([`crate::logic::gain`]), against what a change of hands costs. A switch's time is lost to the VF, and a whole round is
//! what a VM is sure to have it:
//!
//! - of a VM on PV: its gain, less the share of the round that its plug takes (with its guest's memory to pin);
//! - of a VM with a VF: its gain and the margin, and the share of the round that its unplug takes.
//!
//! Who was chosen less than the minimum hold ago goes before all of them. So a VF changes hands at most once
//! in a minimum hold, whatever the rates are. All of it at 0 is [`super::activity`], exactly.

use std::cmp::Ordering;
use std::time::Duration;

use super::{Candidate, Placed, Policy, Reason, Round, Rules, Standing, Tuning};

pub(super) struct Steady;

impl Policy for Steady {
    fn rank(&self, round: Round<'_>) -> Vec<Placed> {
        let order = order(&round);
        let of = order.len();
        order.into_iter().enumerate().map(|(index, bid)| bid.placed(index + 1, of)).collect()
    }
}

/// A candidate and what it brings forward.
#[derive(Clone, Copy)]
pub(super) struct Bid<'a> {
    /// Its index in the round.
    pub(super) index: usize,
    pub(super) candidate: &'a Candidate,
    /// Rounds for which it keeps its VF whatever the rates are.
    sure: u32,
    worth: f64,
    tuning: &'a Tuning,
}

/// The best first.
pub(super) fn order<'a>(round: &Round<'a>) -> Vec<Bid<'a>> {
    let candidates = round.open.iter().zip(round.standings.iter()).enumerate();
    let mut bids: Vec<Bid<'a>> = candidates
        .map(|(index, (candidate, standing))| Bid::new(index, candidate, standing, round.rules))
        .collect();
    bids.sort_by(Bid::better_first);
    bids
}

impl<'a> Bid<'a> {
    fn new(index: usize, candidate: &'a Candidate, standing: &Standing, rules: &'a Rules) -> Self {
        let hold = rules.rounds_over(rules.tuning.min_hold);
        let sure = if standing.held > 0 { hold.saturating_sub(standing.held) } else { 0 };
        Self { index, candidate, sure, worth: worth(candidate, rules), tuning: &rules.tuning }
    }

    pub(super) fn placed(&self, place: usize, of: usize) -> Placed {
        let worth = self.worth.max(0.0);
        let reason = match (self.sure, self.candidate.rate_pps) {
            (0, Some(pps)) if self.tuning.gain.is_time() => {
                let saves_us = self.tuning.gain.model().gain(pps);
                Reason::Saves { place, of, pps, saves_us, as_us: worth }
            }
            (0, pps) => Reason::Worth { place, of, pps, as_pps: worth },
            (rounds, _) => Reason::MinHold { rounds },
        };
        Placed::free(self.index, reason)
    }

    fn better_first(&self, other: &Self) -> Ordering {
        (other.sure > 0)
            .cmp(&(self.sure > 0))
            .then_with(|| other.worth.total_cmp(&self.worth))
            .then_with(|| other.candidate.holds_vf.cmp(&self.candidate.holds_vf))
            .then_with(|| self.candidate.vm.cmp(&other.candidate.vm))
    }
}

/// What its gain counts for; below 0 for a VM too new to have one.
fn worth(candidate: &Candidate, rules: &Rules) -> f64 {
    let Some(pps) = candidate.rate_pps else { return -1.0 };
    let tuning = &rules.tuning;
    let gain = tuning.gain.model().gain(pps);
    let lost = if tuning.switch_cost.is_zero() {
        0.0
    } else {
        // Each way is half of what a change of hands costs.
        let took = candidate.switch_took.unwrap_or(tuning.switch_cost / 2);
        share_of(took, rules.interval)
    };
    if candidate.holds_vf {
        gain * (1.0 + f64::from(tuning.margin_percent) / 100.0) * (1.0 + lost)
    } else {
        gain * (1.0 - lost)
    }
}

fn share_of(time: Duration, interval: Duration) -> f64 {
    let share = time.as_secs_f64() / interval.as_secs_f64();
    if share.is_finite() { share.min(1.0) } else { 1.0 }
}
