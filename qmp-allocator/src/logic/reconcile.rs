//! What a pool's VMs have, against what they are to have: the next steps.
//!
//! A pure function of what is seen now. It is called after every event and may be called at any time:
//! whatever earlier steps came to, it starts from what is so. It never moves a VM that is on its way,
//! and it takes a VF from a VM only for a better-ranked one that could use it at once.

use flexvf_protocol::VmName;

use super::policy::Ranked;
use super::vf::VfId;

/// Whom a policy chose: the first `winners` of the ranking, and who is next if a VF is left over.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Best first.
    pub ranking: Vec<Ranked>,
    /// How many of them are to have a VF.
    pub winners: usize,
}

/// A VM as seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VmView {
    /// Its name.
    pub vm: VmName,
    /// What it has.
    pub hold: Hold,
    /// Must not keep a VF, for this reason (pinned to PV, its registration is gone).
    pub must_leave: Option<String>,
}

/// What a VM has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// PV only; `ready` when it could take a VF now.
    Pv {
        /// QEMU and agent answer, a root port is empty, no failed try was a moment ago.
        ready: bool,
    },
    /// A VF.
    Vf,
    /// On its way to a VF, or from one that will not come back soon (quarantined).
    Arriving,
    /// On its way back: its VF will be free.
    Leaving,
}

/// A pool as seen now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolView {
    /// All its VMs, by name.
    pub vms: Vec<VmView>,
    /// VFs that may be given away, by name.
    pub free: Vec<VfId>,
    /// VFs that the pool can use at all: free ones and those that VMs have.
    pub usable: usize,
    /// Switches that may be begun now.
    pub budget: usize,
}

/// One switch to begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Plug this VF into that VM.
    Give {
        /// Who gets it.
        vm: VmName,
        /// What.
        vf: VfId,
        /// In words.
        reason: String,
    },
    /// Take the VF back.
    Take {
        /// From whom.
        vm: VmName,
        /// In words.
        reason: String,
    },
}

/// The switches to begin now.
pub fn reconcile(seen: &PoolView, desired: &Desired) -> Vec<Step> {
    let rank = |vm: &VmName| desired.ranking.iter().position(|ranked| ranked.vm == *vm);
    // A VF that has failed since the decision costs the last winner its place, not the first.
    let winners = desired.winners.min(seen.usable);
    let wins = |vm: &VmName| rank(vm).is_some_and(|place| place < winners);
    let needy: Vec<(&VmView, &Ranked)> = in_rank_order(seen, desired)
        .filter(|(view, _)| wins(&view.vm) && view.may_take())
        .collect();
    let leaving = seen.vms.iter().filter(|view| view.hold == Hold::Leaving).count();

    let holders = || seen.vms.iter().filter(|view| view.hold == Hold::Vf);
    let mut steps: Vec<Step> = holders()
        .filter_map(|view| Some((view, view.must_leave.clone()?)))
        .map(|(view, reason)| Step::Take { vm: view.vm.clone(), reason })
        .collect();
    let coming = seen.free.len() + leaving + steps.len();
    let mut losers: Vec<&VmView> =
        holders().filter(|view| view.must_leave.is_none() && !wins(&view.vm)).collect();
    losers.sort_by_key(|view| std::cmp::Reverse(rank(&view.vm).unwrap_or(usize::MAX)));
    let taken = losers.into_iter().take(needy.len().saturating_sub(coming));
    steps.extend(taken.map(|view| take_for(view, &needy, desired)));

    let others = spare_takers(seen, desired, wins);
    let spare = seen.free.len().saturating_sub(needy.len());
    let takers = needy.into_iter().map(|(view, ranked)| (view, ranked.reason.clone()));
    let takers = takers.chain(others.into_iter().take(spare));
    steps.extend(takers.zip(&seen.free).map(|((view, reason), vf)| Step::Give {
        vm: view.vm.clone(),
        vf: vf.clone(),
        reason,
    }));
    steps.truncate(seen.budget);
    steps
}

impl VmView {
    fn may_take(&self) -> bool {
        self.must_leave.is_none() && self.hold == Hold::Pv { ready: true }
    }
}

fn in_rank_order<'a>(
    seen: &'a PoolView,
    desired: &'a Desired,
) -> impl Iterator<Item = (&'a VmView, &'a Ranked)> {
    desired.ranking.iter().filter_map(|ranked| {
        seen.vms.iter().find(|view| view.vm == ranked.vm).map(|view| (view, ranked))
    })
}

fn take_for(loser: &VmView, needy: &[(&VmView, &Ranked)], desired: &Desired) -> Step {
    let own = desired.ranking.iter().find(|ranked| ranked.vm == loser.vm);
    let own = own.map_or("not ranked", |ranked| ranked.reason.as_str());
    let reason = match needy {
        [(view, ranked)] => format!("{own}; {} takes it: {}", view.vm, ranked.reason),
        _ => own.to_owned(),
    };
    Step::Take { vm: loser.vm.clone(), reason }
}

/// Who may have what the winners leave over: the rest of the ranking, and VMs newer than it only
/// while there is a VF for everyone (a new VM starts on PV: the paper's Algorithm 1).
fn spare_takers<'a>(
    seen: &'a PoolView,
    desired: &'a Desired,
    wins: impl Fn(&VmName) -> bool,
) -> Vec<(&'a VmView, String)> {
    let is_ranked = |vm: &VmName| desired.ranking.iter().any(|ranked| ranked.vm == *vm);
    let ranked = in_rank_order(seen, desired)
        .filter(|(view, _)| !wins(&view.vm))
        .map(|(view, ranked)| (view, format!("a VF is left over; {}", ranked.reason)));
    let all_fit = seen.vms.iter().filter(|view| view.must_leave.is_none()).count() <= seen.usable;
    let reason = format!("{} VMs, {} VFs: all have one", seen.vms.len(), seen.usable);
    let new = seen
        .vms
        .iter()
        .filter(|view| all_fit && !is_ranked(&view.vm))
        .map(|view| (view, reason.clone()));
    ranked.chain(new).filter(|(view, _)| view.may_take()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ON_PV: Hold = Hold::Pv { ready: true };

    fn view(vm: &str, hold: Hold) -> VmView {
        VmView { vm: vm.parse().unwrap(), hold, must_leave: None }
    }

    fn pool(vms: Vec<VmView>, free: &[&str]) -> PoolView {
        let held = vms.iter().filter(|view| !matches!(view.hold, Hold::Pv { .. })).count();
        let usable = held + free.len();
        PoolView { vms, free: free.iter().map(VfId::new).collect(), usable, budget: 99 }
    }

    fn desired(ranking: &[&str], winners: usize) -> Desired {
        let ranked = |vm: &&str| Ranked { vm: vm.parse().unwrap(), reason: format!("{vm}'s rank") };
        Desired { ranking: ranking.iter().map(ranked).collect(), winners }
    }

    fn told(steps: &[Step]) -> Vec<String> {
        let tell = |step: &Step| match step {
            Step::Give { vm, vf, .. } => format!("{vf} to {vm}"),
            Step::Take { vm, .. } => format!("take {vm}"),
        };
        steps.iter().map(tell).collect()
    }

    #[test]
    fn a_loser_gives_way_to_a_winner_that_is_ready_and_to_no_other() {
        let mut seen = pool(vec![view("a", Hold::Vf), view("b", ON_PV)], &[]);
        let goal = desired(&["b", "a"], 1);
        assert_eq!(told(&reconcile(&seen, &goal)), ["take a"]);
        seen.vms[1].hold = Hold::Pv { ready: false };
        assert!(reconcile(&seen, &goal).is_empty());
    }

    #[test]
    fn nothing_more_is_taken_while_a_vf_is_on_its_way_back() {
        let vms = vec![view("a", Hold::Leaving), view("b", ON_PV), view("c", Hold::Vf)];
        assert!(reconcile(&pool(vms, &[]), &desired(&["b", "a", "c"], 1)).is_empty());
    }

    #[test]
    fn the_worst_ranked_holder_gives_way_first() {
        let vms = vec![view("a", Hold::Vf), view("b", Hold::Vf), view("c", ON_PV)];
        assert_eq!(told(&reconcile(&pool(vms, &[]), &desired(&["c", "b", "a"], 1))), ["take a"]);
    }

    #[test]
    fn a_vf_that_is_left_over_goes_to_the_next_in_rank() {
        let vms = vec![view("a", Hold::Vf), view("b", ON_PV), view("c", ON_PV)];
        let steps = reconcile(&pool(vms, &["v1"]), &desired(&["a", "c", "b"], 1));
        assert_eq!(told(&steps), ["v1 to c"]);
    }

    #[test]
    fn a_new_vm_starts_on_pv_unless_there_is_a_vf_for_everyone() {
        let goal = desired(&["a", "b"], 2);
        let vms =
            || vec![view("a", Hold::Vf), view("b", Hold::Pv { ready: false }), view("new", ON_PV)];
        assert!(reconcile(&pool(vms(), &["v1"]), &goal).is_empty());
        assert_eq!(told(&reconcile(&pool(vms(), &["v1", "v2"]), &goal)), ["v1 to new"]);
    }

    #[test]
    fn a_vm_that_must_leave_leaves_and_gets_nothing() {
        let mut seen = pool(vec![view("a", Hold::Vf), view("b", ON_PV)], &["v1"]);
        for view in &mut seen.vms {
            view.must_leave = Some("pinned to PV".into());
        }
        assert_eq!(told(&reconcile(&seen, &desired(&["b", "a"], 2))), ["take a"]);
    }

    fn worlds() -> impl Strategy<Value = (PoolView, Desired)> {
        let hold = prop_oneof![
            Just(ON_PV),
            Just(Hold::Pv { ready: false }),
            Just(Hold::Vf),
            Just(Hold::Arriving),
            Just(Hold::Leaving)
        ];
        let vms = proptest::collection::vec((hold, proptest::bool::weighted(0.1)), 0..12);
        (vms, 0usize..6, Just((0..12).collect::<Vec<usize>>()).prop_shuffle(), 0usize..8, 0usize..6)
            .prop_map(|(vms, free, order, winners, budget)| {
                let vms: Vec<_> = vms
                    .into_iter()
                    .enumerate()
                    .map(|(i, (hold, leave))| VmView {
                        must_leave: leave.then(|| "must".into()),
                        ..view(&format!("vm{i}"), hold)
                    })
                    .collect();
                let names: Vec<String> = (0..free).map(|i| format!("v{i}")).collect();
                let mut seen = pool(vms, &names.iter().map(String::as_str).collect::<Vec<_>>());
                seen.budget = budget;
                let ranking: Vec<String> =
                    order.iter().take(10).map(|i| format!("vm{i}")).collect();
                (seen, desired(&ranking.iter().map(String::as_str).collect::<Vec<_>>(), winners))
            })
    }

    proptest! {
        #[test]
        fn steps_are_possible_within_budget_and_name_nobody_twice((seen, goal) in worlds()) {
            let steps = reconcile(&seen, &goal);
            prop_assert!(steps.len() <= seen.budget);
            let (mut vms, mut vfs) = (Vec::new(), Vec::new());
            for step in &steps {
                let (vm, expected) = match step {
                    Step::Give { vm, vf, .. } => {
                        prop_assert!(seen.free.contains(vf) && !vfs.contains(vf));
                        vfs.push(vf.clone());
                        (vm, ON_PV)
                    }
                    Step::Take { vm, .. } => (vm, Hold::Vf),
                };
                prop_assert!(!vms.contains(vm));
                vms.push(vm.clone());
                let view = seen.vms.iter().find(|view| view.vm == *vm).unwrap();
                prop_assert_eq!(view.hold, expected);
            }
        }

        #[test]
        fn carried_out_over_and_over_it_comes_to_rest_with_every_ready_winner_served((mut seen, goal) in worlds()) {
            seen.budget = 99;
            seen.usable = 99;
            for view in &mut seen.vms {
                if view.hold == Hold::Leaving { view.hold = ON_PV; }
            }
            for round in 0.. {
                let steps = reconcile(&seen, &goal);
                if steps.is_empty() { break; }
                prop_assert!(round < 10, "does not come to rest: {steps:?}");
                for step in steps {
                    let (vm, hold) = match &step {
                        Step::Give { vm, vf, .. } => {
                            seen.free.retain(|free| free != vf);
                            (vm, Hold::Vf)
                        }
                        Step::Take { vm, .. } => {
                            seen.free.push(VfId::new(format!("from-{vm}-{round}")));
                            (vm, ON_PV)
                        }
                    };
                    seen.vms.iter_mut().find(|view| view.vm == *vm).unwrap().hold = hold;
                }
            }
            let place = |vm: &VmName| goal.ranking.iter().position(|ranked| ranked.vm == *vm);
            let waiting = seen.vms.iter().any(|view| view.may_take() && place(&view.vm).is_some_and(|p| p < goal.winners));
            let loser_holds = seen.vms.iter().any(|view| view.hold == Hold::Vf && place(&view.vm).is_none_or(|p| p >= goal.winners));
            prop_assert!(!(waiting && (loser_holds || !seen.free.is_empty())));
        }
    }
}
