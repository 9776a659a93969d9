//! A port that gives back what it was given, for tests and measurements without an interface.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Batch, MAX_FRAME, Port, Slots, Spills};
use crate::logic::features::Offloads;
use crate::logic::memory::{self, GuestSlice};
use crate::logic::net_header::{HEADER_BYTES, RawHeader};

/// Frames kept while the guest has no buffers, as many as a TAP keeps.
const MAX_WAITING: usize = 1000;

/// Gives back each frame once, in order.
#[derive(Debug)]
pub struct Loopback {
    waiting: VecDeque<(RawHeader, Vec<u8>)>,
    ready: EventFd,
}

impl Loopback {
    /// An empty loopback.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            waiting: VecDeque::new(),
            ready: EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?,
        })
    }
}

impl Port for Loopback {
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ready.as_fd())
    }

    fn send(&mut self, batch: &mut Batch<'_>) {
        for frame in batch.frames() {
            let Some((header, front)) = frame.front.split_first_chunk() else { continue };
            let rest: usize = frame.pieces.iter().map(GuestSlice::len).sum();
            let bytes = front.len() + rest;
            *frame.taken = bytes <= MAX_FRAME && self.waiting.len() < MAX_WAITING;
            if *frame.taken {
                let mut copy = front.to_vec();
                copy.resize(bytes, 0);
                memory::copy_out(frame.pieces, 0, copy.get_mut(front.len()..).unwrap_or_default());
                self.waiting.push_back((*header, copy));
            }
        }
        // It can only fail when it is readable already.
        let _ = self.ready.write(1);
    }

    fn receive(&mut self, slots: &mut Slots<'_>, spills: &mut Spills) {
        for ((slot, pieces), spill) in slots.each().zip(spills.each()) {
            let Some((header, bytes)) = self.waiting.pop_front() else {
                slot.take(None);
                continue;
            };
            slot.header = header;
            let in_place = memory::copy_in(pieces, 0, &bytes);
            let rest = bytes.get(in_place..).unwrap_or_default();
            let fits = rest.len().min(spill.len());
            spill[..fits].copy_from_slice(&rest[..fits]);
            slot.take(Some(HEADER_BYTES + in_place + fits));
        }
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_active(&mut self, _active: bool) -> io::Result<()> {
        Ok(())
    }
}
