//! What the engine is set to, what it is told, and what it answers.

use std::collections::BTreeMap;
use std::time::Duration;

use flexvf_protocol::VmName;

use super::{AgentView, Held, Saved, VmSpec};
use crate::logic::guest_count::Counting;
use crate::logic::policy::tenant::Tenants;
use crate::logic::policy::{Strategy, Tuning};
use crate::logic::rate::Sample;
use crate::logic::switch::{Action, Limits, Record, Report};
use crate::logic::vf::VfId;

/// What the engine is set to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Who deserves a VF.
    pub strategy: Strategy,
    /// What the strategy is set to.
    pub tuning: Tuning,
    /// What tenants are due.
    pub tenants: Tenants,
    /// The paper's T: between two decisions.
    pub interval: Duration,
    /// Most switches under way at once, over all pools.
    pub max_concurrent_switches: usize,
    /// Of one switch.
    pub limits: Limits,
    /// How long the first looks at the VMs found at start may take before VFs are given away.
    pub first_look: Duration,
    /// Speed of a VF's link, megabits per second: bounds what a guest may claim.
    pub link_mbps: u64,
}

/// Something that was seen.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// Time has passed.
    Tick,
    /// A VM is registered, or its registration has changed.
    Registered {
        /// Which.
        vm: VmName,
        /// What the file says.
        spec: VmSpec,
    },
    /// A VM's registration is gone.
    Unregistered(VmName),
    /// A VM's QEMU was asked what it has (after each connection, and when asked for).
    Observed {
        /// Which.
        vm: VmName,
        /// FlexVF's device in it.
        held: Option<Held>,
        /// An empty root port.
        free_port: Option<String>,
    },
    /// A VM's QEMU does not answer, or has ended.
    Lost {
        /// Which.
        vm: VmName,
        /// The process is known to be gone.
        exited: bool,
        /// In words.
        reason: String,
    },
    /// How the agent of a VM is.
    Agent {
        /// Which.
        vm: VmName,
        /// What is known of it.
        view: AgentView,
    },
    /// Something about a VM's QEMU forbids a VF, or nothing does any more.
    Obstacle {
        /// Which.
        vm: VmName,
        /// In words.
        obstacle: Option<String>,
    },
    /// On which NUMA node a VM runs, as far as it runs on one.
    VmNode {
        /// Which.
        vm: VmName,
        /// The node.
        node: Option<u32>,
    },
    /// How much memory a VM's guest has, all of which a VF pins.
    VmMemory {
        /// Which.
        vm: VmName,
        /// So much.
        bytes: u64,
    },
    /// On which NUMA nodes a pool's VFs are, as far as the host says.
    VfNodes {
        /// Which pool.
        pool: String,
        /// By VF.
        nodes: BTreeMap<VfId, u32>,
    },
    /// A VM's guest was reset: its agent and bond begin anew.
    Reset(VmName),
    /// A VM's counters were read.
    Sampled {
        /// Which.
        vm: VmName,
        /// What was read.
        sample: Sample,
    },
    /// Who counts a VM's paths has changed, or what its guest's word is worth.
    Counting {
        /// Which.
        vm: VmName,
        /// Who counts.
        counting: Counting,
    },
    /// A pool was looked at.
    Pool {
        /// Which.
        pool: String,
        /// Its VFs.
        vfs: Vec<VfId>,
        /// What is wrong with it.
        problem: Option<String>,
    },
    /// An operator has done something about a VF that is quarantined or rests.
    Clear(VfId),
    /// An action has ended.
    Done {
        /// Whose.
        vm: VmName,
        /// What came of it.
        report: Report,
    },
    /// QEMU said that a VF's device is gone.
    Deleted {
        /// Whose.
        vm: VmName,
        /// Which.
        vf: VfId,
    },
}

impl Event {
    /// The VM of which something may have changed that planning depends on. A sample counts when its
    /// interval ends, and samples are most of all events.
    pub(super) const fn touched(&self) -> Option<&VmName> {
        match self {
            Self::Tick
            | Self::Sampled { .. }
            | Self::Pool { .. }
            | Self::VfNodes { .. }
            | Self::Clear(_) => None,
            Self::Unregistered(vm)
            | Self::Reset(vm)
            | Self::Registered { vm, .. }
            | Self::Observed { vm, .. }
            | Self::Lost { vm, .. }
            | Self::Agent { vm, .. }
            | Self::Obstacle { vm, .. }
            | Self::VmNode { vm, .. }
            | Self::Counting { vm, .. }
            | Self::VmMemory { vm, .. }
            | Self::Done { vm, .. }
            | Self::Deleted { vm, .. } => Some(vm),
        }
    }
}

/// Something to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Carry this out and report by [`Event::Done`], within the action's own deadline.
    Act {
        /// For whom.
        vm: VmName,
        /// With which VF.
        vf: VfId,
        /// In which root port.
        port: String,
        /// What.
        action: Action,
    },
    /// Ask QEMU what it has, and report by [`Event::Observed`].
    Observe(VmName),
    /// The VM is no more: end its task.
    Forget(VmName),
    /// Write this down; it cannot be observed.
    Save(Saved),
    /// A switch has ended: tell people.
    Tell(SwitchEnd),
}

/// A switch that has ended.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct SwitchEnd {
    /// Counts all switches since the daemon began.
    pub n: u64,
    /// Whose.
    pub vm: VmName,
    /// With which VF.
    pub vf: VfId,
    /// How it went.
    #[serde(flatten)]
    pub record: Record,
}
