//! The VF path's counters, over VFs that come and go.
//!
//! A VF's counters vanish with it. The sum kept here grows by what each VF adds to its own, so it
//! never falls while the agent lives, and a VF that is taken away leaves its packets behind. The
//! kernel tells a link's last counters as it removes it: those come in through
//! [`VfCounters::closed`].

use std::collections::BTreeMap;

use flexvf_protocol::agent::LinkCounters;

/// Sum of every VF's counters.
#[derive(Debug, Default)]
pub struct VfCounters {
    total: LinkCounters,
    last_seen: BTreeMap<u32, LinkCounters>,
}

impl VfCounters {
    /// The sum.
    pub const fn total(&self) -> LinkCounters {
        self.total
    }

    /// Takes the counters of a VF that is in the bond. One that shrank was reset, and what it shows
    /// now came after the reset.
    pub fn observe(&mut self, index: u32, now: LinkCounters) {
        let last = self.last_seen.insert(index, now).unwrap_or_default();
        self.total = combine(self.total, combine(now, last, grown_or_reset), add);
        if self.last_seen.len() > MAX_TRACKED {
            self.last_seen.pop_first();
        }
    }

    /// Takes the counters of a link that may have left the bond, if it was a VF in it before.
    /// Drivers clear counters when a link goes down: that adds nothing.
    pub fn observe_released(&mut self, index: u32, now: LinkCounters) {
        if let Some(last) = self.last_seen.get_mut(&index) {
            self.total = combine(self.total, combine(now, *last, u64::saturating_sub), add);
            *last = now;
        }
    }

    /// The links whose counters are remembered.
    pub fn tracked(&self) -> impl Iterator<Item = u32> {
        self.last_seen.keys().copied()
    }

    /// Takes the last counters of a link that is gone. Says whether it was a VF in the bond.
    pub fn closed(&mut self, index: u32, last_words: Option<LinkCounters>) -> bool {
        if let Some(now) = last_words {
            self.observe_released(index, now);
        }
        self.last_seen.remove(&index).is_some()
    }
}

fn grown_or_reset(now: u64, last: u64) -> u64 {
    now.checked_sub(last).unwrap_or(now)
}

const fn add(a: u64, b: u64) -> u64 {
    a.saturating_add(b)
}

fn combine(a: LinkCounters, b: LinkCounters, with: impl Fn(u64, u64) -> u64) -> LinkCounters {
    LinkCounters {
        rx_packets: with(a.rx_packets, b.rx_packets),
        tx_packets: with(a.tx_packets, b.tx_packets),
        rx_bytes: with(a.rx_bytes, b.rx_bytes),
        tx_bytes: with(a.tx_bytes, b.tx_bytes),
        rx_dropped: with(a.rx_dropped, b.rx_dropped),
        tx_dropped: with(a.tx_dropped, b.tx_dropped),
    }
}

/// Links remembered at most. The kernel's word that a link is gone can get lost when its queue
/// overflows; the oldest are then forgotten. A guest has a few VFs.
const MAX_TRACKED: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packets(rx_packets: u64) -> LinkCounters {
        LinkCounters { rx_packets, ..LinkCounters::default() }
    }

    #[test]
    fn a_vf_that_is_taken_away_leaves_its_packets_behind() {
        let mut vf = VfCounters::default();
        vf.observe(4, packets(100));
        assert!(vf.closed(4, Some(packets(130))));
        vf.observe(5, packets(7));
        assert_eq!(vf.total(), packets(137));
    }

    #[test]
    fn counters_that_a_driver_clears_at_close_are_not_counted_again() {
        let mut vf = VfCounters::default();
        vf.observe(4, packets(100));
        vf.observe_released(4, packets(0));
        vf.observe(4, packets(5));
        assert_eq!(vf.total(), packets(105));
    }

    #[test]
    fn a_link_that_never_was_a_vf_adds_nothing() {
        let mut vf = VfCounters::default();
        vf.observe_released(3, packets(100));
        assert!(!vf.closed(3, Some(packets(200))));
        assert_eq!(vf.total(), packets(0));
    }

    #[test]
    fn links_whose_end_was_never_told_do_not_pile_up() {
        let mut vf = VfCounters::default();
        for index in 0..10_000 {
            vf.observe(index, packets(1));
        }
        assert_eq!(vf.last_seen.len(), MAX_TRACKED);
        assert_eq!(vf.total(), packets(10_000));
    }

    proptest! {
        /// The model: VFs that only count up, one after the other, read at random moments.
        #[test]
        fn the_sum_never_falls_and_ends_at_what_all_vfs_counted(
            vfs in prop::collection::vec((prop::collection::vec(0u64..1000, 1..5), any::<bool>()), 0..20)
        ) {
            let mut vf = VfCounters::default();
            let (mut expected, mut before) = (0, 0);
            for (index, (grows, told)) in (0u32..).zip(&vfs) {
                let mut count = 0;
                for grow in grows {
                    count += grow;
                    vf.observe(index, packets(count));
                    prop_assert!(vf.total().rx_packets >= before);
                    before = vf.total().rx_packets;
                }
                vf.closed(index, told.then(|| packets(count + 3)));
                expected += count + if *told { 3 } else { 0 };
            }
            prop_assert_eq!(vf.total().rx_packets, expected);
        }
    }
}
