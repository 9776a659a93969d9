//! What is expected of a switch against what it costs.

use super::*;
use crate::logic::gain::{Curve, Gain, Measured};

/// The first of two VMs; `has` has the VF.
fn first(rules: &Rules, has: Candidate, wants: Candidate) -> String {
    let vms = [Candidate { holds_vf: true, ..has }, wants];
    rank(rules, &vms, 1, &mut Memory::default()).vms[0].vm.to_string()
}

fn with(gain: Gain, switch_cost: Duration) -> Rules {
    let tuning = Tuning { gain, switch_cost, ..Tuning::default() };
    Rules { tuning, ..rules(Strategy::Activity) }
}

fn curve(points: &[(f64, f64)]) -> Gain {
    let measured =
        |(pps, saved_us): &(f64, f64)| Measured { pps: *pps, pv_us: *saved_us, vf_us: 0.0 };
    Gain::Measured(Curve::fit(&points.iter().map(measured).collect::<Vec<_>>()).unwrap())
}

#[test]
fn what_counts_is_the_time_saved_and_not_the_packets() {
    // From 1,000 packets/s on PV queues: each packet more costs far more than one below.
    let steep = curve(&[(1000.0, 10.0), (1100.0, 100.0)]);
    let flat = curve(&[(1000.0, 10.0), (1100.0, 9.1)]);
    let ask =
        |gain| first(&with(gain, Duration::from_secs(40)), vm("has", 1000.0), vm("wants", 1100.0));
    // A tenth more packets are not worth 40 s of 300, unless they are saved ten times as much.
    assert_eq!(ask(Gain::Packets), "has");
    assert_eq!(ask(flat), "has");
    assert_eq!(ask(steep), "wants");
}

#[test]
fn where_a_vf_saves_nothing_none_changes_hands() {
    let nothing = curve(&[(1000.0, 0.0)]);
    assert_eq!(first(&with(nothing, Duration::ZERO), vm("has", 1.0), vm("wants", 1e6)), "has");
}

#[test]
fn more_memory_to_pin_must_be_worth_it_and_a_measured_plug_is_believed_instead() {
    let rules = with(Gain::Packets, Duration::from_secs(2));
    let gib = 1 << 30;
    // 64 GiB are taken to cost 15.68 s beside the second that any plug does.
    assert_eq!(rules.tuning.plug_estimate(64 * gib), Duration::from_millis(16_680));
    let of = |memory| vm_that_takes(rules.tuning.plug_estimate(memory));
    assert_eq!(first(&rules, vm("has", 1000.0), of(gib)), "wants");
    assert_eq!(first(&rules, vm("has", 1000.0), of(64 * gib)), "has");
    assert_eq!(first(&rules, vm("has", 1000.0), vm_that_takes(Duration::from_secs(1))), "wants");
    assert!(rules.tuning.plug_estimate(u64::MAX) > Duration::from_secs(1 << 30));
}

fn vm_that_takes(time: Duration) -> Candidate {
    Candidate { switch_took: Some(time), ..vm("wants", 1040.0) }
}

#[test]
fn the_reason_says_what_a_vf_saves() {
    let rules = with(curve(&[(100.0, 50.0)]), Duration::from_secs(60));
    let ranking = rank(&rules, &[vm("a", 200.0), vm("b", 10.0)], 1, &mut Memory::default());
    let told = "rank 1 of 2 at 200 packets/s: a VF saves 10000 µs a second, counted as 9000";
    assert_eq!(ranking.vms[0].reason.to_string(), told);
}

proptest! {
    #[test]
    fn a_switch_is_made_only_for_more_gain_than_it_costs(
        has in 0.0..1e6, wants in 0.0..1e6, plug_s in 0u64..300, unplug_s in 0u64..300, margin_percent in 0u32..100,
        points in proptest::collection::vec((1.0..1e6, 0.0..1e3), 1..12)
    ) {
        let gain = curve(&points);
        let mut rules = with(gain, Duration::from_secs(4));
        rules.tuning.margin_percent = margin_percent;
        let took = |seconds, of: Candidate| Candidate { switch_took: Some(Duration::from_secs(seconds)), ..of };
        let chosen = first(&rules, took(unplug_s, vm("has", has)), took(plug_s, vm("wants", wants)));
        let of = |pps| gain.model().gain(pps);
        // Of the next round the one loses its VF from the begin of the unplug, the other has it after the plug.
        let gained = of(wants) * (300.0 - plug_s as f64);
        let lost = of(has) * (300.0 + unplug_s as f64);
        if chosen == "wants" {
            prop_assert!(gained > lost * (1.0 - 1e-9), "{gained} {lost}");
        }
        if gained > lost * (1.0 + f64::from(margin_percent) / 100.0) * (1.0 + 1e-9) {
            prop_assert_eq!(chosen, "wants");
        }
    }

    #[test]
    fn without_a_cost_any_model_serves_whom_activity_serves(
        rates in proptest::collection::vec(0.0..9e5, 2..12), vfs in 1usize..12
    ) {
        let vms: Vec<_> = rates.iter().enumerate().map(|(i, pps)| vm(&format!("vm{i:02}"), *pps)).collect();
        let of = |rules: &Rules| {
            let ranking = rank(rules, &vms, vfs, &mut Memory::default());
            ranking.vms.into_iter().map(|ranked| ranked.vm).collect::<Vec<_>>()
        };
        prop_assert_eq!(of(&with(Gain::Queue, Duration::ZERO)), of(&rules(Strategy::Activity)));
    }
}
