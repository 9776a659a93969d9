//! The host's side of a switch: VF settings, drivers, and where frames for a guest are sent.
//!
//! One [`Host`] serves all VMs; every call is idempotent and ends within its deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use flexvf_protocol::agent::Path;
use flexvf_protocol::{MacAddr, PciAddress};
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::config::{Config, EmulatedPool, Pool, PoolKind, SriovPool, VmConfig};
use crate::io::netlink::{self, Counters, Netlink, NetlinkError, VfChange};
use crate::io::sysfs::{Sysfs, SysfsError};
use crate::io::vfio;
use crate::logic::rate::{Count, Trust};
use crate::logic::switch::Target;
use crate::logic::vf::VfId;
use crate::vmm::Backend;

/// Looks at a VF that was just unplugged, until its QEMU has let go of it: a second in all.
const LET_GO_LOOKS: u32 = 20;
const LET_GO_PAUSE: Duration = Duration::from_millis(50);

/// See the module's text.
#[derive(Debug)]
pub(super) struct Host {
    pools: Vec<Pool>,
    sysfs: Sysfs,
    netlink: Netlink,
    prepare_deadline: Duration,
    mac_seed: u64,
    /// By PF.
    counted: Mutex<BTreeMap<String, Counted>>,
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
    #[error("{0} took longer than {1:?}")]
    Deadline(&'static str, Duration),
}

impl Host {
    pub(super) fn new(config: &Config) -> Result<Self, HostError> {
        Ok(Self {
            pools: config.pools.clone(),
            sysfs: Sysfs::host(),
            netlink: Netlink::new(config.deadlines.prepare)?,
            prepare_deadline: config.deadlines.prepare,
            mac_seed: host_seed(),
            counted: Mutex::default(),
        })
    }

    /// The VFs of a pool as they are now.
    pub(super) async fn vfs(&self, pool: &Pool) -> Result<Vec<VfId>, HostError> {
        match &pool.kind {
            PoolKind::Sriov(sriov) => {
                let vfs = self.sriov_vfs(sriov)?;
                Ok(vfs.into_iter().map(|(_, address)| VfId::new(address)).collect())
            }
            PoolKind::Emulated(emulated) => {
                for tap in &emulated.taps {
                    netlink::index_of(tap)?;
                }
                Ok(emulated.taps.iter().map(VfId::new).collect())
            }
        }
    }

    /// What a VF of a VM's pool looks like to QEMU.
    pub(super) fn backend(&self, vm: &VmConfig, vf: &VfId) -> Result<Backend, HostError> {
        match &self.pool(vm)?.kind {
            PoolKind::Sriov(_) => Ok(Backend::Vfio { host: address(vm, vf)? }),
            PoolKind::Emulated(EmulatedPool { model, .. }) => Ok(Backend::Nic {
                model: model.clone(),
                tap: vf.to_string(),
                mac: self.own_mac(vf),
            }),
        }
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

    /// Whether a VF may be prepared for a VM; changes nothing. Whoever else uses the VF must not notice.
    pub(super) async fn is_free(&self, vm: &VmConfig, vf: &VfId) -> Result<(), HostError> {
        match &self.pool(vm)?.kind {
            PoolKind::Sriov(sriov) => {
                let (_, address) = self.sriov_vf(vm, sriov, vf)?;
                match self.sysfs.function(address)?.iommu_group {
                    Some(group) if vfio::is_held(group) => Err(HostError::VfInUse(address, group)),
                    _ => Ok(()),
                }
            }
            PoolKind::Emulated(_) => {
                let link = self.netlink.link(vf.as_str()).await?;
                // A TAP has a carrier exactly while a process has it open.
                if link.carrier { Err(HostError::TapInUse(link.name)) } else { Ok(()) }
            }
        }
    }

    /// Makes a VF that is free ready to be plugged. A failure may leave half of it behind.
    pub(super) async fn prepare(&self, vm: &VmConfig, vf: &VfId) -> Result<(), HostError> {
        let PoolKind::Sriov(sriov) = &self.pool(vm)?.kind else { return Ok(()) };
        let work = async {
            let (index, address) = self.sriov_vf(vm, sriov, vf)?;
            self.sysfs.bind_vfio(address, self.prepare_deadline).await?;
            Ok(self.netlink.set_vf(&sriov.pf, index, &self.settings(sriov, vf)).await?)
        };
        let deadline = self.prepare_deadline;
        tokio::time::timeout(deadline, work)
            .await
            .unwrap_or(Err(HostError::Deadline("preparing the VF", deadline)))
    }

    /// Undoes [`Self::prepare`]: the VF is parked on its own MAC address, untrusted.
    pub(super) async fn sanitise(&self, vm: &VmConfig, vf: &VfId) -> Result<(), HostError> {
        let PoolKind::Sriov(sriov) = &self.pool(vm)?.kind else {
            return Ok(());
        };
        let (index, address) = match self.sriov_vf(vm, sriov, vf) {
            Ok(found) => found,
            // The operator has taken the VF away: there is nothing left to restore.
            Err(HostError::NoVf(..) | HostError::Sysfs(SysfsError::NoVfs(..))) => return Ok(()),
            Err(error) => return Err(error),
        };
        self.until_let_go(address).await?;
        let parked =
            VfChange { mac: Some(self.own_mac(vf)), trust: Some(false), ..VfChange::default() };
        Ok(self.netlink.set_vf(&sriov.pf, index, &parked).await?)
    }

    /// QEMU lets go of a function a moment after it says that the device is gone. Whoever has it longer is
    /// another one, whose VF is not to be touched: a plug that an earlier daemon asked for came through late.
    async fn until_let_go(&self, address: PciAddress) -> Result<(), HostError> {
        let Some(group) = self.sysfs.function(address)?.iommu_group else { return Ok(()) };
        for _ in 0..LET_GO_LOOKS {
            if !vfio::is_held(group) {
                return Ok(());
            }
            tokio::time::sleep(LET_GO_PAUSE).await;
        }
        Err(HostError::VfInUse(address, group))
    }

    /// Sends a guest's frames to its PV path, its VF, or both; with `vf` absent, to PV.
    ///
    /// A PF whose VFs are up hands on only what its filters name, so it holds the guest's address
    /// while the guest is on PV; the VF's own filter follows the bond. An emulated VF's bridge has a
    /// static entry, and floods without one. Either way the bridge learns nothing at these ports, or
    /// one frame from the guest would decide.
    pub(super) async fn forward(
        &self,
        vm: &VmConfig,
        vf: Option<&VfId>,
        target: Target,
    ) -> Result<(), HostError> {
        let pv = vm.pv_interface.as_deref();
        match &self.pool(vm)?.kind {
            PoolKind::Sriov(sriov) => self.forward_sriov(&sriov.pf, pv, vm.mac, target).await,
            PoolKind::Emulated(_) => {
                self.forward_emulated(pv, vf.map(VfId::as_str), vm.mac, target).await
            }
        }
    }

    async fn forward_sriov(
        &self,
        pf: &str,
        pv: Option<&str>,
        mac: MacAddr,
        target: Target,
    ) -> Result<(), HostError> {
        if target == Target::Only(Path::Vf) {
            // The bridge would give its entry to the PF as a filter.
            if let Some(port) = pv {
                self.netlink.bridge_unpoint(port, mac).await?;
            }
            return Ok(self.netlink.filter_remove(pf, mac).await?);
        }
        self.netlink.filter_add(pf, mac).await?;
        if let Some(port) = pv {
            // A promiscuous PF costs every frame on the wire, and some NICs show them to VFs.
            self.netlink.bridge_port(port, false, false).await?;
            self.netlink.bridge_point(port, mac).await?;
        }
        Ok(())
    }

    async fn forward_emulated(
        &self,
        pv: Option<&str>,
        vf: Option<&str>,
        mac: MacAddr,
        target: Target,
    ) -> Result<(), HostError> {
        let only = match target {
            Target::Only(Path::Vf) => vf,
            Target::Only(Path::Pv) => pv,
            Target::Both => None,
        };
        for port in [pv, vf].into_iter().flatten() {
            self.netlink.bridge_port(port, false, true).await?;
            if only.is_none() {
                self.netlink.bridge_unpoint(port, mac).await?;
            }
        }
        if let Some(port) = only {
            self.netlink.bridge_point(port, mac).await?;
        }
        Ok(())
    }

    /// Forgets where a guest's frames went; its ports may be gone already.
    pub(super) async fn withdraw(&self, vm: &VmConfig) {
        if let Ok(Pool { kind: PoolKind::Sriov(sriov), .. }) = self.pool(vm)
            && let Err(error) = self.netlink.filter_remove(&sriov.pf, vm.mac).await
        {
            tracing::warn!(%error, "the PF's filter for this VM was not removed");
        }
        if let Some(port) = &vm.pv_interface {
            let _ = self.netlink.bridge_unpoint(port, vm.mac).await;
        }
    }

    /// What the host itself has counted on a VF, if it can: the PF's counters, or the TAP's.
    pub(super) async fn count(&self, vm: &VmConfig, vf: &VfId, tenure: u64) -> Option<Count> {
        let counters = match &self.pool(vm).ok()?.kind {
            PoolKind::Sriov(sriov) => self.count_sriov(sriov, address(vm, vf).ok()?).await?,
            PoolKind::Emulated(_) => self.netlink.counters(vf.as_str()).await.ok()?,
        };
        let packets = counters.rx_packets.wrapping_add(counters.tx_packets);
        Some(Count { epoch: tenure, packets, trust: Trust::Host })
    }

    /// The kernel tells of all VFs of a PF at once: VMs that are sampled together share its answer.
    async fn count_sriov(&self, sriov: &SriovPool, vf: PciAddress) -> Option<Counters> {
        let mut counted = self.counted.lock().await;
        let fresh = counted.get(&sriov.pf).filter(|counted| counted.at.elapsed() < SHARED_FOR);
        if fresh.is_none() {
            let (at, functions) = (Instant::now(), self.sriov_vfs(sriov).ok()?);
            let vfs = self.netlink.vfs(&sriov.pf).await.ok()?;
            let counters = |index| vfs.iter().find(|vf| vf.index == index)?.counters;
            let vfs = functions.into_iter().map(|(index, vf)| (vf, counters(index))).collect();
            counted.insert(sriov.pf.clone(), Counted { at, vfs });
        }
        *counted.get(&sriov.pf)?.vfs.get(&vf)?
    }

    fn settings(&self, sriov: &SriovPool, vf: &VfId) -> VfChange {
        VfChange {
            mac: Some(self.own_mac(vf)),
            trust: Some(sriov.trust),
            spoof_check: sriov.spoof_check,
            vlan: (sriov.vlan != 0).then_some((sriov.vlan, 0)),
            tx_rate_mbps: sriov.max_tx_rate_mbps.map(|most| (0, most)),
            ..VfChange::default()
        }
    }

    fn pool(&self, vm: &VmConfig) -> Result<&Pool, HostError> {
        let found = self.pools.iter().find(|pool| pool.name == vm.pool);
        found.ok_or_else(|| HostError::NoPool(vm.pool.clone()))
    }

    fn sriov_vfs(&self, sriov: &SriovPool) -> Result<Vec<(u32, PciAddress)>, SysfsError> {
        let pf = self.sysfs.pf(&sriov.pf)?;
        if pf.num_vfs == 0 {
            return Err(SysfsError::NoVfs(pf.interface, pf.total_vfs));
        }
        let wanted =
            |address: &PciAddress| sriov.vfs.as_ref().is_none_or(|vfs| vfs.contains(address));
        let vfs = self.sysfs.vfs(pf.address)?;
        if let Some(missing) =
            sriov.vfs.iter().flatten().find(|want| !vfs.iter().any(|vf| vf.address == **want))
        {
            return Err(SysfsError::NoFunction(*missing));
        }
        Ok(vfs.into_iter().map(|vf| (vf.index, vf.address)).filter(|(_, at)| wanted(at)).collect())
    }

    fn sriov_vf(
        &self,
        vm: &VmConfig,
        sriov: &SriovPool,
        vf: &VfId,
    ) -> Result<(u32, PciAddress), HostError> {
        let wanted = address(vm, vf)?;
        let found = self.sriov_vfs(sriov)?.into_iter().find(|(_, address)| *address == wanted);
        found.ok_or_else(|| HostError::NoVf(vf.clone(), vm.pool.clone()))
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
