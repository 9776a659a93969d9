//! The daemon's answer to `query-status`, as far as a scenario reads it.
//!
//! Everything of the daemon's interface that scenarios depend on is in this file. Unknown fields
//! are passed over and most known ones may be missing: a check of the daemon must not fail on a
//! detail it does not look at.

use std::collections::BTreeMap;

use flexvf_protocol::VmName;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The daemon's view of everything.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Status {
    /// Name of the strategy.
    pub strategy: String,
    /// Decisions made so far.
    pub round: u64,
    /// The pools with their VFs.
    pub pools: Vec<Pool>,
    /// The VMs.
    pub vms: Vec<Vm>,
    /// The last switches, by growing number.
    pub switches: Vec<Switch>,
    /// What needs an operator.
    pub problems: Vec<Problem>,
}

/// A pool.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pool {
    /// Its name.
    pub name: String,
    /// Its VFs.
    pub vfs: Vec<Vf>,
    /// What is wrong with all of it.
    pub problem: Option<String>,
}

/// A VF.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Vf {
    /// PCI address or TAP.
    pub vf: String,
    /// `free`, `held`, `moving`, `quarantined`, `resting`.
    pub state: String,
    /// Who has it.
    pub vm: Option<VmName>,
    /// Why it cannot be used.
    pub reason: Option<String>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Vm {
    /// Its name.
    pub vm: VmName,
    /// `pv`, `vf`, `switching` or `down`.
    #[serde(default)]
    pub path: String,
    /// `flexvf`, `stock` or `none`.
    #[serde(default)]
    pub agent: String,
    /// The VF it has.
    #[serde(default)]
    pub vf: Option<String>,
    /// Packets a second between the last two samples.
    #[serde(default)]
    pub rate_pps: Option<f64>,
    /// Who counts PV.
    #[serde(default)]
    pub pv_counted_by: Option<String>,
    /// Rounds that it ended on a VF.
    #[serde(default)]
    pub turns: u64,
    /// Why it has a VF or not.
    #[serde(default)]
    pub reason: String,
    /// What the last decision knew.
    #[serde(default)]
    pub last_interval: Option<Interval>,
}

/// A VM's rate as a decision used it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// Which decision.
    #[serde(default)]
    pub round: u64,
    /// Packets a second, both ways.
    pub pps: f64,
    /// Of them over PV.
    #[serde(default)]
    pub pv_pps: f64,
    /// Of them over the VF.
    #[serde(default)]
    pub vf_pps: f64,
    /// Of this machine's CLOCK_MONOTONIC.
    pub from_ms: u64,
    /// Of this machine's CLOCK_MONOTONIC.
    pub to_ms: u64,
}

/// A switch that has ended.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Switch {
    /// Counts a daemon's switches.
    pub n: u64,
    /// Whose.
    pub vm: VmName,
    /// With which VF.
    #[serde(default)]
    pub vf: String,
    /// `to_vf` or `to_pv`.
    pub direction: String,
    /// Why.
    #[serde(default)]
    pub reason: String,
    /// `done`, `undone`, `quarantined`.
    #[serde(default)]
    pub outcome: String,
    /// What went wrong, if something did.
    #[serde(default)]
    pub detail: Option<String>,
    /// Each step's milliseconds.
    #[serde(default)]
    pub steps_ms: Steps,
    /// From the first step's begin to the last one's end.
    #[serde(default)]
    pub total_ms: f64,
}

/// Steps and their milliseconds, in the order in which they are taken.
///
/// JSON objects have no order that programs in between would keep, so it is put back.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Steps(pub Vec<(String, f64)>);

/// Something that needs an operator.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Problem {
    /// File, pool or VM.
    pub subject: String,
    /// What is wrong and what to do.
    pub text: String,
}

impl Status {
    /// The VMs whose packets take a VF, by name.
    pub fn holders(&self) -> Vec<VmName> {
        let on_vf = self.vms.iter().filter(|vm| vm.path == "vf");
        let mut holders: Vec<_> = on_vf.map(|vm| vm.vm.clone()).collect();
        holders.sort();
        holders
    }

    /// A switch is under way.
    pub fn is_switching(&self) -> bool {
        self.vms.iter().any(|vm| vm.path == "switching")
    }

    /// All VFs of all pools.
    pub fn vfs(&self) -> impl Iterator<Item = &Vf> {
        self.pools.iter().flat_map(|pool| &pool.vfs)
    }

    /// Every sentence in which the daemon says that something is wrong, with its subject.
    pub fn complaints(&self) -> Vec<String> {
        let problems = self.problems.iter().map(|it| format!("{}: {}", it.subject, it.text));
        let pools = self.pools.iter().filter_map(|pool| {
            let problem = pool.problem.as_ref()?;
            Some(format!("pool {}: {problem}", pool.name))
        });
        let vfs = self.vfs().filter_map(|vf| {
            let reason = vf.reason.as_ref()?;
            Some(format!("VF {}: {reason}", vf.vf))
        });
        let vms = self.vms.iter().map(|vm| format!("VM {}: {}", vm.vm, vm.reason));
        problems.chain(pools).chain(vfs).chain(vms).collect()
    }
}

impl Problem {
    /// Subject and text, the subject once.
    pub fn sentence(&self) -> String {
        let Self { subject, text } = self;
        if text.contains(subject.as_str()) { text.clone() } else { format!("{subject}: {text}") }
    }
}

impl Serialize for Steps {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (step, ms) in &self.0 {
            map.serialize_entry(step, ms)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Steps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let steps = BTreeMap::<String, f64>::deserialize(deserializer)?;
        let mut steps: Vec<_> = steps.into_iter().collect();
        let place = |step: &str| STEPS.iter().position(|known| *known == step);
        steps.sort_by_key(|(step, _)| place(step).unwrap_or(STEPS.len()));
        Ok(Self(steps))
    }
}

/// The daemon's steps: those to the VF, then those back, which begin with `overlap` too.
const STEPS: [&str; 10] = [
    "prepare", "plug", "join", "overlap", "activate", "forward", "drain", "release", "unplug",
    "sanitise",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_that_are_new_or_missing_do_not_matter() {
        let text = r#"{"strategy": "fair", "round": 2, "next_round_in_s": 3.5, "vms": [
            {"vm": "b", "path": "vf"}, {"vm": "c", "path": "switching"}, {"vm": "a", "path": "vf"}]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        let names: Vec<_> = status.holders().iter().map(ToString::to_string).collect();
        assert_eq!(names, ["a", "b"]);
        assert!(status.is_switching());
    }

    #[test]
    fn steps_stand_in_the_order_in_which_they_are_taken() {
        let text = r#"{"join":3.0,"novel":1.0,"plug":20.5,"prepare":1.0}"#;
        let steps: Steps = serde_json::from_str(text).unwrap();
        let in_order = r#"{"prepare":1.0,"plug":20.5,"join":3.0,"novel":1.0}"#;
        assert_eq!(serde_json::to_string(&steps).unwrap(), in_order);
    }
}
