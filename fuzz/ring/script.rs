//! What an input says: the deeds of a guest.

use arbitrary::{Arbitrary, Unstructured};

use crate::memory::{BUFFERS, LAST, REGIONS, RINGS, buffer_at, table_at};

/// Where the ring's parts are.
#[derive(Debug, Arbitrary)]
pub(crate) enum Place {
    Tidy,
    /// Anywhere, also upon one another.
    Anywhere {
        descriptors: u16,
        available: u16,
        used: u16,
    },
}

/// A number written somewhere.
#[derive(Debug, Clone, Arbitrary)]
pub(crate) struct Poke {
    pub(crate) at: Spot,
    pub(crate) value: u64,
}

#[derive(Debug, Clone, Arbitrary)]
pub(crate) enum Spot {
    Descriptor(u8, u8),
    Table(u8, u8, u8),
    AvailableIndex,
    AvailableEntry(u8),
    AvailableFlags,
    UsedEvent,
    Used(u8),
    Buffer(u16),
    Rings(u16),
}

/// One thing that the guest does, or that is done with its ring.
#[derive(Debug, Arbitrary)]
pub(crate) enum Deed {
    /// A chain of buffers as they should be, offered.
    Chain {
        wrong_way: Rarely,
        buffers: Vec<(u16, Length)>,
    },
    /// The same in a table of its own.
    Indirect {
        wrong_way: Rarely,
        table: u8,
        buffers: Vec<(u16, Length)>,
    },
    Descriptor {
        index: u8,
        address: Address,
        length: Length,
        flags: u16,
        next: u8,
    },
    TableEntry {
        table: u8,
        index: u8,
        address: Address,
        length: Length,
        flags: u16,
        next: u8,
    },
    Offer(Vec<u8>),
    Jump(u16),
    UsedEvent(u16),
    /// A virtio-net header: flags, kind of segmentation, lengths.
    Header {
        at: u16,
        flags: u8,
        gso_type: u8,
        lengths: [u16; 5],
    },
    Poke(Poke),
    InMidTurn(Vec<Poke>),
    /// The port has a frame for the guest.
    Frame(u16),
    Turn(u16),
    Turns,
    AskForKick,
}

/// Once in eight times.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rarely(pub(crate) bool);

impl<'a> Arbitrary<'a> for Rarely {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        Ok(Self(u.ratio(1, 8)?))
    }
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub(crate) enum Address {
    Buffer(u16),
    Table(u8),
    Rings(u16),
    /// The end of the first region of buffers, and of what there can be.
    NearGap(u8),
    NearTop(u16),
    Any(u64),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
pub(crate) enum Length {
    Short(u8),
    Long(u16),
    Entries(u8),
    Any(u32),
}

impl Address {
    pub(crate) const fn may_be_the_ring(self) -> bool {
        matches!(self, Self::Rings(_) | Self::Any(_))
    }

    pub(crate) fn get(self) -> u64 {
        match self {
            Self::Buffer(at) => buffer_at(at),
            Self::Table(table) => table_at(table),
            Self::Rings(at) => RINGS + u64::from(at),
            Self::NearGap(before) => BUFFERS + REGIONS[1].1 as u64 - u64::from(before),
            Self::NearTop(before) => LAST + REGIONS[3].1 as u64 - u64::from(before),
            Self::Any(address) => address,
        }
    }
}

impl Length {
    pub(crate) fn get(self) -> u32 {
        match self {
            Self::Short(length) => length.into(),
            Self::Long(length) => length.into(),
            Self::Entries(count) => u32::from(count) * 16,
            Self::Any(length) => length,
        }
    }
}
