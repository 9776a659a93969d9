//! A kernel in memory for tests and fuzzers: links, and a bond that behaves like Linux's active-backup with
//! `fail_over_mac=follow`, as far as the agent can see.
//!
//! It swaps MAC addresses at a failover as the bonding driver does, also when that is a bad idea
//! because a port refused its part. It refuses what the kernel refuses. Its monitor looks only at
//! [`ModelKernel::tick`].

use std::collections::BTreeMap;
use std::io;

use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::LinkCounters;
use nix::errno::Errno;

use crate::io::{Change, Kernel, KernelError};
use crate::logic::interfaces::Address;
use crate::logic::links::{Bond, Link, LinkStats, PCI_BUS, PvSelector, Selector};
use crate::logic::plan::Step;

/// The PV NIC's permanent address, and the guest's.
pub const PV_MAC: MacAddr = MacAddr::new([2, 0xaa, 0, 0, 0, 1]);
/// A VF's permanent address.
pub const VF_MAC: MacAddr = MacAddr::new([2, 0xf1, 0, 0, 0, 1]);
/// Index of the bond.
pub const BOND: u32 = 3;
/// Index of the PV NIC.
pub const PV: u32 = 2;

/// Picks `bond0` and the virtio NIC.
pub fn selector() -> Selector {
    Selector { bond: Some("bond0".into()), pv: PvSelector::Name("virtio_net".into()) }
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct ModelKernel {
    /// By index.
    pub links: BTreeMap<u32, Link>,
    /// Of all links.
    pub addresses: Vec<Address>,
    /// Every step that was asked for.
    pub log: Vec<Step>,
    /// Counts down; the step that finds 1 fails.
    pub fails_in: usize,
    /// Links that keep their MAC address, as an untrusted VF does.
    pub stubborn: Vec<u32>,
    next_index: u32,
    /// The links, their counters left out, when they were last asked for.
    looked_at: Option<Vec<Link>>,
}

impl ModelKernel {
    /// A guest with a virtio NIC and no bond.
    pub fn bare() -> Self {
        let mut kernel = Self { next_index: PV, ..Self::default() };
        kernel.add(PV_MAC, "virtio", "virtio_net");
        kernel
    }

    /// A VF, or another PCI NIC.
    pub fn plug(&mut self, mac: MacAddr) -> u32 {
        self.add(mac, PCI_BUS, "e1000e")
    }

    /// The link is gone, and the bond fails over.
    pub fn unplug(&mut self, index: u32) {
        self.links.remove(&index);
        if self.active() == Some(index) {
            self.fail_over(None);
        }
    }

    /// The bond's monitor looks at its ports.
    pub fn tick(&mut self) {
        for link in self.links.values_mut() {
            link.seen_up_by_bond = link.controller.is_some() && link.up && link.carrier;
        }
        if self.links.contains_key(&BOND) && self.active().is_none() {
            self.fail_over(None);
        }
    }

    /// The bond's active port.
    pub fn active(&self) -> Option<u32> {
        self.links.get(&BOND)?.bond?.active_port
    }

    /// A link's current address.
    pub fn mac(&self, index: u32) -> Option<MacAddr> {
        self.links.get(&index)?.mac
    }

    fn add(&mut self, mac: MacAddr, bus: &str, driver: &str) -> u32 {
        let index = self.next_index;
        // Index 3 is kept for the bond.
        self.next_index = (index + 1).max(BOND + 1);
        let link = Link {
            index,
            name: format!("eth{index}"),
            mac: Some(mac),
            permanent_mac: Some(mac),
            bus: Some(bus.into()),
            driver: Some(driver.into()),
            ..Link::default()
        };
        self.links.insert(index, link);
        index
    }

    fn without_counters(&self) -> Vec<Link> {
        let bare = |link: &Link| Link { stats: LinkStats::default(), ..link.clone() };
        self.links.values().map(bare).collect()
    }

    fn link(&mut self, index: u32) -> Result<&mut Link, Errno> {
        self.links.get_mut(&index).ok_or(Errno::ENODEV)
    }

    fn step(&mut self, step: &Step) -> Result<(), Errno> {
        match *step {
            Step::SetUp(index) => {
                let link = self.link(index)?;
                (link.up, link.carrier) = (true, true);
            }
            Step::SetDown(index) => {
                let link = self.link(index)?;
                (link.up, link.carrier, link.seen_up_by_bond) = (false, false, false);
                if self.active() == Some(index) {
                    self.fail_over(Some(index));
                }
            }
            Step::Enslave { port, bond } => self.enslave(port, bond)?,
            Step::Release(port) => self.release(port)?,
            Step::Activate { port, .. } => {
                if !self.link(port)?.is_ready() || self.active().is_none() {
                    return Err(Errno::EINVAL);
                }
                if self.active() != Some(port) {
                    let old = self.active();
                    self.make_active(port, old);
                }
            }
            Step::SetMac { link, mac } => {
                self.link(link)?;
                self.set_mac(link, Some(mac))?;
            }
            Step::CreateBond { ref name, mac } => {
                let bond = Link {
                    index: BOND,
                    name: name.clone(),
                    mac,
                    bond: Some(Bond::default()),
                    ..Link::default()
                };
                self.links.entry(BOND).or_insert(bond);
            }
            Step::ConfigureBond(index) => {
                let bond = self.link(index)?;
                if bond.up {
                    return Err(Errno::EPERM);
                }
                bond.bond.get_or_insert_default().active_backup = true;
            }
        }
        Ok(())
    }

    fn enslave(&mut self, port: u32, bond: u32) -> Result<(), Errno> {
        let link = self.link(port)?;
        if link.up || link.controller.is_some() {
            return Err(Errno::EBUSY);
        }
        link.controller = Some(bond);
        (link.up, link.carrier) = (true, true);
        let mac = link.mac;
        let first = self.active().is_none();
        if first {
            self.link(bond)?.mac = mac;
            self.link(port)?.seen_up_by_bond = true;
            self.make_active(port, None);
        }
        Ok(())
    }

    fn release(&mut self, port: u32) -> Result<(), Errno> {
        let link = self.link(port)?;
        let was_port = link.controller.take().is_some();
        link.seen_up_by_bond = false;
        if was_port {
            (link.up, link.carrier) = (false, false);
            link.mac = link.permanent_mac;
            if self.active() == Some(port) {
                self.fail_over(None);
            }
        }
        Ok(())
    }

    fn fail_over(&mut self, old: Option<u32>) {
        let ready = |link: &&Link| link.controller == Some(BOND) && link.is_ready();
        match self.links.values().find(ready).map(|link| link.index) {
            Some(next) => self.make_active(next, old),
            None => self.set_active(None),
        }
    }

    /// `bond_do_fail_over_mac` with BOND_FOM_FOLLOW: swap with the port that has the bond's address.
    fn make_active(&mut self, new: u32, old: Option<u32>) {
        let bond_mac = self.mac(BOND);
        let holder = old.or_else(|| {
            self.links
                .values()
                .find(|l| l.controller == Some(BOND) && l.index != new && l.mac == bond_mac)
                .map(|l| l.index)
        });
        self.set_active(Some(new));
        let new_mac = self.mac(new);
        let wanted = match holder {
            Some(old) => self.mac(old),
            None => bond_mac,
        };
        if self.set_mac(new, wanted).is_ok()
            && let Some(old) = holder
        {
            // A failure is only logged.
            let _ = self.set_mac(old, new_mac);
        }
    }

    fn set_active(&mut self, port: Option<u32>) {
        if let Some(bond) = self.links.get_mut(&BOND).and_then(|l| l.bond.as_mut()) {
            bond.active_port = port;
        }
    }

    fn set_mac(&mut self, index: u32, mac: Option<MacAddr>) -> Result<(), Errno> {
        if self.stubborn.contains(&index) && self.mac(index) != mac {
            return Err(Errno::EPERM);
        }
        self.link(index)?.mac = mac;
        Ok(())
    }
}

impl Kernel for ModelKernel {
    async fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        self.looked_at = Some(self.without_counters());
        Ok(self.links.values().cloned().collect())
    }

    async fn addresses(&mut self) -> Result<Vec<Address>, KernelError> {
        Ok(self.addresses.clone())
    }

    async fn apply(&mut self, step: &Step) -> Result<(), KernelError> {
        self.log.push(step.clone());
        let fails = self.fails_in == 1;
        self.fails_in = self.fails_in.saturating_sub(1);
        let result = if fails { Err(Errno::EIO) } else { self.step(step) };
        result.map_err(|errno| KernelError {
            operation: format!("{step:?}"),
            source: io::Error::from(errno),
        })
    }

    async fn changed(&mut self) -> Change {
        std::future::pending().await
    }

    fn counters(&mut self, links: &[u32]) -> Option<Vec<LinkCounters>> {
        let unchanged = self.looked_at.as_ref() == Some(&self.without_counters());
        let counters = |index: &u32| Some(self.links.get(index)?.stats.counters);
        unchanged.then(|| links.iter().map(counters).collect())?
    }
}

/// Counters of so many packets received.
pub fn packets(rx_packets: u64) -> LinkCounters {
    LinkCounters { rx_packets, ..LinkCounters::default() }
}
