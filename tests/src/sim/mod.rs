//! The allocator's engine against a made-up world, in virtual time: `flexvf-soak`.
//!
//! The engine is the real one. Around it are twins of the daemon's loop ([`daemon`]) and of its tasks
//! ([`task`], [`jobs`], [`actions`]), which fail where the real ones can; VMs with QEMU, guest and agent
//! ([`machine`]); a host with VFs ([`host`]). For some minutes faults strike ([`faults`]); then all is
//! mended, and within a bound everything must be as it should. At every step [`judge`] looks at what
//! really is. A [`plan`] follows from a seed, and so does everything else: a run is replayed by its seed.
//!
//! Left out: bytes. What QMP, the agent and netlink look like on the wire is the adapters' business,
//! and their tests'.

pub mod actions;
pub mod calm;
pub mod daemon;
pub mod faults;
pub mod host;
pub mod jobs;
pub mod judge;
pub mod machine;
pub mod plan;
pub mod soak;
pub mod task;
pub mod trace;
pub mod world;

use judge::Violation;
use plan::Plan;
use trace::Trace;
use world::World;

/// What came of a seed.
#[derive(Debug)]
pub struct Played {
    /// Events that the engine took.
    pub steps: u64,
    /// What went wrong, if anything did.
    pub violation: Option<Violation>,
    /// The trace, as far as it was kept.
    pub trace: Vec<String>,
}

/// Plays a seed to its end, or to the first violation.
pub fn play(seed: u64, trace: Trace) -> Played {
    let mut world = World::new(Plan::of(seed), trace);
    let violation = calm::storm_and_calm(&mut world).err();
    Played { steps: world.judge.steps(), violation, trace: world.trace.kept() }
}
