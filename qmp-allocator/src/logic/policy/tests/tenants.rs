//! What tenants are due, under every strategy.

use std::collections::BTreeSet;

use super::*;
use crate::logic::policy::tenant::Tenant;
use crate::logic::policy::two_level::MAX_ERROR_TURNS;

fn tenant(name: &str, weight: u32) -> Tenant {
    let (name, pool) = (name.parse().unwrap(), "default".into());
    Tenant { name, pool, weight, min_vfs: 0, max_vfs: None, reserved_vfs: 0 }
}

fn of(tenant: &str, name: &str, pps: f64) -> Candidate {
    let mut vm = vm(name, pps);
    vm.words.tenant = Some(tenant.parse().unwrap());
    vm
}

fn with(strategy: Strategy, tenants: Vec<Tenant>) -> Rules {
    Rules { tenants: tenants.into(), ..rules(strategy) }
}

fn told(ranking: &Ranking) -> Vec<String> {
    ranking.vms.iter().map(|it| format!("{}: {}", it.vm, it.reason)).collect()
}

#[test]
fn a_reserve_stays_free_until_a_vm_of_the_tenant_wants_it() {
    let tenants = vec![Tenant { reserved_vfs: 1, ..tenant("acme", 1) }];
    let mut vms = [of("acme", "a", 0.0), vm("b", 9.0), vm("c", 8.0), vm("d", 7.0)];
    for strategy in Strategy::ALL {
        vms[0].rate_pps = Some(0.0);
        let ranking = rank(&with(strategy, tenants.clone()), &vms, 2, &mut Memory::default());
        assert_eq!((ranking.winners, ranking.kept), (1, 1), "{strategy:?}");
        vms[0].rate_pps = Some(1.0);
        let ranking = rank(&with(strategy, tenants.clone()), &vms, 2, &mut Memory::default());
        assert_eq!((ranking.winners, ranking.kept), (2, 0), "{strategy:?}");
        assert!(ranking.chosen().any(|chosen| chosen.as_str() == "a"), "{strategy:?}");
    }
}

#[test]
fn a_reason_says_what_a_tenant_is_due() {
    let acme = Tenant { min_vfs: 1, ..tenant("acme", 1) };
    let busy = Tenant { max_vfs: Some(1), ..tenant("busy", 1) };
    let vms = [
        of("acme", "a", 1.0),
        of("busy", "b", 9.0),
        of("busy", "c", 8.0),
        vm("d", 7.0),
        vm("e", 6.0),
    ];
    let rules = with(Strategy::Activity, vec![busy, acme]);
    let ranking = rank(&rules, &vms, 3, &mut Memory::default());
    assert_eq!((ranking.winners, ranking.barred), (3, 1));
    assert_eq!(
        told(&ranking),
        [
            "b: rank 1 of 5 at 9 packets/s",
            "d: rank 3 of 5 at 7 packets/s",
            "a: its tenant is due a VF for it (min_vfs, reserved_vfs)",
            "e: rank 4 of 5 at 6 packets/s",
            "c: its tenant's VMs have, or are to have, the 1 VF(s) that they may (max_vfs)",
        ]
    );
    let ranking =
        rank(&rules, &[vms[0].clone(), vms[3].clone(), vms[4].clone()], 2, &mut Memory::default());
    assert_eq!(told(&ranking)[2], "e: 1 VF(s) are set aside for tenants (min_vfs, reserved_vfs)");
}

#[test]
fn of_more_pins_than_vfs_the_higher_priority_goes_first_and_is_told() {
    let mut vms = [vm("a", 0.0), vm("b", 0.0), vm("c", 9.0)];
    for vm in &mut vms[..2] {
        vm.words.pin = Some(Pin::Vf);
    }
    vms[1].words.priority = 1;
    let ranking = rank(&rules(Strategy::Activity), &vms, 1, &mut Memory::default());
    assert_eq!(ranking.winners, 1);
    assert_eq!(
        told(&ranking)[0],
        "b: pinned to a VF, as 2 VMs for 1 VF(s) are: place 1 by priority, then name"
    );
    assert_eq!(ranking.vms[1].vm.as_str(), "a");
}

#[test]
fn a_pinned_vm_counts_for_its_tenant() {
    let tenants = vec![Tenant { max_vfs: Some(1), ..tenant("acme", 1) }];
    let mut vms = [of("acme", "a", 0.0), of("acme", "b", 9.0), vm("c", 1.0)];
    vms[0].words.pin = Some(Pin::Vf);
    let ranking = rank(&with(Strategy::Activity, tenants), &vms, 2, &mut Memory::default());
    let chosen: Vec<_> = ranking.chosen().map(VmName::as_str).collect();
    assert_eq!((chosen, ranking.barred), (vec!["a", "c"], 1));
}

const NAMES: [&str; 3] = ["acme", "busy", "cold"];

/// Tenants whose dues the VFs can meet.
fn tenants_for(vfs: usize) -> impl proptest::strategy::Strategy<Value = Vec<Tenant>> {
    let one = (1u32..5, 0usize..4, proptest::option::of(0usize..5), 0usize..4);
    proptest::collection::vec(one, NAMES.len()).prop_map(move |all| {
        let mut left = vfs;
        type Drawn = (u32, usize, Option<usize>, usize);
        let bounded = |(name, (weight, min, more, reserved)): (&&str, Drawn)| {
            let (min_vfs, reserved_vfs) = (min.min(left), reserved.min(left));
            let due = min_vfs.max(reserved_vfs);
            left -= due;
            let max_vfs = more.map(|more| due + more);
            Tenant { min_vfs, max_vfs, reserved_vfs, ..tenant(name, weight) }
        };
        NAMES.iter().zip(all).map(bounded).collect()
    })
}

type Described = (Option<usize>, Vec<f64>, u8, u32, u8);

fn fleet(vms: &[Described]) -> Vec<Candidate> {
    let make = |(i, (tenant, _, priority, weight, min_percent)): (usize, &Described)| {
        let name = format!("vm{i:02}");
        let mut vm = tenant.map_or_else(|| vm(&name, 0.0), |it| of(NAMES[it], &name, 0.0));
        (vm.words.priority, vm.words.weight) = (*priority, *weight);
        vm.words.min_percent = *min_percent;
        vm
    };
    vms.iter().enumerate().map(make).collect()
}

fn described(rounds: usize) -> impl proptest::strategy::Strategy<Value = Vec<Described>> {
    let pps = prop_oneof![Just(0.0), 1.0..1e4];
    let tenant = proptest::option::weighted(0.7, 0..NAMES.len());
    let percent = prop_oneof![4 => Just(0u8), 1 => 1..=50u8];
    let vm = (tenant, proptest::collection::vec(pps, rounds), 0u8..3, 1u32..9, percent);
    proptest::collection::vec(vm, 1..25)
}

const ROUNDS: usize = 12;

proptest! {
    #[test]
    fn least_and_most_of_a_tenant_hold_in_every_round_and_no_vf_lies_idle_for_nothing(
        (vfs, tenants) in (0usize..12).prop_flat_map(|vfs| (Just(vfs), tenants_for(vfs))),
        vms in described(ROUNDS), strategy in proptest::sample::select(&Strategy::ALL[..]),
        margin in 0u32..50, hold in 0u32..4
    ) {
        let tuning = steady(margin, hold).tuning;
        let rules = Rules { tuning, ..with(strategy, tenants.clone()) };
        let mut memory = Memory::default();
        let mut fleet = fleet(&vms);
        for round in 0..ROUNDS {
            for (vm, (_, pps, ..)) in fleet.iter_mut().zip(&vms) {
                vm.rate_pps = Some(pps[round]);
            }
            let ranking = rank(&rules, &fleet, vfs, &mut memory);
            let chosen: BTreeSet<VmName> = ranking.chosen().cloned().collect();
            prop_assert_eq!(chosen.len(), ranking.winners);
            prop_assert_eq!(ranking.vms.len(), fleet.len());
            prop_assert!(ranking.winners + ranking.kept <= vfs);
            let mut unmet = 0;
            for it in &tenants {
                let own = || fleet.iter().filter(|vm| vm.words.tenant.as_ref() == Some(&it.name));
                let served = own().filter(|vm| chosen.contains(&vm.vm)).count();
                let wanting = own().filter(|vm| vm.rate_pps >= Some(1.0)).count();
                let due = it.min_vfs.max(it.reserved_vfs).min(wanting);
                let served_wanting = own()
                    .filter(|vm| chosen.contains(&vm.vm) && vm.rate_pps >= Some(1.0)).count();
                prop_assert!(served <= it.max_vfs.unwrap_or(usize::MAX), "{} has {served}", it.name);
                prop_assert!(served_wanting >= due, "{}: {served_wanting} of {due}", it.name);
                unmet += it.reserved_vfs.saturating_sub(served);
            }
            prop_assert!(ranking.kept >= unmet.min(vfs - ranking.winners));
            if ranking.winners + ranking.kept < vfs {
                prop_assert_eq!(ranking.winners + ranking.barred, fleet.len());
            }
            for vm in &mut fleet {
                vm.holds_vf = chosen.contains(&vm.vm);
            }
        }
    }

    #[test]
    fn weighted_keeps_to_the_shares_of_tenants_and_of_their_vms(
        (vfs, tenants) in (1usize..10).prop_flat_map(|vfs| (Just(vfs), tenants_for(vfs))),
        vms in described(0), rounds in 1usize..200, alike in any::<bool>()
    ) {
        let tenants: Vec<_> =
            tenants.into_iter().map(|it| Tenant { reserved_vfs: 0, max_vfs: it.max_vfs.or(Some(99)), ..it }).collect();
        let mut fleet = fleet(&vms);
        for vm in &mut fleet {
            (vm.words.priority, vm.words.min_percent, vm.rate_pps) = (0, 0, Some(5.0));
        }
        let strategy = if alike { Strategy::Fair } else { Strategy::Weighted };
        let shares = naive(&fleet, &tenants, vfs, alike);
        let rules = with(strategy, tenants.clone());
        let mut memory = Memory::default();
        let mut turns = vec![0.0; fleet.len()];
        for round in 1..=rounds {
            let ranking = rank(&rules, &fleet, vfs, &mut memory);
            let chosen: BTreeSet<VmName> = ranking.chosen().cloned().collect();
            for (vm, turns) in fleet.iter_mut().zip(&mut turns) {
                vm.holds_vf = chosen.contains(&vm.vm);
                *turns += f64::from(u8::from(vm.holds_vf));
            }
            for it in &tenants {
                let own = |i: &usize| fleet[*i].words.tenant.as_ref() == Some(&it.name);
                let error: f64 = (0..fleet.len()).filter(own).map(|i| turns[i] - shares[i] * round as f64).sum();
                prop_assert!(error.abs() <= MAX_ERROR_TURNS, "{} is {error} turns off", it.name);
            }
            for (i, share) in shares.iter().enumerate() {
                let error: f64 = turns[i] - share * round as f64;
                prop_assert!(error.abs() <= MAX_ERROR_TURNS, "vm{i} with a share of {share}: {error} turns off");
            }
        }
    }
}

/// Shares of VMs, by repetition: whoever is beyond a bound is set to it and left out of the next try.
fn naive(fleet: &[Candidate], tenants: &[Tenant], vfs: usize, alike: bool) -> Vec<f64> {
    let mut parties: Vec<(Vec<usize>, f64, f64, f64)> = Vec::new();
    for it in tenants {
        let own: Vec<usize> = (0..fleet.len())
            .filter(|i| fleet[*i].words.tenant.as_ref() == Some(&it.name))
            .collect();
        let most = it.max_vfs.unwrap_or(usize::MAX).min(own.len());
        let weight = if alike { own.len() as f64 } else { f64::from(it.weight) };
        if !own.is_empty() {
            parties.push((own, weight, it.min_vfs.min(most) as f64, most as f64));
        }
    }
    let weight = |i: usize| if alike { 1.0 } else { f64::from(fleet[i].words.weight) };
    let single = |i: &usize| fleet[*i].words.tenant.is_none();
    parties.extend((0..fleet.len()).filter(single).map(|i| (vec![i], weight(i), 0.0, 1.0)));
    let bounds: Vec<_> =
        parties.iter().map(|(_, weight, least, most)| (*weight, *least, *most)).collect();
    let of_parties = filled(&bounds, vfs as f64);
    let mut shares = vec![0.0; fleet.len()];
    for ((own, ..), share) in parties.iter().zip(of_parties) {
        let bounds: Vec<_> = own.iter().map(|i| (weight(*i), 0.0, 1.0)).collect();
        for (i, share) in own.iter().zip(filled(&bounds, share)) {
            shares[*i] = share;
        }
    }
    shares
}

fn filled(parties: &[(f64, f64, f64)], total: f64) -> Vec<f64> {
    let mut fixed: Vec<Option<f64>> = vec![None; parties.len()];
    loop {
        let left = total - fixed.iter().flatten().sum::<f64>();
        let open = parties.iter().zip(&fixed).filter(|(_, fixed)| fixed.is_none());
        let weights: f64 = open.map(|((weight, ..), _)| weight).sum();
        let share = |i: usize| fixed[i].unwrap_or(parties[i].0 * left / weights);
        let over = |i: usize| (share(i) - parties[i].2).max(0.0);
        let under = |i: usize| (parties[i].1 - share(i)).max(0.0);
        let all = || (0..parties.len()).filter(|i| fixed[*i].is_none());
        let (most, least): (f64, f64) = (all().map(over).sum(), all().map(under).sum());
        if most <= 1e-12 && least <= 1e-12 {
            return (0..parties.len()).map(share).collect();
        }
        let beyond: Vec<usize> = if most >= least {
            all().filter(|i| over(*i) > 0.0).collect()
        } else {
            all().filter(|i| under(*i) > 0.0).collect()
        };
        for i in beyond {
            fixed[i] = Some(if most >= least { parties[i].2 } else { parties[i].1 });
        }
    }
}
