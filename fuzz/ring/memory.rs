//! The guest's memory, and what lies where in it.

use std::sync::OnceLock;

use vhost_net_pv::logic::memory::Memory;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

/// Rings; right behind it, in another region, buffers; behind a gap, more of them; and the last
/// bytes that there can be.
pub(crate) const REGIONS: [(u64, usize); 4] =
    [(0x1_0000, 0x1_0000), (0x2_0000, 0x8000), (0x10_0000, 0x8000), (LAST, 0x1000)];
pub(crate) const LAST: u64 = u64::MAX - 0x1fff;
pub(crate) const RINGS: u64 = REGIONS[0].0;
pub(crate) const BUFFERS: u64 = REGIONS[1].0;
/// Where a tidy ring's parts and tables of indirect descriptors lie, from [`RINGS`] on.
pub(crate) const AVAILABLE: u64 = 0x4000;
/// Over the end of a page, so that each part of it must be marked in a log by itself.
pub(crate) const USED: u64 = 0x5ff0;
pub(crate) const TABLES: u64 = 0x8000;
pub(crate) const TABLE_BYTES: u64 = 0x800;

/// The guest's memory, the same one for all inputs.
pub(crate) fn memory() -> &'static Memory {
    static MEMORY: OnceLock<Memory> = OnceLock::new();
    MEMORY.get_or_init(|| {
        Memory::from_ranges(&REGIONS.map(|(at, bytes)| (GuestAddress(at), bytes))).unwrap()
    })
}

/// Makes it as an input finds it, whatever ran before.
pub(crate) fn wipe(memory: &Memory) {
    for region in memory.iter() {
        region
            .as_volatile_slice()
            .unwrap()
            .write_slice(&vec![0; region.len() as usize], 0)
            .unwrap();
    }
}

/// One of a few places, so that headers meet the chains that they are for; or anywhere, also
/// behind the end of the region.
pub(crate) fn buffer_at(at: u16) -> u64 {
    let at = u64::from(at);
    let place = if at < 0x8000 { at % 20 * 0x800 } else { at - 0x8000 };
    BUFFERS + place
}

pub(crate) fn table_at(table: u8) -> u64 {
    RINGS + TABLES + u64::from(table % 16) * TABLE_BYTES
}
