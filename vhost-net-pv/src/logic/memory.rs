//! The one place that names how guest memory is mapped.
//!
//! It carries no bitmap of dirty pages: kernel writes (`readv`, io_uring) would pass it by. Who lets
//! something write marks it in a [`DirtyLog`](super::dirty_log::DirtyLog).

use std::cell::Cell;

use vm_memory::{
    ByteValued, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
    GuestRegionMmap, MmapRegion, VolatileMemory, VolatileSlice,
};

/// The guest's memory as the front-end has shared it.
pub type Memory = GuestMemoryMmap<()>;
/// One mapped region of it.
pub type Region = GuestRegionMmap<()>;
/// Memory of a front-end's that is not the guest's.
pub type Map = MmapRegion<()>;
/// A piece of guest memory that is contiguous in our address space.
pub type GuestSlice<'m> = VolatileSlice<'m, ()>;

/// Finds memory by guest address, and at once in the region used last: buffers lie together.
#[derive(Debug, Clone)]
pub struct Finder<'m> {
    memory: &'m Memory,
    last: Cell<Option<&'m Region>>,
}

impl<'m> Finder<'m> {
    /// A finder of nothing yet.
    pub const fn new(memory: &'m Memory) -> Self {
        Self { memory, last: Cell::new(None) }
    }

    /// The whole memory.
    pub const fn memory(&self) -> &'m Memory {
        self.memory
    }

    /// The mapping that an address lies in, and where in it.
    #[inline]
    pub fn find(&self, address: GuestAddress) -> Option<(&'m Map, usize)> {
        if let Some(region) = self.last.get()
            && let Some(offset) = address.0.checked_sub(region.start_addr().0)
            && offset < region.size() as u64
        {
            return Some((region, offset as usize));
        }
        self.look_up(address)
    }

    #[cold]
    fn look_up(&self, address: GuestAddress) -> Option<(&'m Map, usize)> {
        let (region, offset) = self.memory.to_region_addr(address)?;
        self.last.set(Some(region));
        Some((region, usize::try_from(offset.0).ok()?))
    }

    /// The memory at an address, if all of it lies in one region.
    #[inline]
    pub fn slice(&self, address: GuestAddress, bytes: usize) -> Option<GuestSlice<'m>> {
        let (map, offset) = self.find(address)?;
        map.get_slice(offset, bytes).ok()
    }
}

/// Copies from the front of `slices`, skipping `skip` bytes, into `out`; returns bytes copied.
#[inline]
pub fn copy_out(slices: &[GuestSlice<'_>], skip: usize, out: &mut [u8]) -> usize {
    match first(slices, skip, out.len()) {
        Some(piece) => piece.copy_to(out),
        None => copy_out_of_many(slices, skip, out),
    }
}

fn copy_out_of_many(slices: &[GuestSlice<'_>], skip: usize, out: &mut [u8]) -> usize {
    let mut done = 0;
    for piece in pieces(slices, skip) {
        let Some(rest) = out.get_mut(done..).filter(|rest| !rest.is_empty()) else {
            break;
        };
        done += piece.copy_to(rest);
    }
    done
}

/// Copies `data` into `slices` after skipping `skip` bytes of them; returns bytes copied.
#[inline]
pub fn copy_in(slices: &[GuestSlice<'_>], skip: usize, data: &[u8]) -> usize {
    match first(slices, skip, data.len()) {
        Some(piece) => {
            piece.copy_from(data);
            data.len()
        }
        None => copy_into_many(slices, skip, data),
    }
}

/// Writes a value to the front of `slices`; in one piece, and without a call, where that can be.
///
/// What stands there already is left alone: memory that nobody writes can stay in the caches of
/// both sides, and a header is mostly what it was when the guest used the buffer last.
#[inline]
pub fn put<T: ByteValued + PartialEq>(slices: &[GuestSlice<'_>], value: &T) {
    match slices.first().and_then(|slice| slice.get_ref(0).ok()) {
        Some(place) if place.load() == *value => {}
        Some(place) => place.store(*value),
        None => {
            copy_into_many(slices, 0, value.as_slice());
        }
    }
}

/// The bytes wanted, where the first slice has them all, as it nearly always has.
#[inline]
fn first<'m>(slices: &[GuestSlice<'m>], skip: usize, bytes: usize) -> Option<GuestSlice<'m>> {
    slices.first()?.subslice(skip, bytes).ok()
}

fn copy_into_many(slices: &[GuestSlice<'_>], skip: usize, data: &[u8]) -> usize {
    let mut done = 0;
    for piece in pieces(slices, skip) {
        let Some(rest) = data.get(done..).filter(|rest| !rest.is_empty()) else {
            break;
        };
        let fits = rest.len().min(piece.len());
        piece.copy_from(&rest[..fits]);
        done += fits;
    }
    done
}

/// The slices without their first `skip` bytes; slices that are wholly skipped are left out.
pub fn pieces<'s, 'm>(
    slices: &'s [GuestSlice<'m>],
    skip: usize,
) -> impl Iterator<Item = GuestSlice<'m>> + use<'s, 'm> {
    let mut left = skip;
    slices.iter().filter_map(move |slice| {
        if left >= slice.len() {
            left -= slice.len();
            return None;
        }
        let piece = slice.offset(left).ok();
        left = 0;
        piece
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn copying_over_pieces_equals_copying_the_whole(
            parts in proptest::collection::vec(1usize..20, 1..8),
            skip in 0usize..80,
            data in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let mut buffers: Vec<Vec<u8>> = parts.iter().map(|len| vec![0; *len]).collect();
            let total: usize = parts.iter().sum();
            let slices: Vec<GuestSlice<'_>> =
                buffers.iter_mut().map(|b| GuestSlice::from(&mut b[..])).collect();
            let copied = copy_in(&slices, skip, &data);
            prop_assert_eq!(copied, data.len().min(total.saturating_sub(skip)));
            let mut back = vec![0; data.len()];
            prop_assert_eq!(copy_out(&slices, skip, &mut back), copied);
            prop_assert_eq!(&back[..copied], &data[..copied]);
        }
    }
}
