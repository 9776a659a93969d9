//! The flight recorder's format: what the daemon saw and decided, compact enough to be kept always.
//!
//! A recording is a row of files. Each can be read by itself: it begins with a [`Head`] and names its VMs anew. After
//! eight bytes that name format and version come blocks; `docs/recording.md` has every byte of it.
//!
//! - [`block`]: blocks, each with its length and checksum, so that a torn or garbled one is known.
//! - [`encode`] and [`decode`]: entries in a block, samples as differences from the VM's last one.
//! - [`gather`]: what policies are compared over.
//!
//! Left out: files, their rotation and their bound (`io/recorder.rs`).

pub mod block;
pub mod decode;
pub mod encode;
pub mod gather;

use std::time::Duration;

use flexvf_protocol::VmName;
use serde::{Deserialize, Serialize};

use super::decision::Decision;
use super::engine::VmSpec;
use super::policy::tenant::Tenants;
use super::policy::{Memory, Strategy, Tuning, Words};
use super::rate::Sample;

/// What a file begins with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Head {
    /// Of the host. Times count from this boot.
    pub boot_id: String,
    /// When the host booted by its clock, milliseconds since 1970.
    pub booted_at_ms: u64,
    /// When the daemon began, milliseconds since the boot. Files of one daemon go on where the last one ended.
    pub began_at_ms: u64,
    /// Between two decisions.
    pub interval: Duration,
    /// Who deserved a VF.
    pub strategy: Strategy,
    /// What the strategy was set to.
    #[serde(default)]
    pub tuning: Tuning,
    /// What tenants were due.
    #[serde(default)]
    pub tenants: Tenants,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq)]
pub enum Entry {
    /// A VM is registered, or its registration has changed.
    Vm(VmName, Member),
    /// A VM's registration is gone.
    Gone(VmName),
    /// A VM's counters were read.
    Sample(VmName, Sample),
    /// A pool's VFs were decided on.
    Decision(Decision),
    /// What a pool's policy remembers from here on. A file begins with it, and has it once more after its first decision.
    Memory(String, Memory),
}

/// What of a VM's registration decisions depend on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its pool.
    pub pool: String,
    /// What the operator says of it.
    #[serde(flatten)]
    pub words: Words,
}

impl From<&VmSpec> for Member {
    fn from(spec: &VmSpec) -> Self {
        Self { pool: spec.pool.clone(), words: spec.words.clone() }
    }
}

/// What an entry begins with.
mod tag {
    pub(super) const VM: u8 = 1;
    pub(super) const GONE: u8 = 2;
    pub(super) const DECISION: u8 = 3;
    pub(super) const MEMORY: u8 = 4;
    /// The bit that makes it a sample; the others say what of it there is.
    pub(super) const SAMPLE: u8 = 0x80;
    /// Three bits a path, from this one on.
    pub(super) const PV: u8 = 0;
    pub(super) const VF: u8 = 3;
    /// There is a count.
    pub(super) const COUNT: u8 = 1;
    /// It does not go on from the last one: epoch and packets follow whole.
    pub(super) const ANEW: u8 = 2;
    /// The guest counted.
    pub(super) const GUEST: u8 = 4;
}

#[cfg(test)]
pub(crate) mod tests;
