//! A VF before and after a VM has it: its settings in the PF, its driver, whose its node is. What it
//! was like is written down before the first change, and put back when the VM has given it up.

use std::sync::Arc;
use std::time::Duration;

use flexvf_protocol::PciAddress;

use super::{Host, HostError, VfAt};
use crate::config::{NodeOwner, PoolKind, SriovPool, VfOptions, VfioKind, VmConfig};
use crate::io::netlink::NetlinkError;
use crate::io::sysfs::SysfsError;
use crate::io::{proc, vfio};
use crate::logic::settings::{Kind, Original, Setting, Wish};
use crate::logic::vf::VfId;

/// Looks at a VF that was just unplugged, until its QEMU has let go of it: a second in all.
const LET_GO_LOOKS: u32 = 20;
const LET_GO_PAUSE: Duration = Duration::from_millis(50);

impl Host {
    /// Whether a VF may be prepared for a VM; changes nothing. Whoever else uses the VF must not notice.
    pub(in crate::daemon) async fn is_free(
        &self,
        vm: &VmConfig,
        vf: &VfId,
    ) -> Result<(), HostError> {
        match &self.pool(vm)?.kind {
            PoolKind::Sriov(sriov) => {
                let address = self.function(vm, sriov, vf)?.address;
                self.sysfs.check_unused(address)?;
                match self.sysfs.function(address)?.iommu_group {
                    Some(group) if vfio::is_held(group) => Err(HostError::VfInUse(address, group)),
                    _ => Ok(()),
                }
            }
            PoolKind::Emulated(_) => {
                if vm.settings != VfOptions::default() {
                    return Err(HostError::NoSettings(vm.pool.clone()));
                }
                let link = self.netlink.link(vf.as_str()).await?;
                // A TAP has a carrier exactly while a process has it open.
                if link.carrier { Err(HostError::TapInUse(link.name)) } else { Ok(()) }
            }
        }
    }

    /// Makes a VF that is free ready to be plugged into a QEMU, by its process where that is known. A
    /// failure may leave half of it behind.
    pub(in crate::daemon) async fn prepare(
        &self,
        vm: &VmConfig,
        vf: &VfId,
        qemu: Option<i32>,
    ) -> Result<(), HostError> {
        let PoolKind::Sriov(sriov) = &self.pool(vm)?.kind else { return Ok(()) };
        let work = async {
            let at = self.function(vm, sriov, vf)?;
            let wishes = self.wishes(vm, sriov, vf);
            let mut original = self.original(at.address).await;
            original.note(&wishes, &self.netlink.vf(&at.pf, at.index).await?);
            self.write_down(at.address, &original).await;
            self.sysfs.bind_vfio(at.address, self.prepare_deadline).await?;
            let refused = self.set(&at, &wishes).await?;
            self.tell_refused(&at.pf, &wishes, &refused);
            self.tell_iommufd(sriov, &at);
            self.give_node(sriov, &at, qemu, original).await
        };
        let deadline = self.prepare_deadline;
        tokio::time::timeout(deadline, work)
            .await
            .unwrap_or(Err(HostError::Deadline("preparing the VF", deadline)))
    }

    /// Undoes [`Self::prepare`]. A VF of which it is not known what it was like is parked: on its own
    /// MAC address, untrusted.
    pub(in crate::daemon) async fn sanitise(
        &self,
        vm: &VmConfig,
        vf: &VfId,
    ) -> Result<(), HostError> {
        let PoolKind::Sriov(sriov) = &self.pool(vm)?.kind else {
            return Ok(());
        };
        let at = match self.function(vm, sriov, vf) {
            Ok(found) => found,
            // The operator has taken the VF away: there is nothing left to restore.
            Err(HostError::NoVf(..) | HostError::Sysfs(SysfsError::NoVfs(..))) => {
                self.found.remove(super::address(vm, vf)?);
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let group = self.until_let_go(at.address).await?;
        let original = self.original(at.address).await;
        if let (Some(owner), Some(group)) = (original.node_owner, group) {
            vfio::give(group, owner).map_err(HostError::Node)?;
        }
        let own_mac = Wish::required(Setting::Mac(self.own_mac(vf)));
        let undo = match original.is_untouched() {
            true => vec![own_mac, Wish::required(Setting::Trust(false))],
            false => original.undo(),
        };
        let restore = |cause: HostError| HostError::NotRestored(at.address, cause.to_string());
        let refused = self.set(&at, &undo).await.map_err(restore)?;
        if refused.iter().any(|(setting, _)| setting.kind() == Kind::Mac) {
            self.set(&at, &[own_mac]).await.map_err(restore)?;
        }
        self.found.remove(at.address);
        Ok(())
    }

    /// QEMU lets go of a function a moment after it says that the device is gone. Whoever has it longer is
    /// another one, whose VF is not to be touched: a plug that an earlier daemon asked for came through late.
    async fn until_let_go(&self, address: PciAddress) -> Result<Option<u32>, HostError> {
        let Some(group) = self.sysfs.function(address)?.iommu_group else { return Ok(None) };
        for _ in 0..LET_GO_LOOKS {
            if !vfio::is_held(group) {
                return Ok(Some(group));
            }
            tokio::time::sleep(LET_GO_PAUSE).await;
        }
        Err(HostError::VfInUse(address, group))
    }

    fn wishes(&self, vm: &VmConfig, sriov: &SriovPool, vf: &VfId) -> Vec<Wish> {
        // Without these two no switch works: see `MacOrder`.
        let mut wishes = vec![
            Wish::required(Setting::Trust(true)),
            Wish::required(Setting::Mac(self.vf_mac(vm, vf))),
        ];
        wishes.extend(vm.settings.or(&sriov.settings).wishes());
        wishes
    }

    async fn set(
        &self,
        at: &VfAt,
        wishes: &[Wish],
    ) -> Result<Vec<(Setting, NetlinkError)>, HostError> {
        let set = self.netlink.set_vf(&at.pf, at.index, wishes).await;
        set.map_err(|cause| match cause {
            NetlinkError::Refused { .. } | NetlinkError::NotKept { .. } => {
                HostError::Setting { driver: self.driver(&at.pf), pf: at.pf.clone(), cause }
            }
            other => other.into(),
        })
    }

    fn tell_refused(&self, pf: &str, wishes: &[Wish], refused: &[(Setting, NetlinkError)]) {
        for wish in wishes {
            let kind = wish.setting.kind();
            let key = format!("{pf} {kind:?}");
            match refused.iter().find(|(setting, _)| setting.kind() == kind) {
                None => self.health.clear(&key),
                Some((setting, error)) => {
                    let why = match error {
                        NetlinkError::Refused { cause, .. } => cause.to_string(),
                        NetlinkError::NotKept { found, .. } => format!("reads back as {found}"),
                        other => other.to_string(),
                    };
                    let driver = self.driver(pf);
                    let text = format!(
                        "driver {driver} of {pf} does not take {setting} for a VF ({why}); its VFs go without it"
                    );
                    self.health.note(&key, pf, text);
                }
            }
        }
    }

    fn tell_iommufd(&self, sriov: &SriovPool, at: &VfAt) {
        const KEY: &str = "iommufd";
        if sriov.vfio == VfioKind::Iommufd && self.own_node(sriov, at.address).is_none() {
            let text = "this kernel has no iommufd with nodes for single VFs (CONFIG_IOMMUFD, CONFIG_VFIO_DEVICE_CDEV): VFs are given by their groups' nodes; set `vfio = \"group\"`";
            self.health.note(KEY, &at.pf, text.to_owned());
        } else {
            self.health.clear(KEY);
        }
    }

    fn driver(&self, pf: &str) -> String {
        let driver = self.sysfs.pf(pf).ok().and_then(|pf| pf.driver);
        driver.unwrap_or_else(|| "(unknown)".to_owned())
    }

    /// An unprivileged QEMU opens the group's node itself, so it must be its own.
    async fn give_node(
        &self,
        sriov: &SriovPool,
        at: &VfAt,
        qemu: Option<i32>,
        mut original: Original,
    ) -> Result<(), HostError> {
        let owner = match sriov.vfio_owner {
            NodeOwner::Keep => None,
            NodeOwner::Ids(user, group) => Some((user, group)),
            NodeOwner::Qemu => qemu.and_then(proc::owner).filter(|(user, _)| *user != 0),
        };
        let (Some(owner), Some(group)) = (owner, self.sysfs.function(at.address)?.iommu_group)
        else {
            return Ok(());
        };
        let found = vfio::owner(group).map_err(HostError::Node)?;
        if found.is_none() || found == Some(owner) {
            return Ok(());
        }
        if original.node_owner.is_none() {
            original.node_owner = found;
            self.write_down(at.address, &original).await;
        }
        vfio::give(group, owner).map_err(HostError::Node)
    }

    async fn original(&self, vf: PciAddress) -> Original {
        let found = Arc::clone(&self.found);
        // A slow disk must not keep the daemon from its VMs.
        tokio::task::spawn_blocking(move || found.read(vf)).await.unwrap_or_default()
    }

    async fn write_down(&self, vf: PciAddress, original: &Original) {
        const KEY: &str = "records";
        if original.is_untouched() {
            return;
        }
        let (found, original) = (Arc::clone(&self.found), original.clone());
        let written = tokio::task::spawn_blocking(move || found.write(vf, &original)).await;
        match written {
            Ok(Err(error)) => {
                let text = format!(
                    "what VFs were like is not written down ({error}): after a crash of this daemon they are not put back; make room, or correct `state_file`"
                );
                self.health.note(KEY, "state_file", text);
            }
            _ => self.health.clear(KEY),
        }
    }
}
