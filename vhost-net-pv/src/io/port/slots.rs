//! Places for frames on their way from a port to the guest.

use std::ops::Range;
use std::slice::ChunksExactMut;

use super::MAX_FRAME;
use crate::logic::memory::GuestSlice;
use crate::logic::net_header::{HEADER_BYTES, RawHeader};

/// Most slots that are filled at once. Each has a spill, which is memory once it was used.
pub const MAX_SLOTS: usize = 32;

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

/// Memory for what does not fit its slot.
#[derive(Debug)]
pub struct Spills(Box<[u8]>);

impl Default for Spills {
    fn default() -> Self {
        Self::new()
    }
}

impl Spills {
    /// One for each of [`MAX_SLOTS`].
    pub fn new() -> Self {
        // The allocator takes zeroes from the kernel, which gives memory at the first use only.
        Self(vec![0; MAX_SLOTS * MAX_FRAME].into_boxed_slice())
    }

    /// Each slot's own.
    pub fn each(&mut self) -> ChunksExactMut<'_, u8> {
        self.0.chunks_exact_mut(MAX_FRAME)
    }

    /// The one of the slot at this place.
    pub fn at(&self, index: usize) -> &[u8] {
        self.0.chunks_exact(MAX_FRAME).nth(index).unwrap_or_default()
    }
}
