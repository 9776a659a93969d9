//! Priorities: VMs of a higher one all come before those of a lower one, whatever a policy says.
//!
//! So at most one priority has some VMs with a VF and some without: only there a policy decides.

use flexvf_protocol::VmName;

use super::quota::Quotas;
use super::{Candidate, Placed, Policy, Reason, Round, Rules, Standing};

/// The VMs of a decision, by name, and those of them (indices) that have their place already.
pub(super) struct Table<'a, 'b> {
    pub(super) open: &'b [&'a Candidate],
    /// None where nobody remembers.
    pub(super) standings: &'b mut [Standing],
    pub(super) quotas: &'b mut Quotas,
    pub(super) due: &'b [usize],
}

/// Ranks the others, of whom there are more than VFs or more than may have one.
pub(super) fn rank(
    rules: &Rules,
    policy: &dyn Policy,
    mut vfs: usize,
    table: Table<'_, '_>,
    last_served: &mut Option<VmName>,
) -> Vec<Placed> {
    let Table { open, standings, quotas, due } = table;
    let mut has_place = vec![false; open.len()];
    due.iter().for_each(|index| has_place.get_mut(*index).into_iter().for_each(|it| *it = true));
    let others = open.iter().enumerate().zip(has_place).filter(|(_, has_place)| !has_place);
    let mut others: Vec<(usize, &Candidate)> =
        others.map(|((index, candidate), _)| (index, *candidate)).collect();
    others.sort_by_key(|(_, candidate)| std::cmp::Reverse(candidate.words.priority));
    let mut ranking = Vec::with_capacity(others.len());
    for class in others.chunk_by(|(_, a), (_, b)| a.words.priority == b.words.priority) {
        let priority = class.first().map_or(0, |(_, candidate)| candidate.words.priority);
        let is_first = ranking.is_empty();
        let room = if quotas.are_none() {
            class.len()
        } else {
            quotas.room_for(class.iter().map(|(index, _)| *index))
        };
        if class.len() <= vfs && room == class.len() {
            let reason = Reason::Priority { priority };
            ranking.extend(class.iter().map(|(index, _)| Placed::free(*index, reason)));
        } else {
            let (members, candidates): (Vec<usize>, Vec<&Candidate>) =
                class.iter().copied().unzip();
            let known = members.iter().filter_map(|index| standings.get(*index).copied());
            let mut known: Vec<Standing> = known.collect();
            let ranked = policy.rank(Round {
                open: &candidates,
                members: &members,
                vfs: vfs.min(room),
                rules,
                standings: &mut known,
                quotas,
                last_served,
            });
            let is_outranked = vfs == 0 && !is_first;
            ranking.extend(ranked.into_iter().filter_map(|it| {
                let index = *members.get(it.index)?;
                let reason = if is_outranked { Reason::Outranked { priority } } else { it.reason };
                Some(Placed { index, reason, ..it })
            }));
            for (index, after) in members.iter().zip(known) {
                standings.get_mut(*index).into_iter().for_each(|it| *it = after);
            }
        }
        vfs = vfs.saturating_sub(room);
    }
    ranking
}
