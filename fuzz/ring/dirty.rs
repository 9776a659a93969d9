//! A dirty log, and what it should say.

use std::fs::File;

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost_net_pv::logic::dirty_log::{DirtyLog, LOG_PAGE};
use vhost_net_pv::logic::memory::Map;
use vm_memory::{
    Bytes, FileOffset, GuestMemoryBackend, GuestMemoryRegion, MmapRegion, VolatileMemory,
};

use crate::memory;

/// Covers all of the guest's memory but its last bytes, which no log covers.
const BYTES: usize = 64;

/// A log, mapped twice: for the walk and for us.
pub(crate) struct Log {
    dirty: DirtyLog,
    bits: Map,
}

/// Memory as it was, and the log.
pub(crate) struct Written<'l> {
    log: &'l Log,
    before: Vec<(u64, Vec<u8>)>,
}

impl Log {
    pub(crate) fn new() -> Self {
        let file = File::from(memfd_create(c"log", MFdFlags::MFD_CLOEXEC).unwrap());
        file.set_len(BYTES as u64).unwrap();
        let map = |file: File| MmapRegion::from_file(FileOffset::new(file, 0), BYTES).unwrap();
        Self { dirty: DirtyLog::new(map(file.try_clone().unwrap())), bits: map(file) }
    }

    pub(crate) const fn dirty(&self) -> &DirtyLog {
        &self.dirty
    }

    /// Wipes the log and keeps what memory is now.
    pub(crate) fn watch(&self) -> Written<'_> {
        self.bits.as_volatile_slice().write_slice(&[0; BYTES], 0).unwrap();
        Written { log: self, before: pages() }
    }

    fn is_marked(&self, page: u64) -> bool {
        let byte: u8 = self.bits.as_volatile_slice().read_obj((page / 8) as usize).unwrap();
        byte & 1 << (page % 8) != 0
    }
}

impl Written<'_> {
    /// Each page that has changed is marked.
    pub(crate) fn is_marked(&self) -> bool {
        let changed = pages().into_iter().zip(&self.before).filter(|(now, before)| now != *before);
        changed.map(|((page, _), _)| page).all(|page| self.log.is_marked(page))
    }
}

/// Pages that a log covers, with their numbers.
fn pages() -> Vec<(u64, Vec<u8>)> {
    let mut pages = Vec::new();
    for region in memory::memory().iter() {
        let first = region.start_addr().0 / LOG_PAGE;
        for page in (0..region.len() / LOG_PAGE).filter(|page| first + page < 8 * BYTES as u64) {
            let mut bytes = vec![0; LOG_PAGE as usize];
            let at = (page * LOG_PAGE) as usize;
            region.as_volatile_slice().unwrap().read_slice(&mut bytes, at).unwrap();
            pages.push((first + page, bytes));
        }
    }
    pages
}
