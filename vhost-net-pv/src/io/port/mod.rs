//! Where frames go to and come from: one [`Port`] a queue pair.
//!
//! A port is used by one thread only. Room for more: AF_XDP and AF_PACKET fit the same trait, and
//! so does io_uring, since frames are handed over in batches.

use std::io;
use std::ops::Range;
use std::os::fd::BorrowedFd;

use crate::logic::features::Offloads;
use crate::logic::memory::GuestSlice;
use crate::logic::net_header::{HEADER_BYTES, RawHeader};

mod loopback;
mod null;
mod tap;

pub use loopback::Loopback;
pub use null::Null;
pub use tap::{Tap, TapError, TapOptions};

/// Largest frame: 64 KiB of IP packet, an Ethernet header, two VLAN tags.
pub const MAX_FRAME: usize = 65_535 + 14 + 8;

/// Something that takes frames and gives frames.
pub trait Port: Send {
    /// Becomes readable, edge by edge, when frames wait. None: frames never come from here.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// Takes the frames of a batch in their order and says of each whether it was taken.
    fn send(&mut self, batch: &mut Batch<'_>);

    /// Gives one frame; the bytes after its header go to `frame`, the rest of them to `spill`.
    ///
    /// Returns their number; `None` when nothing waits.
    ///
    /// # Errors
    /// Whatever keeps the port from giving a frame; the frame, if any, is lost.
    fn receive(
        &mut self,
        header: &mut RawHeader,
        frame: &[GuestSlice<'_>],
        spill: &mut [u8],
    ) -> io::Result<Option<usize>>;

    /// Says which unfinished frames may be given from now on.
    ///
    /// # Errors
    /// The port cannot do that.
    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()>;

    /// Takes part in the exchange of frames, or not: a guest may use fewer queues than there are.
    ///
    /// # Errors
    /// The port cannot do that.
    fn set_active(&mut self, active: bool) -> io::Result<()>;
}

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
        batch.push([0; HEADER_BYTES], 0);
        batch
    }

    /// Each frame with its bytes.
    pub fn frames(&mut self) -> impl Iterator<Item = (&mut Frame, &[GuestSlice<'m>])> {
        let pieces = &self.pieces;
        self.frames.iter_mut().map(|frame| {
            let its_own = pieces.get(frame.pieces.clone()).unwrap_or_default();
            (frame, its_own)
        })
    }

    /// The pieces of all frames, to append the next frame's to.
    pub(super) const fn pieces(&mut self) -> &mut Vec<GuestSlice<'m>> {
        &mut self.pieces
    }

    /// Makes a frame of the pieces from `first` on.
    pub(super) fn push(&mut self, header: RawHeader, first: usize) {
        self.frames.push(Frame { header, taken: false, pieces: first..self.pieces.len() });
    }

    /// The port took the frame at this place.
    pub(super) fn taken(&self, index: usize) -> bool {
        self.frames.get(index).is_some_and(|frame| frame.taken)
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    pub(super) fn clear(&mut self) {
        self.pieces.clear();
        self.frames.clear();
    }
}
