//! A VF for a QEMU that may open no VFIO node: FlexVF opens the VF's own node and `/dev/iommu`, and hands
//! both over by QMP (`getfd`). QEMU has this since 9.0, where it was built with iommufd.

use std::fs::OpenOptions;
use std::os::fd::OwnedFd;
use std::path::Path;

use serde_json::{Value, json};

use super::{Plug, QmpVmm, VmmError};
use crate::io::qmp::QmpError;

/// Where the kernel has iommufd.
pub(crate) const IOMMU: &str = "/dev/iommu";
/// The one address space of a VM that all its VFs share.
const OBJECT: &str = "flexvf-iommufd";

impl QmpVmm {
    /// Whether this QEMU takes VFs by their nodes.
    pub(super) async fn has_iommufd(&self) -> Result<bool, QmpError> {
        let arguments = json!({"typename": "vfio-pci"});
        let listed = self.qmp.execute_value("device-list-properties", arguments, self.deadline);
        match listed.await {
            Ok(properties) => Ok(["iommufd", "fd"].iter().all(|name| has(&properties, name))),
            // A QEMU without vfio-pci will say so at the plug.
            Err(QmpError::Refused { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// `iommu` is [`IOMMU`], but for tests on machines without it.
    pub(super) async fn plug_by_node(
        &self,
        plug: &Plug,
        node: &Path,
        iommu: &Path,
    ) -> Result<(), VmmError> {
        let device = open(node)?;
        self.need_iommufd(iommu).await?;
        let name = format!("{}-node", plug.device_id);
        self.qmp.give_file(&name, device, self.deadline).await?;
        let properties = [("iommufd".to_owned(), json!(OBJECT)), ("fd".to_owned(), json!(name))];
        let added = self.device_add("vfio-pci", plug, properties).await;
        if let Err(VmmError::Qmp(QmpError::Refused { .. })) = added {
            // What was not taken would stay open in QEMU; one that was taken is not there any more.
            let close = self.qmp.execute_value("closefd", json!({"fdname": name}), self.deadline);
            let _ = close.await;
        }
        added
    }

    /// Once a VM: a second one would be an address space of its own, and pin all memory again.
    async fn need_iommufd(&self, iommu: &Path) -> Result<(), VmmError> {
        let objects = self.list("/objects").await?.unwrap_or_default();
        if objects.iter().any(|(name, _)| name == OBJECT) {
            return Ok(());
        }
        let name = format!("{OBJECT}-node");
        self.qmp.give_file(&name, open(iommu)?, self.deadline).await?;
        let arguments = json!({"qom-type": "iommufd", "id": OBJECT, "fd": name});
        self.qmp.execute_value("object-add", arguments, self.deadline).await?;
        Ok(())
    }
}

fn open(path: &Path) -> Result<OwnedFd, VmmError> {
    let opened = OpenOptions::new().read(true).write(true).open(path);
    let opened = opened.map_err(|cause| VmmError::Node { path: path.display().to_string(), cause });
    Ok(opened?.into())
}

fn has(properties: &Value, name: &str) -> bool {
    let listed = properties.as_array().into_iter().flatten();
    listed.filter_map(|property| property.get("name")?.as_str()).any(|found| found == name)
}
