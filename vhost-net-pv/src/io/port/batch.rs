//! Frames on their way from the guest to a port.

use std::ops::Range;

use crate::io::tx::segments;
use crate::logic::counters::FrameFacts;
use crate::logic::memory::{self, GuestSlice};
use crate::logic::net_header::{HEADER_BYTES, RawHeader};

/// Room for a header and a small frame.
const FRONT_BYTES: usize = 256;
/// Frames up to this length are copied behind their header: the kernel takes one run of memory so
/// much faster than two that the copy, which the header needs anyway, costs less than it saves.
const SMALL_FRAME: usize = FRONT_BYTES - HEADER_BYTES;
const MAC_BYTES: usize = 6;

/// Frames to send, in their order.
#[derive(Debug)]
pub struct Batch<'m> {
    pieces: Vec<GuestSlice<'m>>,
    fronts: Box<[[u8; FRONT_BYTES]]>,
    frames: Vec<Frame>,
}

/// What is known of a frame.
#[derive(Debug)]
struct Frame {
    front_bytes: usize,
    pieces: Range<usize>,
    taken: bool,
}

/// A frame to send.
#[derive(Debug)]
pub struct Outgoing<'b, 'm> {
    /// Its virtio-net header, as read once from the guest, and all of the frame if it is small.
    pub front: &'b [u8],
    /// What follows in guest memory.
    pub pieces: &'b [GuestSlice<'m>],
    /// To be set once the port has taken it.
    pub taken: &'b mut bool,
}

impl<'m> Batch<'m> {
    /// A batch without frames, with room for so many.
    pub fn new(most: usize) -> Self {
        Self {
            pieces: Vec::new(),
            fronts: vec![[0; FRONT_BYTES]; most].into_boxed_slice(),
            frames: Vec::with_capacity(most),
        }
    }

    /// A batch of one frame that is not the guest's.
    pub fn single(bytes: &'m mut [u8]) -> Self {
        let mut batch = Self::new(1);
        batch.pieces.push(GuestSlice::from(bytes));
        batch.frames.push(Frame { front_bytes: HEADER_BYTES, pieces: 0..1, taken: false });
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

    /// Each frame, to be sent.
    pub fn frames(&mut self) -> impl Iterator<Item = Outgoing<'_, 'm>> {
        let pieces = &self.pieces;
        self.frames.iter_mut().zip(&self.fronts).map(|(frame, front)| Outgoing {
            front: front.get(..frame.front_bytes).unwrap_or_default(),
            pieces: pieces.get(frame.pieces.clone()).unwrap_or_default(),
            taken: &mut frame.taken,
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

    /// Makes a frame of `bytes` of some of the pieces, which begin with a header; `None`: the batch
    /// is full.
    ///
    /// What decides about the frame is read here, once, and never again.
    pub(in crate::io) fn push(
        &mut self,
        pieces: Range<usize>,
        header_bytes: usize,
        bytes: usize,
    ) -> Option<FrameFacts> {
        let front = self.fronts.get_mut(self.frames.len())?;
        let own = self.pieces.get(pieces.clone())?;
        let small = bytes <= SMALL_FRAME;
        let along = if small { bytes } else { MAC_BYTES };
        if header_bytes == HEADER_BYTES {
            memory::copy_out(own, 0, front.get_mut(..HEADER_BYTES + along)?);
        } else {
            // The header of old drivers lacks the last field, which means nothing on this way.
            memory::copy_out(own, 0, front.get_mut(..header_bytes)?);
            front.get_mut(header_bytes..HEADER_BYTES)?.fill(0);
            memory::copy_out(own, header_bytes, front.get_mut(HEADER_BYTES..)?.get_mut(..along)?);
        }
        let header: &RawHeader = front.first_chunk()?;
        let destination = *front.get(HEADER_BYTES..)?.first_chunk()?;
        let segments = segments(header, own, header_bytes, bytes);
        let (front_bytes, pieces) = match small {
            true => (HEADER_BYTES + bytes, pieces.end..pieces.end),
            false => (HEADER_BYTES, skip(&mut self.pieces, pieces.start, header_bytes)..pieces.end),
        };
        self.frames.push(Frame { front_bytes, pieces, taken: false });
        Some(FrameFacts { bytes, destination, segments })
    }

    pub(in crate::io) fn clear(&mut self) {
        self.pieces.clear();
        self.frames.clear();
    }
}

/// Cuts `bytes` off the front of the pieces from `start` on; returns the first one that is left.
fn skip(pieces: &mut [GuestSlice<'_>], start: usize, bytes: usize) -> usize {
    let mut left = bytes;
    let mut first = start;
    while let Some(piece) = pieces.get_mut(first) {
        if left < piece.len() {
            if let Ok(rest) = piece.offset(left) {
                *piece = rest;
            }
            break;
        }
        left -= piece.len();
        first += 1;
    }
    first
}
