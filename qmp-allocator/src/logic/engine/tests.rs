//! The engine against a small made-up world, in virtual time.

mod world;

use super::*;
use crate::logic::policy::{Pin, Strategy};
use world::World;

const SECOND: Duration = Duration::from_secs(1);

fn busiest(world: &World) -> Vec<String> {
    world.on_vf()
}

#[test]
fn the_busiest_vms_hold_the_vfs_one_interval_after_each_shift() {
    let mut world = World::new(Strategy::Activity, 3, 2);
    world.set_rates(&[900.0, 500.0, 10.0]);
    world.run(2 * world.interval() + 5 * SECOND);
    assert_eq!(busiest(&world), ["vm0", "vm1"]);
    world.set_rates(&[10.0, 500.0, 900.0]);
    world.run(2 * world.interval());
    assert_eq!(busiest(&world), ["vm1", "vm2"]);
    let taken = world.ends.iter().find(|end| end.record.direction == Direction::ToPv).unwrap();
    assert!(taken.record.reason.contains("rank 3 of 3"), "{}", taken.record.reason);
}

#[test]
fn fair_gives_every_vm_equal_turns() {
    let mut world = World::new(Strategy::Fair, 3, 2);
    world.run(world.interval() * 7 + 5 * SECOND);
    let turns: Vec<u64> = world.engine.vms.values().map(|vm| vm.turns).collect();
    assert_eq!(turns, [4, 4, 4], "six rounds of two VFs");
}

#[test]
fn what_a_policy_counts_outlives_the_daemon() {
    let mut world = World::new(Strategy::Hybrid, 3, 1);
    world.set_rates(&[900.0, 500.0, 10.0]);
    world.engine.settings.tuning.max_wait = world.interval() * 2;
    // The first decision, and nine rounds; a daemon for each.
    for _ in 0..10 {
        world.run(world.interval());
        world.restart_daemon();
    }
    world.run(5 * SECOND);
    let turns: Vec<u64> = world.engine.vms.values().map(|vm| vm.turns).collect();
    assert_eq!(turns, [3, 3, 3], "two rounds may be missed");
}

#[test]
fn while_vms_are_no_more_than_vfs_all_have_one_at_once() {
    let mut world = World::new(Strategy::Fair, 2, 2);
    world.run(5 * SECOND);
    assert_eq!(world.on_vf(), ["vm0", "vm1"]);
}

#[test]
fn a_vm_whose_qemu_cannot_take_a_vf_leaves_it_to_others_until_it_can() {
    let mut world = World::new(Strategy::Activity, 3, 1);
    world.set_rates(&[900.0, 500.0, 10.0]);
    let vm0: VmName = "vm0".parse().unwrap();
    let told = |obstacle: Option<&str>| Event::Obstacle {
        vm: "vm0".parse().unwrap(),
        obstacle: obstacle.map(str::to_owned),
    };
    world.event(told(Some("may lock 8 MiB")));
    world.run(world.interval() + 5 * SECOND);
    assert_eq!(world.on_vf(), ["vm1"]);
    let reason = |world: &World| {
        let status = world.engine.status(world.now);
        status.vms.into_iter().find(|vm| vm.vm == vm0).unwrap().reason
    };
    assert_eq!(reason(&world), "may lock 8 MiB");
    assert!(world.ends.iter().all(|end| end.vm != vm0), "no switch was tried in vain");
    world.event(told(None));
    world.run(2 * world.interval());
    assert_eq!(world.on_vf(), ["vm0"]);
}

#[test]
fn a_vm_with_too_much_memory_to_pin_for_what_it_gains_takes_no_vf_from_another() {
    let mut world = World::new(Strategy::Activity, 2, 1);
    world.engine.settings.tuning.switch_cost = SECOND;
    let memory = |bytes| Event::VmMemory { vm: "vm1".parse().unwrap(), bytes };
    world.event(memory(1 << 50));
    world.set_rates(&[500.0, 10.0]);
    world.run(2 * world.interval() + 5 * SECOND);
    assert_eq!(world.on_vf(), ["vm0"]);
    world.set_rates(&[500.0, 900.0]);
    world.run(3 * world.interval());
    assert_eq!(world.on_vf(), ["vm0"]);
    world.event(memory(1 << 30));
    world.run(2 * world.interval());
    assert_eq!(world.on_vf(), ["vm1"]);
}

#[test]
fn a_vm_gets_a_vf_of_its_own_numa_node() {
    let mut world = World::new(Strategy::Activity, 2, 4);
    let nodes = [("vf2", 1), ("vf3", 0)].map(|(vf, node)| (VfId::new(vf), node));
    world.event(Event::VfNodes { pool: "default".into(), nodes: nodes.into() });
    for (vm, node) in [("vm0", 0), ("vm1", 1)] {
        world.event(Event::VmNode { vm: vm.parse().unwrap(), node: Some(node) });
    }
    world.run(10 * SECOND);
    let vfs: Vec<_> =
        world.engine.vms.values().map(|vm| vm.hold.as_ref().unwrap().0.vf.to_string()).collect();
    assert_eq!(vfs, ["vf3", "vf2"]);
}

#[test]
fn new_vms_start_on_pv_when_vfs_are_fewer() {
    let mut world = World::new(Strategy::Activity, 3, 1);
    world.run(world.interval() / 2);
    assert!(world.on_vf().is_empty());
}

#[test]
fn the_end_of_qemu_gives_its_vf_to_the_next_in_rank() {
    let mut world = World::new(Strategy::Activity, 3, 1);
    world.set_rates(&[900.0, 500.0, 10.0]);
    world.run(world.interval() + 5 * SECOND);
    assert_eq!(world.on_vf(), ["vm0"]);
    world.kill_qemu("vm0");
    world.run(5 * SECOND);
    assert_eq!(world.on_vf(), ["vm1"]);
}

#[test]
fn a_guest_that_keeps_its_vf_costs_one_vf_and_delays_nobody() {
    let mut world = World::new(Strategy::Fair, 4, 2);
    world.run(world.interval() + 5 * SECOND);
    assert_eq!(world.on_vf(), ["vm0", "vm1"]);
    world.refuses_unplug = Some("vm0".parse().unwrap());
    world.run(world.interval());
    assert!(world.on_vf().contains(&"vm2".to_owned()), "{:?}", world.on_vf());
    world.run(world.interval());
    let status = world.engine.status(world.now);
    let states: Vec<_> = status.pools[0].vfs.iter().map(|vf| vf.state).collect();
    assert!(states.contains(&"quarantined"), "{states:?}");
    world.refuses_unplug = None;
    world.run(world.interval());
    let status = world.engine.status(world.now);
    assert!(status.pools[0].vfs.iter().all(|vf| vf.state == "held"), "healed: {:?}", status.pools);
}

#[test]
fn a_daemon_killed_at_any_moment_of_a_round_loses_no_vf_and_completes_the_round() {
    for millis in (0..6000).step_by(130) {
        let mut world = World::new(Strategy::Activity, 3, 1);
        world.set_rates(&[900.0, 10.0, 10.0]);
        world.run(world.interval() + 5 * SECOND);
        world.set_rates(&[10.0, 900.0, 10.0]);
        // Into the round that moves the VF from vm0 to vm1.
        world.run(world.interval() - 5 * SECOND + Duration::from_millis(millis));
        world.restart_daemon();
        world.run(world.interval() / 2);
        assert_eq!(world.on_vf(), ["vm1"], "killed {millis} ms into the round");
    }
}

#[test]
fn a_vm_that_leaves_the_registry_gives_its_vf_back_and_is_forgotten() {
    let mut world = World::new(Strategy::Activity, 2, 1);
    world.set_rates(&[900.0, 10.0]);
    world.run(world.interval() + 5 * SECOND);
    world.event(Event::Unregistered("vm0".parse().unwrap()));
    world.run(10 * SECOND);
    assert_eq!(world.on_vf(), ["vm1"]);
    assert_eq!(world.engine.vms.len(), 1);
}

#[test]
fn a_pin_to_pv_takes_the_vf_at_once() {
    let mut world = World::new(Strategy::Activity, 1, 1);
    world.run(5 * SECOND);
    assert_eq!(world.on_vf(), ["vm0"]);
    let spec =
        VmSpec { pool: "default".into(), words: Words { pin: Some(Pin::Pv), ..Words::default() } };
    world.event(Event::Registered { vm: "vm0".parse().unwrap(), spec });
    world.run(5 * SECOND);
    assert!(world.on_vf().is_empty());
}

#[test]
fn a_vf_that_cannot_be_prepared_rests_and_another_serves() {
    let mut world = World::new(Strategy::Activity, 3, 2);
    world.broken_vf = Some(VfId::new("vf0"));
    world.set_rates(&[900.0, 10.0, 5.0]);
    world.run(world.interval() + 5 * SECOND);
    assert_eq!(world.on_vf(), ["vm0"]);
    let resting = world.engine.status(world.now).pools[0].vfs[0].clone();
    assert_eq!((resting.state, resting.reason.as_deref()), ("resting", Some("in use by another")));
}

#[test]
fn a_vf_that_cannot_be_plugged_gives_way_to_another_at_the_next_try() {
    let mut world = World::new(Strategy::Activity, 1, 2);
    world.unpluggable_vf = Some(VfId::new("vf0"));
    world.run(30 * SECOND);
    assert_eq!(world.on_vf(), ["vm0"]);
}

fn moving(world: &World) -> [usize; 2] {
    let of = |phase: Phase| {
        world.engine.vms.values().filter(|vm| vm.phase().as_ref() == Some(&phase)).count()
    };
    [of(Phase::ToVf), of(Phase::ToPv)]
}

#[test]
fn plugs_and_unplugs_of_different_vms_overlap_and_are_no_more_than_may_be() {
    let mut world = World::new(Strategy::Activity, 12, 6);
    let busy = |vm: usize, first: bool| if (vm < 6) == first { 900.0 - vm as f64 } else { 10.0 };
    world.set_rates(&(0..12).map(|vm| busy(vm, true)).collect::<Vec<_>>());
    world.run(world.interval() + 30 * SECOND);
    assert_eq!(world.on_vf(), ["vm0", "vm1", "vm2", "vm3", "vm4", "vm5"]);
    world.set_rates(&(0..12).map(|vm| busy(vm, false)).collect::<Vec<_>>());
    let most = world.engine.settings.max_concurrent_switches;
    let (mut overlapped, mut full) = (false, false);
    for _ in 0..120 * 20 {
        world.run(SECOND / 20);
        let [to_vf, to_pv] = moving(&world);
        assert!(to_vf + to_pv <= most, "{to_vf} and {to_pv}, allowed are {most}");
        overlapped |= to_vf > 0 && to_pv > 0;
        full |= to_vf + to_pv == most;
    }
    assert_eq!(world.on_vf(), ["vm10", "vm11", "vm6", "vm7", "vm8", "vm9"]);
    assert!(overlapped && full, "overlapped: {overlapped}, as many as may be: {full}");
}

#[test]
fn no_plug_waits_for_the_unplug_of_another_vf() {
    let mut world = World::new(Strategy::Activity, 4, 2);
    world.set_rates(&[900.0, 800.0, 10.0, 5.0]);
    world.run(world.interval() + 5 * SECOND);
    assert_eq!(world.on_vf(), ["vm0", "vm1"]);
    world.refuses_unplug = Some("vm1".parse().unwrap());
    world.set_rates(&[10.0, 5.0, 900.0, 800.0]);
    while world.on_vf().len() == 2 {
        world.run(SECOND / 10);
    }
    world.run(5 * SECOND);
    assert_eq!(moving(&world), [0, 1], "vm1 is still being asked for its VF");
    assert_eq!(world.on_vf(), ["vm2"], "which has the other one");
}

#[test]
fn a_cleared_vf_is_given_away_only_once_qemu_has_let_it_go_and_then_at_once() {
    let mut world = World::new(Strategy::Activity, 2, 1);
    world.set_rates(&[900.0, 10.0]);
    world.run(world.interval() + 5 * SECOND);
    world.refuses_unplug = Some("vm0".parse().unwrap());
    world.set_rates(&[10.0, 900.0]);
    let state = |world: &World| world.engine.status(world.now).pools[0].vfs[0].state;
    while state(&world) != "quarantined" {
        world.run(SECOND / 10);
    }
    world.event(Event::Clear(VfId::new("vf0")));
    world.run(5 * SECOND);
    assert_eq!((state(&world), world.on_vf().len()), ("quarantined", 0));
    // Less than the pause between two looks of the engine's own.
    world.refuses_unplug = None;
    world.event(Event::Clear(VfId::new("vf0")));
    world.run(3 * SECOND);
    assert_eq!(world.on_vf(), ["vm1"]);
}

#[test]
fn a_vf_that_rests_may_be_tried_again_at_once() {
    let mut world = World::new(Strategy::Activity, 1, 1);
    world.broken_vf = Some(VfId::new("vf0"));
    world.run(5 * SECOND);
    let vf = world.engine.status(world.now).pools[0].vfs[0].clone();
    assert_eq!(vf.state, "resting");
    world.broken_vf = None;
    world.event(Event::Clear(vf.vf));
    world.run(3 * SECOND);
    assert_eq!(world.on_vf(), ["vm0"]);
}

#[test]
fn a_decision_is_told_with_its_inputs_and_what_would_change_now() {
    let mut world = World::new(Strategy::Activity, 3, 1);
    world.set_rates(&[900.0, 500.0, 10.0]);
    world.run(world.interval() + 5 * SECOND);
    let [told] = world.engine.decisions().try_into().unwrap();
    let shown: Vec<_> = told.vms.iter().map(|it| (it.vm.as_str(), it.had_vf)).collect();
    assert_eq!(shown, [("vm0", false), ("vm1", false), ("vm2", false)]);
    assert_eq!((told.round, told.vfs, told.vms[0].displaces.clone()), (1, 1, None));
    let status = world.engine.status(world.now);
    assert_eq!(told.vms[0].pps, status.vms[0].last_interval.as_ref().map(|it| it.rate.pps));

    // In the middle of an interval: what was sent in it so far counts, and goes on counting.
    world.set_rates(&[10.0, 500.0, 900.0]);
    world.run(world.interval() * 4 / 5);
    let before = world.engine.saved(world.now);
    let [question] = world.engine.questions(world.now).try_into().unwrap();
    let now = question.decide();
    let [best, .., worst] = &now.vms[..] else { panic!("{now:?}") };
    assert_eq!((best.vm.as_str(), worst.vm.as_str()), ("vm2", "vm0"));
    assert_eq!(best.displaces.as_ref(), Some(&worst.vm));
    assert_eq!(world.engine.saved(world.now), before);
    world.run(world.interval());
    assert_eq!(world.engine.decisions()[0].vms[0].vm.as_str(), "vm2");
}

/// An engine whose VMs have sent at these rates for an interval and a bit, and when that is.
pub(in crate::logic) fn world_after_a_decision(pps: &[f64], vfs: usize) -> (Engine, Duration) {
    let mut world = World::new(Strategy::Activity, pps.len(), vfs);
    world.set_rates(pps);
    world.run(world.interval() + 5 * SECOND);
    (world.engine, world.now)
}
