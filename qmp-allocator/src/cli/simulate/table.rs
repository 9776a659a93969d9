//! What came of the policies, as a table and as JSON.

use std::fmt::Write as _;
use std::io::Write;

use serde::Serialize;

use crate::logic::simulate::play::Outcome;

/// A workload, and how the policies did on it.
#[derive(Debug, Serialize)]
pub(in crate::cli) struct Run {
    pub(in crate::cli) workload: String,
    pub(in crate::cli) vms: usize,
    pub(in crate::cli) vfs: usize,
    /// Of which the outcome is; before the first there is nothing to decide by.
    pub(in crate::cli) intervals: usize,
    pub(in crate::cli) policies: Vec<Row>,
}

#[derive(Debug, Serialize)]
pub(in crate::cli) struct Row {
    pub(in crate::cli) policy: &'static str,
    #[serde(flatten)]
    pub(in crate::cli) outcome: Outcome,
}

/// As a table for people, or as JSON for programs.
pub(in crate::cli) fn print(runs: &[Run], json: bool) -> anyhow::Result<()> {
    let text = if json { serde_json::to_string_pretty(runs)? + "\n" } else { render(runs) };
    // A closed pipe (`| head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

fn render(runs: &[Run]) -> String {
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
