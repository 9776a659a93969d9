//! What came of the policies, as a table and as JSON.

use std::fmt::Write;

use serde::Serialize;

use crate::logic::simulate::play::Outcome;

/// A workload, and how the policies did on it.
#[derive(Debug, Serialize)]
pub(super) struct Run {
    pub(super) workload: String,
    pub(super) vms: usize,
    pub(super) vfs: usize,
    /// Of which the outcome is; before the first there is nothing to decide by.
    pub(super) intervals: usize,
    pub(super) policies: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(super) struct Row {
    pub(super) policy: &'static str,
    #[serde(flatten)]
    pub(super) outcome: Outcome,
}

pub(super) fn render(runs: &[Run]) -> String {
    let mut out = String::new();
    for (index, run) in runs.iter().enumerate() {
        let Run { workload, vms, vfs, intervals, policies } = run;
        let blank = if index > 0 { "\n" } else { "" };
        let _ = writeln!(out, "{blank}{workload}: {vms} VMs, {vfs} VFs, {intervals} intervals");
        let _ = writeln!(
            out,
            "{:<22}{:>8}{:>10}{:>14}{:>8}",
            "POLICY", "GAIN", "SWITCHES", "LONGEST WAIT", "JAIN"
        );
        for Row { policy, outcome } in policies {
            let gain = format!("{:.1} %", 100.0 * outcome.gain);
            let wait = format!("{} s", outcome.longest_wait_s);
            let (switches, jain) = (outcome.switches, outcome.jain);
            let _ = writeln!(out, "{policy:<22}{gain:>8}{switches:>10}{wait:>14}{jain:>8.3}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_has_a_block_a_workload_and_a_line_a_policy() {
        let outcome = Outcome { gain: 0.9876, switches: 12, longest_wait_s: 3600, jain: 0.5 };
        let run = |workload: &str| Run {
            workload: workload.to_owned(),
            vms: 100,
            vfs: 63,
            intervals: 287,
            policies: vec![Row { policy: "activity, hysteresis", outcome }],
        };
        let expected = "\
steady: 100 VMs, 63 VFs, 287 intervals
POLICY                    GAIN  SWITCHES  LONGEST WAIT    JAIN
activity, hysteresis    98.8 %        12        3600 s   0.500

bursty: 100 VMs, 63 VFs, 287 intervals
POLICY                    GAIN  SWITCHES  LONGEST WAIT    JAIN
activity, hysteresis    98.8 %        12        3600 s   0.500
";
        assert_eq!(render(&[run("steady"), run("bursty")]), expected);
        let json = serde_json::to_value(run("steady")).unwrap();
        assert_eq!(json["policies"][0]["gain"], 0.9876);
    }
}
