//! From one status to the next: what is news, in words, and what has to be remembered.
//!
//! Switches and intervals are collected as they appear, because the daemon forgets them; each
//! is kept once, also over a restart of the daemon, which counts from the beginning again.

use std::collections::BTreeMap;
use std::fmt::Write;

use flexvf_protocol::VmName;

use super::status::{Interval, Status, Switch, Vm};

/// A switch, and when it was first seen to have ended.
#[derive(Debug, Clone, PartialEq)]
pub struct SeenSwitch {
    /// What the daemon says of it.
    pub switch: Switch,
    /// CLOCK_MONOTONIC; later than the end by up to the pause between two polls.
    pub seen_ms: u64,
}

/// Everything that has been seen.
#[derive(Debug, Default)]
pub struct Watch {
    /// When each daemon before this one was killed (CLOCK_MONOTONIC).
    kills_ms: Vec<u64>,
    last: Status,
    switches: BTreeMap<(usize, u64), SeenSwitch>,
    intervals: BTreeMap<(VmName, u64), Interval>,
}

impl Watch {
    /// The daemon is gone: the next one counts from the beginning.
    pub fn daemon_killed(&mut self, now_ms: u64) {
        self.kills_ms.push(now_ms);
        self.last.round = 0;
    }

    /// Takes a status; returns what is new in it, line by line.
    pub fn take(&mut self, status: Status, now_ms: u64) -> Vec<String> {
        let mut news = Vec::new();
        for switch in &status.switches {
            let key = (self.kills_ms.len(), switch.n);
            self.switches.entry(key).or_insert_with(|| {
                news.push(describe(switch));
                SeenSwitch { switch: switch.clone(), seen_ms: now_ms }
            });
        }
        for vm in &status.vms {
            if let Some(interval) = vm.last_interval {
                // By its end: rounds are counted anew by each daemon.
                self.intervals.insert((vm.vm.clone(), interval.to_ms), interval);
            }
        }
        if status.round != self.last.round {
            news.push(format!("round {} decided:", status.round));
            news.extend(status.vms.iter().map(describe_vm));
        }
        let known = &self.last.problems;
        let problems = status.problems.iter().filter(|it| !known.contains(it));
        news.extend(problems.map(|it| format!("problem: {}", it.sentence())));
        self.last = status;
        news
    }

    /// The newest status.
    pub const fn last(&self) -> &Status {
        &self.last
    }

    /// Every switch so far, in the order of their ends.
    pub fn switches(&self) -> impl Iterator<Item = &SeenSwitch> {
        self.switches.values()
    }

    /// When daemons were killed.
    pub fn kills_ms(&self) -> &[u64] {
        &self.kills_ms
    }

    /// Every interval of `vm` that began at `from_ms` or later and had ended by `to_ms`.
    pub fn intervals(&self, vm: &VmName, from_ms: u64, to_ms: u64) -> Vec<Interval> {
        let of_vm = self.intervals.iter().filter(|((name, _), _)| name == vm);
        of_vm
            .map(|(_, interval)| *interval)
            .filter(|interval| interval.from_ms >= from_ms && interval.to_ms <= to_ms)
            .collect()
    }
}

fn describe(switch: &Switch) -> String {
    let mut text = match switch.direction.as_str() {
        "to_vf" => format!("{} -> VF {}", switch.vm, switch.vf),
        "to_pv" => format!("{} <- VF {}", switch.vm, switch.vf),
        other => format!("{} {other} {}", switch.vm, switch.vf),
    };
    let _ = write!(text, " in {:.1} s (", switch.total_ms / 1000.0);
    for (position, (step, ms)) in switch.steps_ms.0.iter().enumerate() {
        let comma = if position == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}{step} {:.2}", ms / 1000.0);
    }
    let _ = write!(text, "): {}", switch.reason);
    if switch.outcome != "done" {
        let _ = write!(text, "; {}", switch.outcome.to_uppercase());
        if let Some(detail) = &switch.detail {
            let _ = write!(text, ": {detail}");
        }
    }
    text
}

fn describe_vm(vm: &Vm) -> String {
    let path = match (vm.path.as_str(), &vm.vf) {
        ("vf", Some(vf)) => format!("VF {vf}"),
        ("switching", Some(vf)) => format!("... {vf}"),
        (path, _) => path.to_uppercase(),
    };
    let interval_pps = vm.last_interval.map(|interval| interval.pps);
    let rate = interval_pps.map_or("      ?".into(), |pps| format!("{pps:7.0}"));
    let name = &vm.vm;
    format!("    {name:<8} {path:<16} {rate} packets/s  {}", vm.reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(text: &str) -> Status {
        serde_json::from_str(text).unwrap()
    }

    const ONE_SWITCH: &str = r#"{"round": 1, "switches": [{"n": 1, "vm": "a", "vf": "vf0", "direction": "to_vf",
        "reason": "busiest", "outcome": "done", "steps_ms": {"plug": 1500, "join": 250}, "total_ms": 1750}]}"#;

    #[test]
    fn a_switch_is_told_once() {
        let mut watch = Watch::default();
        let news = watch.take(status(ONE_SWITCH), 10);
        assert_eq!(news[0], "a -> VF vf0 in 1.8 s (plug 1.50, join 0.25): busiest");
        assert!(watch.take(status(ONE_SWITCH), 20).is_empty());
        assert_eq!(watch.switches().count(), 1);
    }

    #[test]
    fn a_new_daemon_counts_its_switches_from_the_beginning() {
        let mut watch = Watch::default();
        watch.take(status(ONE_SWITCH), 10);
        watch.daemon_killed(15);
        watch.take(status(ONE_SWITCH), 20);
        assert_eq!(watch.switches().count(), 2);
    }

    #[test]
    fn an_interval_that_began_before_the_streams_is_left_out() {
        let mut watch = Watch::default();
        for (round, from_ms) in [(1, 100), (2, 200)] {
            let to_ms = from_ms + 100;
            let text = format!(
                r#"{{"round": {round}, "vms": [{{"vm": "a", "last_interval":
                {{"round": {round}, "pps": 5.0, "from_ms": {from_ms}, "to_ms": {to_ms}}}}}]}}"#
            );
            watch.take(status(&text), to_ms);
        }
        let vm = "a".parse().unwrap();
        let rounds = |from_ms, to_ms| {
            let intervals = watch.intervals(&vm, from_ms, to_ms);
            intervals.iter().map(|it| it.round).collect::<Vec<_>>()
        };
        assert_eq!(rounds(0, 1000), [1, 2]);
        assert_eq!(rounds(101, 1000), [2]);
        assert_eq!(rounds(0, 250), [1]);
    }
}
