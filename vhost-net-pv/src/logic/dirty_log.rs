//! Marks pages of guest memory that were written, while a front-end migrates its guest.
//!
//! The log is memory of the front-end's: a bit a page of 4096 bytes, page 0 in the lowest bit of the
//! first byte (vhost-user, section "Migration"; on a little-endian machine this is also what QEMU
//! reads as 64-bit numbers). The front-end takes bits and copies their pages at any time, so a page
//! is marked *after* it was written, and always with an atomic read-modify-write: a mark that was
//! saved because the bit looked set could be one that the front-end has just taken.
//!
//! A buffer that something was read into is marked when it is returned to the guest; until then its
//! contents mean nothing to anybody.
//!
//! Left out: which pages are written (the pumps and the ring say so), and when to log at all (the
//! backend decides). Pages behind the log's end are not marked; the front-end makes its log long
//! enough, and the backend warns where it did not.

use std::sync::atomic::{AtomicU8, Ordering};

use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, VolatileMemory};

use super::memory::{GuestSlice, Map, Memory};

/// Bytes of guest memory that one bit stands for (`VHOST_LOG_PAGE`).
pub const LOG_PAGE: u64 = 0x1000;
/// Bytes of guest memory that one byte of the log stands for.
const LOG_BYTE_SPAN: u64 = 8 * LOG_PAGE;
/// Longest log: it covers 48 bits of guest address, more than QEMU gives any machine.
pub const MAX_LOG_BYTES: u64 = (1 << 48) / LOG_BYTE_SPAN;

/// A front-end's log.
#[derive(Debug)]
pub struct DirtyLog {
    bits: Map,
}

impl DirtyLog {
    /// A log whose bits are in this memory.
    pub const fn new(bits: Map) -> Self {
        Self { bits }
    }

    /// Guest addresses below this can be marked.
    pub fn end(&self) -> u64 {
        (self.bits.size() as u64).saturating_mul(LOG_BYTE_SPAN)
    }

    /// Marks the pages of `bytes` bytes from a guest address on.
    pub fn mark(&self, address: u64, bytes: u64) {
        let Some(last) = bytes.checked_sub(1) else {
            return;
        };
        let last = address.saturating_add(last).min(self.end().saturating_sub(1));
        if address > last {
            return;
        }
        let (first, last) = (address / LOG_PAGE, last / LOG_PAGE);
        for byte in first / 8..=last / 8 {
            let from = first.saturating_sub(byte * 8).min(7);
            let to = (last - byte * 8).min(7);
            self.set(byte, (0xff << from) & (0xff >> (7 - to)));
        }
    }

    fn set(&self, byte: u64, mask: u8) {
        if let Some(bits) = self.cell(byte) {
            // Everything written before is seen by whoever takes the bit.
            bits.fetch_or(mask, Ordering::SeqCst);
        }
    }

    fn cell(&self, byte: u64) -> Option<&AtomicU8> {
        self.bits.get_atomic_ref(usize::try_from(byte).ok()?).ok()
    }
}

#[cfg(test)]
impl DirtyLog {
    /// Pages that are marked.
    pub(crate) fn marked(&self) -> Vec<u64> {
        let bit = |page: &u64| {
            let bits = self.cell(page / 8).map(|bits| bits.load(Ordering::SeqCst));
            bits.unwrap() & 1 << (page % 8) != 0
        };
        (0..self.end() / LOG_PAGE).filter(bit).collect()
    }

    /// Takes the marks, as a front-end does that is about to copy the pages.
    pub(crate) fn take(&self) -> Vec<u64> {
        let pages = self.marked();
        let bytes = 0..self.bits.size() as u64;
        bytes.filter_map(|byte| self.cell(byte)).for_each(|bits| bits.store(0, Ordering::SeqCst));
        pages
    }
}

/// A log and the memory that it is about: marks what was written through slices.
#[derive(Clone, Copy)]
pub struct SliceLog<'m> {
    log: &'m DirtyLog,
    memory: &'m Memory,
}

impl<'m> SliceLog<'m> {
    /// Slices of this memory are marked in this log.
    pub const fn new(log: &'m DirtyLog, memory: &'m Memory) -> Self {
        Self { log, memory }
    }

    /// Marks the first `bytes` bytes of `slices`.
    pub fn mark(&self, slices: &[GuestSlice<'_>], bytes: usize) {
        let mut left = bytes;
        for slice in slices {
            let written = left.min(slice.len());
            if written == 0 {
                return;
            }
            left -= written;
            if let Some(address) = self.guest_address(slice) {
                self.log.mark(address, written as u64);
            }
        }
    }

    /// Where the guest sees a slice. Slices do not know it; this is looked up only while logging.
    fn guest_address(&self, slice: &GuestSlice<'_>) -> Option<u64> {
        let host = slice.ptr_guard().as_ptr().addr();
        self.memory.iter().find_map(|region| {
            let offset = host.checked_sub(region.as_ptr().addr())? as u64;
            (offset < region.len()).then(|| region.start_addr().0.checked_add(offset))?
        })
    }
}

/// A log and where it keeps a used ring, by the guest address that the front-end has named.
#[derive(Clone, Copy)]
pub struct UsedLog<'m> {
    log: &'m DirtyLog,
    address: u64,
}

impl<'m> UsedLog<'m> {
    /// The used ring at this guest address is marked in this log.
    pub const fn new(log: &'m DirtyLog, address: u64) -> Self {
        Self { log, address }
    }

    /// Marks a part of the used ring.
    pub fn mark(&self, offset: u64, bytes: u64) {
        if let Some(address) = self.address.checked_add(offset) {
            self.log.mark(address, bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use vm_memory::GuestAddress;

    fn log(bytes: usize) -> DirtyLog {
        DirtyLog::new(Map::new(bytes).unwrap())
    }

    #[test]
    fn the_lowest_bit_of_the_first_byte_is_page_0() {
        let log = log(8);
        log.mark(0, 1);
        log.mark(9 * LOG_PAGE + 4095, 2);
        let mut bits = [0u8; 8];
        log.bits.as_volatile_slice().copy_to(&mut bits);
        assert_eq!(bits, [0x01, 0x06, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn nothing_written_marks_nothing() {
        let log = log(8);
        log.mark(4096, 0);
        assert_eq!(log.marked(), Vec::<u64>::new());
    }

    #[test]
    fn memory_that_the_log_does_not_cover_is_left_out() {
        let log = log(2);
        log.mark(15 * LOG_PAGE, u64::MAX);
        log.mark(16 * LOG_PAGE, 1);
        log.mark(u64::MAX, u64::MAX);
        UsedLog::new(&log, u64::MAX).mark(4, 8);
        assert_eq!(log.marked(), [15]);
    }

    proptest! {
        #[test]
        fn the_pages_marked_are_those_written(
            writes in proptest::collection::vec((0u64..40 * LOG_PAGE, 0u64..20 * LOG_PAGE), 0..8),
            log_bytes in 1usize..6,
        ) {
            let log = log(log_bytes);
            for (address, bytes) in &writes {
                log.mark(*address, *bytes);
            }
            let was_written = |page: &u64| {
                let bytes_of_page = page * LOG_PAGE..(page + 1) * LOG_PAGE;
                writes.iter().any(|(address, bytes)| {
                    *bytes > 0
                        && *address < bytes_of_page.end
                        && address + bytes > bytes_of_page.start
                })
            };
            let expected: Vec<_> = (0..log_bytes as u64 * 8).filter(was_written).collect();
            prop_assert_eq!(log.marked(), expected);
        }

        #[test]
        fn slices_are_marked_where_the_guest_sees_them(
            pieces in proptest::collection::vec((any::<bool>(), 0u64..30_000, 1usize..9000), 1..6),
            bytes in 0usize..30_000,
        ) {
            // Far apart for the guest; where they are for us is the system's choice.
            let bases = [3 * LOG_PAGE, 100 * LOG_PAGE];
            let ranges = bases.map(|base| (GuestAddress(base), 10 * LOG_PAGE as usize));
            let memory = Memory::from_ranges(&ranges).unwrap();
            let log = log(16);
            let mut slices = Vec::new();
            let mut expected = std::collections::BTreeSet::new();
            let mut left = bytes;
            for (second, offset, length) in pieces {
                let address = bases[usize::from(second)] + offset;
                let slice = GuestMemoryBackend::get_slice(&memory, GuestAddress(address), length);
                slices.push(slice.unwrap());
                for byte in 0..left.min(length) as u64 {
                    expected.insert((address + byte) / LOG_PAGE);
                }
                left -= left.min(length);
            }
            SliceLog::new(&log, &memory).mark(&slices, bytes);
            prop_assert_eq!(log.marked(), expected.into_iter().collect::<Vec<_>>());
        }
    }
}
