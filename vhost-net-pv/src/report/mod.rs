//! A stats page, rates and features as text for people and as JSON for programs.

use std::fmt::Write;

use flexvf_protocol::stats_page::{Counter, Direction, Header, Snapshot};

mod features;
mod rates;

pub use features::{features_json, features_table};
pub use rates::{rates_json, rates_table};

const DIRECTIONS: [(Direction, &str); 2] = [
    (Direction::Rx, direction_name(Direction::Rx)),
    (Direction::Tx, direction_name(Direction::Tx)),
];

/// A table: one line a counter that is not zero anywhere, one column a ring.
pub fn table(page: &Snapshot) -> String {
    let mut text = state(page) + "\n";
    let _ = write!(text, "{:<22}", "(rx: to the guest)");
    for pair in 0..page.queue_pairs() {
        for (_, name) in DIRECTIONS {
            let _ = write!(text, " {:>15}", format!("{name}{pair}"));
        }
    }
    text.push('\n');
    for counter in Counter::ALL {
        let shown = matches!(counter, Counter::Frames | Counter::Segments | Counter::Bytes);
        if shown || total(page, counter) != 0 {
            let _ = write!(text, "{:<22}", name(counter));
            for pair in 0..page.queue_pairs() {
                for (direction, _) in DIRECTIONS {
                    let _ = write!(text, " {:>15}", page.ring(pair, direction, counter));
                }
            }
            text.push('\n');
        }
    }
    text
}

/// One object with a list of rings.
pub fn json(page: &Snapshot) -> String {
    let mut text = format!(
        "{{\"queue_pairs\":{},\"generation\":{},\"pid\":{},\"connected\":{},\"connections\":{},\
         \"refused\":{},\"rings\":[",
        page.queue_pairs(),
        page.header(Header::Generation),
        page.header(Header::Pid),
        page.header(Header::Connected) != 0,
        page.header(Header::Connections),
        page.header(Header::Refused),
    );
    let mut separator = "";
    for pair in 0..page.queue_pairs() {
        for (direction, name) in DIRECTIONS {
            let _ = write!(text, "{separator}{{\"pair\":{pair},\"direction\":\"{name}\"");
            for counter in Counter::ALL {
                let value = page.ring(pair, direction, counter);
                let _ = write!(text, ",\"{}\":{value}", self::name(counter));
            }
            text.push('}');
            separator = ",";
        }
    }
    text.push_str("]}");
    text
}

/// Who writes the page, and for whom.
fn state(page: &Snapshot) -> String {
    let who = match (page.header(Header::Pid), page.header(Header::Connected)) {
        (0, _) => "not running".to_owned(),
        (pid, 0) => format!("process {pid}, no front-end"),
        (pid, _) => format!("process {pid}, front-end connected"),
    };
    let (connections, refused) = (page.header(Header::Connections), page.header(Header::Refused));
    format!("{who}; {connections} connections, {refused} refused")
}

const fn direction_name(direction: Direction) -> &'static str {
    match direction {
        Direction::Rx => "rx",
        Direction::Tx => "tx",
    }
}

fn total(page: &Snapshot, counter: Counter) -> u64 {
    DIRECTIONS
        .into_iter()
        .map(|(direction, _)| page.total(direction, counter))
        .fold(0, u64::wrapping_add)
}

const fn name(counter: Counter) -> &'static str {
    match counter {
        Counter::Frames => "frames",
        Counter::Segments => "segments",
        Counter::Bytes => "bytes",
        Counter::Broadcast => "broadcast",
        Counter::Multicast => "multicast",
        Counter::Size64 => "size_64",
        Counter::Size127 => "size_127",
        Counter::Size255 => "size_255",
        Counter::Size511 => "size_511",
        Counter::Size1023 => "size_1023",
        Counter::Size1518 => "size_1518",
        Counter::Size9018 => "size_9018",
        Counter::SizeMore => "size_more",
        Counter::DropMalformed => "drop_malformed",
        Counter::DropNoBuffer => "drop_no_buffer",
        Counter::DropPort => "drop_port",
        Counter::Throttled => "throttled",
        Counter::Kicks => "kicks",
        Counter::Interrupts => "interrupts",
        Counter::InterruptsSuppressed => "interrupts_suppressed",
        Counter::Batches => "batches",
        Counter::FullNs => "full_ns",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::stats::StatsPage;

    fn page() -> Snapshot {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("page");
        let page = StatsPage::open(&path, 2).unwrap();
        let (mut block, mut counters) = page.ring(1, Direction::Tx);
        counters.add(Counter::Frames, 3);
        counters.add(Counter::Segments, 47);
        block.publish(&counters);
        crate::io::stats::read(&path).unwrap()
    }

    #[test]
    fn json_has_every_counter_of_every_ring() {
        let value: serde_json::Value = serde_json::from_str(&json(&page())).unwrap();
        let rings = value["rings"].as_array().unwrap();
        assert_eq!(rings.len(), 4);
        assert_eq!(rings[3]["segments"], 47);
        assert_eq!(rings[0].as_object().unwrap().len(), 2 + Counter::ALL.len());
    }

    #[test]
    fn the_table_is_this_one_and_leaves_out_what_is_zero_everywhere() {
        let table = table(&page());
        let (state, counters) = table.split_once('\n').unwrap();
        assert_eq!(
            state,
            format!("process {}, no front-end; 0 connections, 0 refused", std::process::id())
        );
        assert_eq!(
            counters,
            "\
(rx: to the guest)                 rx0             tx0             rx1             tx1
frames                               0               0               0               3
segments                             0               0               0              47
bytes                                0               0               0               0
"
        );
    }
}
