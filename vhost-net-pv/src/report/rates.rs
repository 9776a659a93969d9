//! Rates as a table, block after block, and as JSON, line after line.

use std::fmt::Write;

use flexvf_protocol::stats_page::Snapshot;

use super::{direction_name, state};
use crate::logic::rates::{Rates, between};

const COLUMNS: [(&str, &str, usize); 9] = [
    ("frames/s", "frames_per_s", 0),
    ("segments/s", "segments_per_s", 0),
    ("Mbit/s", "mbit_per_s", 1),
    ("drops/s", "drops_per_s", 0),
    ("throttled/s", "throttled_per_s", 0),
    ("kicks/s", "kicks_per_s", 0),
    ("interrupts/s", "interrupts_per_s", 0),
    ("frames/batch", "frames_per_batch", 1),
    ("full %", "full_percent", 1),
];

/// What changed between two looks that were so many seconds apart, for people.
pub fn rates_table(before: &Snapshot, after: &Snapshot, seconds: f64) -> String {
    let mut text = format!("{}; {seconds:.1} s\n", state(after));
    let Some((rings, total)) = between(before, after, seconds) else {
        text.push_str("the counters began anew\n");
        return text;
    };
    let _ = write!(text, "{:<6}", "ring");
    for (title, _, _) in COLUMNS {
        let _ = write!(text, " {title:>12}");
    }
    text.push('\n');
    for ring in rings {
        row(&mut text, &format!("{}{}", direction_name(ring.direction), ring.pair), &ring.rates);
    }
    row(&mut text, "all", &total);
    text
}

fn row(text: &mut String, name: &str, rates: &Rates) {
    let _ = write!(text, "{name:<6}");
    for ((_, _, digits), value) in COLUMNS.iter().zip(values(rates)) {
        let _ = write!(text, " {value:>12.digits$}");
    }
    text.push('\n');
}

/// What changed between two looks that were so many seconds apart: one object, in one line.
pub fn rates_json(before: &Snapshot, after: &Snapshot, seconds: f64) -> String {
    let mut text = format!("{{\"seconds\":{seconds:.3}");
    match between(before, after, seconds) {
        None => text.push_str(",\"restarted\":true"),
        Some((rings, total)) => {
            text.push_str(",\"restarted\":false,\"rings\":[");
            for (index, ring) in rings.iter().enumerate() {
                let separator = if index == 0 { "" } else { "," };
                let (pair, name) = (ring.pair, direction_name(ring.direction));
                let _ = write!(
                    text,
                    "{separator}{{\"pair\":{pair},\"direction\":\"{name}\"{}}}",
                    members(&ring.rates)
                );
            }
            let _ = write!(text, "],\"total\":{{{}}}", members(&total).trim_start_matches(','));
        }
    }
    text.push_str("}\n");
    text
}

fn members(rates: &Rates) -> String {
    COLUMNS.iter().zip(values(rates)).fold(String::new(), |mut text, ((_, key, _), value)| {
        let _ = write!(text, ",\"{key}\":{value:.3}");
        text
    })
}

const fn values(rates: &Rates) -> [f64; COLUMNS.len()] {
    [
        rates.frames,
        rates.segments,
        rates.mbit,
        rates.drops,
        rates.throttled,
        rates.kicks,
        rates.interrupts,
        rates.batch,
        rates.full_percent,
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use flexvf_protocol::stats_page::{Counter, Direction, Header};

    use crate::io::stats::{StatsPage, read};

    type Counts = &'static [(Counter, u64)];

    const BUSY: [(usize, Direction, Counts); 3] = [
        (
            0,
            Direction::Tx,
            &[
                (Counter::Frames, 2_000_000),
                (Counter::Segments, 2_500_000),
                (Counter::Bytes, 250_000_000),
                (Counter::Batches, 62_500),
                (Counter::Kicks, 90),
                (Counter::DropMalformed, 3),
                (Counter::DropPort, 7),
            ],
        ),
        (0, Direction::Rx, &[(Counter::FullNs, 500_000_000), (Counter::DropNoBuffer, 4)]),
        (1, Direction::Rx, &[(Counter::Interrupts, 1_000), (Counter::FullNs, 20_000_000)]),
    ];

    fn looks() -> [Snapshot; 2] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        let page = StatsPage::open(&path, 2).unwrap();
        page.set(Header::Pid, 4711);
        page.set(Header::Connected, 1);
        page.set(Header::Connections, 3);
        let before = read(&path).unwrap();
        for (pair, direction, counts) in BUSY {
            let (mut block, mut counters) = page.ring(pair, direction);
            for (counter, count) in counts {
                counters.add(*counter, *count);
            }
            block.publish(&counters);
        }
        [before, read(&path).unwrap()]
    }

    #[test]
    fn the_table_of_rates_is_this_one() {
        let [before, after] = looks();
        assert_eq!(
            rates_table(&before, &after, 2.0),
            "\
process 4711, front-end connected; 3 connections, 0 refused; 2.0 s
ring       frames/s   segments/s       Mbit/s      drops/s  throttled/s      kicks/s interrupts/s frames/batch       full %
rx0               0            0          0.0            2            0            0            0          0.0         25.0
tx0         1000000      1250000       1000.0            5            0           45            0         32.0          0.0
rx1               0            0          0.0            0            0            0          500          0.0          1.0
tx1               0            0          0.0            0            0            0            0          0.0          0.0
all         1000000      1250000       1000.0            7            0           45          500         32.0         25.0
"
        );
    }

    #[test]
    fn the_rates_as_json_are_one_line_and_the_same() {
        let [before, after] = looks();
        let line = rates_json(&before, &after, 2.0);
        assert_eq!(line.matches('\n').count(), 1);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["seconds"], 2.0);
        assert_eq!(value["rings"][1]["direction"], "tx");
        assert_eq!(value["rings"][1]["segments_per_s"], 1_250_000.0);
        assert_eq!(value["total"]["full_percent"], 25.0);
        assert_eq!(value["total"]["drops_per_s"], 7.0);
    }

    #[test]
    fn counters_that_began_anew_give_no_rates() {
        let [before, after] = [looks()[1].clone(), looks()[0].clone()];
        let table = rates_table(&before, &after, 1.0);
        assert!(table.ends_with("the counters began anew\n"), "{table}");
        let line = rates_json(&before, &after, 1.0);
        assert_eq!(line, "{\"seconds\":1.000,\"restarted\":true}\n");
    }
}
