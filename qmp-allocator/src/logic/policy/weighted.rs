//! Each VM by its weight: shares of the VFs' time, busy or not.
//!
//! A VM's share is its weight's part of the VFs, at most one VF; what is over goes to the others, by their
//! weights. Every round it is owed its share more, and a turn less when it is served. Served are those who
//! are owed something, and of them first who will be owed a whole turn soonest (deadlines as in
//! proportionate fairness: Baruah et al., Algorithmica 1996). So after any number of rounds each VM has had
//! its share of them to within [`MAX_OWED_TURNS`] turns.

use std::cmp::{Ordering, Reverse};

use super::{Candidate, Placed, Policy, Reason, Round, Standing, two_level};

/// Nobody is further behind its share or ahead of it.
pub(super) const MAX_OWED_TURNS: i64 = 2;
/// A turn, in the unit of [`Standing::owed`].
pub(super) const TURN: i64 = 1_000_000_000;

pub(super) struct Weighted;

/// All VMs alike, within what tenants are due: equal turns where a ring would pass over who is barred just then.
pub(super) struct Alike;

impl Policy for Weighted {
    fn rank(&self, round: Round<'_>) -> Vec<Placed> {
        if round.quotas.are_none() { one_level(round) } else { two_level::rank(false, round) }
    }
}

impl Policy for Alike {
    fn rank(&self, round: Round<'_>) -> Vec<Placed> {
        two_level::rank(true, round)
    }
}

fn one_level(round: Round<'_>) -> Vec<Placed> {
    let Round { open, vfs, standings, .. } = round;
    let shares = shares(open, vfs);
    level(standings);
    let claims = open.iter().zip(shares).zip(standings).enumerate();
    let mut order: Vec<Claim> = claims
        .map(|(place, ((candidate, share), standing))| {
            standing.owed += share;
            Claim { share, owed: standing.owed, holds_vf: candidate.holds_vf, place }
        })
        .collect();
    order.sort_unstable_by(Claim::better_first);
    order.into_iter().map(Claim::placed).collect()
}

/// What somebody is owed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    /// Of a turn, each round.
    pub(super) share: i64,
    pub(super) owed: i64,
    pub(super) holds_vf: bool,
    /// By name.
    pub(super) place: usize,
}

impl Claim {
    pub(super) fn placed(self) -> Placed {
        let reason = Reason::of_share(self.share, self.owed);
        Placed { index: self.place, reason, charge: TURN }
    }

    pub(super) fn better_first(&self, other: &Self) -> Ordering {
        let (own, its) = (self.owed, other.owed);
        let by_claim = match (own > 0, its > 0) {
            (true, true) => {
                // (TURN - owed) / share is when it will be owed a whole turn.
                let deadline = |owed: i64, share: i64| i128::from(TURN - owed) * i128::from(share);
                deadline(own, other.share).cmp(&deadline(its, self.share))
            }
            _ => its.cmp(&own),
        };
        by_claim
            .then_with(|| other.holds_vf.cmp(&self.holds_vf))
            .then_with(|| self.place.cmp(&other.place))
    }
}

impl Reason {
    pub(super) fn of_share(share: i64, owed: i64) -> Self {
        let turns = |owed: i64| owed as f64 / TURN as f64;
        Self::Share { share: turns(share), owed: turns(owed) }
    }
}

/// How much of a turn each is due, up to a whole one; together `vfs` turns, of whom there are less than VMs.
fn shares(open: &[&Candidate], vfs: usize) -> Vec<i64> {
    let mut heaviest: Vec<(Reverse<u32>, usize)> =
        open.iter().enumerate().map(|(index, c)| (Reverse(c.words.weight.max(1)), index)).collect();
    heaviest.sort_unstable();
    let mut weights: i128 = heaviest.iter().map(|(Reverse(weight), _)| i128::from(*weight)).sum();
    let mut left = vfs as i128 * i128::from(TURN);
    let mut shares = vec![TURN; open.len()];
    let mut heaviest = heaviest.into_iter().peekable();
    // Who is due a whole VF or more gets one and is out of it; the others share the rest.
    let is_whole = |weight: u32, weights: i128, left: i128| {
        i128::from(weight) * left >= weights * i128::from(TURN)
    };
    while let Some((Reverse(weight), _)) =
        heaviest.next_if(|(Reverse(weight), _)| is_whole(*weight, weights, left))
    {
        (weights, left) = (weights - i128::from(weight), left - i128::from(TURN));
    }
    for (Reverse(weight), index) in heaviest {
        if let Some(share) = shares.get_mut(index) {
            *share = i64::try_from(i128::from(weight) * left / weights).unwrap_or(TURN);
        }
    }
    shares
}

/// Who came or went took nothing along: together they are owed nothing. What a state file says is bounded.
fn level(standings: &mut [Standing]) {
    const MOST: i64 = MAX_OWED_TURNS * TURN;
    for standing in standings.iter_mut() {
        standing.owed = standing.owed.clamp(-MOST, MOST);
    }
    let sum: i64 = standings.iter().map(|standing| standing.owed).sum();
    let each = sum / i64::try_from(standings.len()).unwrap_or(i64::MAX).max(1);
    for standing in standings {
        standing.owed -= each;
    }
}
