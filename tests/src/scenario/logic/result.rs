//! What a scenario writes: the result that programs read, and the details for people.

use flexvf_protocol::VmName;
use serde::Serialize;

use super::status::{Interval, Steps, Switch};
use super::watch::SeenSwitch;

/// The file of `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Outcome {
    /// `fair` or `activity`.
    pub strategy: String,
    /// `sriov` or `emulated`.
    pub pool: String,
    /// Every switch of the daemon, in the order of their ends.
    pub switches: Vec<SwitchResult>,
    /// Two streams a guest.
    pub probes: Vec<Probe>,
    /// One entry a guest: means over all intervals that the daemon decided on.
    pub rates: Vec<Rate>,
    /// Nothing failed.
    pub passed: bool,
    /// What failed, in words.
    pub failures: Vec<String>,
}

/// A switch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SwitchResult {
    /// Whose.
    pub vm: VmName,
    /// With which VF.
    pub vf: String,
    /// `to_vf` or `to_pv`.
    pub direction: String,
    /// Why.
    pub reason: String,
    /// Each step's milliseconds.
    pub steps_ms: Steps,
    /// From the first step's begin to the last one's end.
    pub total_ms: f64,
}

/// A stream of numbered packets.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probe {
    /// Which guest.
    pub vm: VmName,
    /// `to_guest` or `from_guest`.
    pub direction: &'static str,
    /// Handed to the sender's kernel.
    pub sent: u64,
    /// Arrived, each counted once.
    pub received: u64,
    /// Sent and never arrived.
    pub lost: u64,
    /// Arrived again.
    pub duplicated: u64,
    /// Longest time between two arrivals.
    pub longest_gap_ms: u64,
}

/// A guest's packets, both ways.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rate {
    /// Which guest.
    pub vm: VmName,
    /// By the traffic tool's own count, in the daemon's windows.
    pub generated_pps: f64,
    /// By the daemon.
    pub seen_pps: f64,
}

/// What the result leaves out, for `details.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Details {
    /// Each loss with its cause.
    pub losses: Vec<Cause>,
    /// Each interval of each guest: packets generated and seen in it.
    pub intervals: Vec<IntervalDetail>,
    /// What the scenario saw happen, as it was printed.
    pub log: Vec<String>,
}

/// Packets that a kernel refused, or that got lost one after the other.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Cause {
    /// Which guest.
    pub vm: VmName,
    /// `to_guest` or `from_guest`.
    pub direction: &'static str,
    /// How many in a row, nearly.
    pub lost: u64,
    /// When the next one arrived (CLOCK_MONOTONIC).
    pub noticed_ms: u64,
    /// In words.
    pub during: String,
}

/// One guest's packets in one interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IntervalDetail {
    /// Which guest.
    pub vm: VmName,
    /// The daemon's figures.
    #[serde(flatten)]
    pub seen: Interval,
    /// By the traffic tool's own count.
    pub generated_pps: f64,
}

impl From<&SeenSwitch> for SwitchResult {
    fn from(seen: &SeenSwitch) -> Self {
        let Switch { vm, vf, direction, reason, steps_ms, total_ms, .. } = seen.switch.clone();
        Self { vm, vf, direction, reason, steps_ms, total_ms }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_result_has_the_promised_fields() {
        let vm: VmName = "vm1".parse().unwrap();
        let outcome = Outcome {
            strategy: "fair".into(),
            pool: "sriov".into(),
            switches: vec![SwitchResult {
                vm: vm.clone(),
                vf: "0000:01:10.0".into(),
                direction: "to_vf".into(),
                reason: "its turn".into(),
                steps_ms: Steps(vec![("plug".into(), 3.0)]),
                total_ms: 4.0,
            }],
            probes: vec![Probe {
                vm: vm.clone(),
                direction: "to_guest",
                sent: 3,
                received: 2,
                lost: 1,
                duplicated: 0,
                longest_gap_ms: 20,
            }],
            rates: vec![Rate { vm, generated_pps: 100.0, seen_pps: 99.0 }],
            passed: true,
            failures: Vec::new(),
        };
        let expected = concat!(
            r#"{"strategy":"fair","pool":"sriov","switches":[{"vm":"vm1","vf":"0000:01:10.0","direction":"to_vf","#,
            r#""reason":"its turn","steps_ms":{"plug":3.0},"total_ms":4.0}],"probes":[{"vm":"vm1","direction":"to_guest","#,
            r#""sent":3,"received":2,"lost":1,"duplicated":0,"longest_gap_ms":20}],"#,
            r#""rates":[{"vm":"vm1","generated_pps":100.0,"seen_pps":99.0}],"passed":true,"failures":[]}"#
        );
        assert_eq!(serde_json::to_string(&outcome).unwrap(), expected);
    }
}
