//! What every policy owes, and what each one promises.

mod gains;
mod promises;
mod tenants;

use proptest::prelude::*;
use proptest::strategy::Strategy as _;

use super::Strategy;
use super::*;

pub(super) const INTERVAL: Duration = Duration::from_secs(300);

pub(super) fn vm(name: &str, rate_pps: f64) -> Candidate {
    Candidate {
        vm: name.parse().unwrap(),
        rate_pps: Some(rate_pps),
        holds_vf: false,
        words: Words::default(),
        switch_took: None,
    }
}

pub(super) fn rules(strategy: Strategy) -> Rules {
    Rules { strategy, tuning: Tuning::default(), interval: INTERVAL, tenants: Tenants::default() }
}

/// Hysteresis of every kind.
pub(super) fn steady(margin_percent: u32, hold_rounds: u32) -> Rules {
    let min_hold = INTERVAL * hold_rounds;
    let tuning = Tuning { margin_percent, min_hold, ..Tuning::default() };
    Rules { tuning, ..rules(Strategy::Activity) }
}

fn names(ranking: &Ranking) -> Vec<&str> {
    ranking.vms.iter().map(|ranked| ranked.vm.as_str()).collect()
}

#[test]
fn pins_go_before_any_rate() {
    let mut vms = [vm("idle", 0.0), vm("busy", 9.0), vm("never", 99.0)];
    vms[0].words.pin = Some(Pin::Vf);
    vms[2].words.pin = Some(Pin::Pv);
    for strategy in Strategy::ALL {
        let ranking = rank(&rules(strategy), &vms, 1, &mut Memory::default());
        assert_eq!(names(&ranking), ["idle", "busy"]);
    }
}

#[test]
fn while_vms_are_no_more_than_vfs_all_have_one() {
    let vms = [vm("a", 0.0), vm("b", 5.0)];
    for strategy in Strategy::ALL {
        let ranking = rank(&rules(strategy), &vms, 2, &mut Memory::default());
        assert_eq!(ranking.vms.len(), 2);
        assert_eq!(ranking.vms[0].reason.to_string(), "2 VMs, 2 VFs: all have one");
    }
}

#[test]
fn a_switch_that_costs_more_than_it_gains_is_not_made() {
    let mut vms = [vm("has", 100.0), vm("wants", 110.0)];
    vms[0].holds_vf = true;
    let mut rules = rules(Strategy::Activity);
    let first = |rules: &Rules, vms: &[Candidate]| {
        rank(rules, vms, 1, &mut Memory::default()).vms[0].vm.to_string()
    };
    assert_eq!(first(&rules, &vms), "wants");
    // Of a round of 300 s, 10 % more is worth 27 s without the VF, not 40 s.
    rules.tuning.switch_cost = Duration::from_secs(20);
    assert_eq!(first(&rules, &vms), "wants");
    rules.tuning.switch_cost = Duration::from_secs(40);
    assert_eq!(first(&rules, &vms), "has");
    // What was measured counts more than what is assumed.
    vms[0].switch_took = Some(Duration::from_secs(1));
    vms[1].switch_took = Some(Duration::from_secs(2));
    assert_eq!(first(&rules, &vms), "wants");
    vms[1].switch_took = Some(Duration::from_secs(60));
    assert_eq!(first(&rules, &vms), "has");
}

#[test]
fn a_reason_says_what_decided() {
    let mut vms = [vm("a", 100.0), vm("b", 110.0)];
    vms[0].holds_vf = true;
    let told = |rules: &Rules, memory: &mut Memory| {
        let ranking = rank(rules, &vms, 1, memory);
        ranking.vms.iter().map(|it| format!("{}: {}", it.vm, it.reason)).collect::<Vec<_>>()
    };
    let mut memory = Memory::default();
    let counted = "a: rank 1 of 2 at 100 packets/s, counted as 120";
    assert_eq!(told(&steady(20, 0), &mut memory)[0], counted);
    assert_eq!(told(&steady(20, 3), &mut memory)[0], "a: keeps its VF for 2 more round(s)");
    let shared = told(&rules(Strategy::Weighted), &mut Memory::default());
    assert_eq!(shared[0], "a: its share is 0.500 of a VF; it is owed 0.50 turns");
    let mut rules = rules(Strategy::Hybrid);
    rules.tuning.max_wait = INTERVAL;
    let mut memory = Memory::default();
    assert_eq!(told(&rules, &mut memory)[0], "b: rank 1 of 2 at 110 packets/s, counted as 110");
    assert_eq!(told(&rules, &mut memory)[0], "a: has waited 1 round(s), and 1 are allowed");
}

#[test]
fn who_stays_away_is_forgotten_and_who_comes_back_soon_is_not() {
    let rules = rules(Strategy::Weighted);
    let vms = [vm("a", 0.0), vm("b", 0.0), vm("c", 0.0)];
    let mut memory = Memory::default();
    rank(&rules, &vms, 1, &mut memory);
    let owed = |memory: &Memory| {
        let found = memory.standings.iter().find(|(vm, _)| *vm == vms[0].vm);
        found.map(|(_, standing)| standing.owed)
    };
    let owes = owed(&memory);
    assert!(owes.unwrap() < 0);
    rank(&rules, &vms[1..], 1, &mut memory);
    assert_eq!(owed(&memory), owes);
    for _ in 0..4 {
        rank(&rules, &vms[1..], 1, &mut memory);
    }
    assert_eq!(owed(&memory), None);
}

#[test]
fn guarantees_that_come_to_more_than_the_vfs_are_cut_alike() {
    let mut vms = [vm("a", 1.0), vm("b", 1.0), vm("c", 9.0)];
    (vms[0].words.min_percent, vms[1].words.min_percent) = (100, 50);
    let mut memory = Memory::default();
    let mut turns = [0, 0, 0];
    for _ in 0..300 {
        let ranking = rank(&rules(Strategy::Activity), &vms, 1, &mut memory);
        turns[vms.iter().position(|it| it.vm == ranking.vms[0].vm).unwrap()] += 1;
    }
    assert!((198..=202).contains(&turns[0]) && (98..=102).contains(&turns[1]), "{turns:?}");
}

#[test]
fn pins_go_before_guarantees_and_these_before_priorities() {
    let mut vms = [vm("pinned", 0.0), vm("sure", 1.0), vm("high", 2.0), vm("busy", 9.0)];
    vms[0].words.pin = Some(Pin::Vf);
    vms[1].words.min_percent = 1;
    vms[2].words.priority = 1;
    for strategy in Strategy::ALL {
        let ranking = rank(&rules(strategy), &vms, 3, &mut Memory::default());
        assert_eq!(names(&ranking), ["pinned", "sure", "high", "busy"]);
        let told: Vec<_> = ranking.vms.iter().map(|it| it.reason.to_string()).collect();
        assert_eq!(told[1], "guaranteed 1 % of the rounds, and this one is due");
        assert_eq!(told[2], "priority 1 goes before others");
        assert_eq!(told[3], "priority 0: VMs of higher priorities have all VFs");
    }
}

/// A pool, and what happens to it round after round.
fn pools() -> impl proptest::strategy::Strategy<Value = (Vec<Candidate>, usize)> {
    let pin = proptest::option::weighted(0.2, prop_oneof![Just(Pin::Vf), Just(Pin::Pv)]);
    let took = proptest::option::of((0u64..1000).prop_map(Duration::from_secs));
    let words = (pin, 1u32..=1000, 0u8..3, prop_oneof![3 => Just(0u8), 1 => 1..=100u8]);
    let one = (proptest::option::of(0.0..1e6), any::<bool>(), words, took);
    let all = proptest::collection::vec(one, 0..30).prop_map(|vms| {
        let make = |(i, (rate_pps, holds_vf, words, switch_took))| {
            let (pin, weight, priority, min_percent) = words;
            Candidate {
                vm: format!("vm{i}").parse().unwrap(),
                rate_pps,
                holds_vf,
                words: Words { pin, weight, priority, min_percent, tenant: None },
                switch_took,
            }
        };
        vms.into_iter().enumerate().map(make).collect()
    });
    (all, 0usize..12)
}

fn any_rules() -> impl proptest::strategy::Strategy<Value = Rules> {
    let tuning = (0u32..200, 0u32..5, 0u64..100, 1u32..20, 0u32..1000);
    (proptest::sample::select(&Strategy::ALL[..]), tuning).prop_map(
        |(strategy, (margin_percent, hold, cost, wait, wants_pps))| Rules {
            strategy,
            tuning: Tuning {
                margin_percent,
                min_hold: INTERVAL * hold,
                switch_cost: Duration::from_secs(cost),
                max_wait: INTERVAL * wait,
                wants_pps,
                ..Tuning::default()
            },
            interval: INTERVAL,
            tenants: Tenants::default(),
        },
    )
}

proptest! {
    #[test]
    fn every_vm_but_those_pinned_to_pv_is_named_exactly_once_in_every_round(
        rules in any_rules(), rounds in proptest::collection::vec(pools(), 1..6)
    ) {
        let mut memory = Memory::default();
        for (vms, vfs) in rounds {
            let ranking = rank(&rules, &vms, vfs, &mut memory);
            let mut got: Vec<_> = ranking.vms.into_iter().map(|ranked| ranked.vm).collect();
            got.sort();
            let mut expected: Vec<_> =
                vms.iter().filter(|c| c.words.pin != Some(Pin::Pv)).map(|c| c.vm.clone()).collect();
            expected.sort();
            prop_assert_eq!(got, expected);
            prop_assert!(memory.standings.len() <= 30);
        }
    }

    #[test]
    fn equal_input_gives_equal_output_in_any_order_and_through_the_state_file(
        rules in any_rules(), rounds in proptest::collection::vec(pools(), 1..6)
    ) {
        let (mut memory, mut other) = (Memory::default(), Memory::default());
        for (vms, vfs) in rounds {
            let ranking = rank(&rules, &vms, vfs, &mut memory);
            let turned: Vec<_> = vms.iter().rev().cloned().collect();
            let again = rank(&rules, &turned, vfs, &mut other);
            // Pinned ones come as they are given, and all of them first.
            let free = |ranking: Ranking| -> Vec<Ranked> {
                ranking.vms.into_iter().filter(|it| it.reason != Reason::PinnedToVf).collect()
            };
            prop_assert_eq!(free(ranking), free(again));
            let text = serde_json::to_string(&other).unwrap();
            other = serde_json::from_str(&text).unwrap();
            prop_assert_eq!(&memory, &other);
        }
    }

    #[test]
    fn nothing_that_a_state_file_may_say_breaks_a_policy(
        rules in any_rules(), (vms, vfs) in pools(), found in any::<[(u32, u32, i64, i64, u32); 8]>()
    ) {
        let standing = |(i, (held, missed, owed, due, away))| {
            (format!("vm{i}").parse().unwrap(), Standing { held, missed, owed, due, away })
        };
        let standings = found.into_iter().enumerate().map(standing).collect();
        let mut memory = Memory { standings, ..Memory::default() };
        for _ in 0..3 {
            let ranking = rank(&rules, &vms, vfs, &mut memory);
            prop_assert!(ranking.vms.len() <= vms.len());
        }
    }
}
