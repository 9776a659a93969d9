//! The kernel's links over rtnetlink.
//!
//! Requests and notifications have sockets of their own: a flood of notifications that overflows its
//! queue must not swallow the answer to a request. So have counters, whose answers are there at once.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::LinkCounters;
use futures_util::TryStreamExt;
use netlink_packet_route::link::{
    BondAllPortActive, BondFailOverMac, BondMode, InfoBond, InfoKind, LinkMessage,
};
use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};
use rtnetlink::{Handle, LinkBond, LinkMessageBuilder, LinkUnspec, new_connection};

use super::kernel::{Change, Kernel, KernelError};
use super::notices::Notices;
use super::parse;
use super::stats::Stats;
use crate::config::BOND;
use crate::logic::interfaces::Address;
use crate::logic::links::Link;
use crate::logic::plan::Step;

/// The kernel that the agent runs on.
pub struct Netlink {
    handle: Handle,
    notices: Notices,
    stats: Stats,
    devices: BTreeMap<u32, Device>,
}

/// What sysfs knows of a link's parent device. It does not change while the link lives.
#[derive(Debug, Clone, Default)]
struct Device {
    driver: Option<String>,
    bus: Option<String>,
}

impl Netlink {
    /// Opens the sockets. Needs a tokio runtime.
    pub fn open() -> io::Result<Self> {
        let (connection, handle, _) = new_connection()?;
        tokio::spawn(connection);
        let (notices, stats) = (Notices::open()?, Stats::open()?);
        Ok(Self { handle, notices, stats, devices: BTreeMap::new() })
    }

    async fn dump(&self) -> Result<Vec<LinkMessage>, KernelError> {
        let messages = self.handle.link().get().execute().try_collect().await;
        messages.map_err(|error| failed("list links", &error))
    }

    async fn set(&self, message: LinkMessage) -> Result<(), rtnetlink::Error> {
        self.handle.link().set(message).execute().await
    }

    /// Changes what is special to a kind of link: only RTM_NEWLINK does that, on an existing link.
    async fn change(&self, message: LinkMessage) -> Result<(), rtnetlink::Error> {
        let request = self.handle.link().add(message);
        request.set_flags(NLM_F_REQUEST | NLM_F_ACK).execute().await
    }

    async fn create_bond(&self, name: &str, mac: Option<MacAddr>) -> Result<(), rtnetlink::Error> {
        let mut bond = LinkBond::new(name);
        if let Some(mac) = mac {
            bond = bond.address(mac.octets().to_vec());
        }
        let result = self.handle.link().add(bond.build()).execute().await;
        match result {
            // Loading the module makes a bond0 by itself.
            Err(error) if io_error(&error).kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }
}

impl Kernel for Netlink {
    async fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        // What changes from here on may be missing in the dump.
        self.notices.forget();
        let messages = self.dump().await.inspect_err(|_| self.notices.set())?;
        let mut links: Vec<Link> = messages.iter().map(parse::link).collect();
        links.sort_by_key(|link| link.index);
        let known = std::mem::take(&mut self.devices);
        for link in &mut links {
            let device = match known.get(&link.index) {
                Some(device) => device.clone(),
                None => Device::of(&link.name),
            };
            link.driver.clone_from(&device.driver);
            if link.bus.is_none() {
                link.bus.clone_from(&device.bus);
            }
            self.devices.insert(link.index, device);
        }
        Ok(links)
    }

    async fn addresses(&mut self) -> Result<Vec<Address>, KernelError> {
        let messages: Vec<_> = self
            .handle
            .address()
            .get()
            .execute()
            .try_collect()
            .await
            .map_err(|error| failed("list addresses", &error))?;
        Ok(messages.iter().filter_map(parse::address).collect())
    }

    async fn apply(&mut self, step: &Step) -> Result<(), KernelError> {
        let link = LinkUnspec::new_with_index;
        let result = match step {
            Step::SetUp(index) => self.set(link(*index).up().build()).await,
            Step::SetDown(index) => self.set(link(*index).down().build()).await,
            Step::Enslave { port, bond } => self.set(link(*port).controller(*bond).build()).await,
            Step::Release(port) => self.set(link(*port).nocontroller().build()).await,
            Step::SetMac { link: index, mac } => {
                let message = link(*index).address(mac.octets().to_vec()).build();
                self.set(message).await
            }
            Step::Activate { port, bond } => {
                let message = bond_builder().index(*bond).active_port(*port).build();
                self.change(message).await
            }
            Step::ConfigureBond(bond) => self.change(bond_settings(*bond)).await,
            Step::CreateBond { name, mac } => self.create_bond(name, *mac).await,
        };
        result.map_err(|error| failed(&format!("{step:?}"), &error))
    }

    async fn changed(&mut self) -> Change {
        self.notices.next().await
    }

    fn counters(&mut self, links: &[u32]) -> Option<Vec<LinkCounters>> {
        if self.notices.any() {
            return None;
        }
        self.stats.of(links).ok()
    }
}

impl Device {
    fn of(name: &str) -> Self {
        let device = Path::new("/sys/class/net").join(name).join("device");
        let target = |entry: &str| {
            let target = fs::read_link(device.join(entry)).ok()?;
            Some(target.file_name()?.to_string_lossy().into_owned())
        };
        Self { driver: target("driver"), bus: target("subsystem") }
    }
}

/// See [`BOND`] for the reasons.
fn bond_settings(bond: u32) -> LinkMessage {
    bond_builder()
        .index(bond)
        .mode(BondMode::ActiveBackup)
        .miimon(BOND.miimon_ms)
        .append_info_data(InfoBond::FailOverMac(BondFailOverMac::Follow))
        .append_info_data(InfoBond::AllPortsActive(BondAllPortActive::Delivered))
        .append_info_data(InfoBond::NumPeerNotif(BOND.peer_notifications))
        .build()
}

fn bond_builder() -> LinkMessageBuilder<LinkBond> {
    LinkMessageBuilder::<LinkBond>::new_with_info_kind(InfoKind::Bond)
}

fn failed(operation: &str, error: &rtnetlink::Error) -> KernelError {
    KernelError { operation: operation.to_owned(), source: io_error(error) }
}

fn io_error(error: &rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn this_machines_links_are_read() {
        let mut kernel = Netlink::open().unwrap();
        let links = kernel.links().await.unwrap();
        let lo = links.iter().find(|link| link.name == "lo").unwrap();
        assert_eq!((lo.bus.as_deref(), lo.driver.as_deref()), (None, None));
        let addresses = kernel.addresses().await.unwrap();
        assert!(addresses.iter().all(|a| links.iter().any(|l| l.index == a.link)));
    }

    #[tokio::test]
    async fn what_the_kernel_refuses_is_an_error_that_names_the_step() {
        let mut kernel = Netlink::open().unwrap();
        let error = kernel.apply(&Step::SetUp(u32::MAX >> 1)).await.unwrap_err();
        assert!(error.to_string().starts_with("SetUp("), "{error}");
    }
}
