//! What a VM is guaranteed: a VF in at least so many percent of the rounds in which it wants one.
//!
//! Each such round it is owed its percentage of a turn more, and a turn less whenever it has a VF, by whatever
//! right; turns are not saved up. Served are those who are owed something, the one first who will be owed a
//! whole turn soonest. If all guarantees together are more than the VFs, all are cut alike; else a VM
//! gets its percentage of any rounds in a row, less two turns.

use std::cmp::Ordering;

use super::{Candidate, Standing};

/// By which a guarantee may be missed, in any rounds in a row.
#[cfg(test)]
pub(super) const MAX_SHORT_TURNS: f64 = 2.0;

/// A turn, in the unit of [`Standing::due`].
const TURN: i64 = 1_000_000_000;

/// Indices of those who have to be served now, the first ones first; no more than `vfs`.
pub(super) fn due(
    open: &[&Candidate],
    standings: &mut [Standing],
    vfs: usize,
    wants: impl Fn(&Candidate) -> bool,
) -> Vec<usize> {
    let is_meant = |candidate: &Candidate| candidate.words.min_percent > 0 && wants(candidate);
    let meant = open.iter().filter(|candidate| is_meant(candidate));
    let all: i64 = meant.map(|candidate| i64::from(candidate.words.min_percent)).sum();
    let most = i64::try_from(vfs).unwrap_or(i64::MAX).saturating_mul(100);
    let mut claims = Vec::new();
    for (index, (candidate, standing)) in open.iter().zip(standings).enumerate() {
        if !is_meant(candidate) {
            continue;
        }
        let percent = i64::from(candidate.words.min_percent);
        // All of a VF is 100; `all` is at least that where it is more than `most`.
        let share =
            if all > most { TURN / 100 * percent / all * most } else { TURN / 100 * percent };
        // What a state file says is bounded.
        standing.due = standing.due.clamp(-TURN, TURN) + share;
        if standing.due > 0 {
            claims.push((index, Claim { owed: standing.due, share }));
        }
    }
    claims.sort_by(|(a, claim), (b, other)| claim.sooner_first(*other).then(a.cmp(b)));
    claims.into_iter().take(vfs).map(|(index, _)| index).collect()
}

/// A turn was had.
pub(super) fn charge(standing: &mut Standing) {
    standing.due = standing.due.saturating_sub(TURN).max(-TURN);
}

#[derive(Debug, Clone, Copy)]
struct Claim {
    owed: i64,
    share: i64,
}

impl Claim {
    fn sooner_first(self, other: Self) -> Ordering {
        // (TURN - owed) / share is when it will be owed a whole turn.
        let deadline = |owed: i64, share: i64| i128::from(TURN - owed) * i128::from(share);
        deadline(self.owed, other.share).cmp(&deadline(other.owed, self.share))
    }
}
