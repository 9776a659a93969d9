//! Results as a table for people.

use std::fmt::Write;

use super::result::Outcome;
use super::row::Row;

const HEADINGS: [&str; 8] = ["row", "unit", "ours", "peer", "ratio", "spread", "wanted", "against"];
/// Columns of words; the others are numbers and stand to the right.
const WORDS: [usize; 3] = [0, 1, 7];

/// One line a result.
pub fn table(results: &[(Row, Outcome)]) -> String {
    let mut lines = vec![HEADINGS.map(str::to_owned)];
    lines.extend(results.iter().map(|(row, outcome)| cells(row, outcome)));
    let mut widths = [0; HEADINGS.len()];
    for line in &lines {
        for (width, cell) in widths.iter_mut().zip(line) {
            *width = (*width).max(cell.len());
        }
    }
    let mut text = String::new();
    for line in &lines {
        let mut one = String::new();
        for (column, (width, cell)) in widths.into_iter().zip(line).enumerate() {
            let _ = match WORDS.contains(&column) {
                true => write!(one, "{cell:<width$}  "),
                false => write!(one, "{cell:>width$}  "),
            };
        }
        text.push_str(one.trim_end());
        text.push('\n');
    }
    text
}

/// A result in a line of its own.
pub fn line(row: &Row, outcome: &Outcome) -> String {
    let [name, unit, ours, peer, ratio, spread, wanted, against] = cells(row, outcome);
    format!("{name}: {ours} {unit}, {against} {peer}: {ratio} ({spread}), wanted {wanted}")
}

fn cells(row: &Row, outcome: &Outcome) -> [String; 8] {
    [
        outcome.name.to_owned(),
        outcome.unit.to_owned(),
        number(outcome.ours),
        number(outcome.peer),
        format!("{:.2}", outcome.ratio),
        format!("{:.2}..{:.2}", outcome.ratio_min, outcome.ratio_max),
        format!("{:.2}", row.wanted),
        outcome.peer_name.to_owned(),
    ]
}

/// Three digits or more, and no more decimals than that takes.
pub fn number(value: f64) -> String {
    let decimals = match value.abs() {
        0.0 => 0,
        small if small < 1.0 => 3,
        small if small < 10.0 => 2,
        small if small < 100.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::logic::pairs::{Better, Pair};

    #[test]
    fn columns_line_up() {
        let row = |name, peer_name| Row {
            name,
            unit: "Mpps",
            peer_name,
            better: Better::Higher,
            wanted: 1.1,
        };
        let rows = [row("tap-tx-64", "write()"), row("ring", "DPDK")];
        let pairs = [Pair { ours: 0.75, peer: 0.5 }, Pair { ours: 1234.5, peer: 1000.0 }];
        let results: Vec<_> = rows
            .into_iter()
            .zip(pairs)
            .map(|(row, pair)| (row, Outcome::new(&row, &[pair]).unwrap()))
            .collect();
        let expected = "\
row        unit   ours   peer  ratio      spread  wanted  against
tap-tx-64  Mpps  0.750  0.500   1.50  1.50..1.50    1.10  write()
ring       Mpps   1234   1000   1.23  1.23..1.23    1.10  DPDK
";
        assert_eq!(table(&results), expected);
    }
}
