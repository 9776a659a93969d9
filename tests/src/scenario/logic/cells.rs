//! The crash matrix's cells, what came of each, and their table.

use std::fmt::Write;

use super::moments::{MOMENTS, Moment};
use super::status::Status;

/// Who is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Victim {
    /// `flexvf run`; another one is started.
    Daemon,
    /// The QEMU of the VM that is switched.
    Qemu,
}

/// A cell: a moment and a victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cell {
    /// When.
    pub moment: Moment,
    /// Who.
    pub victim: Victim,
}

/// A line of the table.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What was done.
    pub what: String,
    /// To whom.
    pub to: String,
    /// What it left behind.
    pub left: String,
    /// Until all was as it should be; nothing if it never was.
    pub converged_s: Option<f64>,
    /// What that was.
    pub end: String,
    /// Probes lost by guests that were not killed.
    pub lost: u64,
}

/// One cell in `every`, in the order of a switch: a guest that was killed boots during the next cell.
pub fn cells(every: usize) -> Vec<Cell> {
    let both = |moment: &Moment| {
        [Victim::Daemon, Victim::Qemu].map(|victim| Cell { moment: *moment, victim })
    };
    let all = MOMENTS.iter().flat_map(both).enumerate();
    all.filter(|(number, _)| number % every == 0).map(|(_, cell)| cell).collect()
}

impl Cell {
    /// In words.
    pub fn what(&self) -> String {
        self.moment.what()
    }
}

impl Victim {
    /// In words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Daemon => "flexvf",
            Self::Qemu => "QEMU",
        }
    }
}

/// By the daemon's word: these VMs and no others are on VFs, nothing moves, and no VF is missing.
pub fn is_settled(status: &Status, on_vfs: &[flexvf_protocol::VmName]) -> bool {
    let at_rest = |state: &str| matches!(state, "free" | "held");
    status.holders() == on_vfs
        && !status.is_switching()
        && status.vfs().all(|vf| at_rest(&vf.state) || vf.state == "quarantined")
}

/// The table, as Markdown.
pub fn table(rows: &[Row]) -> String {
    let mut text = String::from(
        "| what | to whom | left behind | in order after | then | lost |\n|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let Row { what, to, left, converged_s, end, lost } = row;
        let after = converged_s.map_or_else(|| "NEVER".into(), |after_s| format!("{after_s:.1} s"));
        let _ = writeln!(text, "| {what} | {to} | {left} | {after} | {end} | {lost} |");
    }
    text
}

/// What is wrong with the rows.
pub fn failures(rows: &[Row], limit_s: f64) -> Vec<String> {
    let late = |row: &&Row| row.converged_s.is_none_or(|after_s| after_s > limit_s);
    let tell = |row: &Row| match row.converged_s {
        Some(after_s) => {
            format!(
                "{}, {}: in order after {after_s:.0} s, allowed are {limit_s:.0}",
                row.what, row.to
            )
        }
        None => format!("{}, {}: {}", row.what, row.to, row.end),
    };
    rows.iter().filter(late).map(tell).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_moment_has_both_victims_and_a_part_has_both_ways() {
        assert_eq!(cells(1).len(), 2 * MOMENTS.len());
        let part = cells(5);
        for to_vf in [true, false] {
            for victim in [Victim::Daemon, Victim::Qemu] {
                let has = |cell: &Cell| cell.moment.to_vf == to_vf && cell.victim == victim;
                assert!(part.iter().any(has), "{to_vf} {victim:?}");
            }
        }
    }

    #[test]
    fn a_row_that_never_converged_or_too_late_fails() {
        let row = |converged_s| Row {
            what: "to the VF: plugged".into(),
            to: "flexvf".into(),
            left: "vf0 in vm1".into(),
            converged_s,
            end: "vf0 in nobody".into(),
            lost: 0,
        };
        assert!(failures(&[row(Some(3.0))], 10.0).is_empty());
        assert_eq!(failures(&[row(Some(11.0)), row(None)], 10.0).len(), 2);
        assert!(table(&[row(None)]).contains("| vf0 in vm1 | NEVER | vf0 in nobody | 0 |"));
    }
}
