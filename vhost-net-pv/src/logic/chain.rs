//! A descriptor chain, followed from its head to its end (virtio 1.x, section 2.7.5).
//!
//! What is used of a descriptor comes from one reading of it. A chain has at most as many descriptors as its table; whatever else
//! is wrong with it is a [`Malformed`].

use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestAddress, GuestMemoryBackend, VolatileArrayRef, VolatileMemory};

use super::memory::{Finder, GuestSlice};

/// Most pieces a chain may have: a `readv` takes 1024 and two of them are ours.
pub const MAX_PIECES: usize = 1022;

const DESCRIPTOR_BYTES: usize = size_of::<Descriptor>();

/// Who writes into a chain's buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// The device reads them: frames from the guest.
    DeviceReads,
    /// The device writes them: buffers for frames to the guest.
    DeviceWrites,
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

/// Appends the buffers of the chain at `head` of `table` to `pieces`; returns their length.
///
/// # Errors
/// [`Malformed`]; `pieces` is then as it was.
#[inline]
pub fn walk<'m>(
    memory: &Finder<'m>,
    table: &VolatileArrayRef<'m, Descriptor>,
    head: u16,
    access: Access,
    pieces: &mut Vec<GuestSlice<'m>>,
) -> Result<usize, Malformed> {
    if let Some(buffer) = one_buffer(memory, table, head, access) {
        pieces.push(buffer);
        return Ok(buffer.len());
    }
    walk_far(memory, table, head, access, pieces)
}

/// The buffer of a chain that is one good buffer in one region, as nearly all are.
#[inline]
fn one_buffer<'m>(
    memory: &Finder<'m>,
    table: &VolatileArrayRef<'m, Descriptor>,
    head: u16,
    access: Access,
) -> Option<GuestSlice<'m>> {
    let index = usize::from(head);
    if index >= table.len() {
        return None;
    }
    let descriptor = table.load(index);
    let flags = u32::from(descriptor.flags());
    let expected = if access == Access::DeviceWrites { VRING_DESC_F_WRITE } else { 0 };
    let told = VRING_DESC_F_NEXT | VRING_DESC_F_INDIRECT | VRING_DESC_F_WRITE;
    if flags & told != expected || descriptor.len() == 0 {
        return None;
    }
    memory.slice(descriptor.addr(), descriptor.len() as usize)
}

/// Follows a chain of any shape.
fn walk_far<'m>(
    memory: &Finder<'m>,
    table: &VolatileArrayRef<'m, Descriptor>,
    head: u16,
    access: Access,
    pieces: &mut Vec<GuestSlice<'m>>,
) -> Result<usize, Malformed> {
    let before = pieces.len();
    let mut chain = Chain { memory, access, before, pieces, bytes: 0 };
    match chain.follow_all(table, head) {
        Ok(()) => Ok(chain.bytes),
        Err(malformed) => {
            pieces.truncate(before);
            Err(malformed)
        }
    }
}

/// A walk in progress.
struct Chain<'p, 'm> {
    memory: &'p Finder<'m>,
    access: Access,
    before: usize,
    pieces: &'p mut Vec<GuestSlice<'m>>,
    bytes: usize,
}

impl<'m> Chain<'_, 'm> {
    /// Follows the chain through its table, and the indirect table that may end it.
    fn follow_all(
        &mut self,
        table: &VolatileArrayRef<'m, Descriptor>,
        head: u16,
    ) -> Result<(), Malformed> {
        let Some(indirect) = self.follow(table, head)? else {
            return Ok(());
        };
        match self.follow(&self.indirect_table(&indirect)?, 0)? {
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
        self.memory
            .find(descriptor.addr())
            .and_then(|(map, offset)| map.get_array_ref(offset, count).ok())
            .ok_or(Malformed::IndirectTable)
    }

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
        match self.memory.slice(descriptor.addr(), length) {
            Some(slice) => self.pieces.push(slice),
            None => self.across_regions(descriptor.addr(), length)?,
        }
        if self.pieces.len() - self.before > MAX_PIECES {
            return Err(Malformed::TooLong);
        }
        Ok(())
    }

    /// A buffer may cross from one memory region into its neighbour.
    #[cold]
    fn across_regions(&mut self, address: GuestAddress, length: usize) -> Result<(), Malformed> {
        for slice in GuestMemoryBackend::get_slices(self.memory.memory(), address, length) {
            self.pieces.push(slice.map_err(|_| Malformed::OutOfMemory)?);
        }
        Ok(())
    }
}
