//! Small pools, and all of them against what must hold of any plan.

use super::*;
use proptest::prelude::*;

/// What a VM of these tests has.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Has {
    /// Nothing; and it could take a VF, or not.
    Nothing(bool),
    /// A VF.
    A(Hold),
}

const READY: Has = Has::Nothing(true);
const UNREADY: Has = Has::Nothing(false);
const ON_VF: Has = Has::A(Hold::Vf);

fn desired(ranking: &[&str], winners: usize) -> Desired {
    let count = ranking.len();
    let ranked = |(at, vm): (usize, &&str)| {
        let reason = Reason::Rate { place: at + 1, of: count, pps: Some(7.0) };
        Ranked { vm: vm.parse().unwrap(), reason }
    };
    let ranking = ranking.iter().enumerate().map(ranked).collect();
    Desired { ranking, winners, ..Desired::default() }
}

fn pool(vms: &[(&str, Has)], free: &[&str], goal: &Desired) -> PoolView {
    pool_with(vms, &[], free, goal)
}

fn pool_with(vms: &[(&str, Has)], leaving: &[&str], free: &[&str], goal: &Desired) -> PoolView {
    let place = |vm: &str| goal.ranking.iter().position(|ranked| ranked.vm.as_str() == vm);
    let must_leave = |vm: &str| leaving.contains(&vm).then(|| "must".to_owned());
    let mut holders = Vec::new();
    let mut takers = Vec::new();
    for (name, has) in vms {
        let vm: VmName = name.parse().unwrap();
        match *has {
            Has::A(hold) => {
                let (place, must_leave) = (place(name), must_leave(name));
                holders.push(Holder { vm, place, hold, must_leave, cap: None });
            }
            READY if must_leave(name).is_none() => {
                takers.push(Taker { vm, place: place(name), cap: None })
            }
            Has::Nothing(_) => {}
        }
    }
    holders.sort_by(|a, b| a.vm.cmp(&b.vm));
    takers.sort_by_key(|taker| (taker.place.unwrap_or(usize::MAX), taker.vm.clone()));
    let usable = free.len() + holders.iter().filter(|it| it.hold != Hold::Stuck).count();
    PoolView {
        holders,
        takers,
        all: vms.len(),
        staying: vms.iter().filter(|(vm, _)| must_leave(vm).is_none()).count(),
        free: free.iter().map(VfId::new).collect(),
        usable,
        budget: 99,
    }
}

fn told(steps: &[Step]) -> Vec<String> {
    let tell = |step: &Step| match step {
        Step::Give { vm, vf, .. } => format!("{vf} to {vm}"),
        Step::Take { vm, .. } => format!("take {vm}"),
    };
    steps.iter().map(tell).collect()
}

fn plan(vms: &[(&str, Has)], free: &[&str], goal: &Desired) -> Vec<String> {
    told(&reconcile(&pool(vms, free, goal), goal))
}

#[test]
fn a_loser_gives_way_to_a_winner_that_is_ready_and_to_no_other() {
    let goal = desired(&["b", "a"], 1);
    assert_eq!(plan(&[("a", ON_VF), ("b", READY)], &[], &goal), ["take a"]);
    assert!(plan(&[("a", ON_VF), ("b", UNREADY)], &[], &goal).is_empty());
}

#[test]
fn who_gives_way_is_told_to_whom_and_why() {
    let goal = desired(&["b", "a"], 1);
    let steps = reconcile(&pool(&[("a", ON_VF), ("b", READY)], &[], &goal), &goal);
    let reason = "rank 2 of 2 at 7 packets/s; b takes it: rank 1 of 2 at 7 packets/s".to_owned();
    assert_eq!(steps, [Step::Take { vm: "a".parse().unwrap(), reason }]);
}

#[test]
fn nothing_more_is_taken_while_a_vf_is_on_its_way_back() {
    let vms = [("a", Has::A(Hold::Leaving)), ("b", READY), ("c", ON_VF)];
    assert!(plan(&vms, &[], &desired(&["b", "a", "c"], 1)).is_empty());
}

#[test]
fn a_quarantined_vf_is_not_waited_for() {
    let vms = [("a", Has::A(Hold::Stuck)), ("b", READY), ("c", ON_VF)];
    assert_eq!(plan(&vms, &[], &desired(&["b", "a", "c"], 2)), ["take c"]);
}

#[test]
fn the_worst_ranked_holder_gives_way_first() {
    let vms = [("a", ON_VF), ("b", ON_VF), ("c", READY)];
    assert_eq!(plan(&vms, &[], &desired(&["c", "b", "a"], 1)), ["take a"]);
}

#[test]
fn a_vf_that_is_left_over_goes_to_the_next_in_rank() {
    let vms = [("a", ON_VF), ("b", READY), ("c", READY)];
    assert_eq!(plan(&vms, &["v1"], &desired(&["a", "c", "b"], 1)), ["v1 to c"]);
}

#[test]
fn a_new_vm_starts_on_pv_unless_there_is_a_vf_for_everyone() {
    let goal = desired(&["a", "b"], 2);
    let vms = [("a", ON_VF), ("b", UNREADY), ("new", READY)];
    assert!(plan(&vms, &["v1"], &goal).is_empty());
    assert_eq!(plan(&vms, &["v1", "v2"], &goal), ["v1 to new"]);
}

#[test]
fn a_vm_that_must_leave_leaves_and_gets_nothing() {
    let goal = desired(&["b", "a"], 2);
    let seen = pool_with(&[("a", ON_VF), ("b", READY)], &["a", "b"], &["v1"], &goal);
    assert_eq!(told(&reconcile(&seen, &goal)), ["take a"]);
}

#[test]
fn what_is_kept_free_is_taken_back_and_goes_to_nobody() {
    let mut goal = desired(&["a", "b"], 1);
    goal.kept = 1;
    assert_eq!(plan(&[("a", ON_VF), ("b", ON_VF)], &[], &goal), ["take b"]);
    assert!(plan(&[("a", ON_VF), ("b", READY), ("new", READY)], &["v1"], &goal).is_empty());
    // With one VF less the winner goes before the reserve.
    assert_eq!(plan(&[("a", READY), ("b", READY)], &["v1"], &goal), ["v1 to a"]);
}

#[test]
fn who_is_barred_leaves_though_nobody_needs_its_vf_and_gets_none_that_is_left_over() {
    let mut goal = desired(&["a", "b", "c"], 1);
    goal.barred = 2;
    assert_eq!(plan(&[("a", ON_VF), ("b", ON_VF)], &["v1"], &goal), ["take b"]);
}

/// Tenants of VMs by number, each with its bound.
fn capped(mut view: PoolView, caps: &[usize]) -> PoolView {
    let cap = |vm: &VmName| {
        let number: usize = vm.as_str()[2..].parse().unwrap();
        let max = *caps.get(number % 3)?;
        Some(Cap { tenant: format!("t{}", number % 3).parse().unwrap(), max })
    };
    view.holders.iter_mut().for_each(|it| it.cap = cap(&it.vm));
    view.takers.iter_mut().for_each(|it| it.cap = cap(&it.vm));
    view
}

#[derive(Debug, Clone)]
struct Small {
    vms: Vec<(String, Has, bool)>,
    free: Vec<String>,
    goal: Desired,
}

impl Small {
    fn view(&self) -> PoolView {
        let vms: Vec<_> = self.vms.iter().map(|(vm, has, _)| (vm.as_str(), *has)).collect();
        let leaving = self.vms.iter().filter(|(.., leaves)| *leaves);
        let leaving: Vec<_> = leaving.map(|(vm, ..)| vm.as_str()).collect();
        let free: Vec<_> = self.free.iter().map(String::as_str).collect();
        pool_with(&vms, &leaving, &free, &self.goal)
    }

    fn find(&mut self, vm: &VmName) -> &mut (String, Has, bool) {
        self.vms.iter_mut().find(|(name, ..)| name == vm.as_str()).unwrap()
    }
}

fn worlds() -> impl Strategy<Value = Small> {
    let has = prop_oneof![
        Just(READY),
        Just(UNREADY),
        Just(ON_VF),
        Just(Has::A(Hold::Arriving)),
        Just(Has::A(Hold::Leaving)),
        Just(Has::A(Hold::Stuck)),
    ];
    let vms = proptest::collection::vec((has, proptest::bool::weighted(0.1)), 0..12);
    let order = Just((0..12).collect::<Vec<usize>>()).prop_shuffle();
    (vms, 0usize..6, order, 0usize..8).prop_map(|(vms, free, order, winners)| {
        let ranking: Vec<String> = order.iter().take(10).map(|i| format!("vm{i}")).collect();
        let names: Vec<&str> = ranking.iter().map(String::as_str).collect();
        let vms = vms.into_iter().enumerate();
        Small {
            vms: vms.map(|(i, (has, leaves))| (format!("vm{i}"), has, leaves)).collect(),
            free: (0..free).map(|i| format!("v{i}")).collect(),
            goal: desired(&names, winners),
        }
    })
}

proptest! {
    #[test]
    fn no_tenant_ever_has_more_than_it_may_and_all_winners_are_served(
        order in Just((0..12).collect::<Vec<usize>>()).prop_shuffle(),
        before in Just((0..12).collect::<Vec<usize>>()).prop_shuffle(),
        caps in proptest::collection::vec(0usize..4, 0..3), vfs in 0usize..9, held in 0usize..9,
        most in 0usize..9, budget in 1usize..4
    ) {
        // An order as a decision makes it: no more winners of a tenant than it may have, the others of a full one last.
        let choose = |order: &[usize], vfs: usize| {
            let mut left = [0, 1, 2].map(|tenant| caps.get(tenant).copied().unwrap_or(99));
            let (mut winners, mut others, mut barred) = (Vec::new(), Vec::new(), Vec::new());
            for vm in order {
                if left[vm % 3] == 0 {
                    barred.push(*vm);
                } else if winners.len() < vfs {
                    left[vm % 3] -= 1;
                    winners.push(*vm);
                } else {
                    others.push(*vm);
                }
            }
            (winners, others, barred)
        };
        let (winners, others, barred) = choose(&order, most.min(vfs));
        let names: Vec<String> = [&winners[..], &others, &barred].concat().iter().map(|vm| format!("vm{vm}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let goal = Desired { barred: barred.len(), ..desired(&names, winners.len()) };
        let (holders, ..) = choose(&before, held.min(vfs));
        let mut small = Small {
            vms: (0..12).map(|i| (format!("vm{i}"), if holders.contains(&i) { ON_VF } else { READY }, false)).collect(),
            free: (holders.len()..vfs).map(|i| format!("v{i}")).collect(),
            goal: goal.clone(),
        };
        for round in 0.. {
            let view = capped(small.view(), &caps);
            for (tenant, cap) in caps.iter().enumerate() {
                let name = format!("t{tenant}").parse().unwrap();
                let has = view.holders.iter().filter(|it| it.cap.as_ref().is_some_and(|it| it.tenant == name));
                prop_assert!(has.count() <= *cap);
            }
            let steps = reconcile(&PoolView { budget, ..view }, &goal);
            // What leaves has left a round later.
            let leaves: Vec<_> = small.vms.iter_mut().filter(|(_, has, _)| *has == Has::A(Hold::Leaving)).collect();
            if steps.is_empty() && leaves.is_empty() { break; }
            prop_assert!(round < 60, "does not come to rest: {steps:?}");
            for (vm, has, _) in leaves {
                *has = READY;
                small.free.push(format!("from-{vm}-{round}"));
            }
            for step in steps {
                match step {
                    Step::Give { vm, vf, .. } => {
                        small.free.retain(|free| *free != vf.as_str());
                        small.find(&vm).1 = ON_VF;
                    }
                    Step::Take { vm, .. } => small.find(&vm).1 = Has::A(Hold::Leaving),
                }
            }
        }
        for vm in winners {
            prop_assert_eq!(small.find(&format!("vm{vm}").parse().unwrap()).1, ON_VF);
        }
    }

    #[test]
    fn steps_are_possible_within_budget_and_name_nobody_twice(
        mut small in worlds(), budget in 0usize..6
    ) {
        let seen = PoolView { budget, ..small.view() };
        let steps = reconcile(&seen, &small.goal.clone());
        prop_assert!(steps.len() <= seen.budget);
        let (mut vms, mut vfs) = (Vec::new(), Vec::new());
        for step in &steps {
            let (vm, expected) = match step {
                Step::Give { vm, vf, .. } => {
                    prop_assert!(seen.free.contains(vf) && !vfs.contains(vf));
                    vfs.push(vf.clone());
                    (vm, READY)
                }
                Step::Take { vm, .. } => (vm, ON_VF),
            };
            prop_assert!(!vms.contains(vm));
            vms.push(vm.clone());
            prop_assert_eq!(small.find(vm).1, expected);
        }
    }

    #[test]
    fn carried_out_over_and_over_it_comes_to_rest_with_every_ready_winner_served(
        mut small in worlds()
    ) {
        for (_, has, _) in &mut small.vms {
            if *has == Has::A(Hold::Leaving) { *has = READY; }
        }
        let goal = small.goal.clone();
        for round in 0.. {
            let steps = reconcile(&PoolView { usable: 99, ..small.view() }, &goal);
            if steps.is_empty() { break; }
            prop_assert!(round < 10, "does not come to rest: {steps:?}");
            for step in steps {
                match step {
                    Step::Give { vm, vf, .. } => {
                        small.free.retain(|free| *free != vf.as_str());
                        small.find(&vm).1 = ON_VF;
                    }
                    Step::Take { vm, .. } => {
                        small.free.push(format!("from-{vm}-{round}"));
                        small.find(&vm).1 = READY;
                    }
                }
            }
        }
        let seen = small.view();
        let wins = |place: Option<usize>| place.is_some_and(|place| place < goal.winners);
        let waiting = seen.takers.iter().any(|taker| wins(taker.place));
        let loser_holds = seen.holders.iter().any(|it| it.hold == Hold::Vf && !wins(it.place));
        prop_assert!(!(waiting && (loser_holds || !seen.free.is_empty())));
    }
}
