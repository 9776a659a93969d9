//! A port that swallows every frame, to measure everything before it.

use std::io;
use std::os::fd::BorrowedFd;

use super::{Batch, Port};
use crate::logic::features::Offloads;
use crate::logic::memory::GuestSlice;
use crate::logic::net_header::RawHeader;

/// Takes everything, gives nothing.
#[derive(Debug, Default)]
pub struct Null;

impl Port for Null {
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn send(&mut self, batch: &mut Batch<'_>) {
        for (frame, _) in batch.frames() {
            frame.taken = true;
        }
    }

    fn receive(
        &mut self,
        _header: &mut RawHeader,
        _frame: &[GuestSlice<'_>],
        _spill: &mut [u8],
    ) -> io::Result<Option<usize>> {
        Ok(None)
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_active(&mut self, _active: bool) -> io::Result<()> {
        Ok(())
    }
}
