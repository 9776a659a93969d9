//! The guest's memory, region by region, as the front-end shares it.

use std::fs::File;
use std::io;
use std::sync::Arc;

use nix::sys::statfs::{HUGETLBFS_MAGIC, fstatfs};
use vhost::vhost_user::message::VhostUserMemoryRegion;
use vhost::vhost_user::{Error as VhostError, Result as VhostResult};
use vm_memory::{GuestAddress, GuestRegionCollection};

use super::sys::{Cut, Watched};
use crate::logic::memory::{Memory, Region};

/// Memory regions that a front-end may share; QEMU uses a handful, and one per hot-plugged DIMM.
pub(super) const MAX_REGIONS: usize = 256;

/// All regions of a guest. A clone shares the mappings.
#[derive(Clone)]
pub(super) struct Regions {
    mapped: Vec<Mapped>,
    /// Who is told when one of them is cut.
    cut: Arc<Cut>,
}

#[derive(Clone)]
struct Mapped {
    /// Before the region, so that it is dropped before.
    watched: Arc<Watched>,
    /// Where the front-end sees it, which is how it names ring addresses.
    user_address: u64,
    guest_address: u64,
    bytes: u64,
    region: Arc<Region>,
}

/// The guest's memory in use: mapped, and cared for when it is cut, as long as this lives.
#[derive(Debug)]
pub(super) struct GuestMemory {
    /// Before the memory, so that they are dropped before.
    _watched: Vec<Arc<Watched>>,
    memory: Memory,
}

impl GuestMemory {
    pub(super) const fn memory(&self) -> &Memory {
        &self.memory
    }
}

impl Regions {
    /// No memory yet.
    pub(super) const fn new(cut: Arc<Cut>) -> Self {
        Self { mapped: Vec::new(), cut }
    }

    /// Maps one more region.
    pub(super) fn add(&mut self, region: &VhostUserMemoryRegion, file: File) -> VhostResult<()> {
        if self.mapped.len() >= MAX_REGIONS {
            return Err(VhostError::InvalidParam);
        }
        check_part(&file, region.mmap_offset, region.memory_size)
            .map_err(VhostError::ReqHandlerError)?;
        let mapping = region.mmap_region(file)?;
        let guest_address = GuestAddress(region.guest_phys_addr);
        let mapped = Region::new(mapping, guest_address).ok_or(VhostError::InvalidParam)?;
        self.mapped.push(Mapped {
            watched: Arc::new(Watched::new(mapped.as_ptr(), mapped.size(), &self.cut)),
            user_address: region.user_addr,
            guest_address: region.guest_phys_addr,
            bytes: region.memory_size,
            region: Arc::new(mapped),
        });
        Ok(())
    }

    /// Gives up the region that starts where this one does.
    pub(super) fn remove(&mut self, region: &VhostUserMemoryRegion) -> VhostResult<()> {
        let before = self.mapped.len();
        self.mapped.retain(|mapped| mapped.guest_address != region.guest_phys_addr);
        match self.mapped.len() == before {
            true => Err(VhostError::InvalidParam),
            false => Ok(()),
        }
    }

    /// The regions as one memory; refused where they overlap.
    pub(super) fn memory(&self) -> VhostResult<GuestMemory> {
        let mut parts: Vec<_> = self.mapped.iter().collect();
        parts.sort_by_key(|mapped| mapped.guest_address);
        let watched = parts.iter().map(|m| Arc::clone(&m.watched)).collect();
        let parts: Vec<_> = parts.into_iter().map(|m| Arc::clone(&m.region)).collect();
        let memory = match parts.is_empty() {
            true => GuestRegionCollection::new(),
            false => GuestRegionCollection::from_arc_regions(parts)
                .map_err(|error| VhostError::ReqHandlerError(io::Error::other(error)))?,
        };
        Ok(GuestMemory { _watched: watched, memory })
    }

    /// The guest address behind the last region.
    pub(super) fn end(&self) -> u64 {
        let end = |mapped: &Mapped| mapped.guest_address.saturating_add(mapped.bytes);
        self.mapped.iter().map(end).max().unwrap_or(0)
    }

    /// The guest address of what the front-end sees at an address of its own.
    pub(super) fn guest_address(&self, user_address: u64) -> VhostResult<u64> {
        self.mapped
            .iter()
            .find_map(|mapped| {
                let offset = user_address.checked_sub(mapped.user_address)?;
                let inside = offset < mapped.bytes;
                inside.then(|| mapped.guest_address.checked_add(offset))?
            })
            .ok_or(VhostError::InvalidParam)
    }
}

/// Refuses a part of a file that could be mapped, but not be touched or not be unmapped.
pub(super) fn check_part(file: &File, offset: u64, bytes: u64) -> io::Result<()> {
    let refused = |why: String| Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    let metadata = file.metadata()?;
    // A device has no length to hold the front-end to, and may give us memory of our own without end.
    if !metadata.is_file() {
        return refused("guest memory must be a file: memfd, hugetlbfs, tmpfs".into());
    }
    let length = metadata.len();
    if offset.checked_add(bytes).is_none_or(|end| end > length) {
        return refused(format!("{bytes} bytes at {offset} of a file that has {length}"));
    }
    // The kernel rounds up the length to map to whole huge pages, but not the length to unmap.
    let system = fstatfs(file)?;
    let page = match system.filesystem_type() == HUGETLBFS_MAGIC {
        true => u64::try_from(system.block_size()).map_err(io::Error::other)?,
        false => 1,
    };
    match bytes.is_multiple_of(page.max(1)) {
        true => Ok(()),
        false => refused(format!("{bytes} bytes of a file in pages of {page}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestMemoryBackend;

    const BYTES: u64 = 1 << 16;

    fn regions() -> Regions {
        Regions::new(Arc::new(Cut::new().unwrap()))
    }

    fn add(regions: &mut Regions, guest: u64, user: u64) -> VhostResult<()> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES).unwrap();
        regions.add(&VhostUserMemoryRegion::new(guest, BYTES, user, 0), file)
    }

    #[test]
    fn addresses_of_the_front_end_are_found_in_their_region() {
        let mut regions = self::regions();
        add(&mut regions, 0x10_0000, 0x7000_0000).unwrap();
        add(&mut regions, 0, u64::MAX - BYTES).unwrap();
        assert_eq!(regions.guest_address(0x7000_0010).unwrap(), 0x10_0010);
        assert_eq!(regions.guest_address(u64::MAX - 1).unwrap(), BYTES - 1);
        assert!(regions.guest_address(0x7000_0000 + BYTES).is_err());
        assert!(regions.guest_address(0).is_err());
    }

    #[test]
    fn overlapping_regions_are_no_memory() {
        let mut regions = self::regions();
        add(&mut regions, 0x1_0000, 0).unwrap();
        add(&mut regions, 0x1_8000, 0x10_0000).unwrap();
        assert!(regions.memory().is_err());
    }

    #[test]
    fn a_region_longer_than_its_file_is_refused() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(100).unwrap();
        let region = VhostUserMemoryRegion::new(0, BYTES, 0, 0);
        assert!(self::regions().add(&region, file).is_err());
    }

    #[test]
    fn regions_are_bounded_in_number() {
        let mut regions = self::regions();
        for count in 0..MAX_REGIONS as u64 {
            add(&mut regions, count * BYTES, count * BYTES).unwrap();
        }
        assert!(add(&mut regions, 1 << 40, 1 << 40).is_err());
        assert_eq!(regions.memory().unwrap().memory().iter().count(), MAX_REGIONS);
    }
}
