//! A split virtqueue, walked through views that are resolved once (virtio 1.x, section 2.7).
//!
//! Everything in a ring is the guest's to write, at any moment. So every index is checked, every
//! descriptor is read once, every walk has a bound, and what breaks the specification is an
//! [`Malformed`] value. The caller returns such a chain unused and goes on.
//!
//! Left out: the packed layout, and any decision about when to interrupt a guest that polls.

use std::sync::atomic::{AtomicU16, Ordering, fence};

use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_INDIRECT, VRING_USED_F_NO_NOTIFY,
};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{
    GuestAddress, GuestMemoryBackend, GuestMemoryRegion, VolatileArrayRef, VolatileMemory,
};

use super::memory::{GuestSlice, Memory};

/// Most pieces a chain may have: a `readv` takes 1024 and two of them are ours.
pub const MAX_PIECES: usize = 1022;
/// Largest ring that is accepted, as in QEMU.
pub const MAX_RING_SIZE: u16 = 1024;

const AVAIL_IDX: u64 = 2;
const AVAIL_RING: u64 = 4;
const USED_IDX: u64 = 2;
const USED_RING: u64 = 4;
const DESCRIPTOR_BYTES: usize = size_of::<Descriptor>();

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

/// How far a ring has been worked off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Position {
    /// Next available entry to take.
    pub next_available: u16,
    /// Next used entry to write.
    pub next_used: u16,
}

/// Who writes into a chain's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The device reads them: frames from the guest.
    DeviceReads,
    /// The device writes them: buffers for frames to the guest.
    DeviceWrites,
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
}

/// How a descriptor chain breaks the specification.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A head or `next` beyond the table.
    #[error("descriptor index out of range")]
    Index,
    /// More descriptors than the table has: a loop.
    #[error("descriptor chain loops")]
    Loop,
    /// More pieces than any frame needs.
    #[error("descriptor chain too long")]
    TooLong,
    /// A table inside an indirect table, or an indirect descriptor with a `next`.
    #[error("nested or chained indirect table")]
    Indirect,
    /// An indirect table that is empty, cut, or outside guest memory.
    #[error("indirect table is unusable")]
    IndirectTable,
    /// A buffer of no bytes.
    #[error("buffer of length zero")]
    Empty,
    /// A writable buffer where the device reads, or the reverse.
    #[error("buffer of the wrong direction")]
    Direction,
    /// A buffer outside guest memory.
    #[error("buffer outside guest memory")]
    OutOfMemory,
    /// A chain with no room for anything behind the virtio-net header.
    #[error("chain too short for a header and a frame")]
    TooShort,
}

/// The guest moved the available index by more than the ring holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("available index jumped")]
pub struct IndexJump;

/// A ring in use.
pub struct Ring<'m> {
    memory: &'m Memory,
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
        let count = usize::from(size);
        let table = Part::new(memory, "descriptor table", layout.descriptors, 16)?;
        let available = Part::new(memory, "available ring", layout.available, 2)?;
        let used = Part::new(memory, "used ring", layout.used, 4)?;
        Ok(Self {
            memory,
            size,
            event_idx,
            descriptors: table.array(0, count)?,
            available_flags: available.word(0)?,
            available_idx: available.word(AVAIL_IDX)?,
            available_ring: available.array(AVAIL_RING, count)?,
            used_event: available.word(AVAIL_RING + 2 * u64::from(size))?,
            used_flags: used.word(0)?,
            used_idx: used.word(USED_IDX)?,
            used_ring: used.array(USED_RING, count)?,
            available_event: used.word(USED_RING + 8 * u64::from(size))?,
            seen: position.next_available,
            published: position.next_used,
            position,
        })
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
    pub fn head(&self, ahead: u16) -> u16 {
        let slot = self.position.next_available.wrapping_add(ahead) & (self.size - 1);
        u16::from_le(self.available_ring.load(usize::from(slot)))
    }

    /// Appends a chain's buffers to `pieces` and returns their length in bytes.
    ///
    /// # Errors
    /// [`Malformed`]; `pieces` is then as it was.
    pub fn walk(
        &self,
        head: u16,
        access: Access,
        pieces: &mut Vec<GuestSlice<'m>>,
    ) -> Result<usize, Malformed> {
        let mut chain = Chain {
            memory: self.memory,
            access,
            before: pieces.len(),
            pieces,
            bytes: 0,
        };
        match self.walk_chain(head, &mut chain) {
            Ok(()) => Ok(chain.bytes),
            Err(malformed) => {
                let before = chain.before;
                pieces.truncate(before);
                Err(malformed)
            }
        }
    }

    fn walk_chain(&self, head: u16, chain: &mut Chain<'_, 'm>) -> Result<(), Malformed> {
        let Some(indirect) = chain.follow(&self.descriptors, head)? else {
            return Ok(());
        };
        let table = self.indirect_table(&indirect)?;
        match chain.follow(&table, 0)? {
            None => Ok(()),
            Some(_) => Err(Malformed::Indirect),
        }
    }

    fn indirect_table(
        &self,
        descriptor: &Descriptor,
    ) -> Result<VolatileArrayRef<'m, Descriptor>, Malformed> {
        let bytes = descriptor.len() as usize;
        let count = bytes / DESCRIPTOR_BYTES;
        if !bytes.is_multiple_of(DESCRIPTOR_BYTES) || count == 0 {
            return Err(Malformed::IndirectTable);
        }
        if count > MAX_PIECES {
            return Err(Malformed::TooLong);
        }
        Part::new(self.memory, "indirect table", descriptor.addr().0, 1)
            .and_then(|part| part.array(0, count))
            .map_err(|_| Malformed::IndirectTable)
    }

    /// Takes `count` chains off the available ring.
    pub fn advance(&mut self, count: u16) {
        self.position.next_available = self.position.next_available.wrapping_add(count);
    }

    /// Returns a chain with `bytes` written into it; the guest sees it after [`Self::publish`].
    pub fn push_used(&mut self, head: u16, bytes: u32) {
        let slot = usize::from(self.position.next_used & (self.size - 1));
        // An element is the chain's head and the length, 32 bits each, little-endian.
        let element = u64::from(head) | u64::from(bytes) << 32;
        self.used_ring.store(slot, element.to_le());
        self.position.next_used = self.position.next_used.wrapping_add(1);
    }

    /// Shows the guest what was returned. True: it wants an interrupt for it; `None`: nothing new.
    pub fn publish(&mut self) -> Option<bool> {
        let (old, new) = (self.published, self.position.next_used);
        if old == new {
            return None;
        }
        self.used_idx.store(new.to_le(), Ordering::Release);
        self.published = new;
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

    /// Asks the guest for a kick at its next entry. The caller looks again afterwards.
    pub fn ask_for_kick(&mut self) {
        if self.event_idx {
            self.available_event
                .store(self.seen.to_le(), Ordering::Relaxed);
        } else {
            self.used_flags.store(0, Ordering::Relaxed);
        }
        fence(Ordering::SeqCst);
    }

    /// Tells the guest that no kick is needed for now.
    pub fn decline_kicks(&mut self) {
        // With event indices, an index that is not asked for again is silence enough.
        if !self.event_idx {
            self.used_flags
                .store((VRING_USED_F_NO_NOTIFY as u16).to_le(), Ordering::Relaxed);
        }
    }

    /// The used index that guest memory holds: where a ring goes on after a restart.
    pub fn used_index_in_memory(&self) -> u16 {
        u16::from_le(self.used_idx.load(Ordering::Acquire))
    }

    /// Goes on from another used index.
    pub const fn resume_used(&mut self, next_used: u16) {
        self.position.next_used = next_used;
        self.published = next_used;
    }
}

/// A walk in progress.
struct Chain<'p, 'm> {
    memory: &'m Memory,
    access: Access,
    before: usize,
    pieces: &'p mut Vec<GuestSlice<'m>>,
    bytes: usize,
}

impl<'m> Chain<'_, 'm> {
    /// Follows one table to the chain's end, or to an indirect descriptor, which it returns.
    fn follow(
        &mut self,
        table: &VolatileArrayRef<'m, Descriptor>,
        head: u16,
    ) -> Result<Option<Descriptor>, Malformed> {
        let mut index = usize::from(head);
        for _ in 0..table.len() {
            if index >= table.len() {
                return Err(Malformed::Index);
            }
            let descriptor = table.load(index);
            if u32::from(descriptor.flags()) & VRING_DESC_F_INDIRECT != 0 {
                return match descriptor.has_next() {
                    true => Err(Malformed::Indirect),
                    false => Ok(Some(descriptor)),
                };
            }
            self.buffer(&descriptor)?;
            if !descriptor.has_next() {
                return Ok(None);
            }
            index = usize::from(descriptor.next());
        }
        Err(Malformed::Loop)
    }

    fn buffer(&mut self, descriptor: &Descriptor) -> Result<(), Malformed> {
        let length = descriptor.len() as usize;
        if length == 0 {
            return Err(Malformed::Empty);
        }
        if descriptor.is_write_only() != (self.access == Access::DeviceWrites) {
            return Err(Malformed::Direction);
        }
        self.bytes = self.bytes.saturating_add(length);
        let (region, offset) = self
            .memory
            .to_region_addr(descriptor.addr())
            .ok_or(Malformed::OutOfMemory)?;
        match GuestMemoryRegion::get_slice(region, offset, length) {
            Ok(slice) => self.pieces.push(slice),
            Err(_) => self.across_regions(descriptor.addr(), length)?,
        }
        if self.pieces.len() - self.before > MAX_PIECES {
            return Err(Malformed::TooLong);
        }
        Ok(())
    }

    /// A buffer may cross from one memory region into its neighbour.
    fn across_regions(&mut self, address: GuestAddress, length: usize) -> Result<(), Malformed> {
        for slice in GuestMemoryBackend::get_slices(self.memory, address, length) {
            self.pieces.push(slice.map_err(|_| Malformed::OutOfMemory)?);
        }
        Ok(())
    }
}

/// One of a ring's three parts; each must lie in one region, as one object of the guest's.
struct Part<'m> {
    region: &'m super::memory::Region,
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
        let bad = BadLayout::Address {
            part: name,
            address,
        };
        if !address.is_multiple_of(alignment) {
            return Err(bad);
        }
        let (region, offset) = memory.to_region_addr(GuestAddress(address)).ok_or(bad)?;
        Ok(Self {
            region,
            offset: offset.0,
            name,
            address,
        })
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
        BadLayout::Address {
            part: self.name,
            address: self.address,
        }
    }
}
