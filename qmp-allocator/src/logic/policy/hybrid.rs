//! The busiest VMs first, but nobody who wants a VF waits longer than is allowed.
//!
//! A wait is the number of decisions in a row that saw a VM want a VF and gave it none. At most
//! `max_wait / interval` are allowed, or as many as it takes to serve everybody in turn if there are too few
//! VFs for that. Everyone who wants one thus has a deadline, in rounds. A round serves by deadline only
//! as many as it must, and gives the rest of its VFs to the busiest (with hysteresis, as set): it must serve
//! so many that of those with a deadline within the next *d* rounds no more than *d* rounds can
//! serve are left, for every *d*. If the same VMs go on wanting, that is enough: whoever was served comes back
//! with the longest deadline, and all deadlines together are as many as the VFs can meet.

use std::cmp::Reverse;

use super::{Placed, Policy, Reason, Round, steady};

pub(super) struct Hybrid;

impl Policy for Hybrid {
    fn rank(&self, round: Round<'_>) -> Vec<Placed> {
        let tuning = &round.rules.tuning;
        let order = steady::order(&round);
        let waits = order.iter().enumerate().filter_map(|(place, bid)| {
            let standing = round.standings.get(bid.index)?;
            tuning.wants(bid.candidate).then_some((standing.missed, place))
        });
        let mut waiting: Vec<(u32, usize)> = waits.collect();
        // The longest wait is the nearest deadline; of equal ones the busiest.
        waiting.sort_unstable_by_key(|(missed, place)| (Reverse(*missed), *place));
        let allowed = allowed(&round, waiting.len());
        waiting.truncate(must_be_served(&waiting, allowed, round.vfs));

        // By deadline first, then the others in their order.
        let mut ahead = vec![false; order.len()];
        for (_, place) in &waiting {
            ahead.get_mut(*place).into_iter().for_each(|it| *it = true);
        }
        let of = order.len();
        let by_deadline = waiting.iter().filter_map(|(missed, place)| {
            let reason = Reason::Waited { rounds: *missed, of: allowed };
            let placed = order.get(*place)?.placed(*place + 1, of);
            Some(if *missed > 0 { Placed { reason, ..placed } } else { placed })
        });
        let others = order.iter().enumerate().zip(&ahead).filter(|(_, ahead)| !**ahead);
        let others = others.map(|((place, bid), _)| bid.placed(place + 1, of));
        by_deadline.chain(others).collect()
    }
}

/// Rounds that a VM may miss in a row.
fn allowed(round: &Round<'_>, wanting: usize) -> u32 {
    let in_turn = wanting.div_ceil(round.vfs.max(1)).saturating_sub(1);
    let in_turn = u32::try_from(in_turn).unwrap_or(u32::MAX);
    round.rules.rounds_within(round.rules.tuning.max_wait).max(in_turn)
}

/// How many of those who wait longest this round must serve, so that the next ones can serve the rest.
fn must_be_served(longest_first: &[(u32, usize)], allowed: u32, vfs: usize) -> usize {
    let due = longest_first.iter().enumerate().map(|(before, (missed, _))| {
        let later_rounds = allowed.saturating_sub(*missed) as usize;
        (before + 1).saturating_sub(vfs.saturating_mul(later_rounds))
    });
    due.max().unwrap_or(0).min(vfs)
}
