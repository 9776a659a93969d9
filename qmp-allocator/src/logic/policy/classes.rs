//! Priorities: VMs of a higher one all come before those of a lower one, whatever a policy says.
//!
//! So at most one priority has some VMs with a VF and some without: only there a policy decides.

use flexvf_protocol::VmName;

use super::{Candidate, Policy, Ranked, Reason, Round, Rules, Standing};

/// The VMs of a decision, by name, and those of them (indices) that have their place already.
pub(super) struct Table<'a, 'b> {
    pub(super) open: &'b [&'a Candidate],
    /// None where nobody remembers.
    pub(super) standings: &'b mut [Standing],
    pub(super) due: &'b [usize],
}

/// Ranks the others, of whom there are more than VFs.
pub(super) fn rank(
    rules: &Rules,
    policy: &dyn Policy,
    mut vfs: usize,
    table: Table<'_, '_>,
    last_served: &mut Option<VmName>,
) -> Vec<Ranked> {
    let Table { open, standings, due } = table;
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
        if class.len() <= vfs {
            let reason = Reason::Priority { priority };
            ranking.extend(class.iter().map(|(_, it)| Ranked { vm: it.vm.clone(), reason }));
        } else {
            let members: Vec<&Candidate> = class.iter().map(|(_, candidate)| *candidate).collect();
            let known = class.iter().filter_map(|(index, _)| standings.get(*index).copied());
            let mut known: Vec<Standing> = known.collect();
            let round = Round { open: &members, vfs, rules, standings: &mut known, last_served };
            let ranked = policy.rank(round);
            if vfs == 0 && !is_first {
                let outranked = Reason::Outranked { priority };
                ranking.extend(ranked.into_iter().map(|it| Ranked { reason: outranked, ..it }));
            } else {
                ranking.extend(ranked);
            }
            for ((index, _), after) in class.iter().zip(known) {
                standings.get_mut(*index).into_iter().for_each(|it| *it = after);
            }
        }
        vfs = vfs.saturating_sub(class.len());
    }
    ranking
}
