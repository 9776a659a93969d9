//! When a run is good. Each rule says in words what it missed.

use flexvf_protocol::VmName;

use super::result::{Probe, Rate};
use super::status::Status;

/// How far the daemon's rates may be from the traffic tool's.
pub const RATE_TOLERANCE: f64 = 0.05;

/// A move of the load, and when the VFs had followed it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shift {
    /// Who became busy.
    pub expected: Vec<VmName>,
    /// When they held the VFs, after the shift; nothing if never.
    pub followed_s: Option<f64>,
    /// When they had to.
    pub limit_s: f64,
}

/// Every shift was followed in time.
pub fn shifts(shifts: &[Shift]) -> Vec<String> {
    let late = |shift: &&Shift| shift.followed_s.is_none_or(|after_s| after_s > shift.limit_s);
    let tell = |shift: &Shift| {
        let who = names(&shift.expected);
        match shift.followed_s {
            Some(after_s) => format!(
                "{who} held the VFs {after_s:.0} s after becoming busiest, allowed are {:.0} s",
                shift.limit_s
            ),
            None => format!("{who} became busiest and never held the VFs"),
        }
    };
    shifts.iter().filter(late).map(tell).collect()
}

/// Every VM has had equally many turns, and at least one.
pub fn turns(status: &Status) -> Vec<String> {
    let turns = status.vms.iter().map(|vm| vm.turns);
    let (least, most) = (turns.clone().min(), turns.max());
    if least == most && least.is_some_and(|turns| turns > 0) {
        return Vec::new();
    }
    let each = status.vms.iter().map(|vm| format!("{} {}", vm.vm, vm.turns));
    let each = each.collect::<Vec<_>>().join(", ");
    vec![format!("turns are not equal: {each}")]
}

/// Every guest's rate was seen, and about as it was.
pub fn rates(rates: &[Rate], vms: &[VmName]) -> Vec<String> {
    let unseen = vms.iter().filter(|vm| !rates.iter().any(|rate| rate.vm == **vm));
    let unseen = unseen.map(|vm| format!("{vm}: no interval whose rate could be compared"));
    let off = rates.iter().filter_map(|rate| {
        let error = (rate.seen_pps - rate.generated_pps) / rate.generated_pps.max(1.0);
        (error.abs() > RATE_TOLERANCE).then(|| {
            format!(
                "{}: flexvf saw {:.0} packets/s where {:.0} were generated ({:+.1} %, allowed are {:.0} %)",
                rate.vm,
                rate.seen_pps,
                rate.generated_pps,
                error * 100.0,
                RATE_TOLERANCE * 100.0
            )
        })
    });
    unseen.chain(off).collect()
}

/// No guest was without network for longer than `max_gap_ms`, and each got something.
pub fn probes(probes: &[Probe], max_gap_ms: u64) -> Vec<String> {
    let lost_network = |probe: &&Probe| probe.received == 0 || probe.longest_gap_ms > max_gap_ms;
    let tell = |probe: &Probe| {
        let Probe { vm, direction, received, longest_gap_ms, .. } = probe;
        format!(
            "{vm}: {received} probes {direction}, the longest gap was {longest_gap_ms} ms, allowed are {max_gap_ms} ms"
        )
    };
    probes.iter().filter(lost_network).map(tell).collect()
}

/// Every VF is usable at the end, and no VM has two nor a VF two VMs.
///
/// `held` is what the hypervisors say, not the daemon: each VF's device with the VM it is in.
pub fn vfs(status: &Status, held: &[(VmName, String)], vfs: usize) -> Vec<String> {
    let mut failures = Vec::new();
    let known = status.vfs().count();
    if known != vfs {
        failures.push(format!("flexvf knows {known} VFs, there are {vfs}"));
    }
    for vf in status.vfs().filter(|vf| vf.state == "quarantined") {
        let reason = vf.reason.as_deref().unwrap_or("no reason given");
        failures.push(format!("VF {} is quarantined: {reason}", vf.vf));
    }
    for (position, (vm, device)) in held.iter().enumerate() {
        let before = held.iter().take(position);
        for (other_vm, other_device) in before {
            if device == other_device {
                failures.push(format!("{device} is in {other_vm} and in {vm}"));
            } else if vm == other_vm {
                failures.push(format!("{vm} has both {other_device} and {device}"));
            }
        }
    }
    failures
}

/// The VMs that hold a VF according to their own QEMU are those that the daemon names.
pub fn holders_agree(status: &Status, held: &[(VmName, String)]) -> Vec<String> {
    let mut in_qemu: Vec<_> = held.iter().map(|(vm, _)| vm.clone()).collect();
    in_qemu.sort();
    let holders = status.holders();
    if holders == in_qemu {
        return Vec::new();
    }
    let (holders, in_qemu) = (names(&holders), names(&in_qemu));
    vec![format!("flexvf says that {holders} hold VFs, by QEMU's device tree it is {in_qemu}")]
}

/// `a, b and c`.
pub fn names(vms: &[VmName]) -> String {
    match vms {
        [] => "nobody".into(),
        [one] => one.to_string(),
        [first @ .., last] => {
            let first: Vec<_> = first.iter().map(VmName::as_str).collect();
            format!("{} and {last}", first.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vm(name: &str) -> VmName {
        name.parse().unwrap()
    }

    fn status(text: &str) -> Status {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_shift_followed_too_late_fails() {
        let shift =
            |followed_s| Shift { expected: vec![vm("a"), vm("b")], followed_s, limit_s: 40.0 };
        assert!(shifts(&[shift(Some(39.0))]).is_empty());
        assert_eq!(
            shifts(&[shift(Some(41.0)), shift(None)]),
            [
                "a and b held the VFs 41 s after becoming busiest, allowed are 40 s",
                "a and b became busiest and never held the VFs"
            ]
        );
    }

    #[test]
    fn rates_may_differ_by_five_percent() {
        let rate = |seen_pps| Rate { vm: vm("a"), generated_pps: 200.0, seen_pps };
        assert!(rates(&[rate(209.0)], &[vm("a")]).is_empty());
        assert!(rates(&[rate(191.0)], &[vm("a")]).is_empty());
        assert_eq!(rates(&[rate(211.0)], &[vm("a")]).len(), 1);
        assert_eq!(rates(&[], &[vm("a")]).len(), 1);
    }

    #[test]
    fn turns_must_be_equal_and_not_all_zero() {
        let of = |a, b| {
            turns(&status(&format!(
                r#"{{"vms": [{{"vm": "a", "turns": {a}}}, {{"vm": "b", "turns": {b}}}]}}"#
            )))
        };
        assert!(of(2, 2).is_empty());
        assert_eq!(of(2, 3), ["turns are not equal: a 2, b 3"]);
        assert_eq!(of(0, 0).len(), 1);
    }

    #[test]
    fn a_guest_that_heard_nothing_has_lost_its_network() {
        let probe = |received, longest_gap_ms| Probe {
            vm: vm("a"),
            direction: "to_guest",
            sent: 100,
            received,
            lost: 100 - received,
            duplicated: 0,
            longest_gap_ms,
        };
        assert!(probes(&[probe(90, 9_000)], 10_000).is_empty());
        assert_eq!(probes(&[probe(90, 11_000)], 10_000).len(), 1);
        assert_eq!(probes(&[probe(0, 0)], 10_000).len(), 1);
    }

    #[test]
    fn a_vf_in_two_places_or_quarantined_fails() {
        let good = status(r#"{"pools": [{"vfs": [{"vf": "x", "state": "held"}]}]}"#);
        let held = |names: &[(&str, &str)]| -> Vec<_> {
            names.iter().map(|(name, device)| (vm(name), (*device).to_owned())).collect()
        };
        assert!(vfs(&good, &held(&[("a", "x")]), 1).is_empty());
        assert_eq!(vfs(&good, &held(&[("a", "x"), ("b", "x")]), 1), ["x is in a and in b"]);
        assert_eq!(vfs(&good, &[], 2).len(), 1);
        let bad = status(r#"{"pools": [{"vfs": [{"vf": "x", "state": "quarantined"}]}]}"#);
        assert_eq!(vfs(&bad, &[], 1).len(), 1);
    }
}
