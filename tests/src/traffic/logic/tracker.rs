//! What a receiver knows about one numbered stream: exact losses, duplicates and pauses.
//!
//! One bit a packet for the whole run, so nothing is estimated: runs are minutes long at some hundred
//! packets a second. What was never sent after the last arrival is unknown here; whoever
//! also has the sender's count subtracts.

use serde::{Deserialize, Serialize};

/// Numbers from here on are not taken: three hours at 1,500 packets a second, 2 MiB of bits.
pub const MAX_SEQ: u64 = 16 << 20;

/// Holes remembered with their time; a run with more is beyond explaining one by one.
pub const MAX_HOLES: usize = 4096;

/// A receiver's account of one stream.
#[derive(Debug, Default)]
pub struct Tracker {
    seen: Vec<u64>,
    received: u64,
    duplicated: u64,
    reordered: u64,
    refused: u64,
    next: u64,
    last_us: Option<u64>,
    longest_gap_us: u64,
    longest_gap_end_us: u64,
    holes: Vec<Hole>,
}

/// Numbers that were skipped when a later one arrived; some may have come after.
#[derive(Debug, Clone, Copy)]
struct Hole {
    first: u64,
    count: u64,
    noticed_us: u64,
}

/// A stream's account as it stands.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Different numbers that arrived.
    pub received: u64,
    /// Arrivals of a number that had arrived before.
    pub duplicated: u64,
    /// First arrivals of a number smaller than one that had arrived before.
    pub reordered: u64,
    /// Numbers below the largest arrived one that have not arrived.
    pub missing: u64,
    /// One more than the largest number that arrived: what the sender had sent by then.
    pub next: u64,
    /// Longest time between two consecutive arrivals.
    pub longest_gap_ms: u64,
    /// When that gap ended, on the receiver's clock.
    pub longest_gap_end_ms: u64,
}

/// Consecutive numbers that never arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loss {
    /// The first number skipped.
    pub first: u64,
    /// How many of those skipped there are still missing.
    pub lost: u64,
    /// When the next packet arrived, on the receiver's clock.
    pub noticed_ms: u64,
}

impl Tracker {
    /// Takes the arrival of `seq` at `now_us`.
    pub fn take(&mut self, seq: u64, now_us: u64) {
        if seq >= MAX_SEQ {
            self.refused += 1;
            return;
        }
        self.note_gap(now_us);
        if self.has(seq) {
            self.duplicated += 1;
            return;
        }
        self.mark(seq);
        self.received += 1;
        if seq < self.next {
            self.reordered += 1;
            return;
        }
        if seq > self.next && self.holes.len() < MAX_HOLES {
            self.holes.push(Hole { first: self.next, count: seq - self.next, noticed_us: now_us });
        }
        self.next = seq + 1;
    }

    /// The account so far.
    pub fn counts(&self) -> Counts {
        Counts {
            received: self.received,
            duplicated: self.duplicated,
            reordered: self.reordered,
            missing: self.next - self.received,
            next: self.next,
            longest_gap_ms: self.longest_gap_us / 1000,
            longest_gap_end_ms: self.longest_gap_end_us / 1000,
        }
    }

    /// Holes noticed so far, filled ones included: the position for [`Self::losses`].
    pub fn hole_count(&self) -> usize {
        self.holes.len()
    }

    /// Those of the `count` holes from the `from`th on that still miss something.
    pub fn losses(&self, from: usize, count: usize) -> Vec<Loss> {
        let holes = self.holes.get(from..).unwrap_or_default();
        holes
            .iter()
            .take(count)
            .filter_map(|hole| {
                let seqs = hole.first..hole.first + hole.count;
                let lost = seqs.filter(|&seq| !self.has(seq)).count() as u64;
                (lost > 0).then_some(Loss {
                    first: hole.first,
                    lost,
                    noticed_ms: hole.noticed_us / 1000,
                })
            })
            .collect()
    }

    fn note_gap(&mut self, now_us: u64) {
        if let Some(last_us) = self.last_us {
            let gap_us = now_us.saturating_sub(last_us);
            if gap_us > self.longest_gap_us {
                self.longest_gap_us = gap_us;
                self.longest_gap_end_us = now_us;
            }
        }
        self.last_us = Some(now_us);
    }

    fn has(&self, seq: u64) -> bool {
        let (word, bit) = position(seq);
        self.seen.get(word).is_some_and(|bits| bits & (1 << bit) != 0)
    }

    fn mark(&mut self, seq: u64) {
        let (word, bit) = position(seq);
        if word >= self.seen.len() {
            self.seen.resize(word + 1, 0);
        }
        if let Some(bits) = self.seen.get_mut(word) {
            *bits |= 1 << bit;
        }
    }
}

fn position(seq: u64) -> (usize, u32) {
    ((seq / 64) as usize, (seq % 64) as u32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn tracker_of(arrivals: &[u64]) -> Tracker {
        let mut tracker = Tracker::default();
        for (turn, &seq) in arrivals.iter().enumerate() {
            tracker.take(seq, turn as u64 * 10_000);
        }
        tracker
    }

    #[test]
    fn a_hole_that_is_filled_later_is_reordering_and_no_loss() {
        let tracker = tracker_of(&[0, 3, 1, 2, 4]);
        let counts = tracker.counts();
        assert_eq!((counts.missing, counts.reordered), (0, 2));
        assert!(tracker.losses(0, 10).is_empty());
        assert_eq!(tracker.hole_count(), 1);
    }

    #[test]
    fn a_loss_says_which_numbers_and_when_it_was_noticed() {
        let tracker = tracker_of(&[0, 1, 5, 3]);
        let loss = Loss { first: 2, lost: 2, noticed_ms: 20 };
        assert_eq!(tracker.losses(0, 10), [loss]);
        assert!(tracker.losses(1, 10).is_empty());
    }

    #[test]
    fn packets_lost_before_the_first_arrival_are_missing() {
        assert_eq!(tracker_of(&[7]).counts().missing, 7);
    }

    #[test]
    fn an_absurd_number_costs_no_memory() {
        let tracker = tracker_of(&[0, u64::MAX, MAX_SEQ, 1]);
        assert_eq!(tracker.counts().received, 2);
        assert!(tracker.seen.len() <= 1);
    }

    #[test]
    fn the_longest_gap_is_between_consecutive_arrivals_of_any_kind() {
        let mut tracker = Tracker::default();
        for (seq, at_ms) in [(0, 100), (1, 110), (1, 400), (2, 500)] {
            tracker.take(seq, at_ms * 1000);
        }
        let counts = tracker.counts();
        assert_eq!((counts.longest_gap_ms, counts.longest_gap_end_ms), (290, 400));
    }

    proptest! {
        #[test]
        fn accounts_agree_with_a_list_of_all_arrivals(arrivals in prop::collection::vec(0u64..200, 0..400)) {
            let tracker = tracker_of(&arrivals);
            let mut copies = BTreeMap::<u64, u64>::new();
            let mut reordered = 0;
            for &seq in &arrivals {
                let late = copies.last_key_value().is_some_and(|(&largest, _)| seq < largest);
                reordered += u64::from(late && !copies.contains_key(&seq));
                *copies.entry(seq).or_default() += 1;
            }
            let next = copies.last_key_value().map_or(0, |(largest, _)| largest + 1);
            let counts = tracker.counts();
            prop_assert_eq!(counts.received, copies.len() as u64);
            prop_assert_eq!(counts.duplicated, copies.values().map(|copies| copies - 1).sum::<u64>());
            prop_assert_eq!(counts.reordered, reordered);
            prop_assert_eq!(counts.next, next);
            prop_assert_eq!(counts.missing, next - copies.len() as u64);
            let lost: u64 = tracker.losses(0, usize::MAX).iter().map(|loss| loss.lost).sum();
            prop_assert_eq!(lost, counts.missing);
        }
    }
}
