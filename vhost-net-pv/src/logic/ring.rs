//! A split virtqueue, walked through views that are resolved once (virtio 1.x, section 2.7).
//!
//! Everything in a ring is the guest's to write, at any moment. So every index is checked, every
//! descriptor is read once, every walk has a bound, and what breaks the specification is an
//! [`Malformed`] value. The caller returns such a chain unused and goes on.
//!
//! Left out: the packed layout, and any decision about when to interrupt a guest that polls.

use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_ring::{VRING_AVAIL_F_NO_INTERRUPT, VRING_USED_F_NO_NOTIFY};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileArrayRef, VolatileMemory};

use super::chain;
pub use super::chain::{Access, MAX_PIECES, Malformed};
use super::dirty_log::UsedLog;
use super::memory::{Finder, GuestSlice, Memory, Region};

/// Largest ring that is accepted, as in QEMU.
pub const MAX_RING_SIZE: u16 = 1024;

const AVAIL_IDX: u64 = 2;
const AVAIL_RING: u64 = 4;
const USED_FLAGS: u64 = 0;
const USED_IDX: u64 = 2;
const USED_RING: u64 = 4;
const USED_ENTRY: u64 = 8;

/// Where a ring lies in guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Descriptors; a power of two.
    pub size: u16,
    /// Guest address of the descriptor table.
    pub descriptors: u64,
    /// Guest address of the available ring.
    pub available: u64,
    /// Guest address of the used ring.
    pub used: u64,
}

impl Layout {
    /// The used ring, which is written, shares memory with a part that is read. A used index that is the
    /// available index as well would be work without end.
    fn used_overlaps(&self, event_idx: bool) -> bool {
        let size = u64::from(self.size);
        let event = if event_idx { 2 } else { 0 };
        let used = (self.used, USED_RING + USED_ENTRY * size + event);
        let available = (self.available, AVAIL_RING + 2 * size + event);
        let descriptors = (self.descriptors, 16 * size);
        [available, descriptors].into_iter().any(|(start, bytes)| {
            start < used.0.saturating_add(used.1) && used.0 < start.saturating_add(bytes)
        })
    }
}

/// How far a ring has been worked off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Next available entry to take.
    pub next_available: u16,
    /// Next used entry to write.
    pub next_used: u16,
}

/// Why a ring cannot be used at all.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadLayout {
    /// Not a power of two, zero, or too large.
    #[error("ring size {0} is not a power of two of at most {MAX_RING_SIZE}")]
    Size(u16),
    /// A part of it is misaligned or not wholly inside one shared memory region.
    #[error("the {part} at guest address {address:#x} is misaligned or outside guest memory")]
    Address {
        /// Which part of the ring.
        part: &'static str,
        /// Its guest address.
        address: u64,
    },
    /// What is written to the used ring would change what the guest has made available.
    #[error("the used ring at guest address {0:#x} overlaps another part of the ring")]
    Overlap(u64),
}

/// The guest moved the available index by more than the ring holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("available index jumped")]
pub struct IndexJump;

/// A ring in use.
pub struct Ring<'m> {
    finder: Finder<'m>,
    size: u16,
    event_idx: bool,
    descriptors: VolatileArrayRef<'m, Descriptor>,
    available_flags: &'m AtomicU16,
    available_idx: &'m AtomicU16,
    available_ring: VolatileArrayRef<'m, u16>,
    used_event: &'m AtomicU16,
    used_flags: &'m AtomicU16,
    used_idx: &'m AtomicU16,
    used_ring: VolatileArrayRef<'m, u64>,
    available_event: &'m AtomicU16,
    position: Position,
    /// Available index as last read; entries before it may be taken.
    seen: u16,
    /// Used index that the guest has been shown.
    published: u16,
    /// Where writes to the used ring are marked, while the front-end wants that.
    log: Option<UsedLog<'m>>,
}

impl<'m> Ring<'m> {
    /// Resolves a ring's parts.
    ///
    /// # Errors
    /// [`BadLayout`] when a part is not in guest memory or badly aligned.
    pub fn new(
        memory: &'m Memory,
        layout: &Layout,
        event_idx: bool,
        position: Position,
    ) -> Result<Self, BadLayout> {
        let size = layout.size;
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(BadLayout::Size(size));
        }
        if layout.used_overlaps(event_idx) {
            return Err(BadLayout::Overlap(layout.used));
        }
        let count = usize::from(size);
        let table = Part::new(memory, "descriptor table", layout.descriptors, 16)?;
        let available = Part::new(memory, "available ring", layout.available, 2)?;
        let used = Part::new(memory, "used ring", layout.used, 4)?;
        Ok(Self {
            finder: Finder::new(memory),
            size,
            event_idx,
            descriptors: table.array(0, count)?,
            available_flags: available.word(0)?,
            available_idx: available.word(AVAIL_IDX)?,
            available_ring: available.array(AVAIL_RING, count)?,
            used_event: available.word(AVAIL_RING + 2 * u64::from(size))?,
            used_flags: used.word(USED_FLAGS)?,
            used_idx: used.word(USED_IDX)?,
            used_ring: used.array(USED_RING, count)?,
            available_event: used.word(USED_RING + USED_ENTRY * u64::from(size))?,
            seen: position.next_available,
            published: position.next_used,
            position,
            log: None,
        })
    }

    /// Marks what is written to the used ring from now on.
    pub const fn log_used(&mut self, log: Option<UsedLog<'m>>) {
        self.log = log;
    }

    /// How far the ring has been worked off.
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Entries that the ring has room for.
    pub const fn size(&self) -> u16 {
        self.size
    }

    /// Entries that may be taken now, after a look at the guest's index.
    ///
    /// # Errors
    /// [`IndexJump`] when the guest claims more entries than the ring has. The claim is then taken
    /// as the new position, so that a driver that comes to its senses is served again.
    #[inline]
    pub fn available(&mut self) -> Result<u16, IndexJump> {
        let claimed = u16::from_le(self.available_idx.load(Ordering::Acquire));
        let count = claimed.wrapping_sub(self.position.next_available);
        self.seen = claimed;
        if count > self.size {
            self.position.next_available = claimed;
            return Err(IndexJump);
        }
        Ok(count)
    }

    /// Entries that could be taken at the last look.
    pub const fn known(&self) -> u16 {
        self.seen.wrapping_sub(self.position.next_available)
    }

    /// The head of the chain `ahead` entries after the next one.
    #[inline]
    pub fn head(&self, ahead: u16) -> u16 {
        let slot = self.position.next_available.wrapping_add(ahead) & (self.size - 1);
        u16::from_le(self.available_ring.load(usize::from(slot)))
    }

    /// Appends a chain's buffers to `pieces` and returns their length in bytes.
    ///
    /// # Errors
    /// [`Malformed`]; `pieces` is then as it was.
    #[inline]
    pub fn walk(
        &self,
        head: u16,
        access: Access,
        pieces: &mut Vec<GuestSlice<'m>>,
    ) -> Result<usize, Malformed> {
        chain::walk(&self.finder, &self.descriptors, head, access, pieces)
    }

    /// Takes `count` chains off the available ring.
    pub fn advance(&mut self, count: u16) {
        self.position.next_available = self.position.next_available.wrapping_add(count);
    }

    /// Returns a chain with `bytes` written into it; the guest sees it after [`Self::publish`].
    #[inline]
    pub fn push_used(&mut self, head: u16, bytes: u32) {
        let slot = usize::from(self.position.next_used & (self.size - 1));
        // An element is the chain's head and the length, 32 bits each, little-endian.
        let element = u64::from(head) | u64::from(bytes) << 32;
        self.used_ring.store(slot, element.to_le());
        self.position.next_used = self.position.next_used.wrapping_add(1);
    }

    /// Returns `count` chains, of which `last` is the last one, with nothing written into any.
    ///
    /// Only for a ring whose chains are used in order: one entry then stands for all of them
    /// (virtio 1.x, section 2.7.9), where the first of them would have stood.
    pub fn push_used_up_to(&mut self, last: u16, count: usize) {
        self.push_used(last, 0);
        let others = (count as u16).wrapping_sub(1);
        self.position.next_used = self.position.next_used.wrapping_add(others);
    }

    /// Shows the guest what was returned. True: it wants an interrupt for it; `None`: nothing new.
    #[inline]
    pub fn publish(&mut self) -> Option<bool> {
        let (old, new) = (self.published, self.position.next_used);
        if old == new {
            return None;
        }
        self.used_idx.store(new.to_le(), Ordering::Release);
        self.published = new;
        if let Some(log) = &self.log {
            self.mark_returned(log, old, new);
        }
        // The index must be visible before the guest's wish is read, or both sides may sleep.
        fence(Ordering::SeqCst);
        Some(if self.event_idx {
            let event = u16::from_le(self.used_event.load(Ordering::Relaxed));
            // Virtio 1.x, section 2.7.10: the event index was passed just now.
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            let flags = u32::from(u16::from_le(self.available_flags.load(Ordering::Relaxed)));
            flags & VRING_AVAIL_F_NO_INTERRUPT == 0
        })
    }

    /// Marks the entries between two used indices, and the index itself.
    fn mark_returned(&self, log: &UsedLog<'_>, old: u16, new: u16) {
        log.mark(USED_IDX, 2);
        let count = new.wrapping_sub(old).min(self.size);
        let first = old & (self.size - 1);
        let to_the_end = count.min(self.size - first);
        let bytes = |entries: u16| USED_ENTRY * u64::from(entries);
        log.mark(USED_RING + bytes(first), bytes(to_the_end));
        log.mark(USED_RING, bytes(count - to_the_end));
    }

    /// Asks the guest for a kick at its next entry. The caller looks again afterwards.
    pub fn ask_for_kick(&mut self) {
        if self.event_idx {
            self.available_event.store(self.seen.to_le(), Ordering::Relaxed);
            self.mark(USED_RING + USED_ENTRY * u64::from(self.size));
        } else {
            self.used_flags.store(0, Ordering::Relaxed);
            self.mark(USED_FLAGS);
        }
        fence(Ordering::SeqCst);
    }

    /// Tells the guest that no kick is needed for now.
    pub fn decline_kicks(&mut self) {
        // With event indices, an index that is not asked for again is silence enough.
        if !self.event_idx {
            self.used_flags.store((VRING_USED_F_NO_NOTIFY as u16).to_le(), Ordering::Relaxed);
            self.mark(USED_FLAGS);
        }
    }

    /// Marks a 16-bit word of the used ring that was written.
    fn mark(&self, offset: u64) {
        if let Some(log) = &self.log {
            log.mark(offset, 2);
        }
    }

    /// The used index that guest memory holds: where a ring goes on after a restart.
    pub fn used_index_in_memory(&self) -> u16 {
        u16::from_le(self.used_idx.load(Ordering::Acquire))
    }

    /// Goes on where so many chains were taken, and all of them returned.
    pub const fn resume_at(&mut self, index: u16) {
        self.position = Position { next_available: index, next_used: index };
        self.seen = index;
        self.published = index;
    }
}

/// One of a ring's three parts; each must lie in one region, as one object of the guest's.
struct Part<'m> {
    region: &'m Region,
    offset: u64,
    name: &'static str,
    address: u64,
}

impl<'m> Part<'m> {
    fn new(
        memory: &'m Memory,
        name: &'static str,
        address: u64,
        alignment: u64,
    ) -> Result<Self, BadLayout> {
        let bad = BadLayout::Address { part: name, address };
        if !address.is_multiple_of(alignment) {
            return Err(bad);
        }
        let (region, offset) = memory.to_region_addr(GuestAddress(address)).ok_or(bad)?;
        Ok(Self { region, offset: offset.0, name, address })
    }

    fn array<T: vm_memory::ByteValued>(
        &self,
        at: u64,
        count: usize,
    ) -> Result<VolatileArrayRef<'m, T>, BadLayout> {
        usize::try_from(self.offset + at)
            .ok()
            .and_then(|offset| self.region.get_array_ref(offset, count).ok())
            .ok_or_else(|| self.bad())
    }

    fn word(&self, at: u64) -> Result<&'m AtomicU16, BadLayout> {
        usize::try_from(self.offset + at)
            .ok()
            .and_then(|offset| self.region.get_atomic_ref(offset).ok())
            .ok_or_else(|| self.bad())
    }

    const fn bad(&self) -> BadLayout {
        BadLayout::Address { part: self.name, address: self.address }
    }
}

#[cfg(test)]
mod tests {
    use super::super::dirty_log::{DirtyLog, LOG_PAGE};
    use super::super::memory::Map;
    use super::super::testing::{BASE, BUFFERS, Driver, INDIRECT, NEXT, WRITE, memory};
    use super::*;
    use proptest::prelude::*;

    fn ring<'m>(driver: &Driver<'m>, event_idx: bool) -> Ring<'m> {
        Ring::new(driver.memory, &driver.layout, event_idx, Position::default()).unwrap()
    }

    fn walk(driver: &Driver<'_>, head: u16) -> Result<(usize, usize), Malformed> {
        let mut pieces = Vec::new();
        let walked = ring(driver, false).walk(head, Access::DeviceReads, &mut pieces);
        if walked.is_err() {
            assert!(pieces.is_empty(), "pieces of a malformed chain were kept");
        }
        walked.map(|bytes| (bytes, pieces.len()))
    }

    #[test]
    fn a_chain_of_descriptors_is_one_frame() {
        let memory = memory();
        let mut driver = Driver::new(&memory, 8);
        let head = driver.offer(&[(BUFFERS, 5), (BUFFERS + 64, 7), (BUFFERS + 128, 100)], 0);
        assert_eq!(walk(&driver, head), Ok((112, 3)));
    }

    #[test]
    fn an_indirect_table_may_end_a_chain() {
        let memory = memory();
        let driver = Driver::new(&memory, 8);
        driver.raw_descriptor(BUFFERS, 0, BUFFERS + 4096, 60, NEXT, 1);
        driver.raw_descriptor(BUFFERS, 1, BUFFERS + 8192, 40, 0, 0);
        driver.descriptor(0, BUFFERS + 512, 12, NEXT, 3);
        driver.descriptor(3, BUFFERS, 32, INDIRECT, 0);
        assert_eq!(walk(&driver, 0), Ok((112, 3)));
    }

    #[test]
    fn every_breach_of_the_specification_has_its_name() {
        let memory = memory();
        let driver = Driver::new(&memory, 8);
        let expect = |malformed: Malformed| assert_eq!(walk(&driver, 0), Err(malformed));
        assert_eq!(walk(&driver, 8), Err(Malformed::Index));
        driver.descriptor(0, BUFFERS, 64, NEXT, 0);
        expect(Malformed::Loop);
        driver.descriptor(0, BUFFERS, 64, NEXT, 800);
        expect(Malformed::Index);
        driver.descriptor(0, BUFFERS, 0, 0, 0);
        expect(Malformed::Empty);
        driver.descriptor(0, BUFFERS, 64, WRITE, 0);
        expect(Malformed::Direction);
        driver.descriptor(0, 0, 64, 0, 0);
        expect(Malformed::OutOfMemory);
        driver.descriptor(0, BASE + (1 << 20) - 32, 64, 0, 0);
        expect(Malformed::OutOfMemory);
        driver.descriptor(0, u64::MAX - 8, u32::MAX, 0, 0);
        expect(Malformed::OutOfMemory);
        driver.descriptor(0, BUFFERS, 16, INDIRECT | NEXT, 1);
        expect(Malformed::Indirect);
        driver.raw_descriptor(BUFFERS, 0, BUFFERS, 16, INDIRECT, 0);
        driver.descriptor(0, BUFFERS, 16, INDIRECT, 0);
        expect(Malformed::Indirect);
        driver.descriptor(0, BUFFERS, 17, INDIRECT, 0);
        expect(Malformed::IndirectTable);
        driver.descriptor(0, 0, 16, INDIRECT, 0);
        expect(Malformed::IndirectTable);
        driver.descriptor(0, BUFFERS, 16 * 2000, INDIRECT, 0);
        expect(Malformed::TooLong);
    }

    #[test]
    fn a_buffer_may_cross_into_the_neighbouring_region() {
        let second = BASE + (1 << 20);
        let regions = [(GuestAddress(BASE), 1 << 20), (GuestAddress(second), 1 << 16)];
        let memory = Memory::from_ranges(&regions).unwrap();
        let mut driver = Driver::new(&memory, 8);
        let head = driver.offer(&[(second - 10, 30)], 0);
        assert_eq!(walk(&driver, head), Ok((30, 2)));
    }

    #[test]
    fn after_a_jump_of_the_index_the_ring_goes_on() {
        let memory = memory();
        let mut driver = Driver::new(&memory, 8);
        let mut ring = ring(&driver, false);
        driver.set_available(4000);
        assert_eq!(ring.available(), Err(IndexJump));
        assert_eq!(ring.available(), Ok(0));
        let head = driver.offer(&[(BUFFERS, 64)], 0);
        assert_eq!(ring.available(), Ok(1));
        assert_eq!(ring.head(0), head);
    }

    #[test]
    fn rings_of_a_bad_shape_are_refused() {
        let memory = memory();
        let good = Driver::new(&memory, 8).layout;
        let refuse = |layout: Layout| Ring::new(&memory, &layout, true, Position::default()).err();
        assert_eq!(refuse(Layout { size: 0, ..good }), Some(BadLayout::Size(0)));
        assert_eq!(refuse(Layout { size: 12, ..good }), Some(BadLayout::Size(12)));
        for layout in [
            Layout { descriptors: good.descriptors + 8, ..good },
            Layout { used: good.used + 2, ..good },
            Layout { available: BASE + (1 << 20) - 8, ..good },
            Layout { descriptors: 0, ..good },
        ] {
            assert!(matches!(refuse(layout), Some(BadLayout::Address { .. })));
        }
        for used in [good.available, good.descriptors, good.descriptors + 16 * 8 - 4] {
            let layout = Layout { used: used & !3, ..good };
            assert!(matches!(refuse(layout), Some(BadLayout::Overlap(_))), "{layout:?}");
        }
    }

    proptest! {
        /// The rule of virtio 1.x, section 2.7.10, in words: interrupt if the used index has gone
        /// past the event index since the last time it was shown.
        #[test]
        fn an_interrupt_is_sent_when_the_event_index_was_passed(
            start: u16, count in 1u16..=8, event: u16
        ) {
            let memory = memory();
            let driver = Driver::new(&memory, 8);
            let position = Position { next_available: start, next_used: start };
            let mut ring = Ring::new(&memory, &driver.layout, true, position).unwrap();
            driver.set_used_event(event);
            for _ in 0..count {
                ring.push_used(0, 0);
            }
            let passed = (0..count).any(|step| start.wrapping_add(step) == event);
            prop_assert_eq!(ring.publish(), Some(passed));
            prop_assert_eq!(ring.publish(), None);
        }

        #[test]
        fn just_what_was_written_to_the_used_ring_is_marked(
            steps in proptest::collection::vec(0u16..1100, 1..12),
            start in 0u16..2000,
            unaligned in 0u64..1024,
            log_at in 0u64..20_000,
            event_idx: bool,
        ) {
            const UNTOUCHED: u8 = 0xaa;
            let memory = memory();
            let mut driver = Driver::new(&memory, 1024);
            driver.layout.used = BUFFERS + 4 * unaligned;
            let position = Position { next_available: 0, next_used: start };
            let log = DirtyLog::new(Map::new(1).unwrap());
            let mut written = std::collections::BTreeSet::new();
            let mut ring = Ring::new(&memory, &driver.layout, event_idx, position).unwrap();
            ring.log_used(Some(UsedLog::new(&log, log_at)));
            for step in steps {
                driver.put(driver.layout.used, &[UNTOUCHED; 4 + 8 * 1024 + 2]);
                match step {
                    1024..1060 => ring.ask_for_kick(),
                    1060.. => ring.decline_kicks(),
                    count => {
                        (0..count).for_each(|_| ring.push_used(1, 0x0101_0101));
                        ring.publish();
                    }
                }
                let bytes = driver.get(driver.layout.used, 4 + 8 * 1024 + 2);
                let changed = (log_at..).zip(bytes).filter(|(_, byte)| *byte != UNTOUCHED);
                written.extend(changed.map(|(address, _)| address / LOG_PAGE));
                prop_assert_eq!(log.marked(), written.iter().copied().collect::<Vec<_>>());
            }
        }

        #[test]
        fn no_descriptor_table_makes_a_walk_panic_or_run_away(
            descriptors in proptest::collection::vec(
                (any::<u64>(), any::<u32>(), 0u16..8, 0u16..10, any::<bool>()), 8
            ),
            writes: bool,
            head in 0u16..10,
        ) {
            let memory = memory();
            let driver = Driver::new(&memory, 8);
            for (index, (address, length, flags, next, sane)) in descriptors.iter().enumerate() {
                // Half of the addresses lie in memory, many in the descriptor table itself.
                let address = if *sane { BASE + address % (1 << 8) } else { *address };
                let length = if *sane { length % 200 } else { *length };
                driver.descriptor(index as u16, address, length, *flags, *next);
            }
            let access = if writes { Access::DeviceWrites } else { Access::DeviceReads };
            let mut pieces = Vec::new();
            if let Ok(bytes) = ring(&driver, true).walk(head, access, &mut pieces) {
                prop_assert!(pieces.len() <= MAX_PIECES);
                prop_assert_eq!(bytes, pieces.iter().map(GuestSlice::len).sum::<usize>());
            } else {
                prop_assert!(pieces.is_empty());
            }
        }
    }
}
