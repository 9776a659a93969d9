//! Entries → bytes of a block.

use std::collections::BTreeMap;
use std::time::Duration;

use flexvf_protocol::VmName;

use super::{Entry, Head, Member, tag};
use crate::logic::policy::Memory;
use crate::logic::rate::{Count, Sample, Trust};

/// Writes entries, file after file.
#[derive(Debug, Default)]
pub struct Encoder {
    /// VMs that are registered.
    members: BTreeMap<VmName, Member>,
    /// VMs that this file has named.
    named: BTreeMap<VmName, Named>,
    at_us: u64,
    /// Of each pool the last one, and whether this file has it.
    memories: BTreeMap<String, (Memory, bool)>,
}

#[derive(Debug)]
struct Named {
    index: u64,
    pv: Option<Count>,
    vf: Option<Count>,
}

impl Encoder {
    /// The first block of a file: VMs are named anew from here on.
    pub fn begin(&mut self, head: &Head) -> Vec<u8> {
        self.named.clear();
        self.at_us = 0;
        // Texts and numbers always have a JSON form.
        serde_json::to_vec(head).unwrap_or_default()
    }

    /// What a file begins with behind its first block: a policy goes on where the last file ended.
    pub fn resume(&mut self, out: &mut Vec<u8>) {
        for (pool, (memory, is_written)) in &mut self.memories {
            *is_written = false;
            remember(pool, memory, out);
        }
    }

    /// Adds an entry to a block.
    pub fn add(&mut self, entry: &Entry, out: &mut Vec<u8>) {
        match entry {
            Entry::Vm(vm, member) => {
                // All are told again whenever one of their files changes.
                if self.members.get(vm) == Some(member) && self.named.contains_key(vm) {
                    return;
                }
                self.members.insert(vm.clone(), member.clone());
                self.name(vm, member, out);
            }
            Entry::Gone(vm) => {
                self.members.remove(vm);
                if let Some(named) = self.named.get(vm) {
                    out.push(tag::GONE);
                    number(named.index, out);
                }
            }
            Entry::Sample(vm, sample) => self.sample(vm, sample, out),
            Entry::Memory(pool, memory) => {
                // Each decision changes it; a reader can follow from one on.
                let known = self.memories.entry(pool.clone()).or_default();
                if !known.1 {
                    remember(pool, memory, out);
                }
                *known = (memory.clone(), true);
            }
            Entry::Decision(decision) => {
                out.push(tag::DECISION);
                text(&serde_json::to_vec(decision).unwrap_or_default(), out);
            }
        }
    }

    fn name(&mut self, vm: &VmName, member: &Member, out: &mut Vec<u8>) {
        let next = self.named.len() as u64;
        let new = || Named { index: next, pv: None, vf: None };
        let index = self.named.entry(vm.clone()).or_insert_with(new).index;
        out.push(tag::VM);
        number(index, out);
        text(vm.as_str().as_bytes(), out);
        text(&serde_json::to_vec(member).unwrap_or_default(), out);
    }

    fn sample(&mut self, vm: &VmName, sample: &Sample, out: &mut Vec<u8>) {
        if !self.named.contains_key(vm) {
            // Of one that is not registered any more nobody wants to know.
            let Some(member) = self.members.get(vm).cloned() else { return };
            self.name(vm, &member, out);
        }
        let Some(named) = self.named.get_mut(vm) else { return };
        let begin = out.len();
        out.push(tag::SAMPLE);
        number(named.index, out);
        let at_us = us(sample.at);
        number(zigzag(at_us.wrapping_sub(self.at_us) as i64), out);
        self.at_us = at_us;
        let pv = count(&mut named.pv, sample.pv, out) << tag::PV;
        let vf = count(&mut named.vf, sample.vf, out) << tag::VF;
        if let Some(first) = out.get_mut(begin) {
            *first |= pv | vf;
        }
    }
}

fn remember(pool: &str, memory: &Memory, out: &mut Vec<u8>) {
    out.push(tag::MEMORY);
    text(pool.as_bytes(), out);
    text(&serde_json::to_vec(memory).unwrap_or_default(), out);
}

/// Writes a path's count; what its tag says.
fn count(last: &mut Option<Count>, now: Option<Count>, out: &mut Vec<u8>) -> u8 {
    let Some(now) = now else { return 0 };
    let guest = if now.trust == Trust::Guest { tag::GUEST } else { 0 };
    let last = last.replace(now).filter(|last| last.epoch == now.epoch && last.trust == now.trust);
    if let Some(more) = last.and_then(|last| now.packets.checked_sub(last.packets)) {
        number(more, out);
        return tag::COUNT | guest;
    }
    out.extend(now.epoch.to_le_bytes());
    number(now.packets, out);
    tag::COUNT | tag::ANEW | guest
}

fn text(bytes: &[u8], out: &mut Vec<u8>) {
    number(bytes.len() as u64, out);
    out.extend_from_slice(bytes);
}

/// Seven bits a byte, the lowest first; the highest bit of each but the last is set (LEB128).
fn number(mut value: u64, out: &mut Vec<u8>) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Small numbers of either sign become small ones without.
const fn zigzag(value: i64) -> u64 {
    ((value << 1) ^ (value >> 63)) as u64
}

pub(super) fn us(at: Duration) -> u64 {
    u64::try_from(at.as_micros()).unwrap_or(u64::MAX)
}
