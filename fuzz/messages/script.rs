//! What an input says: the steps of a front-end.

use arbitrary::{Arbitrary, Unstructured};

/// One thing that a front-end does.
#[derive(Debug, Arbitrary)]
pub(crate) enum Step {
    /// Everything up to running rings, rightly.
    Start {
        features: u64,
        log_size: u8,
        rings: u8,
    },
    /// A message, right or not.
    Message(Message),
    /// Bytes that need not be one.
    Raw(Vec<u8>, Vec<Descriptor>),
    /// A question with so many descriptors.
    Flood(u8),
    /// A chain, offered on a ring and kicked.
    Chain {
        ring: u8,
        buffers: Vec<Buffer>,
        kick: bool,
    },
    /// A number written anywhere into shared memory.
    Poke {
        memory: u8,
        at: u16,
        value: u64,
    },
    /// A ring's available index moved.
    Jump {
        ring: u8,
        by: u16,
    },
    Kick(u8),
    /// Memory cut to so many pages.
    Cut {
        memory: u8,
        pages: u8,
    },
    /// An interrupt's counter filled up.
    Fill(u8),
    /// Waits until everything so far was handled.
    Settle,
}

/// A descriptor of a ring.
#[derive(Debug, Arbitrary)]
pub(crate) struct Buffer {
    pub(crate) at: u16,
    pub(crate) length: Length,
    pub(crate) flags: u8,
    /// Where the next one is, if not where it belongs.
    pub(crate) next: Option<u8>,
}

#[derive(Debug, Arbitrary)]
pub(crate) enum Length {
    Short(u8),
    Long(u16),
    Any(u32),
}

/// A message: a request with a payload that fits it, or another one.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) request: u32,
    pub(crate) need_reply: bool,
    pub(crate) flags: u32,
    pub(crate) payload: Payload,
    /// Length to announce, if not the right one.
    pub(crate) size: Option<u32>,
    pub(crate) descriptors: Vec<Descriptor>,
    /// Send only so many bytes.
    pub(crate) cut_at: Option<u8>,
}

#[derive(Debug, Arbitrary)]
pub(crate) enum Payload {
    Nothing,
    Word(u64),
    /// For a ring: an index and a value.
    Ring(u8, u32),
    /// Addresses of a ring's parts, as offsets in the first memory.
    Addresses(u8, [u16; 3], u8),
    /// A dirty log: pages and an offset in pages.
    Log(u8, u8),
    Region(Region),
    Table(Vec<Region>),
    Words(Vec<u64>),
    Bytes(Vec<u8>),
}

/// A memory region, in pages, and what is added to each number.
#[derive(Debug, Arbitrary)]
pub(crate) struct Region {
    pub(crate) guest: u8,
    pub(crate) pages: u8,
    pub(crate) user: u8,
    pub(crate) offset: u8,
    pub(crate) off_by: Option<[i64; 4]>,
}

/// A descriptor that goes along with a message.
#[derive(Debug, Clone, Copy, Arbitrary)]
pub(crate) enum Descriptor {
    Memory(u8),
    Kick(u8),
    Call(u8),
    Pipe,
    Socket,
    /// The connection that it is sent over.
    Itself,
    Device,
    Folder,
    Epoll,
    Timer,
    Fixed,
}

/// More than the device takes; each of the odd ones costs system calls.
const MOST_DESCRIPTORS: usize = 40;

/// Known requests, twice where much hangs on them.
const REQUESTS: [u8; 45] = [
    1, 2, 3, 4, 5, 5, 6, 6, 7, 8, 8, 9, 9, 10, 11, 11, 12, 12, 13, 13, 14, 15, 16, 17, 18, 18, 19,
    20, 21, 22, 23, 24, 25, 28, 31, 32, 33, 34, 36, 37, 37, 38, 38, 39, 40,
];

impl<'a> Arbitrary<'a> for Message {
    fn arbitrary(u: &mut Unstructured<'a>) -> arbitrary::Result<Self> {
        let request = match u.arbitrary::<u8>()? {
            255 => u.arbitrary()?,
            other => REQUESTS[usize::from(other) % REQUESTS.len()].into(),
        };
        Ok(Self {
            request,
            need_reply: u.arbitrary()?,
            flags: if u.ratio(1, 16)? { u.arbitrary()? } else { 1 },
            payload: payload(u, request)?,
            size: if u.ratio(1, 16)? { Some(u.arbitrary()?) } else { None },
            descriptors: descriptors(u, request)?,
            cut_at: if u.ratio(1, 16)? { Some(u.arbitrary()?) } else { None },
        })
    }
}

/// Mostly of the kind that the request has.
fn payload(u: &mut Unstructured<'_>, request: u32) -> arbitrary::Result<Payload> {
    if u.ratio(1, 8)? {
        return u.arbitrary();
    }
    Ok(match request {
        2 | 16 | 19 | 20 | 39 => Payload::Word(u.arbitrary()?),
        8 | 10 | 11 | 12 | 13 | 14 | 18 => Payload::Ring(u.arbitrary()?, u.arbitrary()?),
        9 => Payload::Addresses(u.arbitrary()?, u.arbitrary()?, u.arbitrary()?),
        6 => Payload::Log(u.arbitrary()?, u.arbitrary()?),
        5 => Payload::Table(u.arbitrary()?),
        37 | 38 => Payload::Region(u.arbitrary()?),
        _ => Payload::Nothing,
    })
}

fn descriptors(u: &mut Unstructured<'_>, request: u32) -> arbitrary::Result<Vec<Descriptor>> {
    if u.ratio(1, 8)? {
        let mut any: Vec<_> = u.arbitrary()?;
        any.truncate(MOST_DESCRIPTORS);
        return Ok(any);
    }
    Ok(match request {
        12 => vec![Descriptor::Kick(u.arbitrary()?)],
        13 | 14 => vec![Descriptor::Call(u.arbitrary()?)],
        // As many as regions, in the table's order; see `FrontEnd::message`.
        5 | 6 | 37 => vec![Descriptor::Memory(u.arbitrary()?)],
        _ => Vec::new(),
    })
}
