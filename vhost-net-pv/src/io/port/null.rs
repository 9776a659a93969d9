//! A port that swallows every frame, to measure everything before it.

use std::io;
use std::os::fd::BorrowedFd;

use super::{Batch, Port, Slots, Spills};
use crate::logic::features::Offloads;

/// Takes everything, gives nothing.
#[derive(Debug, Default)]
pub struct Null;

impl Port for Null {
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn send(&mut self, batch: &mut Batch<'_>) {
        for frame in batch.frames() {
            *frame.taken = true;
        }
    }

    fn receive(&mut self, slots: &mut Slots<'_>, _spills: &mut Spills) {
        for (slot, _) in slots.each() {
            slot.take(None);
        }
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_active(&mut self, _active: bool) -> io::Result<()> {
        Ok(())
    }
}
