//! Receive buffers, resolved a little ahead of the frames that they are for.
//!
//! The guest owns them, as far as it can see, until a frame is in them. They are used in the order
//! in which the guest has given them, whatever happens: a ring may be stopped at any time, and
//! then just one index tells what was used.

use std::collections::VecDeque;

use flexvf_protocol::stats_page::Counter;

use crate::io::port::Slots;
use crate::io::sys;
use crate::io::tx::facts;
use crate::logic::counters::RingCounters;
use crate::logic::dirty_log::SliceLog;
use crate::logic::features::Negotiated;
use crate::logic::memory::{self, GuestSlice};
use crate::logic::net_header::{HEADER_BYTES, RawHeader, words};
use crate::logic::ring::{Access, MAX_PIECES, Malformed, Ring};

/// Chains resolved but not used yet.
pub(super) struct Window<'m> {
    pub(super) ring: Ring<'m>,
    header_bytes: usize,
    mergeable: bool,
    /// Where writes to the buffers are marked, while the front-end wants that.
    log: Option<SliceLog<'m>>,
    chains: VecDeque<Chain>,
    /// Pieces of the chains, behind `spent` ones of earlier chains.
    pieces: Vec<GuestSlice<'m>>,
    spent: usize,
}

struct Chain {
    head: u16,
    pieces: usize,
    bytes: usize,
}

/// What the window has after an attempt to fill it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fill {
    /// Room for the frame.
    Enough,
    /// Too little until the guest gives more.
    Later,
    /// Too little for good: buffers that could be added do not count for this frame.
    Never,
}

impl<'m> Window<'m> {
    pub(super) const fn new(
        ring: Ring<'m>,
        negotiated: Negotiated,
        log: Option<SliceLog<'m>>,
    ) -> Self {
        Self {
            ring,
            header_bytes: negotiated.header_bytes,
            mergeable: negotiated.mergeable,
            log,
            chains: VecDeque::new(),
            pieces: Vec::new(),
            spent: 0,
        }
    }

    /// Resolves chains until there is room for a frame of `bytes`, or the guest has no more.
    pub(super) fn fill(&mut self, bytes: usize, counters: &mut RingCounters) -> Fill {
        self.tidy_up();
        let wanted = self.header_bytes + bytes;
        // Without mergeable buffers a frame has one chain, which is the next one.
        if !self.mergeable
            && let Some(next) = self.chains.front()
        {
            return if next.bytes >= wanted { Fill::Enough } else { Fill::Never };
        }
        let mut have = self.bytes();
        // Bounded: a guest that gives nothing but malformed chains gets no more than this at once.
        for _ in 0..MAX_PIECES {
            if have >= wanted {
                return Fill::Enough;
            }
            if !self.mergeable && !self.chains.is_empty() {
                return Fill::Never;
            }
            match self.add(counters) {
                Added::Bytes(bytes) => have = have.saturating_add(bytes),
                Added::Nothing => return Fill::Later,
                Added::Blocked => return Fill::Never,
            }
        }
        Fill::Later
    }

    /// Resolves chains until there are `count`, or the guest has no more; returns their number.
    pub(super) fn fill_chains(&mut self, count: usize, counters: &mut RingCounters) -> usize {
        self.tidy_up();
        while self.chains.len() < count {
            if !matches!(self.add(counters), Added::Bytes(_)) {
                break;
            }
        }
        self.chains.len().min(count)
    }

    /// Makes one slot of all the room that one frame may have.
    pub(super) fn one_slot(&self, slots: &mut Slots<'m>) {
        let mut pieces = self.pieces.get(self.spent..).unwrap_or_default();
        if !self.mergeable
            && let Some(next) = self.chains.front()
        {
            pieces = pieces.get(..next.pieces).unwrap_or_default();
        }
        slots.push(memory::pieces(pieces, self.header_bytes));
    }

    /// Makes a slot of each of the first `count` chains.
    pub(super) fn slots(&self, count: usize, slots: &mut Slots<'m>) {
        let mut rest = self.pieces.get(self.spent..).unwrap_or_default();
        for chain in self.chains.iter().take(count) {
            let (pieces, others) = rest.split_at_checked(chain.pieces).unwrap_or_default();
            slots.push(memory::pieces(pieces, self.header_bytes));
            rest = others;
        }
    }

    /// A frame of `bytes` fits the first chain.
    pub(super) fn has_room_for(&self, bytes: usize) -> bool {
        self.chains.front().is_some_and(|chain| chain.bytes - self.header_bytes >= bytes)
    }

    /// Copies a frame of ours to its place.
    pub(super) fn write(&self, frame: &[u8]) {
        let pieces = self.pieces.get(self.spent..).unwrap_or_default();
        memory::copy_in(pieces, self.header_bytes, frame);
    }

    /// Writes the header before a frame that is in place, and hands its chains over.
    pub(super) fn finish(&mut self, header: RawHeader, bytes: usize, counters: &mut RingCounters) {
        let total = self.header_bytes + bytes;
        let used = self.chains_for(total);
        let pieces = self.pieces.get(self.spent..).unwrap_or_default();
        if self.header_bytes == HEADER_BYTES {
            let (low, high) = words(&header, used);
            memory::put_words(pieces, low, high);
        } else {
            // A legacy driver without mergeable buffers: there is no count to tell.
            let short = header;
            memory::copy_in(pieces, 0, short.get(..self.header_bytes).unwrap_or_default());
        }
        if let Some(log) = &self.log {
            log.mark(pieces, total);
        }
        counters.frame(&facts(&header, pieces, self.header_bytes, bytes));
        let mut left = total;
        for _ in 0..used {
            let Some(chain) = self.chains.pop_front() else { break };
            let written = left.min(chain.bytes);
            left -= written;
            self.ring.push_used(chain.head, written as u32);
            self.spent += chain.pieces;
        }
        self.ring.advance(used);
    }

    /// There is no chain.
    pub(super) fn is_empty(&self) -> bool {
        self.chains.is_empty()
    }

    #[inline]
    fn chains_for(&self, bytes: usize) -> u16 {
        if self.chains.front().is_some_and(|chain| chain.bytes >= bytes) {
            return 1;
        }
        let (mut left, mut count) = (bytes, 0);
        for chain in &self.chains {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(chain.bytes);
            count += 1;
        }
        count
    }

    fn bytes(&self) -> usize {
        let sum = |sum: usize, chain: &Chain| sum.saturating_add(chain.bytes);
        self.chains.iter().fold(0, sum)
    }

    fn tidy_up(&mut self) {
        if self.chains.is_empty() {
            self.pieces.clear();
            self.spent = 0;
        } else if self.spent > MAX_PIECES {
            self.pieces.drain(..self.spent);
            self.spent = 0;
        }
    }

    /// Resolves one more chain; returns malformed ones that stand before it to the guest.
    fn add(&mut self, counters: &mut RingCounters) -> Added {
        // As many as a ring has, so that a guest that gives no other ones is not asked for ever.
        for _ in 0..self.ring.size() {
            let Some(head) = self.next_head(counters) else {
                return Added::Nothing;
            };
            match self.resolve(head) {
                Ok(chain) => {
                    let bytes = chain.bytes;
                    self.chains.push_back(chain);
                    return Added::Bytes(bytes);
                }
                // Returned when its turn comes: a frame's chains must follow one another.
                Err(_malformed) if !self.chains.is_empty() => return Added::Blocked,
                Err(_malformed) => {
                    counters.add(Counter::DropMalformed, 1);
                    self.ring.advance(1);
                    self.ring.push_used(head, 0);
                }
            }
        }
        Added::Nothing
    }

    fn next_head(&mut self, counters: &mut RingCounters) -> Option<u16> {
        let ahead = u16::try_from(self.chains.len()).ok()?;
        if ahead < self.ring.known() {
            return Some(self.ring.head(ahead));
        }
        (self.available(counters) > ahead).then(|| self.ring.head(ahead))
    }

    /// The guest has given buffers that were not resolved yet.
    pub(super) fn is_offered(&mut self, counters: &mut RingCounters) -> bool {
        usize::from(self.available(counters)) > self.chains.len()
    }

    /// The guest has no buffer left that it could add.
    pub(super) fn all_given(&mut self, counters: &mut RingCounters) -> bool {
        self.available(counters) == self.ring.size()
    }

    /// Entries that the guest has made available, those of resolved chains among them.
    fn available(&mut self, counters: &mut RingCounters) -> u16 {
        self.ring.available().unwrap_or_else(|_jump| {
            counters.add(Counter::DropMalformed, 1);
            // They stood before the jump.
            self.chains.clear();
            0
        })
    }

    fn resolve(&mut self, head: u16) -> Result<Chain, Malformed> {
        let before = self.pieces.len();
        let bytes = self.ring.walk(head, Access::DeviceWrites, &mut self.pieces)?;
        let pieces = self.pieces.len() - before;
        let fits = self.pieces.len() - self.spent <= MAX_PIECES;
        if bytes <= self.header_bytes || !fits {
            self.pieces.truncate(before);
            return Err(Malformed::TooShort);
        }
        if let Some(piece) = self.pieces.get(before) {
            sys::prefetch_buffer(piece);
        }
        Ok(Chain { head, pieces, bytes })
    }
}

/// What came of resolving one more chain.
enum Added {
    /// A chain of so many bytes.
    Bytes(usize),
    /// The guest has no more.
    Nothing,
    /// The next one is malformed, and not yet at the front.
    Blocked,
}
