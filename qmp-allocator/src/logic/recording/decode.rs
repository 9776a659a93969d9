//! Bytes of a block → entries. Every byte may be anything.

use std::time::Duration;

use flexvf_protocol::VmName;

use super::{Head, Member, tag};
use crate::logic::decision::Decision;
use crate::logic::policy::Memory;
use crate::logic::rate::{Count, Sample, Trust};

/// Something that happened, to a VM by its number in the file.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    /// It is registered, or its registration has changed.
    Vm(usize, VmName, Member),
    /// Its registration is gone.
    Gone(usize),
    /// Its counters were read.
    Sample(usize, Sample),
    /// A pool's VFs were decided on.
    Decision(Decision),
    /// What a pool's policy remembers from here on.
    Memory(String, Memory),
}

/// What is wrong with a block whose checksum is right: another program wrote it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} at byte {at} of the block")]
pub struct Garbled {
    /// In words.
    pub what: &'static str,
    /// From 0.
    pub at: usize,
}

/// Reads entries of one file.
#[derive(Debug, Default)]
pub struct Decoder {
    last: Vec<[Option<Count>; 2]>,
    at_us: u64,
}

/// More names than a file's VMs have: a VM needs some 30 bytes to be named.
const MAX_VMS: usize = 1_000_000;

/// The first block of a file.
///
/// # Errors
/// It is none.
pub fn head(block: &[u8]) -> Result<Head, serde_json::Error> {
    serde_json::from_slice(block)
}

impl Decoder {
    /// Hands each entry of a block to `each`.
    ///
    /// # Errors
    /// The first one that is none. Those before it were handed out.
    pub fn read(&mut self, block: &[u8], mut each: impl FnMut(Item)) -> Result<(), Garbled> {
        let mut bytes = Bytes { all: block, at: 0 };
        while let Some(first) = bytes.next() {
            let at = bytes.at - 1;
            let refuse = |what| Garbled { what, at };
            each(self.item(first, &mut bytes).map_err(refuse)?);
        }
        Ok(())
    }

    fn item(&mut self, first: u8, bytes: &mut Bytes<'_>) -> Result<Item, &'static str> {
        match first {
            tag::VM => self.vm(bytes),
            tag::GONE => Ok(Item::Gone(self.known(bytes)?)),
            tag::DECISION => {
                let json = bytes.text().ok_or(CUT)?;
                let decision = serde_json::from_slice(json);
                decision.map(Item::Decision).map_err(|_| "a decision that is none")
            }
            tag::MEMORY => {
                let pool = std::str::from_utf8(bytes.text().ok_or(CUT)?);
                let pool = pool.map_err(|_| "a pool's name that is none")?.to_owned();
                let memory = serde_json::from_slice(bytes.text().ok_or(CUT)?);
                let memory = memory.map_err(|_| "a policy's memory that is none")?;
                Ok(Item::Memory(pool, memory))
            }
            flags if flags & tag::SAMPLE != 0 => self.sample(flags, bytes),
            _ => Err("an unknown kind of entry"),
        }
    }

    fn vm(&mut self, bytes: &mut Bytes<'_>) -> Result<Item, &'static str> {
        let index = bytes.number().ok_or(CUT)?;
        let index = usize::try_from(index).unwrap_or(usize::MAX);
        let name = bytes.text().ok_or(CUT)?;
        let name = std::str::from_utf8(name).ok().and_then(|name| name.parse().ok());
        let name: VmName = name.ok_or("a name that no VM can have")?;
        let member = serde_json::from_slice(bytes.text().ok_or(CUT)?);
        let member = member.map_err(|_| "a registration that is none")?;
        if index > self.last.len() || index >= MAX_VMS {
            return Err("a VM out of turn");
        }
        if index == self.last.len() {
            self.last.push([None; 2]);
        }
        Ok(Item::Vm(index, name, member))
    }

    fn sample(&mut self, flags: u8, bytes: &mut Bytes<'_>) -> Result<Item, &'static str> {
        let index = self.known(bytes)?;
        let since = bytes.number().ok_or(CUT)?;
        self.at_us = self.at_us.wrapping_add(unzigzag(since) as u64);
        let [pv, vf] = self.last.get_mut(index).ok_or(CUT)?;
        let at = Duration::from_micros(self.at_us);
        let pv = count(pv, flags >> tag::PV, bytes)?;
        let vf = count(vf, flags >> tag::VF, bytes)?;
        Ok(Item::Sample(index, Sample { at, pv, vf }))
    }

    fn known(&self, bytes: &mut Bytes<'_>) -> Result<usize, &'static str> {
        let index = usize::try_from(bytes.number().ok_or(CUT)?).unwrap_or(usize::MAX);
        if index < self.last.len() { Ok(index) } else { Err("a VM that was not named") }
    }
}

fn count(
    last: &mut Option<Count>,
    flags: u8,
    bytes: &mut Bytes<'_>,
) -> Result<Option<Count>, &'static str> {
    if flags & tag::COUNT == 0 {
        return Ok(None);
    }
    let trust = if flags & tag::GUEST == 0 { Trust::Host } else { Trust::Guest };
    let now = if flags & tag::ANEW == 0 {
        let last = last.filter(|last| last.trust == trust);
        let Count { epoch, packets, .. } = last.ok_or("a count that goes on from nothing")?;
        let more = bytes.number().ok_or(CUT)?;
        let packets = packets.checked_add(more).ok_or("a count beyond all bounds")?;
        Count { epoch, packets, trust }
    } else {
        let epoch = bytes.take(8).and_then(|bytes| bytes.try_into().ok()).ok_or(CUT)?;
        let packets = bytes.number().ok_or(CUT)?;
        Count { epoch: u64::from_le_bytes(epoch), packets, trust }
    };
    *last = Some(now);
    Ok(Some(now))
}

const CUT: &str = "an entry that is cut off";

struct Bytes<'a> {
    all: &'a [u8],
    at: usize,
}

impl<'a> Bytes<'a> {
    fn next(&mut self) -> Option<u8> {
        let byte = *self.all.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let end = self.at.checked_add(count)?;
        let taken = self.all.get(self.at..end)?;
        self.at = end;
        Some(taken)
    }

    fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.number()?;
        self.take(usize::try_from(length).ok()?)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.next()?;
            let bits = u64::from(byte & 0x7f);
            // The tenth byte has room for one bit.
            if shift == 63 && bits > 1 {
                return None;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

const fn unzigzag(value: u64) -> i64 {
    (value >> 1) as i64 ^ -((value & 1) as i64)
}
