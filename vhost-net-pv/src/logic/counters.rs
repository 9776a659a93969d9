//! One ring's counters, kept by the ring's own thread and published once a batch.

use flexvf_protocol::stats_page::Counter;

/// Counters of one ring.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RingCounters {
    words: [u64; Counter::ALL.len()],
}

/// What is counted about a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameFacts {
    /// Ethernet header included, virtio-net header and FCS not.
    pub bytes: usize,
    /// Destination address.
    pub destination: [u8; 6],
    /// Packets on the wire.
    pub segments: u64,
}

impl Default for RingCounters {
    fn default() -> Self {
        Self::from_words([0; Counter::ALL.len()])
    }
}

impl RingCounters {
    /// Goes on from counters that were published before.
    pub const fn from_words(words: [u64; Counter::ALL.len()]) -> Self {
        Self { words }
    }

    /// All counters in the order of [`Counter::ALL`].
    pub const fn words(&self) -> &[u64; Counter::ALL.len()] {
        &self.words
    }

    /// One counter.
    pub fn get(&self, counter: Counter) -> u64 {
        self.words[counter as usize]
    }

    /// Adds to a counter; it wraps after some hundred years.
    pub fn add(&mut self, counter: Counter, count: u64) {
        let word = &mut self.words[counter as usize];
        *word = word.wrapping_add(count);
    }

    /// Counts a frame that was handed over.
    pub fn frame(&mut self, facts: &FrameFacts) {
        self.add(Counter::Frames, 1);
        self.add(Counter::Segments, facts.segments);
        self.add(Counter::Bytes, facts.bytes as u64);
        if facts.destination == [0xff; 6] {
            self.add(Counter::Broadcast, 1);
        } else if facts.destination[0] & 1 == 1 {
            self.add(Counter::Multicast, 1);
        }
        self.add(size_bin(facts.bytes), 1);
    }
}

const fn size_bin(bytes: usize) -> Counter {
    match bytes {
        0..=64 => Counter::Size64,
        65..=127 => Counter::Size127,
        128..=255 => Counter::Size255,
        256..=511 => Counter::Size511,
        512..=1023 => Counter::Size1023,
        1024..=1518 => Counter::Size1518,
        1519..=9018 => Counter::Size9018,
        _ => Counter::SizeMore,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BINS: [Counter; 8] = [
        Counter::Size64,
        Counter::Size127,
        Counter::Size255,
        Counter::Size511,
        Counter::Size1023,
        Counter::Size1518,
        Counter::Size9018,
        Counter::SizeMore,
    ];

    #[test]
    fn broadcast_is_not_counted_as_multicast() {
        let mut counters = RingCounters::default();
        let mut facts = FrameFacts { bytes: 60, destination: [0xff; 6], segments: 1 };
        counters.frame(&facts);
        facts.destination = [0x33, 0x33, 0, 0, 0, 1];
        counters.frame(&facts);
        assert_eq!(counters.get(Counter::Broadcast), 1);
        assert_eq!(counters.get(Counter::Multicast), 1);
        assert_eq!(counters.get(Counter::Frames), 2);
    }

    proptest! {
        #[test]
        fn each_frame_is_in_exactly_one_bin(
            sizes in proptest::collection::vec(0usize..70_000, 0..50)
        ) {
            let mut counters = RingCounters::default();
            for bytes in &sizes {
                counters.frame(&FrameFacts { bytes: *bytes, destination: [2; 6], segments: 1 });
            }
            let binned: u64 = BINS.into_iter().map(|bin| counters.get(bin)).sum();
            prop_assert_eq!(binned, sizes.len() as u64);
            prop_assert_eq!(counters.get(Counter::Bytes), sizes.iter().sum::<usize>() as u64);
        }
    }
}
