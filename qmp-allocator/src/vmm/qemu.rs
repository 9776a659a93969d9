//! QEMU, over QMP.
//!
//! Where a device is, is read from QOM: a root port `rp1` has a bus object of the same name
//! (`/machine/peripheral/rp1/rp1`) whose `child[N]` links lead to what is plugged into it, whoever
//! did that and whether or not the firmware has numbered the bus yet (`query-pci` shows nothing
//! before that).

mod events;
mod iommufd;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::time::Duration;

use flexvf_protocol::PciAddress;
use qapi::qmp::{device_add, device_del, netdev_del, qom_get, qom_list, query_memory_size_summary};
use serde_json::{Value, json};

use super::{
    Answer, Backend, Hypervisor, ID_PREFIX, Observation, Plug, PluggedDevice, PluggedKind, Port,
    PortState, Source, TAP_MARK, Unplug, VmmError, VmmEvents,
};
use crate::io::qmp::{Qmp, QmpError};
pub(super) use events::next_event;
pub(crate) use iommufd::IOMMU;

/// A QEMU that is spoken to over its QMP socket.
#[derive(Debug, Clone)]
pub struct QmpVmm {
    qmp: Qmp,
    plug_deadline: Duration,
    deadline: Duration,
}

impl QmpVmm {
    /// Connects to a QMP socket. `plug_deadline` is for `device_add`, which pins the guest's
    /// memory; `deadline` for each other command.
    ///
    /// # Errors
    /// [`QmpError`] when nothing listens, or nothing answers in time.
    pub async fn connect(
        socket: &Path,
        plug_deadline: Duration,
        deadline: Duration,
    ) -> Result<(Self, VmmEvents), QmpError> {
        let (qmp, events) = Qmp::connect(socket, deadline).await?;
        let vmm = Self { qmp, plug_deadline, deadline };
        Ok((vmm, VmmEvents(Source::Qemu(events))))
    }

    /// QEMU's version, as its greeting told.
    pub fn version(&self) -> &str {
        self.qmp.version()
    }

    /// QEMU's process, where the kernel tells it.
    pub const fn pid(&self) -> Option<i32> {
        self.qmp.pid()
    }

    /// The guest's memory, as given at its start and plugged since.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn memory_bytes(&self) -> Result<u64, QmpError> {
        let command = query_memory_size_summary {};
        let memory = self.qmp.execute(command, self.deadline).await?;
        let plugged = memory.plugged_memory.unwrap_or(0);
        Ok(memory.base_memory.saturating_add(plugged))
    }

    /// Clears what devices that are gone have left behind, as [`Hypervisor::forget`] does for one.
    ///
    /// # Errors
    /// [`QmpError`].
    pub async fn forget_all(&self, device_ids: &[String]) -> Result<(), QmpError> {
        if device_ids.is_empty() {
            return Ok(());
        }
        let there = self.devices_by_type().await?;
        for id in device_ids.iter().filter(|id| !there.iter().any(|(name, _)| name == *id)) {
            self.netdev_del(&netdev_id(id)).await?;
        }
        Ok(())
    }

    async fn do_plug(&self, plug: &Plug) -> Result<(), VmmError> {
        let id = &plug.device_id;
        if self.devices_by_type().await?.iter().any(|(name, _)| name == id) {
            return Err(VmmError::AlreadyThere(id.clone()));
        }
        match self.port_state(&plug.port).await? {
            PortState::Empty => {}
            PortState::Missing => return Err(VmmError::PortMissing(plug.port.clone())),
            PortState::Occupied { by } => {
                let port = plug.port.clone();
                return Err(VmmError::PortOccupied { port, by });
            }
        }
        match &plug.backend {
            Backend::Vfio { host, node } => match node {
                Some(node) if self.has_iommufd().await? => {
                    self.plug_by_node(plug, node, Path::new(IOMMU)).await
                }
                _ => {
                    let properties = [("host".to_owned(), json!(host))];
                    self.device_add("vfio-pci", plug, properties).await
                }
            },
            Backend::Nic { model, tap, mac } => {
                let netdev = netdev_id(id);
                // A daemon that died between the two steps has left one.
                self.netdev_del(&netdev).await?;
                let arguments = json!({"type": "tap", "id": netdev, "ifname": tap,
                    "script": "no", "downscript": "no"});
                let added = self.qmp.execute_value("netdev_add", arguments, self.deadline);
                added.await?;
                let properties = [
                    ("netdev".to_owned(), json!(netdev)),
                    ("mac".to_owned(), json!(mac)),
                    // No boot from a NIC that comes later: no boot ROM needed.
                    ("romfile".to_owned(), json!("")),
                ];
                let added = self.device_add(model, plug, properties).await;
                if let Err(VmmError::Qmp(QmpError::Refused { .. })) = added {
                    self.netdev_del(&netdev).await?;
                }
                added
            }
        }
    }

    async fn device_add<const N: usize>(
        &self,
        driver: &str,
        plug: &Plug,
        properties: [(String, Value); N],
    ) -> Result<(), VmmError> {
        let (id, port) = (plug.device_id.clone(), plug.port.clone());
        let failover = plug.failover.as_ref().map(|pv| ("failover_pair_id".to_owned(), json!(pv)));
        let properties = properties.into_iter().chain(failover);
        let command = device_add::new(driver, id, port, properties);
        self.qmp.execute(command, self.plug_deadline).await?;
        Ok(())
    }

    async fn netdev_del(&self, id: &str) -> Result<(), QmpError> {
        let command = netdev_del { id: id.into() };
        found(self.qmp.execute(command, self.deadline).await).map(|_| ())
    }

    async fn do_unplug(&self, id: &str) -> Result<Unplug, VmmError> {
        let command = device_del { id: id.into() };
        match found(self.qmp.execute(command, self.deadline).await) {
            Ok(Some(_)) => Ok(Unplug::Asked),
            Ok(None) => Ok(Unplug::Gone),
            // QEMU has no class for it, only these words (since 3.0).
            Err(QmpError::Refused { desc, .. }) if desc.contains("in the process of unplug") => {
                Ok(Unplug::Pending)
            }
            Err(error) => Err(error.into()),
        }
    }

    async fn do_forget(&self, id: &str) -> Result<(), VmmError> {
        if self.devices_by_type().await?.iter().any(|(name, _)| name == id) {
            // Without its back-end the NIC would stay, deaf and dumb.
            return Err(VmmError::AlreadyThere(id.into()));
        }
        Ok(self.netdev_del(&netdev_id(id)).await?)
    }

    async fn do_observe(&self, ports: &[String]) -> Result<Observation, VmmError> {
        let mut observation = Observation::default();
        for (id, driver) in self.devices_by_type().await? {
            if !id.starts_with(ID_PREFIX) {
                continue;
            }
            if observation.devices.len() == MAX_DEVICES {
                break;
            }
            if let Some(device) = self.device(id, &driver).await? {
                observation.devices.push(device);
            }
        }
        for id in ports {
            observation.ports.push(Port { id: id.clone(), state: self.port_state(id).await? });
        }
        Ok(observation)
    }

    /// Ids and device models of all devices that have an id.
    async fn devices_by_type(&self) -> Result<Vec<(String, String)>, QmpError> {
        let listed = self.list(PERIPHERALS).await?.unwrap_or_default();
        let device = |(name, kind): (String, String)| {
            let driver = kind.strip_prefix("child<")?.strip_suffix('>')?;
            Some((name, driver.to_owned()))
        };
        Ok(listed.into_iter().filter_map(device).collect())
    }

    /// A device as QOM shows it; `None` if it went away meanwhile.
    async fn device(&self, id: String, driver: &str) -> Result<Option<PluggedDevice>, QmpError> {
        let path = format!("{PERIPHERALS}/{id}");
        let Some(bus) = self.get(&path, "parent_bus").await? else {
            return Ok(None);
        };
        let kind = if driver == "vfio-pci" {
            let host = self.get(&path, "host").await?;
            let host = host.and_then(|host| host.parse().ok());
            // One that was plugged by its node shows ffff:ff:ff.f here, which is no address.
            PluggedKind::Vfio { host: host.or_else(|| host_in(&id)) }
        } else {
            let mac = self.get(&path, "mac").await?;
            let tap = id.strip_prefix(ID_PREFIX).and_then(|rest| rest.strip_prefix(TAP_MARK));
            PluggedKind::Nic {
                model: driver.to_owned(),
                tap: tap.map(str::to_owned),
                mac: mac.and_then(|mac| mac.parse().ok()),
            }
        };
        let port = bus.rsplit('/').nth(1).map(str::to_owned);
        Ok(Some(PluggedDevice { id, port, kind }))
    }

    async fn port_state(&self, port: &str) -> Result<PortState, QmpError> {
        let path = format!("{PERIPHERALS}/{port}/{port}");
        let Some(entries) = self.list(&path).await? else {
            return Ok(PortState::Missing);
        };
        let Some((child, kind)) = entries.into_iter().find(|(name, _)| name.starts_with("child["))
        else {
            return Ok(PortState::Empty);
        };
        let model = kind.trim_start_matches("link<").trim_end_matches('>');
        let by = match self.get(&path, &child).await? {
            Some(path) => {
                let id = path.strip_prefix(PERIPHERALS);
                match id.and_then(|id| id.strip_prefix('/')) {
                    Some(id) => id.to_owned(),
                    None => format!("{model} at {path}"),
                }
            }
            // Unplugged between the two questions; the next look will tell.
            None => model.to_owned(),
        };
        Ok(PortState::Occupied { by })
    }

    /// Names and types under a QOM path; `None` if there is no such path.
    async fn list(&self, path: &str) -> Result<Option<Vec<(String, String)>>, QmpError> {
        let command = qom_list { path: path.into() };
        let listed = found(self.qmp.execute(command, self.deadline).await)?;
        Ok(listed.map(|entries| entries.into_iter().map(|e| (e.name, e.type_)).collect()))
    }

    /// A text property; `None` if the object or the property is not there.
    async fn get(&self, path: &str, property: &str) -> Result<Option<String>, QmpError> {
        let command = qom_get { path: path.into(), property: property.into() };
        match self.qmp.execute(command, self.deadline).await {
            Ok(Value::String(text)) => Ok(Some(text)),
            Ok(_) | Err(QmpError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

impl Hypervisor for QmpVmm {
    fn plug<'a>(&'a self, plug: &'a Plug) -> Answer<'a, ()> {
        Box::pin(self.do_plug(plug))
    }

    fn unplug<'a>(&'a self, device_id: &'a str) -> Answer<'a, Unplug> {
        Box::pin(self.do_unplug(device_id))
    }

    fn forget<'a>(&'a self, device_id: &'a str) -> Answer<'a, ()> {
        Box::pin(self.do_forget(device_id))
    }

    fn observe<'a>(&'a self, ports: &'a [String]) -> Answer<'a, Observation> {
        Box::pin(self.do_observe(ports))
    }
}

/// "Not found" as an answer instead of an error.
fn found<T>(result: Result<T, QmpError>) -> Result<Option<T>, QmpError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(QmpError::Refused { class, .. }) if class == "DeviceNotFound" => Ok(None),
        Err(error) => Err(error),
    }
}

/// The function in the id of a device that FlexVF has plugged.
fn host_in(device_id: &str) -> Option<PciAddress> {
    let mut parts = device_id.strip_prefix(ID_PREFIX)?.splitn(4, '-');
    let mut part = || parts.next();
    format!("{}:{}:{}.{}", part()?, part()?, part()?, part()?).parse().ok()
}

fn netdev_id(device_id: &str) -> String {
    format!("{device_id}-net")
}

/// Where QOM has the devices that have ids.
const PERIPHERALS: &str = "/machine/peripheral";
/// Looked at in one VM at most: a q35 has no more than 256 buses.
const MAX_DEVICES: usize = 256;
