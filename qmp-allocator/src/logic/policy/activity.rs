//! The busiest VMs first (the paper's activity strategy).
//!
//! Equal rates keep what they have, for a switch costs something and gains nothing; then the name
//! decides, so that equal input gives equal output. A VM without a rate, being new, comes last.

use std::cmp::Ordering;

use super::{Candidate, Placed, Policy, Reason, Round};

pub(super) struct Activity;

impl Policy for Activity {
    fn rank(&self, round: Round<'_>) -> Vec<Placed> {
        rank(round.open)
    }

    fn remembers(&self) -> bool {
        false
    }
}

fn rank(open: &[&Candidate]) -> Vec<Placed> {
    let mut order: Vec<(usize, &Candidate)> = open.iter().copied().enumerate().collect();
    order.sort_by(|(_, a), (_, b)| better_first(a, b));
    let count = order.len();
    let placed = |(place, (index, candidate)): (usize, &(usize, &Candidate))| {
        let reason = Reason::Rate { place: place + 1, of: count, pps: candidate.rate_pps };
        Placed::free(*index, reason)
    };
    order.iter().enumerate().map(placed).collect()
}

fn better_first(a: &Candidate, b: &Candidate) -> Ordering {
    let rate = |candidate: &Candidate| candidate.rate_pps.unwrap_or(-1.0);
    rate(b)
        .total_cmp(&rate(a))
        .then_with(|| b.holds_vf.cmp(&a.holds_vf))
        .then_with(|| a.vm.cmp(&b.vm))
}

#[cfg(test)]
mod tests {
    use super::super::tests::vm;
    use super::*;
    use proptest::prelude::*;

    fn first(vms: &[Candidate], count: usize) -> Vec<String> {
        let open: Vec<_> = vms.iter().collect();
        rank(&open).into_iter().take(count).map(|it| vms[it.index].vm.to_string()).collect()
    }

    #[test]
    fn the_busiest_come_first_and_new_ones_last() {
        let mut vms = [vm("new", 0.0), vm("slow", 1.0), vm("fast", 2.0)];
        vms[0].rate_pps = None;
        assert_eq!(first(&vms, 3), ["fast", "slow", "new"]);
    }

    #[test]
    fn equal_rates_keep_what_they_have() {
        let mut vms = [vm("a", 7.0), vm("b", 7.0)];
        vms[1].holds_vf = true;
        assert_eq!(first(&vms, 1), ["b"]);
    }

    proptest! {
        #[test]
        fn no_other_choice_sums_to_more(rates in proptest::collection::vec(0.0..1e6, 1..12), vfs in 1usize..12) {
            let vms: Vec<_> = rates.iter().enumerate().map(|(i, rate)| vm(&format!("vm{i}"), *rate)).collect();
            let chosen = first(&vms, vfs);
            let sum: f64 = vms.iter().filter(|c| chosen.contains(&c.vm.to_string())).filter_map(|c| c.rate_pps).sum();
            let mut best = rates;
            best.sort_by(|a, b| b.total_cmp(a));
            let most: f64 = best.iter().take(vfs).sum();
            prop_assert!((sum - most).abs() <= 1e-6 * most.max(1.0));
        }
    }
}
