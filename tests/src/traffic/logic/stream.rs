//! What a TCP transfer carries, and how both ends agree on what came through.
//!
//! A transfer begins with a [`Hello`] of the client. Then each side sends blocks, a big-endian u32
//! length before each; length 0 ends them and [`Totals`] follow. The bytes are pseudo-random, so
//! that a block which was lost, repeated or put elsewhere changes the digest.

use serde::{Deserialize, Serialize};

/// Length of a [`Hello`].
pub const HELLO_LEN: usize = 28;
/// Length of [`Totals`].
pub const TOTALS_LEN: usize = 32;
/// Longest block.
pub const MAX_BLOCK: usize = 64 << 10;

const MAGIC: [u8; 4] = *b"FVC1";

/// What the client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hello {
    /// Of the bytes, both ways.
    pub seed: u64,
    /// Each way; 0: as fast as it goes.
    pub bytes_per_s: u64,
    /// How long the guest leaves what came unread, again and again.
    pub rest_ms: u64,
}

/// Bytes, in number and order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Digest {
    /// How many.
    pub bytes: u64,
    /// FNV-1a (64 bits) of all of them.
    pub checksum: u64,
}

/// One side's account when it has sent everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// What it has sent.
    pub sent: Digest,
    /// What it has received; only the side that ends second knows.
    pub received: Digest,
}

/// One direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Way {
    /// By the sender.
    pub sent: Digest,
    /// By the receiver.
    pub received: Digest,
}

/// What came of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    /// To the guest.
    pub to_guest: Way,
    /// From the guest.
    pub from_guest: Way,
    /// Every byte arrived, in order, both ways.
    pub intact: bool,
}

/// A stream of pseudo-random bytes (SplitMix64: Steele, Lea and Flood, 2014).
#[derive(Debug, Clone)]
pub struct Pattern(u64);

impl Hello {
    /// On the wire.
    pub fn encode(&self) -> [u8; HELLO_LEN] {
        let mut bytes = [0; HELLO_LEN];
        let words = [self.seed, self.bytes_per_s, self.rest_ms].into_iter();
        let fields = MAGIC.into_iter().chain(words.flat_map(u64::to_be_bytes));
        bytes.iter_mut().zip(fields).for_each(|(to, from)| *to = from);
        bytes
    }

    /// `None` if it is not ours.
    pub fn decode(bytes: &[u8; HELLO_LEN]) -> Option<Self> {
        let (magic, rest) = bytes.split_first_chunk::<4>()?;
        let mut words = rest.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
        let hello =
            Self { seed: words.next()?, bytes_per_s: words.next()?, rest_ms: words.next()? };
        (*magic == MAGIC).then_some(hello)
    }
}

impl Default for Digest {
    fn default() -> Self {
        // FNV's offset basis.
        Self { bytes: 0, checksum: 0xcbf2_9ce4_8422_2325 }
    }
}

impl Digest {
    /// Takes the next bytes.
    pub fn take(&mut self, bytes: &[u8]) {
        const PRIME: u64 = 0x0100_0000_01b3;
        self.bytes += bytes.len() as u64;
        let next = |sum: u64, byte: &u8| (sum ^ u64::from(*byte)).wrapping_mul(PRIME);
        self.checksum = bytes.iter().fold(self.checksum, next);
    }
}

impl Totals {
    /// On the wire.
    pub fn encode(&self) -> [u8; TOTALS_LEN] {
        let words =
            [self.sent.bytes, self.sent.checksum, self.received.bytes, self.received.checksum];
        let mut bytes = [0; TOTALS_LEN];
        let wire = words.into_iter().flat_map(u64::to_be_bytes);
        bytes.iter_mut().zip(wire).for_each(|(to, from)| *to = from);
        bytes
    }

    /// Any bytes are totals, if hardly the right ones.
    pub fn decode(bytes: &[u8; TOTALS_LEN]) -> Self {
        let mut words = bytes.as_chunks::<8>().0.iter().map(|word| u64::from_be_bytes(*word));
        let mut digest = || Digest {
            bytes: words.next().unwrap_or_default(),
            checksum: words.next().unwrap_or_default(),
        };
        Self { sent: digest(), received: digest() }
    }
}

impl Outcome {
    /// Draws the conclusion.
    pub fn new(to_guest: Way, from_guest: Way) -> Self {
        let intact = [to_guest, from_guest].iter().all(|way| way.sent == way.received);
        Self { to_guest, from_guest, intact }
    }
}

impl Pattern {
    /// The two directions of a transfer have different bytes.
    pub const fn new(seed: u64, from_client: bool) -> Self {
        Self(seed ^ from_client as u64)
    }

    /// The next bytes.
    pub fn fill(&mut self, block: &mut [u8]) {
        for chunk in block.chunks_mut(8) {
            self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut word = self.0;
            word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
            word ^= word >> 31;
            chunk.iter_mut().zip(word.to_le_bytes()).for_each(|(to, from)| *to = from);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn digest(parts: &[&[u8]]) -> Digest {
        let mut digest = Digest::default();
        parts.iter().for_each(|part| digest.take(part));
        digest
    }

    #[test]
    fn the_checksum_is_fnv_1a() {
        assert_eq!(digest(&[b"foobar"]).checksum, 0x8594_4171_f739_67e8);
    }

    #[test]
    fn the_two_directions_differ() {
        let (mut one, mut other) = ([0; 64], [0; 64]);
        Pattern::new(7, true).fill(&mut one);
        Pattern::new(7, false).fill(&mut other);
        assert_ne!(one, other);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(hello: [u64; 3], words: [u64; 4]) {
            let [seed, bytes_per_s, rest_ms] = hello;
            let hello = Hello { seed, bytes_per_s, rest_ms };
            prop_assert_eq!(Hello::decode(&hello.encode()), Some(hello));
            let [a, b, c, d] = words;
            let totals = Totals {
                sent: Digest { bytes: a, checksum: b },
                received: Digest { bytes: c, checksum: d },
            };
            prop_assert_eq!(Totals::decode(&totals.encode()), totals);
        }

        #[test]
        fn a_digest_does_not_depend_on_where_it_was_cut(bytes: Vec<u8>, at: prop::sample::Index) {
            let (front, back) = bytes.split_at(at.index(bytes.len() + 1));
            prop_assert_eq!(digest(&[front, back]), digest(&[&bytes]));
        }

        #[test]
        fn one_changed_byte_changes_the_digest(
            bytes in prop::collection::vec(any::<u8>(), 1..200),
            at: prop::sample::Index,
            change in 1u8..,
        ) {
            let mut changed = bytes.clone();
            changed[at.index(bytes.len())] ^= change;
            prop_assert_ne!(digest(&[&changed]), digest(&[&bytes]));
        }
    }
}
