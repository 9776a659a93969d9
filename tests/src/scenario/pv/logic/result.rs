//! What came of each step, when it is good, and the table that people read.

use std::fmt::Write;

use serde::Serialize;

use super::ledger::Ledger;
use crate::traffic::logic::stream;

/// Memory that a backend may gain in a step: what an allocator keeps from one use to the next.
const GROWTH_KIB: u64 = 512;

/// The file of `--json`.
#[derive(Debug, Default, Serialize)]
pub struct Outcome {
    /// `kvm` or `tcg`.
    pub accel: String,
    /// Probes a second, each way.
    pub probe_pps: u32,
    /// Bytes a second of the TCP transfers, each way.
    pub tcp_bytes_per_s: u64,
    /// One entry a step.
    pub steps: Vec<Step>,
    /// Counters against counters.
    pub counters: Option<Ledger>,
    /// Nothing failed.
    pub passed: bool,
    /// What failed, in words.
    pub failures: Vec<String>,
}

/// What happened, and what the traffic went through meanwhile.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// Which.
    pub name: String,
    /// What was done, in words and numbers.
    pub did: String,
    /// Until a question and its answer passed again, after everything was done.
    pub reached_after_ms: u64,
    /// Probes to the guest.
    pub to_guest: Probes,
    /// Probes from the guest.
    pub from_guest: Probes,
    /// Probes that a kernel refused to send, for want of a route; they are in no other count.
    pub refused: u64,
    /// Frames for which the TAP's queue had no room: a guest on a busy machine stood still for longer
    /// than that holds.
    pub tap_dropped: u64,
    /// The TCP transfer that ran all the while.
    pub tcp: Transfer,
    /// What the backend had taken before.
    pub before: Resources,
    /// And after.
    pub after: Resources,
    /// What is allowed.
    pub limits: Limits,
    /// A stream cannot go from queue to queue, where its packets would overtake one another.
    pub one_queue: bool,
}

/// What a step may cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Limits {
    /// Longest time without a probe, either way.
    pub gap_ms: u64,
    /// Probes lost, each way, beside those that the TAP dropped; none where an outage decides.
    pub lost: Option<u64>,
    /// Probes that come twice, each way.
    pub duplicated: u64,
}

/// What a process has taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// Open descriptors.
    pub fds: usize,
    /// Memory of its own (RssAnon).
    pub own_kib: u64,
    /// Resident memory, the guest's pages that it has touched included (VmRSS).
    pub rss_kib: u64,
}

/// A numbered stream.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Probes {
    /// Handed to the sender's kernel.
    pub sent: u64,
    /// Sent and never arrived.
    pub lost: u64,
    /// Arrived again.
    pub duplicated: u64,
    /// Arrived after a later one.
    pub reordered: u64,
    /// Longest time between two arrivals.
    pub longest_gap_ms: u64,
}

/// A TCP transfer, both ways at once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Transfer {
    /// Every byte came, in order, by the checksums of both sides.
    pub intact: bool,
    /// Bytes to the guest.
    pub to_guest: u64,
    /// Bytes from the guest.
    pub from_guest: u64,
    /// Why there is no account.
    pub error: Option<String>,
}

impl Transfer {
    /// From the tool's account, or from what it said instead.
    pub fn new(ended: Result<stream::Outcome, String>) -> Self {
        match ended {
            Ok(outcome) => Self {
                intact: outcome.intact,
                to_guest: outcome.to_guest.received.bytes,
                from_guest: outcome.from_guest.received.bytes,
                error: None,
            },
            Err(error) => Self { intact: false, to_guest: 0, from_guest: 0, error: Some(error) },
        }
    }
}

impl Step {
    /// What is wrong with it.
    pub fn failures(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        let ways = [("to", &self.to_guest, self.tap_dropped), ("from", &self.from_guest, 0)];
        for (way, probes, excused) in ways {
            let Probes { sent, lost, duplicated, reordered, longest_gap_ms } = probes;
            if lost >= sent {
                wrong.push(format!("no probe {way} the guest arrived"));
            }
            if longest_gap_ms > &self.limits.gap_ms {
                let limit = self.limits.gap_ms;
                wrong.push(format!(
                    "{longest_gap_ms} ms without a probe {way} the guest, allowed are {limit}"
                ));
            }
            if self.limits.lost.is_some_and(|limit| *lost > limit + excused) {
                wrong.push(format!("{lost} of {sent} probes {way} the guest were lost"));
            }
            // However long an outage is, it is no reason to change the order of a queue.
            if *duplicated > self.limits.duplicated || (*reordered > 0 && self.one_queue) {
                wrong.push(format!(
                    "of the probes {way} the guest {duplicated} came twice and {reordered} late"
                ));
            }
        }
        let Transfer { intact, to_guest, from_guest, error } = &self.tcp;
        if let Some(error) = error {
            wrong.push(format!("the TCP transfer broke: {error}"));
        } else if !intact || to_guest.min(from_guest) == &0 {
            wrong.push(format!(
                "the TCP transfer is not intact ({to_guest} bytes to, {from_guest} from the guest)"
            ));
        }
        wrong.extend(grown(&self.before, &self.after));
        wrong.into_iter().map(|text| format!("{}: {text}", self.name)).collect()
    }
}

fn grown(before: &Resources, after: &Resources) -> Option<String> {
    let grown = after.fds != before.fds || after.own_kib > before.own_kib + GROWTH_KIB;
    grown.then(|| {
        format!(
            "the backend had {} descriptors and {} KiB of its own before, {} and {} after",
            before.fds, before.own_kib, after.fds, after.own_kib
        )
    })
}

/// Every step in a line.
pub fn table(steps: &[Step]) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{:<11}|{:^39}|{:^39}|{:^21}|{:^22}\n{:<11}|{}|{}|{:>8} {:>5} {:>6}|{:>9} {:>12}",
        "",
        "probes to the guest",
        "probes from the guest",
        "TCP transfer",
        "backend before -> after",
        "step",
        PROBES,
        PROBES,
        "MiB to",
        "from",
        "intact",
        "fds",
        "own KiB"
    );
    for step in steps {
        let Step { name, tcp, before, after, .. } = step;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let _ = writeln!(
            text,
            "{name:<11}|{}|{}|{:>8.1} {:>5.1} {:>6}|{:>9} {:>12}",
            columns(&step.to_guest),
            columns(&step.from_guest),
            mib(tcp.to_guest),
            mib(tcp.from_guest),
            if tcp.intact { "yes" } else { "NO" },
            format!("{}->{}", before.fds, after.fds),
            format!("{}->{}", before.own_kib, after.own_kib),
        );
    }
    for Step { name, did, reached_after_ms, .. } in steps {
        let _ = writeln!(text, "{name}: {did}; the guest answered {reached_after_ms} ms after it");
    }
    text
}

const PROBES: &str = "   sent   lost  dup  late  longest gap ";

fn columns(probes: &Probes) -> String {
    let Probes { sent, lost, duplicated, reordered, longest_gap_ms } = probes;
    format!("{sent:>7} {lost:>6} {duplicated:>4} {reordered:>5} {longest_gap_ms:>9} ms ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step() -> Step {
        let probes =
            Probes { sent: 1000, lost: 20, duplicated: 0, reordered: 0, longest_gap_ms: 300 };
        let resources = Resources { fds: 14, own_kib: 400, rss_kib: 5000 };
        Step {
            name: "kill".into(),
            did: "nothing".into(),
            reached_after_ms: 5,
            to_guest: probes,
            from_guest: probes,
            refused: 0,
            tap_dropped: 0,
            tcp: Transfer { intact: true, to_guest: 1 << 20, from_guest: 2 << 20, error: None },
            before: resources,
            after: resources,
            one_queue: true,
            limits: Limits { gap_ms: 1000, lost: None, duplicated: 0 },
        }
    }

    #[test]
    fn a_step_within_its_limits_is_good() {
        assert!(step().failures().is_empty());
    }

    #[test]
    fn each_thing_that_goes_wrong_is_told() {
        type Break = fn(&mut Step);
        let breaks: [(&str, Break); 9] = [
            ("no probe to", |step| step.to_guest.lost = 1000),
            ("1001 ms without a probe from", |step| step.from_guest.longest_gap_ms = 1001),
            ("20 of 1000 probes to", |step| step.limits.lost = Some(19)),
            ("3 came twice", |step| step.from_guest.duplicated = 3),
            ("1 late", |step| step.to_guest.reordered = 1),
            ("not intact", |step| step.tcp.intact = false),
            ("not intact", |step| step.tcp.from_guest = 0),
            ("15 and 400 after", |step| step.after.fds = 15),
            ("14 and 4000 after", |step| step.after.own_kib = 4000),
        ];
        for (expected, break_it) in breaks {
            let mut step = step();
            break_it(&mut step);
            let failures = step.failures();
            assert!(
                failures.iter().any(|line| line.contains(expected)),
                "{expected}: {failures:?}"
            );
            assert!(failures.iter().all(|line| line.starts_with("kill: ")));
        }
    }

    #[test]
    fn a_transfer_without_account_says_why() {
        let mut step = step();
        step.tcp = Transfer::new(Err("connection reset".into()));
        assert_eq!(step.failures(), ["kill: the TCP transfer broke: connection reset"]);
    }

    #[test]
    fn the_table_has_a_line_a_step_under_its_heads() {
        let text = table(&[step()]);
        let lines: Vec<_> = text.lines().collect();
        let bars = |line: &str| {
            line.char_indices().filter(|(_, c)| *c == '|').map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert_eq!(bars(lines[0]), bars(lines[1]));
        assert_eq!(bars(lines[1]), bars(lines[2]), "{text}");
    }
}
