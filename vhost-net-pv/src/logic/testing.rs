//! A driver's side of a ring in memory of our own, for tests.

use std::collections::VecDeque;
use std::sync::atomic::Ordering;

use vm_memory::{Bytes, GuestAddress};

use super::memory::Memory;
use super::ring::Layout;

/// Guest memory of the tests starts here: address 0 is outside.
pub(crate) const BASE: u64 = 0x1_0000;
/// First address behind the rings' own parts.
pub(crate) const BUFFERS: u64 = BASE + 0x1_0000;

pub(crate) const NEXT: u16 = 1;
pub(crate) const WRITE: u16 = 2;
pub(crate) const INDIRECT: u16 = 4;

/// One MiB of guest memory.
pub(crate) fn memory() -> Memory {
    Memory::from_ranges(&[(GuestAddress(BASE), 1 << 20)]).unwrap()
}

/// The driver of one ring.
pub(crate) struct Driver<'m> {
    pub(crate) memory: &'m Memory,
    pub(crate) layout: Layout,
    next_free: u16,
    available: u16,
    used_seen: u16,
}

impl<'m> Driver<'m> {
    pub(crate) fn new(memory: &'m Memory, size: u16) -> Self {
        Self::at(memory, size, BASE)
    }

    /// A ring whose parts lie in the 32 KiB from `base` on.
    pub(crate) fn at(memory: &'m Memory, size: u16, base: u64) -> Self {
        Self {
            memory,
            layout: Layout {
                size,
                descriptors: base,
                available: base + 0x5000,
                used: base + 0x7000,
            },
            next_free: 0,
            available: 0,
            used_seen: 0,
        }
    }

    pub(crate) fn descriptor(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.raw_descriptor(self.layout.descriptors, index, address, length, flags, next);
    }

    pub(crate) fn raw_descriptor(
        &self,
        table: u64,
        index: u16,
        address: u64,
        length: u32,
        flags: u16,
        next: u16,
    ) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    /// Makes a chain of buffers, each an address and a length, and offers it; returns its head.
    pub(crate) fn offer(&mut self, buffers: &[(u64, usize)], flags: u16) -> u16 {
        let head = self.next_free;
        for (at, (address, length)) in buffers.iter().enumerate() {
            let index = self.next_free;
            self.next_free = (self.next_free + 1) % self.layout.size;
            let more = if at + 1 < buffers.len() { NEXT } else { 0 };
            let length = u32::try_from(*length).unwrap();
            self.descriptor(index, *address, length, flags | more, self.next_free);
        }
        self.offer_head(head);
        head
    }

    pub(crate) fn offer_head(&mut self, head: u16) {
        let slot = u64::from(self.available % self.layout.size);
        self.put(self.layout.available + 4 + 2 * slot, &head.to_le_bytes());
        self.set_available(self.available.wrapping_add(1));
    }

    pub(crate) fn set_available(&mut self, index: u16) {
        self.available = index;
        let at = GuestAddress(self.layout.available + 2);
        self.memory.store(index, at, Ordering::Release).unwrap();
    }

    pub(crate) fn set_used_event(&self, index: u16) {
        let at = self.layout.available + 4 + 2 * u64::from(self.layout.size);
        self.put(at, &index.to_le_bytes());
    }

    /// Chains returned since the last call: head and length.
    pub(crate) fn returned(&mut self) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| self.returned_one()).collect()
    }

    /// The next chain returned.
    pub(crate) fn returned_one(&mut self) -> Option<(u32, u32)> {
        let index = GuestAddress(self.layout.used + 2);
        let used: u16 = self.memory.load(index, Ordering::Acquire).unwrap();
        if self.used_seen == used {
            return None;
        }
        let slot = u64::from(self.used_seen % self.layout.size);
        let at = GuestAddress(self.layout.used + 4 + 8 * slot);
        let element: [u32; 2] = self.memory.read_obj(at).unwrap();
        self.used_seen = self.used_seen.wrapping_add(1);
        Some((element[0], element[1]))
    }

    /// The used index that the device has shown.
    pub(crate) fn used_index(&self) -> u16 {
        self.memory.load(GuestAddress(self.layout.used + 2), Ordering::Acquire).unwrap()
    }

    /// Takes the chains that came back off `taken`, the heads offered, where a device that keeps the
    /// order names the last of several only; returns their number.
    pub(crate) fn returned_in_order(&mut self, taken: &mut VecDeque<u16>) -> usize {
        let before = taken.len();
        while self.used_seen != self.used_index() {
            let slot = u64::from(self.used_seen % self.layout.size);
            let last: u32 =
                self.memory.read_obj(GuestAddress(self.layout.used + 4 + 8 * slot)).unwrap();
            let head = std::iter::from_fn(|| {
                self.used_seen = self.used_seen.wrapping_add(1);
                taken.pop_front().map(u32::from)
            })
            .find(|head| *head == last);
            assert_eq!(head, Some(last), "a chain came back that is not under way");
        }
        before - taken.len()
    }

    /// Makes the ring as a driver finds it when it starts.
    pub(crate) fn restart(&mut self) {
        self.put(self.layout.available, &[0; 4]);
        self.put(self.layout.used, &[0; 4]);
        (self.next_free, self.available, self.used_seen) = (0, 0, 0);
    }

    pub(crate) fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    pub(crate) fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}
