//! Frames on their way from the guest to a port.

use std::ops::Range;

use crate::logic::memory::GuestSlice;
use crate::logic::net_header::{HEADER_BYTES, RawHeader};

/// Frames to send, in their order.
#[derive(Debug, Default)]
pub struct Batch<'m> {
    pieces: Vec<GuestSlice<'m>>,
    frames: Vec<Frame>,
}

/// One frame of a batch.
#[derive(Debug)]
pub struct Frame {
    /// Its virtio-net header, as read once from the guest.
    pub header: RawHeader,
    /// The port took it.
    pub taken: bool,
    pieces: Range<usize>,
}

impl<'m> Batch<'m> {
    /// A batch without frames.
    pub const fn new() -> Self {
        Self { pieces: Vec::new(), frames: Vec::new() }
    }

    /// A batch of one frame that is not the guest's.
    pub fn single(bytes: &'m mut [u8]) -> Self {
        let mut batch = Self::new();
        batch.pieces.push(GuestSlice::from(bytes));
        batch.push([0; HEADER_BYTES], 0..1);
        batch
    }

    /// Number of frames.
    pub const fn len(&self) -> usize {
        self.frames.len()
    }

    /// There is no frame.
    pub const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Each frame with its bytes.
    pub fn frames(&mut self) -> impl ExactSizeIterator<Item = (&mut Frame, &[GuestSlice<'m>])> {
        let pieces = &self.pieces;
        self.frames.iter_mut().map(|frame| {
            let its_own = pieces.get(frame.pieces.clone()).unwrap_or_default();
            (frame, its_own)
        })
    }

    /// The port took the frame at this place.
    pub(in crate::io) fn taken(&self, index: usize) -> bool {
        self.frames.get(index).is_some_and(|frame| frame.taken)
    }

    /// The pieces of all frames, to append the next frame's to.
    pub(in crate::io) const fn pieces(&mut self) -> &mut Vec<GuestSlice<'m>> {
        &mut self.pieces
    }

    /// Makes a frame of some of the pieces.
    pub(in crate::io) fn push(&mut self, header: RawHeader, pieces: Range<usize>) {
        self.frames.push(Frame { header, taken: false, pieces });
    }

    pub(in crate::io) fn clear(&mut self) {
        self.pieces.clear();
        self.frames.clear();
    }
}
