//! The stats page: one small file of counters that a PV backend writes and anyone may read.
//!
//! All of it is little-endian 64-bit words. The file is a header of [`HEADER_BYTES`], then one block
//! of [`RING_BYTES`] a ring: rx of pair 0, tx of pair 0, rx of pair 1, and so on. Directions are the
//! guest's: **rx** is what the guest receives (virtio's receiveq), **tx** what it sends.
//!
//! | word | header |
//! |---|---|
//! | 0 | magic, [`MAGIC`] |
//! | 1 | version, [`VERSION`] |
//! | 2 | queue pairs |
//! | 3 | generation: new whenever the counters began again from zero |
//! | 4 | process id of the writer, 0 once it has ended in order |
//! | 5 | 1 while a front-end is connected |
//! | 6 | front-ends that have connected so far |
//! | 7 | front-ends refused or cut off for breaking the protocol |
//!
//! A ring's block holds its [`Counter`]s in the order of the enum. Each ring's thread writes its own
//! block only, four cache lines apart from its neighbours, with plain relaxed stores; a reader takes
//! each word as it finds it. The file outlives the writer, which takes up the counters it finds, so
//! they are monotonic across its restarts; a reader sees anything else by the generation.
//!
//! Readers should `pread` instead of mapping: a writer (or a vandal) that truncates the file would
//! kill a reader that has it mapped with SIGBUS.

/// The first word: `FLEXVFST` in the file's byte order.
pub const MAGIC: u64 = u64::from_le_bytes(*b"FLEXVFST");
/// The layout told here.
pub const VERSION: u64 = 1;
/// Length of the header.
pub const HEADER_BYTES: usize = 256;
/// Length of one ring's block.
pub const RING_BYTES: usize = 256;
/// Most queue pairs that a page may claim.
pub const MAX_QUEUE_PAIRS: usize = 16;
/// Largest file a reader needs to take in.
pub const MAX_PAGE_BYTES: usize = page_bytes(MAX_QUEUE_PAIRS);

/// Length of a page for so many queue pairs.
pub const fn page_bytes(queue_pairs: usize) -> usize {
    HEADER_BYTES + 2 * queue_pairs * RING_BYTES
}

/// Words of the header, by their index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
#[expect(missing_docs, reason = "told in the table above")]
pub enum Header {
    Magic = 0,
    Version = 1,
    QueuePairs = 2,
    Generation = 3,
    Pid = 4,
    Connected = 5,
    Connections = 6,
    Refused = 7,
}

impl Header {
    /// Byte offset in the file.
    pub const fn offset(self) -> usize {
        self as usize * 8
    }
}

/// One ring's way, seen from the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// To the guest.
    Rx,
    /// From the guest.
    Tx,
}

/// Words of a ring's block, by their index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum Counter {
    /// Frames handed over; one of up to 64 KiB counts once.
    Frames = 0,
    /// Packets that the frames are, or become, on the wire (a 64 KiB TSO frame is 45 or so).
    Segments,
    /// Bytes of the frames, Ethernet header included, virtio-net header and FCS not.
    Bytes,
    /// Frames to the broadcast address.
    Broadcast,
    /// Frames to other group addresses.
    Multicast,
    /// Frames of up to 64 bytes (the bins count frames by their length without FCS).
    Size64,
    /// 65 to 127 bytes.
    Size127,
    /// 128 to 255 bytes.
    Size255,
    /// 256 to 511 bytes.
    Size511,
    /// 512 to 1023 bytes.
    Size1023,
    /// 1024 to 1518 bytes.
    Size1518,
    /// 1519 to 9018 bytes.
    Size9018,
    /// More than that.
    SizeMore,
    /// Descriptor chains that break the virtio specification; each is returned to the guest unused.
    DropMalformed,
    /// Frames that found no (or not enough) buffers in the ring.
    DropNoBuffer,
    /// Frames that the port (TAP) refused.
    DropPort,
    /// Times that a rate limit kept frames where they were for a while; none is dropped by it.
    Throttled,
    /// Kicks (ring notifications by the guest) taken.
    Kicks,
    /// Interrupts sent to the guest.
    Interrupts,
    /// Interrupts that the guest had asked not to get.
    InterruptsSuppressed,
    /// Batches handled; frames ÷ batches tells how well batching works.
    Batches,
    /// Nanoseconds during which frames waited because the ring had no free buffer.
    FullNs,
}

impl Counter {
    /// All counters, in their order in the file.
    pub const ALL: [Self; 22] = [
        Self::Frames,
        Self::Segments,
        Self::Bytes,
        Self::Broadcast,
        Self::Multicast,
        Self::Size64,
        Self::Size127,
        Self::Size255,
        Self::Size511,
        Self::Size1023,
        Self::Size1518,
        Self::Size9018,
        Self::SizeMore,
        Self::DropMalformed,
        Self::DropNoBuffer,
        Self::DropPort,
        Self::Throttled,
        Self::Kicks,
        Self::Interrupts,
        Self::InterruptsSuppressed,
        Self::Batches,
        Self::FullNs,
    ];

    /// Byte offset in the file, for one ring.
    pub const fn offset(self, queue_pair: usize, direction: Direction) -> usize {
        let ring = queue_pair * 2 + matches!(direction, Direction::Tx) as usize;
        HEADER_BYTES + ring * RING_BYTES + self as usize * 8
    }
}

const _: () = assert!(Counter::ALL.len() * 8 <= RING_BYTES);

/// Why bytes are no stats page.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// Shorter than its header says.
    #[error("{found} bytes are too few for a stats page, which has {needed}")]
    Short {
        /// Bytes given.
        found: usize,
        /// Bytes needed.
        needed: usize,
    },
    /// Some other file.
    #[error("not a stats page (its first word is not the magic)")]
    Magic,
    /// A layout of another time.
    #[error("stats page of version {0}; this program reads version {VERSION}")]
    Version(u64),
    /// An impossible count of queue pairs.
    #[error("stats page claims {0} queue pairs; 1 to {MAX_QUEUE_PAIRS} are possible")]
    QueuePairs(u64),
}

/// A stats page as it was at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    words: Vec<u64>,
    queue_pairs: usize,
}

impl Snapshot {
    /// Reads a page out of a file's bytes.
    ///
    /// # Errors
    /// [`PageError`] when the bytes are not a whole page of this version.
    pub fn parse(bytes: &[u8]) -> Result<Self, PageError> {
        let words: Vec<u64> = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .take(MAX_PAGE_BYTES / 8)
            .map(|w| u64::from_le_bytes(*w))
            .collect();
        let header = |word: Header| words.get(word as usize).copied().unwrap_or(0);
        let short = |needed| PageError::Short { found: bytes.len(), needed };
        if bytes.len() < HEADER_BYTES {
            return Err(short(HEADER_BYTES));
        }
        if header(Header::Magic) != MAGIC {
            return Err(PageError::Magic);
        }
        if header(Header::Version) != VERSION {
            return Err(PageError::Version(header(Header::Version)));
        }
        let claimed = header(Header::QueuePairs);
        let queue_pairs = usize::try_from(claimed).unwrap_or(usize::MAX);
        if !(1..=MAX_QUEUE_PAIRS).contains(&queue_pairs) {
            return Err(PageError::QueuePairs(claimed));
        }
        if bytes.len() < page_bytes(queue_pairs) {
            return Err(short(page_bytes(queue_pairs)));
        }
        Ok(Self { words, queue_pairs })
    }

    /// Queue pairs in the page.
    pub const fn queue_pairs(&self) -> usize {
        self.queue_pairs
    }

    /// A word of the header.
    pub fn header(&self, word: Header) -> u64 {
        self.words.get(word as usize).copied().unwrap_or(0)
    }

    /// One ring's counter; 0 for a ring that the page does not have.
    pub fn ring(&self, queue_pair: usize, direction: Direction, counter: Counter) -> u64 {
        self.words.get(counter.offset(queue_pair, direction) / 8).copied().unwrap_or(0)
    }

    /// A counter summed over all queue pairs.
    pub fn total(&self, direction: Direction, counter: Counter) -> u64 {
        (0..self.queue_pairs)
            .fold(0, |sum, pair| sum.wrapping_add(self.ring(pair, direction, counter)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(queue_pairs: u64) -> Vec<u8> {
        let mut bytes = vec![0; page_bytes(queue_pairs as usize)];
        for (word, value) in
            [(Header::Magic, MAGIC), (Header::Version, VERSION), (Header::QueuePairs, queue_pairs)]
        {
            bytes[word.offset()..word.offset() + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    #[test]
    fn a_counter_is_found_where_the_layout_puts_it() {
        let mut bytes = page(2);
        let at = Counter::Segments.offset(1, Direction::Tx);
        bytes[at..at + 8].copy_from_slice(&45u64.to_le_bytes());
        let snapshot = Snapshot::parse(&bytes).unwrap();
        assert_eq!(snapshot.ring(1, Direction::Tx, Counter::Segments), 45);
        assert_eq!(snapshot.total(Direction::Tx, Counter::Segments), 45);
        assert_eq!(snapshot.total(Direction::Rx, Counter::Segments), 0);
    }

    #[test]
    fn counters_stand_in_the_order_that_all_lists() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index);
        }
    }

    #[test]
    fn a_truncated_page_is_refused_by_name() {
        let bytes = page(2);
        let error = Snapshot::parse(&bytes[..bytes.len() - 1]).unwrap_err();
        assert_eq!(error, PageError::Short { found: bytes.len() - 1, needed: bytes.len() });
        assert_eq!(Snapshot::parse(&[]), Err(PageError::Short { found: 0, needed: HEADER_BYTES }));
    }

    #[test]
    fn an_impossible_count_of_queues_is_refused() {
        let mut bytes = page(1);
        bytes[16..24].copy_from_slice(&u64::MAX.to_le_bytes());
        assert_eq!(Snapshot::parse(&bytes), Err(PageError::QueuePairs(u64::MAX)));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(mut bytes: Vec<u8>, honest_head: bool) {
            if honest_head && bytes.len() >= 16 {
                bytes[..8].copy_from_slice(&MAGIC.to_le_bytes());
                bytes[8..16].copy_from_slice(&VERSION.to_le_bytes());
            }
            let _ = Snapshot::parse(&bytes);
        }
    }
}
