//! Shares of VF time on two levels: between tenants, and between the VMs of each.
//!
//! A VM without a tenant stands among the tenants, with its own weight. Each gets VFs by its weight, no less
//! and no more than it is due (`quota`), and no more than it has VMs; what is over goes to the others, by their weights
//! (water filling). Each round gives a tenant the whole VFs of its share, and one more to those who are owed
//! one soonest. Which of its VMs are served is decided in the same way, by what they are owed of their tenant's share.
//!
//! After any number of rounds each tenant, and each VM, has had its share of them to within
//! three turns, as long as shares stay as they are.

use super::weighted::{Claim, MAX_OWED_TURNS, TURN};
use super::{Candidate, Placed, Quotas, Round, Standing};

/// Nobody is further behind its share or ahead of it.
#[cfg(test)]
pub(super) const MAX_ERROR_TURNS: f64 = 3.0;

/// A tenant's VMs, or a VM without one.
struct Party {
    /// Index of the tenant.
    tenant: Option<usize>,
    /// Where its members begin.
    first: usize,
    count: usize,
    owed: i64,
    turns: usize,
    most: usize,
}

/// In place of a tenant's index: after all of them.
const ALONE: usize = usize::MAX;

/// One who shares: no less than `floor` and no more than `cap`, both in parts of a turn, as the result is.
#[derive(Debug, Clone, Copy)]
struct Sharer {
    weight: f64,
    floor: i64,
    cap: i64,
}

/// Best first. With `alike` all VMs weigh the same, whosever they are.
pub(super) fn rank(alike: bool, round: Round<'_>) -> Vec<Placed> {
    let Round { open, members, vfs, standings, quotas, .. } = round;
    let tenant_of = |place: usize| members.get(place).and_then(|open| quotas.of(*open));
    let mut by_party: Vec<(usize, usize)> =
        (0..open.len()).map(|place| (tenant_of(place).unwrap_or(ALONE), place)).collect();
    by_party.sort_unstable();
    let (mut parties, sharers) = parties(alike, open, &by_party, standings, quotas);
    let shares = shares(&sharers, turns(vfs));
    deal(&mut parties, &shares, vfs);

    let (mut served, mut others) = (Vec::with_capacity(vfs), Vec::with_capacity(open.len()));
    let mut own: Vec<Claim> = Vec::new();
    for (party, share) in parties.iter().zip(&shares) {
        let places = by_party.iter().skip(party.first).take(party.count).map(|(_, place)| *place);
        own.clear();
        if let Some(tenant) = party.tenant {
            quotas.owe(tenant, party.owed);
            level(standings, places.clone(), party.owed - share);
            let vms = places.clone().filter_map(|place| open.get(place));
            let sharer =
                |vm: &&Candidate| Sharer { weight: weight(alike, vm), floor: 0, cap: TURN };
            let sharers: Vec<Sharer> = vms.map(sharer).collect();
            let each = self::shares(&sharers, *share);
            own.extend(places.zip(each).filter_map(|(place, share)| {
                let standing = standings.get_mut(place)?;
                standing.owed += share;
                let holds_vf = open.get(place)?.holds_vf;
                Some(Claim { share, owed: standing.owed, holds_vf, place })
            }));
            own.sort_unstable_by(Claim::better_first);
        } else {
            own.extend(places.filter_map(|place| {
                standings.get_mut(place)?.owed = party.owed;
                let holds_vf = open.get(place)?.holds_vf;
                Some(Claim { share: *share, owed: party.owed, holds_vf, place })
            }));
        }
        let (first, rest) = own.split_at(party.turns.min(own.len()));
        served.extend_from_slice(first);
        others.extend_from_slice(rest);
    }
    served.sort_unstable_by(Claim::better_first);
    others.sort_unstable_by(Claim::better_first);
    served.into_iter().chain(others).map(Claim::placed).collect()
}

/// In the order of `by_party`.
fn parties(
    alike: bool,
    open: &[&Candidate],
    by_party: &[(usize, usize)],
    standings: &[Standing],
    quotas: &Quotas,
) -> (Vec<Party>, Vec<Sharer>) {
    let is_one = |a: &(usize, usize), b: &(usize, usize)| a.0 == b.0 && a.0 != ALONE;
    let mut first = 0;
    let of_each = by_party.chunk_by(is_one).filter_map(|of_one| {
        let (tenant, place) = of_one.first().copied()?;
        let count = of_one.len();
        let quota = quotas.get(tenant);
        let (floor, most) = quota.map_or((0, count), |quota| quota.bounds(count));
        let weight = match quota {
            Some(_) if alike => count as f64,
            Some(quota) => f64::from(quota.weight.max(1)),
            None => weight(alike, open.get(place)?),
        };
        let owed = quota.map_or(standings.get(place)?.owed, |quota| quota.owed);
        let tenant = quota.map(|_| tenant);
        let party = Party { tenant, first, count, owed: bounded(owed), turns: 0, most };
        first += count;
        Some((party, Sharer { weight, floor: turns(floor), cap: turns(most) }))
    });
    of_each.unzip()
}

fn weight(alike: bool, vm: &Candidate) -> f64 {
    if alike { 1.0 } else { f64::from(vm.words.weight.max(1)) }
}

fn turns(vfs: usize) -> i64 {
    i64::try_from(vfs).unwrap_or(i64::MAX).saturating_mul(TURN)
}

/// What each is owed after this round's share, and how many VFs each gets.
fn deal(parties: &mut [Party], shares: &[i64], vfs: usize) {
    // Who came or went took nothing along: together they are owed nothing.
    let sum: i64 = parties.iter().map(|party| party.owed).sum();
    let each = sum / i64::try_from(parties.len()).unwrap_or(i64::MAX).max(1);
    let mut left = vfs;
    let mut claims = Vec::with_capacity(parties.len());
    for (place, (party, share)) in parties.iter_mut().zip(shares).enumerate() {
        let whole = usize::try_from(share / TURN).unwrap_or(0).min(party.most).min(left);
        left -= whole;
        party.turns = whole;
        let over = share - share / TURN * TURN;
        party.owed = party.owed - each + over;
        claims.push(Claim { share: over, owed: party.owed, holds_vf: false, place });
        party.owed += share - over;
    }
    claims.sort_unstable_by(Claim::better_first);
    for claim in claims {
        let Some(party) = parties.get_mut(claim.place) else { continue };
        if left > 0 && party.turns < party.most {
            party.turns += 1;
            left -= 1;
        }
    }
}

/// All together are owed what their tenant is.
fn level(standings: &mut [Standing], places: impl Iterator<Item = usize> + Clone, owed: i64) {
    let of = |standings: &[Standing], place| {
        standings.get(place).map_or(0, |standing: &Standing| bounded(standing.owed))
    };
    let count = i64::try_from(places.clone().count()).unwrap_or(i64::MAX).max(1);
    let sum: i64 = places.clone().map(|place| of(standings, place)).sum();
    let each = (sum - owed) / count;
    for place in places {
        let levelled = of(standings, place) - each;
        standings.get_mut(place).into_iter().for_each(|standing| standing.owed = levelled);
    }
}

/// What a state file says is bounded.
fn bounded(owed: i64) -> i64 {
    owed.clamp(-MAX_OWED_TURNS * TURN, MAX_OWED_TURNS * TURN)
}

/// Water filling: each gets its weight times one and the same figure, within its bounds.
fn shares(sharers: &[Sharer], total: i64) -> Vec<i64> {
    let bounded = |level: f64| {
        let share =
            move |it: &Sharer| ((level * it.weight) as i64).clamp(it.floor.min(it.cap), it.cap);
        sharers.iter().map(share)
    };
    let full = |it: &Sharer| it.cap as f64 / it.weight;
    let mut high = sharers.iter().map(full).fold(0.0, f64::max) + 1.0;
    if bounded(high).fold(0, i64::saturating_add) <= total {
        return bounded(high).collect();
    }
    let mut low = 0.0;
    // Until the figure is known to its last bit.
    for _ in 0..MAX_HALVINGS {
        let middle = f64::midpoint(low, high);
        if middle <= low || middle >= high {
            break;
        }
        if bounded(middle).fold(0, i64::saturating_add) <= total {
            low = middle;
        } else {
            high = middle;
        }
    }
    bounded(low).collect()
}

/// As many as a double has bits of its own.
const MAX_HALVINGS: u32 = 53;
