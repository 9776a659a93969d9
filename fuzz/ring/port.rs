//! A port that changes the guest's memory while it is used.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use vhost_net_pv::io::port::{Batch, MAX_FRAME, Port, Slots, Spills};
use vhost_net_pv::logic::features::Offloads;
use vhost_net_pv::logic::memory::{self, Memory};
use vhost_net_pv::logic::net_header::HEADER_BYTES;
use vm_memory::{Bytes, GuestAddress};

pub(crate) struct FuzzPort {
    memory: &'static Memory,
    frames: VecDeque<usize>,
    given: u64,
    sent: u64,
    pokes: Vec<(u64, u64)>,
}

impl FuzzPort {
    pub(crate) const fn new(memory: &'static Memory) -> Self {
        Self { memory, frames: VecDeque::new(), given: 0, sent: 0, pokes: Vec::new() }
    }

    /// A frame for the guest.
    pub(crate) fn offer(&mut self, bytes: usize) {
        self.frames.push_back(bytes.clamp(1, MAX_FRAME));
    }

    /// Frames given to the guest so far.
    pub(crate) const fn given(&self) -> u64 {
        self.given
    }

    /// Writes these while it is used the next time.
    pub(crate) fn poke_later(&mut self, pokes: impl Iterator<Item = (u64, u64)>) {
        self.pokes.extend(pokes);
    }

    pub(crate) const fn is_to_poke(&self) -> bool {
        !self.pokes.is_empty()
    }

    fn poke(&mut self) {
        for (at, value) in self.pokes.drain(..) {
            let _ = self.memory.write(&value.to_le_bytes(), GuestAddress(at));
        }
    }
}

impl Port for FuzzPort {
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn send(&mut self, batch: &mut Batch<'_>) {
        self.poke();
        for frame in batch.frames() {
            let in_place: usize = frame.pieces.iter().map(|piece| piece.len()).sum();
            let bytes = frame.front.len() + in_place;
            assert!((HEADER_BYTES + 1..=HEADER_BYTES + MAX_FRAME).contains(&bytes));
            let mut copy = vec![0; in_place];
            memory::copy_out(frame.pieces, 0, &mut copy);
            self.sent += 1;
            // Now and then one is refused.
            *frame.taken = !self.sent.is_multiple_of(5);
        }
    }

    fn receive(&mut self, slots: &mut Slots<'_>, spills: &mut Spills) {
        self.poke();
        for ((slot, pieces), spill) in slots.each().zip(spills.each()) {
            let Some(bytes) = self.frames.pop_front() else {
                slot.take(None);
                continue;
            };
            self.given += 1;
            let frame = vec![0xf5; bytes];
            let in_place = memory::copy_in(pieces, 0, &frame);
            let rest = &frame[in_place..];
            spill[..rest.len()].copy_from_slice(rest);
            slot.header = [0; HEADER_BYTES];
            slot.take(Some(HEADER_BYTES + bytes));
        }
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_active(&mut self, _active: bool) -> io::Result<()> {
        Ok(())
    }
}
