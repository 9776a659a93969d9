//! Each VM in its turn (the paper's fair round-robin).
//!
//! The VMs stand in a ring by name. A round serves as many as there are VFs, beginning behind the
//! last one served; what is remembered is that one's name, so VMs may come and go. A new VM waits
//! for its place in the ring.

use flexvf_protocol::VmName;

use super::{Candidate, Placed, Policy, Reason, Round};

pub(super) struct Fair;

impl Policy for Fair {
    fn rank(&self, round: Round<'_>) -> Vec<Placed> {
        rank(round.open, round.vfs, round.last_served)
    }

    fn remembers(&self) -> bool {
        false
    }
}

fn rank(open: &[&Candidate], vfs: usize, last_served: &mut Option<VmName>) -> Vec<Placed> {
    let count = open.len();
    let last = last_served.take();
    let behind =
        last.as_ref().map_or(0, |last| open.partition_point(|candidate| candidate.vm <= *last));
    let ring = (0..count).map(|place| (place + behind) % count.max(1));
    let placed = |(place, index): (usize, usize)| {
        let rounds = place.checked_sub(vfs).map_or(0, |ahead| ahead / vfs.max(1) + 1);
        Placed::free(index, Reason::Turn(rounds))
    };
    let ranking: Vec<Placed> = ring.enumerate().map(placed).collect();
    let served_last = ranking.get(vfs.wrapping_sub(1)).and_then(|placed| open.get(placed.index));
    *last_served = served_last.map(|candidate| candidate.vm.clone()).or(last);
    ranking
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::tests::vm;
    use super::*;
    use proptest::prelude::*;

    fn serve(vms: &[Candidate], vfs: usize, last: &mut Option<VmName>) -> Vec<String> {
        let mut open: Vec<_> = vms.iter().collect();
        open.sort_by(|a, b| a.vm.cmp(&b.vm));
        rank(&open, vfs, last)
            .into_iter()
            .take(vfs)
            .map(|it| open[it.index].vm.to_string())
            .collect()
    }

    #[test]
    fn the_turn_goes_round() {
        let vms = [vm("c", 0.0), vm("a", 0.0), vm("b", 0.0)];
        let mut last = None;
        assert_eq!(serve(&vms, 2, &mut last), ["a", "b"]);
        assert_eq!(serve(&vms, 2, &mut last), ["c", "a"]);
        assert_eq!(serve(&vms, 2, &mut last), ["b", "c"]);
    }

    #[test]
    fn the_turn_goes_on_when_the_last_one_served_has_gone() {
        let mut last = Some("b".parse().unwrap());
        assert_eq!(serve(&[vm("a", 0.0), vm("c", 0.0)], 1, &mut last), ["c"]);
    }

    #[test]
    fn no_vfs_serve_nobody_and_move_nothing() {
        let mut last = Some("a".parse().unwrap());
        assert!(serve(&[vm("a", 0.0), vm("b", 0.0)], 0, &mut last).is_empty());
        assert_eq!(last, Some("a".parse().unwrap()));
    }

    proptest! {
        #[test]
        fn every_vm_has_k_or_k_plus_one_turns(count in 1usize..20, vfs in 1usize..20, rounds in 1usize..60) {
            let vfs = vfs.min(count);
            let vms: Vec<_> = (0..count).map(|i| vm(&format!("vm{i}"), 0.0)).collect();
            let mut turns: BTreeMap<String, usize> = vms.iter().map(|c| (c.vm.to_string(), 0)).collect();
            let mut last = None;
            for _ in 0..rounds {
                for name in serve(&vms, vfs, &mut last) {
                    *turns.get_mut(&name).unwrap() += 1;
                }
            }
            let k = rounds * vfs / count;
            prop_assert!(turns.values().all(|turns| (k..=k + 1).contains(turns)), "{turns:?}");
        }
    }
}
