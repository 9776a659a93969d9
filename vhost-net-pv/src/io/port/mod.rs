//! Where frames go to and come from: one [`Port`] a queue pair.
//!
//! A port is used by one thread only, and frames are handed over in batches both ways. Room for
//! more: AF_XDP and AF_PACKET fit the same trait.

use std::io;
use std::os::fd::BorrowedFd;

use crate::logic::features::Offloads;

mod batch;
mod loopback;
mod null;
mod slots;
mod source;
mod tap;

pub use batch::{Batch, Outgoing};
pub use loopback::Loopback;
pub use null::Null;
pub use slots::{MAX_SLOTS, Slot, Slots, Spills};
pub use source::Source;
pub use tap::{IoMethod, Tap, TapError, TapOptions};

/// Largest frame: 64 KiB of IP packet, an Ethernet header, two VLAN tags.
pub const MAX_FRAME: usize = 65_535 + 14 + 8;

/// Something that takes frames and gives frames.
pub trait Port: Send {
    /// Called once, by the thread that uses the port from then on.
    fn adopt(&mut self) {}

    /// Becomes readable, edge by edge, when frames wait. None: it is not to be waited for, since
    /// frames come from here at any time or never.
    fn readiness(&self) -> Option<BorrowedFd<'_>>;

    /// A small frame is given so much faster to one piece of memory than to several that a copy costs
    /// less: its slot then has no pieces.
    fn wants_one_piece(&self) -> bool {
        false
    }

    /// Takes the frames of a batch in their order and says of each whether it was taken.
    fn send(&mut self, batch: &mut Batch<'_>);

    /// Gives frames, in their order, one a slot; slots are left empty when nothing more waits.
    ///
    /// The bytes after a frame's header go to its slot's pieces, and those that do not fit to the
    /// slot's spill. There are as many spills as slots, or more.
    fn receive(&mut self, slots: &mut Slots<'_>, spills: &mut Spills);

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
