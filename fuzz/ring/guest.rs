//! The guest: what it does to its memory, and what it expects of its ring.

use vhost_net_pv::logic::memory::Memory;
use vhost_net_pv::logic::ring::{Layout, Position};
use vm_memory::{Bytes, GuestAddress};

use crate::dirty::Written;
use crate::memory::{AVAILABLE, RINGS, USED, buffer_at, table_at};
use crate::script::{Deed, Length, Place, Poke, Spot};

const NEXT: u16 = 1;
const WRITE: u16 = 2;
const INDIRECT: u16 = 4;

pub(crate) struct Guest<'m> {
    memory: &'m Memory,
    pub(crate) layout: Layout,
    receives: bool,
    available: u16,
    next_free: u16,
    /// Heads in the order in which they were offered, as long as the ring shows nothing else.
    offered: Vec<u16>,
    tidy: bool,
    start: u16,
    /// How far the walk has come.
    taken: u16,
}

impl<'m> Guest<'m> {
    pub(crate) fn new(
        memory: &'m Memory,
        receives: bool,
        log_size: u8,
        place: &Place,
        start: u16,
    ) -> Self {
        let (descriptors, available, used) = match place {
            Place::Tidy => (0, AVAILABLE, USED),
            Place::Anywhere { descriptors, available, used } => {
                ((*descriptors).into(), (*available).into(), (*used).into())
            }
        };
        let layout = Layout {
            size: 1 << (log_size % 9),
            descriptors: RINGS + descriptors,
            available: RINGS + available,
            used: RINGS + used,
        };
        let tidy = matches!(place, Place::Tidy);
        let guest = Self {
            memory,
            layout,
            receives,
            available: start,
            next_free: 0,
            offered: vec![],
            tidy,
            start,
            taken: start,
        };
        guest.show_available();
        guest
    }

    pub(crate) fn does(&mut self, deed: &Deed) {
        match deed {
            Deed::Chain { wrong_way, buffers } => {
                self.chain(self.receives != wrong_way.0, buffers);
            }
            Deed::Indirect { wrong_way, table, buffers } => {
                self.indirect(self.receives != wrong_way.0, *table, buffers);
            }
            Deed::Descriptor { index, address, length, flags, next } => {
                let index = u16::from(*index) % self.layout.size;
                self.tidy &= !address.may_be_the_ring();
                let (address, length) = (address.get(), length.get());
                let at = self.layout.descriptors;
                self.descriptor(at, index, address, length, *flags, (*next).into());
            }
            Deed::TableEntry { table, index, address, length, flags, next } => {
                self.tidy &= !address.may_be_the_ring();
                let (address, length) = (address.get(), length.get());
                let (at, index) = (table_at(*table), u16::from(*index) % 128);
                self.descriptor(at, index, address, length, *flags, (*next).into());
            }
            Deed::Offer(heads) => heads.iter().for_each(|head| self.offer((*head).into())),
            Deed::Jump(by) => {
                self.available = self.available.wrapping_add(*by);
                self.tidy = false;
                self.show_available();
            }
            Deed::UsedEvent(event) => {
                let at = self.layout.available + 4 + 2 * u64::from(self.layout.size);
                self.put(at, &event.to_le_bytes());
            }
            Deed::Header { at, flags, gso_type, lengths } => {
                let gso_type = [0, 1, 3, 4, 5, 0x81, 0x84][usize::from(*gso_type) % 7];
                let mut header = vec![*flags, gso_type];
                header.extend(lengths.iter().flat_map(|length| length.to_le_bytes()));
                self.put(buffer_at(*at), &header);
            }
            Deed::Poke(poke) => {
                let (at, value) = self.address(poke);
                self.put(at, &value.to_le_bytes());
            }
            _ => {}
        }
    }

    /// Where a poke goes, and what it writes. The caller may do it at any time.
    pub(crate) fn address(&mut self, poke: &Poke) -> (u64, u64) {
        let Layout { size, descriptors, available, used } = self.layout;
        let entry = |index: u8| u64::from(index) % u64::from(size);
        let at = match poke.at {
            Spot::Buffer(at) => buffer_at(at),
            Spot::Table(table, index, part) => {
                table_at(table) + u64::from(index) % 128 * 16 + u64::from(part % 2) * 8
            }
            Spot::Descriptor(index, part) => {
                descriptors + entry(index) * 16 + u64::from(part % 2) * 8
            }
            Spot::AvailableFlags => available,
            Spot::AvailableIndex => available + 2,
            Spot::AvailableEntry(index) => available + 4 + entry(index) * 2,
            Spot::UsedEvent => available + 4 + 2 * u64::from(size),
            Spot::Used(at) => used + u64::from(at),
            Spot::Rings(at) => RINGS + u64::from(at),
        };
        // What was offered is not known any more; all writes are of eight bytes.
        let harmless = matches!(poke.at, Spot::Buffer(_) | Spot::Table(..) | Spot::Descriptor(..));
        self.tidy &= harmless;
        (at, poke.value)
    }

    /// Whatever has changed is marked.
    pub(crate) fn check_marks(&self, written: &Written<'_>) {
        assert!(!self.tidy || written.is_marked(), "a page was written and not marked");
    }

    /// The walk has seen an impossible index and begins anew.
    pub(crate) fn is_lost(&mut self) {
        self.tidy = false;
    }

    pub(crate) const fn header_bytes(&self, long: bool) -> u64 {
        if long { 12 } else { 10 }
    }

    /// Compares what was returned with what was offered, as long as that is known.
    pub(crate) fn check_returned(
        &mut self,
        before: Position,
        count: u16,
        in_order: bool,
        written: u64,
    ) {
        self.taken = before.next_available.wrapping_add(count);
        if !self.tidy {
            return;
        }
        let mut sum = 0;
        for turn in 0..count {
            let used = before.next_used.wrapping_add(turn);
            let (head, bytes) = self.returned(used);
            let place = before.next_available.wrapping_add(turn).wrapping_sub(self.start);
            // An entry for all of them stands where the first would have stood.
            let place = if in_order { place.wrapping_add(count - 1) } else { place };
            assert_eq!(Some(&head), self.offered.get(usize::from(place)), "not in order");
            sum += u64::from(bytes);
            if in_order {
                break;
            }
        }
        assert_eq!(sum, written, "bytes written into the guest's buffers");
    }

    fn returned(&self, index: u16) -> (u16, u32) {
        let slot = u64::from(index % self.layout.size);
        let at = GuestAddress(self.layout.used + 4 + 8 * slot);
        let [head, bytes]: [u32; 2] = self.memory.read_obj(at).unwrap();
        (u16::try_from(head).unwrap(), bytes)
    }

    fn chain(&mut self, receives: bool, buffers: &[(u16, Length)]) {
        let head = self.next_free;
        let kind = if receives { WRITE } else { 0 };
        for (at, (place, length)) in buffers.iter().enumerate().take(self.layout.size.into()) {
            let index = self.next_free;
            self.next_free = (self.next_free + 1) % self.layout.size;
            let more = if at + 1 < buffers.len() { NEXT } else { 0 };
            let table = self.layout.descriptors;
            let (address, length) = (buffer_at(*place), length.get());
            self.descriptor(table, index, address, length, kind | more, self.next_free);
        }
        self.offer(head);
    }

    fn indirect(&mut self, receives: bool, table: u8, buffers: &[(u16, Length)]) {
        let table = table_at(table);
        let kind = if receives { WRITE } else { 0 };
        let count = buffers.len().min(128) as u16;
        for (index, (place, length)) in (0..count).zip(buffers) {
            let more = if index + 1 < count { NEXT } else { 0 };
            let (address, length) = (buffer_at(*place), length.get());
            self.descriptor(table, index, address, length, kind | more, index + 1);
        }
        let head = self.next_free;
        self.next_free = (head + 1) % self.layout.size;
        let bytes = u32::from(count) * 16;
        self.descriptor(self.layout.descriptors, head, table, bytes, INDIRECT, 0);
        self.offer(head);
    }

    fn descriptor(&self, table: u64, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&address.to_le_bytes());
        bytes[8..12].copy_from_slice(&length.to_le_bytes());
        bytes[12..14].copy_from_slice(&flags.to_le_bytes());
        bytes[14..].copy_from_slice(&next.to_le_bytes());
        self.put(table + 16 * u64::from(index), &bytes);
    }

    fn offer(&mut self, head: u16) {
        let slot = u64::from(self.available % self.layout.size);
        self.put(self.layout.available + 4 + 2 * slot, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.offered.push(head);
        // More than the ring holds: some entry was overwritten.
        self.tidy &= self.available.wrapping_sub(self.taken) <= self.layout.size;
        self.show_available();
    }

    fn show_available(&self) {
        self.put(self.layout.available + 2, &self.available.to_le_bytes());
    }

    /// Writes as much as there is memory for.
    fn put(&self, address: u64, bytes: &[u8]) {
        let _ = self.memory.write(bytes, GuestAddress(address));
    }
}
