//! A port that gives 64-byte frames without end, to measure everything behind it.

use std::io;
use std::os::fd::BorrowedFd;

use super::{Batch, Port, Slots, Spills};
use crate::logic::features::Offloads;
use crate::logic::memory;
use crate::logic::net_header::HEADER_BYTES;

/// To nobody in particular, with the Ethernet type for experiments (IEEE 802).
const FRAME: [u8; 64] = {
    let mut frame = [0; 64];
    frame[0] = 2;
    frame[6] = 2;
    frame[11] = 1;
    [frame[12], frame[13]] = [0x88, 0xb5];
    frame
};

/// Takes everything, and always has one more frame.
#[derive(Debug, Default)]
pub struct Source;

impl Port for Source {
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn send(&mut self, batch: &mut Batch<'_>) {
        for frame in batch.frames() {
            *frame.taken = true;
        }
    }

    fn receive(&mut self, slots: &mut Slots<'_>, spills: &mut Spills) {
        for ((slot, pieces), spill) in slots.each().zip(spills.each()) {
            slot.header = [0; HEADER_BYTES];
            let in_place = memory::copy_in(pieces, 0, &FRAME);
            let rest = FRAME.get(in_place..).unwrap_or_default();
            spill.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
            slot.take(Some(HEADER_BYTES + FRAME.len()));
        }
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_active(&mut self, _active: bool) -> io::Result<()> {
        Ok(())
    }
}
