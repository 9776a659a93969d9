//! Where the host sends a guest's frames: the PFs' unicast filters and the bridge's entries.

use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::Path;

use super::{Host, HostError};
use crate::config::{Pool, PoolKind, SriovPool, VmConfig};
use crate::logic::switch::Target;
use crate::logic::vf::VfId;

impl Host {
    /// Sends a guest's frames to its PV path, its VF, or both; with `vf` absent, to PV.
    ///
    /// A PF whose VFs are up hands on only what its filters name, so it holds the guest's address
    /// while the guest is on PV; the VF's own filter follows the bond. An emulated VF's bridge has a
    /// static entry, and floods without one. Either way the bridge learns nothing at these ports, or
    /// one frame from the guest would decide.
    pub(in crate::daemon) async fn forward(
        &self,
        vm: &VmConfig,
        vf: Option<&VfId>,
        target: Target,
    ) -> Result<(), HostError> {
        if self.is_dry_run() {
            return Ok(());
        }
        let pv = vm.pv_interface.as_deref();
        match &self.pool(vm)?.kind {
            PoolKind::Sriov(sriov) => self.forward_sriov(sriov, pv, vm.mac, target).await,
            PoolKind::Emulated(_) => {
                self.forward_emulated(pv, vf.map(VfId::as_str), vm.mac, target).await
            }
        }
    }

    async fn forward_sriov(
        &self,
        sriov: &SriovPool,
        pv: Option<&str>,
        mac: MacAddr,
        target: Target,
    ) -> Result<(), HostError> {
        if target == Target::Only(Path::Vf) {
            // The bridge would give its entry to the PF as a filter.
            if let Some(port) = pv {
                self.netlink.bridge_unpoint(port, mac).await?;
            }
            return self.remove_filters(sriov, mac).await;
        }
        for pf in self.uplinks(sriov, pv) {
            self.netlink.filter_add(pf, mac).await?;
            self.health.filter_added(pf, mac);
        }
        if let Some(port) = pv {
            // A promiscuous PF costs every frame on the wire, and some NICs show them to VFs.
            self.netlink.bridge_port(port, false, false).await?;
            self.netlink.bridge_point(port, mac).await?;
        }
        Ok(())
    }

    async fn remove_filters(&self, sriov: &SriovPool, mac: MacAddr) -> Result<(), HostError> {
        for pf in &sriov.pfs {
            self.netlink.filter_remove(pf, mac).await?;
            self.health.filter_removed(pf, mac);
        }
        Ok(())
    }

    /// The PFs by which the PV path reaches the wire. Another PF with a filter would take a guest's frames
    /// from its own VFs and have nowhere to send them.
    fn uplinks<'a>(&self, sriov: &'a SriovPool, pv: Option<&str>) -> Vec<&'a str> {
        let pfs = sriov.pfs.iter().map(String::as_str);
        let bridge = pv.and_then(|pv| self.sysfs.masters(pv).into_iter().next());
        match (sriov.pfs.as_slice(), bridge) {
            ([_], _) | (_, None) => pfs.collect(),
            (_, Some(bridge)) => {
                pfs.filter(|pf| self.sysfs.masters(pf).contains(&bridge)).collect()
            }
        }
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
    pub(in crate::daemon) async fn withdraw(&self, vm: &VmConfig) {
        if self.is_dry_run() {
            return;
        }
        if let Ok(Pool { kind: PoolKind::Sriov(sriov), .. }) = self.pool(vm)
            && let Err(error) = self.remove_filters(sriov, vm.mac).await
        {
            tracing::warn!(%error, "the PF's filter for this VM was not removed");
        }
        if let Some(port) = &vm.pv_interface {
            let _ = self.netlink.bridge_unpoint(port, vm.mac).await;
        }
    }
}
