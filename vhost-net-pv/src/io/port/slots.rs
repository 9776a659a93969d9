//! Places for frames on their way from a port to the guest.

use std::ops::Range;

use super::MAX_FRAME;
use crate::logic::memory::GuestSlice;
use crate::logic::net_header::{HEADER_BYTES, RawHeader};

/// Most slots that are filled at once. Each has a spill, which is memory once it was used.
pub const MAX_SLOTS: usize = 64;

/// Places for frames, in their order.
#[derive(Debug, Default)]
pub struct Slots<'m> {
    pieces: Vec<GuestSlice<'m>>,
    slots: Vec<Slot>,
}

/// A place for one frame.
#[derive(Debug)]
pub struct Slot {
    /// The frame's virtio-net header, once there is a frame.
    pub header: RawHeader,
    /// Bytes of the frame in the slot, header left out.
    bytes: Option<usize>,
    pieces: Range<usize>,
    room: usize,
}

impl Slot {
    /// Notes what came, in bytes with the header; anything shorter than that is no frame.
    pub fn take(&mut self, bytes: Option<usize>) {
        let frame = bytes.and_then(|bytes| bytes.checked_sub(HEADER_BYTES));
        self.bytes = frame.filter(|bytes| *bytes > 0);
    }

    /// Bytes of the frame, if there is one.
    pub const fn bytes(&self) -> Option<usize> {
        self.bytes
    }

    /// Bytes that fit without the spill.
    pub const fn room(&self) -> usize {
        self.room
    }
}

impl<'m> Slots<'m> {
    /// No slots.
    pub const fn new() -> Self {
        Self { pieces: Vec::new(), slots: Vec::new() }
    }

    /// Number of slots.
    pub const fn len(&self) -> usize {
        self.slots.len()
    }

    /// There is no slot.
    pub const fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Each slot with its place in guest memory.
    pub fn each(&mut self) -> impl Iterator<Item = (&mut Slot, &[GuestSlice<'m>])> {
        let pieces = &self.pieces;
        self.slots.iter_mut().map(|slot| {
            let its_own = pieces.get(slot.pieces.clone()).unwrap_or_default();
            (slot, its_own)
        })
    }

    /// A slot with its place in guest memory.
    pub(in crate::io) fn at(&self, index: usize) -> Option<(&Slot, &[GuestSlice<'m>])> {
        let slot = self.slots.get(index)?;
        Some((slot, self.pieces.get(slot.pieces.clone()).unwrap_or_default()))
    }

    /// Adds an empty slot over these pieces.
    pub fn push(&mut self, pieces: impl Iterator<Item = GuestSlice<'m>>) {
        let first = self.pieces.len();
        self.pieces.extend(pieces);
        let own = first..self.pieces.len();
        let room = self.pieces.iter().skip(first).map(GuestSlice::len).sum();
        self.slots.push(Slot { header: [0; HEADER_BYTES], bytes: None, pieces: own, room });
    }

    /// Takes all slots away.
    pub fn clear(&mut self) {
        self.pieces.clear();
        self.slots.clear();
    }
}

/// Memory for what does not fit its slot. Before it there is room for a frame's header, so that a
/// frame whose slot has no place at all can be read in one piece.
#[derive(Debug)]
pub struct Spills(Box<[u8]>);

/// Distance of two spills: odd in cache lines, so that their fronts do not fall into the same sets.
const SPILL_BYTES: usize = (HEADER_BYTES + MAX_FRAME).next_multiple_of(128) + 64;

impl Default for Spills {
    fn default() -> Self {
        Self::new()
    }
}

impl Spills {
    /// One for each of [`MAX_SLOTS`].
    pub fn new() -> Self {
        // The allocator takes zeroes from the kernel, which gives memory at the first use only.
        Self(vec![0; MAX_SLOTS * SPILL_BYTES].into_boxed_slice())
    }

    /// Each slot's own.
    pub fn each(&mut self) -> impl Iterator<Item = &mut [u8]> {
        self.with_headers().map(|spill| spill.get_mut(HEADER_BYTES..).unwrap_or_default())
    }

    /// Each slot's own, with the room for a header before it.
    pub(in crate::io) fn with_headers(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let spills = self.0.chunks_exact_mut(SPILL_BYTES);
        spills.map(|spill| spill.get_mut(..HEADER_BYTES + MAX_FRAME).unwrap_or_default())
    }

    /// The one of the slot at this place.
    pub fn at(&self, index: usize) -> &[u8] {
        let spill = self.0.chunks_exact(SPILL_BYTES).nth(index);
        spill.and_then(|spill| spill.get(HEADER_BYTES..)?.get(..MAX_FRAME)).unwrap_or_default()
    }
}
