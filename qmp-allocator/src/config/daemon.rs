//! The daemon's own file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flexvf_protocol::PciAddress;
use serde::Deserialize;

use super::{ConfigError, VfOptions, raw};
use crate::logic::policy::tenant::Tenants;
pub use crate::logic::policy::{Strategy, Tuning};

/// Everything the daemon is told.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Who deserves a VF. `strategy = "fair"`.
    pub strategy: Strategy,
    /// What the strategy is set to. `[policy]`.
    pub tuning: Tuning,
    /// What tenants are due. `[tenant.NAME]`.
    pub tenants: Tenants,
    /// Time between two assignments, the paper's T. `interval_s = 300`.
    pub interval: Duration,
    /// Time between two samples of the counters. `sample_interval_s = 10`.
    pub sample_interval: Duration,
    /// Where the VMs' registration files are. `vms_dir = "/run/flexvf/vms"`.
    pub vms_dir: PathBuf,
    /// What cannot be observed, kept over a restart. `state_file = "/var/lib/flexvf/state.json"`.
    pub state_file: PathBuf,
    /// What the flight recorder keeps, and where; none: nothing. `[recorder]`.
    pub recorder: Option<RecorderConfig>,
    /// Where `flexvf status` and its like connect. `control_socket = "/run/flexvf/control.sock"`.
    pub control_socket: PathBuf,
    /// Switches under way at one time. `max_concurrent_switches = 4`.
    pub max_concurrent_switches: usize,
    /// How long each step may take. `[deadlines]`.
    pub deadlines: Deadlines,
    /// Where VFs come from, in the order of the file. `[[pool]]`, at least one.
    pub pools: Vec<Pool>,
}

/// How long each step of a switch, and each call, may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadlines {
    /// Settings of the VF and the driver's bind. `prepare_s = 5`.
    pub prepare: Duration,
    /// `device_add`: pins the guest's memory. `plug_s = 30`.
    pub plug: Duration,
    /// Until the guest's bond sees the VF up. `join_s = 15`.
    pub join: Duration,
    /// Until the guest's bond has given up the VF. `leave_s = 5`.
    pub leave: Duration,
    /// Pause for frames in flight after PV is active. `drain_s = 0.2`.
    pub drain: Duration,
    /// From `device_del` to `DEVICE_DELETED`. `unplug_s = 20`.
    pub unplug: Duration,
    /// Between two `device_del` of one device. `unplug_repeat_s = 6`.
    pub unplug_repeat: Duration,
    /// One call of the guest's agent. `agent_s = 2`.
    pub agent: Duration,
    /// One QMP command other than `device_add`. `qmp_s = 5`.
    pub qmp: Duration,
}

/// Where the flight recorder writes, and how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecorderConfig {
    /// Nobody else's files are touched in it. `folder = "/var/lib/flexvf/state.recording"`.
    pub folder: PathBuf,
    /// All files together, never more. `max_mb = 256`.
    pub max_bytes: u64,
}

/// A set of VFs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// What VMs and status call it. `name = "default"`.
    pub name: String,
    /// What its VFs are.
    pub kind: PoolKind,
}

/// What a pool's VFs are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoolKind {
    /// Virtual functions of a NIC.
    Sriov(SriovPool),
    /// QEMU's own NIC models on TAPs, each in place of a VF.
    Emulated(EmulatedPool),
}

/// Virtual functions of one or more NIC ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SriovPool {
    /// The PFs' interfaces, at least one. `pf = "eth0"` or `pf = ["eth0", "eth1"]`.
    pub pfs: Vec<String>,
    /// The VFs to use; all of the PFs' when absent. `vfs = ["0000:01:10.0", "0000:01:11.0-0000:01:11.6"]`.
    pub vfs: Option<Vec<VfRange>>,
    /// Which MAC address moves when. `mac_order = "own-mac-follow"`.
    pub mac_order: MacOrder,
    /// How its VFs are set; a VM's own settings go before it.
    pub settings: VfOptions,
    /// Whose a VFIO group's node is while a VM has it. `vfio_owner = "qemu"`.
    pub vfio_owner: NodeOwner,
    /// How QEMU gets at a VF. `vfio = "group"`.
    pub vfio: VfioKind,
    /// Unicast addresses that a PF can filter, where the operator knows it. `max_pf_filters = 128`.
    pub max_pf_filters: Option<usize>,
}

/// PCI functions from one to another, in the order of their addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VfRange {
    /// The first of them.
    pub first: PciAddress,
    /// The last of them; the first itself where a single one is meant.
    pub last: PciAddress,
}

/// Whose a VFIO group's node is while a VM has the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NodeOwner {
    /// The user's and group's that the VM's QEMU runs as: nothing changes for one that is root.
    #[default]
    Qemu,
    /// As found: whoever else gives QEMU its right to the node.
    Keep,
    /// This user's and group's.
    Ids(u32, u32),
}

/// How QEMU gets at a VF.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VfioKind {
    /// QEMU opens the node of the VF's IOMMU group.
    #[default]
    Group,
    /// FlexVF opens the VF's own node and hands it to QEMU with an iommufd; by the group where QEMU
    /// or the kernel has no iommufd.
    Iommufd,
}

impl VfRange {
    /// Addresses in it, whether there is a function or not.
    fn functions(&self) -> usize {
        let number = |it: PciAddress| usize::from(it.routing_id());
        (number(self.last) + 1).saturating_sub(number(self.first))
    }

    /// Whether a function is in it.
    pub fn contains(&self, address: PciAddress) -> bool {
        (self.first..=self.last).contains(&address)
    }
}

/// QEMU's own NIC models on TAPs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EmulatedPool {
    /// QEMU's device model. `model = "e1000e"`.
    pub model: String,
    /// TAP interfaces that exist already, on the guests' bridge; each stands for a VF.
    /// `taps = ["vf0", "vf1"]`.
    pub taps: Vec<String>,
}

/// Which MAC address moves when, in a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MacOrder {
    /// The VF is trusted and keeps an admin MAC of its own; the shared MAC moves with the bond's
    /// active port (`fail_over_mac=follow`).
    #[default]
    OwnMacFollow,
}

impl Pool {
    /// VFs that it may have at most, as far as the file says.
    pub(super) fn most_vfs(&self) -> Option<usize> {
        match &self.kind {
            PoolKind::Emulated(pool) => Some(pool.taps.len()),
            PoolKind::Sriov(pool) => {
                let functions = |range: &VfRange| range.functions();
                pool.vfs.as_ref().map(|ranges| ranges.iter().map(functions).sum())
            }
        }
    }
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] names the line and what to do.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        raw::load(path)
    }

    /// The pool of this name.
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name == name)
    }
}
