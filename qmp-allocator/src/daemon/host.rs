//! The host's side of a switch: VF settings and drivers ([`settings`]), where frames for a guest are
//! sent ([`forward`]), and how the NICs are ([`health`]).
//!
//! One [`Host`] serves all VMs; every call is idempotent and ends within its deadline.

mod forward;
mod health;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use flexvf_protocol::{MacAddr, PciAddress};
use tokio::sync::Mutex;
use tokio::time::Instant;

use self::health::Health;
use super::Mode;
use super::state::boot_id;
use crate::config::{Config, EmulatedPool, Pool, PoolKind, SriovPool, VfRange, VfioKind, VmConfig};
use crate::io::found::Found;
use crate::io::netlink::{self, Counters, Netlink, NetlinkError};
use crate::io::sysfs::{Sysfs, SysfsError};
use crate::logic::rate::{Count, Trust};
use crate::logic::vf::VfId;
use crate::vmm::{Backend, IOMMU};

/// See the module's text.
#[derive(Debug)]
pub(super) struct Host {
    pools: Vec<Pool>,
    sysfs: Sysfs,
    netlink: Netlink,
    prepare_deadline: Duration,
    mac_seed: u64,
    has_several_nodes: bool,
    found: Arc<Found>,
    health: Health,
    /// By pool.
    counted: Mutex<BTreeMap<String, Counted>>,
    mode: Mode,
}

/// Where a VF is.
#[derive(Debug)]
struct VfAt {
    /// Its PF's interface.
    pf: String,
    /// Its number there.
    index: u32,
    address: PciAddress,
}

/// Counters of a PF's VFs, where the driver has them, at one moment.
#[derive(Debug)]
struct Counted {
    at: Instant,
    vfs: BTreeMap<PciAddress, Option<Counters>>,
}

/// Well below a sample interval, and longer than it takes to sample what is due at one moment.
const SHARED_FOR: Duration = Duration::from_millis(10);

/// Why the host did not do it.
#[derive(Debug, thiserror::Error)]
pub(super) enum HostError {
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Sysfs(#[from] SysfsError),
    #[error(
        "there is no pool {0:?}; correct `pool` in the VM's file, or add the pool to the configuration"
    )]
    NoPool(String),
    #[error("VF {0} is not in pool {1:?} any more")]
    NoVf(VfId, String),
    #[error(
        "VF {0} is in use by another process (it holds /dev/vfio/{1}; see `fuser -v /dev/vfio/{1}`); end it, or leave this VF out of the pool's `vfs`"
    )]
    VfInUse(PciAddress, u32),
    #[error(
        "TAP {0} is in use by another process; leave it out of the pool's `taps`, or end that process"
    )]
    TapInUse(String),
    #[error(
        "driver {driver} of {pf} does not take a setting that is required: {cause}; leave it out, or out of `required`"
    )]
    Setting { driver: String, pf: String, cause: NetlinkError },
    #[error("VF {0} is not as it was found: {1}")]
    NotRestored(PciAddress, String),
    #[error(
        "pool {0:?} has no VFs of a NIC; take the VF's settings (such as `vlan`) out of the VM's file"
    )]
    NoSettings(String),
    #[error("{0}")]
    Node(std::io::Error),
    #[error("{0} took longer than {1:?}")]
    Deadline(&'static str, Duration),
}

impl Host {
    pub(super) fn new(config: &Config, mode: Mode) -> Result<Self, HostError> {
        let sysfs = Sysfs::host();
        Ok(Self {
            pools: config.pools.clone(),
            has_several_nodes: sysfs.has_several_nodes(),
            sysfs,
            netlink: Netlink::new(config.deadlines.prepare)?,
            prepare_deadline: config.deadlines.prepare,
            mac_seed: host_seed(),
            found: Arc::new(Found::new(config.state_file.with_extension("vfs"), boot_id())),
            health: Health::default(),
            counted: Mutex::default(),
            mode,
        })
    }

    /// Everything stays as it is: whatever would change something does nothing.
    pub(super) fn is_dry_run(&self) -> bool {
        self.mode == Mode::DryRun
    }

    /// The VFs of a pool that may be given away as it is now, and what is wrong with it.
    pub(super) async fn vfs(&self, pool: &Pool) -> (Vec<VfId>, Option<String>) {
        match &pool.kind {
            PoolKind::Sriov(sriov) => self.sriov_vfs(&pool.name, sriov).await,
            PoolKind::Emulated(emulated) => {
                for tap in &emulated.taps {
                    if let Err(error) = netlink::index_of(tap) {
                        return (Vec::new(), Some(error.to_string()));
                    }
                }
                (emulated.taps.iter().map(VfId::new).collect(), None)
            }
        }
    }

    /// Of memory and devices; where there is one, nobody need be asked for it.
    pub(super) const fn has_several_nodes(&self) -> bool {
        self.has_several_nodes
    }

    /// NUMA nodes of VFs, where the host has several.
    pub(super) fn nodes(&self, vfs: &[VfId]) -> BTreeMap<VfId, u32> {
        if !self.has_several_nodes {
            return BTreeMap::new();
        }
        let node = |vf: &VfId| self.sysfs.function(vf.as_str().parse().ok()?).ok()?.numa_node;
        vfs.iter().filter_map(|vf| Some((vf.clone(), node(vf)?))).collect()
    }

    /// What a VF of a VM's pool looks like to QEMU.
    pub(super) fn backend(&self, vm: &VmConfig, vf: &VfId) -> Result<Backend, HostError> {
        match &self.pool(vm)?.kind {
            PoolKind::Sriov(sriov) => {
                let host = address(vm, vf)?;
                Ok(Backend::Vfio { host, node: self.own_node(sriov, host) })
            }
            PoolKind::Emulated(EmulatedPool { model, .. }) => Ok(Backend::Nic {
                model: model.clone(),
                tap: vf.to_string(),
                mac: self.vf_mac(vm, vf),
            }),
        }
    }

    /// The node by which a VF is given to QEMU instead of its group's, if it is to be and can.
    fn own_node(&self, sriov: &SriovPool, vf: PciAddress) -> Option<PathBuf> {
        let wanted = sriov.vfio == VfioKind::Iommufd && Path::new(IOMMU).exists();
        wanted.then(|| self.sysfs.vfio_node(vf)).flatten().filter(|node| node.exists())
    }

    /// Whether a VF of a VM's pool pins the guest's memory.
    pub(super) fn pins_memory(&self, vm: &VmConfig) -> bool {
        matches!(self.pool(vm), Ok(Pool { kind: PoolKind::Sriov(_), .. }))
    }

    /// Ids of the devices that a VM could have on its pool's TAPs.
    pub(super) fn tap_devices(&self, vm: &VmConfig) -> Vec<String> {
        let Ok(Pool { kind: PoolKind::Emulated(emulated), .. }) = self.pool(vm) else {
            return Vec::new();
        };
        let backends = emulated.taps.iter().map(|tap| self.backend(vm, &VfId::new(tap)));
        backends.flatten().map(|backend| backend.device_id()).collect()
    }

    /// The MAC address that a VF has for itself, which tells it apart in the guest.
    pub(super) fn own_mac(&self, vf: &VfId) -> MacAddr {
        vf.own_mac(self.mac_seed)
    }

    /// The MAC address that a VF begins with in a VM: net_failover takes its VF by the PV NIC's.
    pub(super) fn vf_mac(&self, vm: &VmConfig, vf: &VfId) -> MacAddr {
        if vm.failover.is_some() { vm.mac } else { self.own_mac(vf) }
    }

    /// Packets that a guest has sent over its VF, as the host itself has counted them.
    pub(super) async fn sent_by_guest(&self, vm: &VmConfig, vf: &VfId) -> Option<u64> {
        match &self.pool(vm).ok()?.kind {
            PoolKind::Sriov(sriov) => {
                let counters = self.count_sriov(&vm.pool, sriov, address(vm, vf).ok()?).await?;
                Some(counters.tx_packets)
            }
            // What a guest sends is received by its TAP.
            PoolKind::Emulated(_) => {
                Some(self.netlink.counters(vf.as_str()).await.ok()?.rx_packets)
            }
        }
    }

    /// What the host itself has counted on a VF, if it can: the PF's counters, or the TAP's.
    pub(super) async fn count(&self, vm: &VmConfig, vf: &VfId, tenure: u64) -> Option<Count> {
        let counters = match &self.pool(vm).ok()?.kind {
            PoolKind::Sriov(sriov) => {
                self.count_sriov(&vm.pool, sriov, address(vm, vf).ok()?).await?
            }
            PoolKind::Emulated(_) => self.netlink.counters(vf.as_str()).await.ok()?,
        };
        let packets = counters.rx_packets.wrapping_add(counters.tx_packets);
        Some(Count { epoch: tenure, packets, trust: Trust::Host })
    }

    /// The kernel tells of all VFs of a PF at once: VMs that are sampled together share its answer.
    async fn count_sriov(&self, pool: &str, sriov: &SriovPool, vf: PciAddress) -> Option<Counters> {
        let mut counted = self.counted.lock().await;
        let fresh = counted.get(pool).filter(|counted| counted.at.elapsed() < SHARED_FOR);
        if fresh.is_none() {
            let (at, (functions, _)) = (Instant::now(), self.functions(sriov));
            let mut vfs = BTreeMap::new();
            for pf in &sriov.pfs {
                let Ok(seen) = self.netlink.vfs(pf).await else { continue };
                let counters = |index| seen.iter().find(|vf| vf.index == index)?.counters;
                let of_pf = functions.iter().filter(|vf| vf.pf == *pf);
                vfs.extend(of_pf.map(|vf| (vf.address, counters(vf.index))));
            }
            counted.insert(pool.to_owned(), Counted { at, vfs });
        }
        *counted.get(pool)?.vfs.get(&vf)?
    }

    fn pool(&self, vm: &VmConfig) -> Result<&Pool, HostError> {
        let found = self.pools.iter().find(|pool| pool.name == vm.pool);
        found.ok_or_else(|| HostError::NoPool(vm.pool.clone()))
    }

    /// The functions of a pool's PFs that are in the pool, and what is wrong with PFs that have none.
    fn functions(&self, sriov: &SriovPool) -> (Vec<VfAt>, Vec<SysfsError>) {
        let (mut functions, mut problems) = (Vec::new(), Vec::new());
        for interface in &sriov.pfs {
            let vfs = self.sysfs.pf(interface).and_then(|pf| self.sysfs.vfs(pf.address));
            match vfs {
                Ok(vfs) => functions.extend(vfs.into_iter().map(|vf| VfAt {
                    pf: interface.clone(),
                    index: vf.index,
                    address: vf.address,
                })),
                Err(error) => problems.push(error),
            }
        }
        if let Some(listed) = &sriov.vfs {
            if problems.is_empty() {
                let is_there =
                    |range: &&VfRange| functions.iter().any(|vf| range.contains(vf.address));
                let missing = listed.iter().filter(|range| !is_there(range));
                problems.extend(missing.map(|range| SysfsError::NoFunction(range.first)));
            }
            functions.retain(|vf| listed.iter().any(|range| range.contains(vf.address)));
        }
        (functions, problems)
    }

    fn function(&self, vm: &VmConfig, sriov: &SriovPool, vf: &VfId) -> Result<VfAt, HostError> {
        let wanted = address(vm, vf)?;
        let (functions, problems) = self.functions(sriov);
        match functions.into_iter().find(|found| found.address == wanted) {
            Some(found) => Ok(found),
            // It may be one of the PF that cannot be looked at.
            None => match problems.into_iter().next() {
                Some(problem) => Err(problem.into()),
                None => Err(HostError::NoVf(vf.clone(), vm.pool.clone())),
            },
        }
    }
}

fn address(vm: &VmConfig, vf: &VfId) -> Result<PciAddress, HostError> {
    vf.as_str().parse().map_err(|_| HostError::NoVf(vf.clone(), vm.pool.clone()))
}

/// Tells this host from others on the same network; without a machine id all hosts are alike.
fn host_seed() -> u64 {
    let id = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let digits = id.trim().get(..16).unwrap_or("0");
    u64::from_str_radix(digits, 16).unwrap_or(0)
}
