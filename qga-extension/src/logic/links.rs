//! What the guest's network looks like: the links, and which of them are bond, PV and VF.
//!
//! A VF is recognised by its permanent MAC address and by sitting on a PCI bus, never by name: names
//! change from plug to plug, and a bond with `fail_over_mac=follow` swaps the current addresses.
//! Nothing is remembered here; every question is answered from one dump of the kernel's links.

use std::str::FromStr;

use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::{LinkCounters, Path, VfInBond, VfState};

/// A network interface, as one dump shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Link {
    /// Kernel's number, not used again while the guest runs.
    pub index: u32,
    /// Name, which may change.
    pub name: String,
    /// Current MAC address.
    pub mac: Option<MacAddr>,
    /// The address that the hardware came with.
    pub permanent_mac: Option<MacAddr>,
    /// Administratively up (IFF_UP).
    pub up: bool,
    /// The lower layer is up (IFF_LOWER_UP).
    pub carrier: bool,
    /// Index of the bond, bridge or team that the link is a port of.
    pub controller: Option<u32>,
    /// Bus of the parent device: "pci", "virtio"; none for software links.
    pub bus: Option<String>,
    /// Driver of the parent device.
    pub driver: Option<String>,
    /// Set when the link is a bond.
    pub bond: Option<Bond>,
    /// The link is a team device.
    pub is_team: bool,
    /// Set when the link is the port of a bond, and the bond's monitor sees it up.
    pub seen_up_by_bond: bool,
    /// Traffic.
    pub stats: LinkStats,
}

/// What makes a link a bond.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bond {
    /// The mode is active-backup.
    pub active_backup: bool,
    /// Index of the port that carries the traffic.
    pub active_port: Option<u32>,
}

/// Traffic of a link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// Packets, bytes, drops.
    pub counters: LinkCounters,
    /// Bad packets received.
    pub rx_errors: u64,
    /// Packets that could not be sent.
    pub tx_errors: u64,
}

/// How the PV NIC is named on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PvSelector {
    /// By permanent MAC address.
    Mac(MacAddr),
    /// By the name of its driver, or of the interface itself.
    Name(String),
}

/// Which links the agent works on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selector {
    /// The bond's name; none means the bond that holds the PV NIC.
    pub bond: Option<String>,
    /// The PV NIC.
    pub pv: PvSelector,
}

/// One dump of the links, with bond and PV found in it.
#[derive(Debug, Clone, Default)]
pub struct View {
    links: Vec<Link>,
    bond: Option<u32>,
    pv: Option<u32>,
    /// A team device where the bond should be.
    team: Option<u32>,
}

impl View {
    /// Finds bond and PV. Where several NICs could be the PV, the one in the bond is; where none of
    /// them is in it, none is taken.
    pub fn new(links: Vec<Link>, selector: &Selector) -> Self {
        let candidates: Vec<&Link> = links.iter().filter(|l| selector.pv.matches(l)).collect();
        let is_chosen = |link: &Link| match &selector.bond {
            Some(name) => link.name == *name,
            None => candidates.iter().any(|pv| pv.controller == Some(link.index)),
        };
        let chosen = |is_kind: fn(&Link) -> bool| {
            links.iter().find(|link| is_kind(link) && is_chosen(link)).map(|link| link.index)
        };
        let bond = chosen(|link| link.bond.is_some());
        let team = chosen(|link| link.is_team);
        let pv = match candidates.as_slice() {
            [only] => Some(only.index),
            several => {
                several.iter().find(|pv| bond.is_some() && pv.controller == bond).map(|pv| pv.index)
            }
        };
        Self { links, bond, pv, team }
    }

    /// Every link.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The link with this index.
    pub fn link(&self, index: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.index == index)
    }

    /// The bond.
    pub fn bond(&self) -> Option<&Link> {
        self.link(self.bond?)
    }

    /// A team device that is there instead of a bond: the agent cannot move one.
    pub fn team(&self) -> Option<&Link> {
        self.link(self.team?)
    }

    /// The PV NIC, in the bond or not.
    pub fn pv(&self) -> Option<&Link> {
        self.link(self.pv?)
    }

    /// The NIC with this permanent MAC address on a PCI bus. Should there be two, the one in the bond.
    pub fn vf(&self, mac: MacAddr) -> Option<&Link> {
        let is_vf = |link: &&Link| {
            link.permanent_mac == Some(mac)
                && link.bus.as_deref() == Some(PCI_BUS)
                && Some(link.index) != self.pv
        };
        let mut found = self.links.iter().filter(is_vf);
        let first = found.clone().next();
        found.find(|link| self.is_port(link)).or(first)
    }

    /// The bond's ports that are not the PV NIC.
    pub fn vf_ports(&self) -> impl Iterator<Item = &Link> {
        self.links.iter().filter(|link| self.is_port(link) && Some(link.index) != self.pv)
    }

    /// The bond's active port.
    pub fn active_port(&self) -> Option<&Link> {
        self.link(self.bond()?.bond?.active_port?)
    }

    /// The bond's active path.
    pub fn active_path(&self) -> Option<Path> {
        let active = self.active_port()?.index;
        if Some(active) == self.pv {
            Some(Path::Pv)
        } else if self.vf_ports().any(|vf| vf.index == active) {
            Some(Path::Vf)
        } else {
            None
        }
    }

    /// How far the VF with this permanent MAC address is.
    pub fn vf_state(&self, mac: MacAddr) -> VfState {
        self.vf(mac).map_or(VfState::Absent, |link| self.state_of(link))
    }

    /// The VF to tell about: the active one, or else the first.
    pub fn vf_in_bond(&self) -> Option<VfInBond> {
        self.vf_ports()
            .filter_map(|link| {
                Some(VfInBond { mac: link.permanent_mac?, state: self.state_of(link) })
            })
            .max_by_key(|vf| vf.state == VfState::Active)
    }

    /// How far a NIC is on its way to being the active port.
    pub fn state_of(&self, link: &Link) -> VfState {
        if !self.is_port(link) {
            VfState::Present
        } else if self.active_port().is_some_and(|p| p.index == link.index) {
            VfState::Active
        } else if link.is_ready() {
            VfState::Ready
        } else {
            VfState::Joined
        }
    }

    /// Is it one of our bond's ports?
    pub fn is_port(&self, link: &Link) -> bool {
        self.bond.is_some() && link.controller == self.bond
    }
}

impl Link {
    /// Up, with a lower layer that is up, and seen so by the bond: the kernel refuses to activate a
    /// port before its monitor has looked.
    pub fn is_ready(&self) -> bool {
        self.up && self.carrier && self.seen_up_by_bond
    }
}

impl PvSelector {
    /// Could this link be the PV NIC?
    pub fn matches(&self, link: &Link) -> bool {
        match self {
            Self::Mac(mac) => link.bus.is_some() && link.permanent_mac == Some(*mac),
            Self::Name(name) => link.driver.as_ref() == Some(name) || link.name == *name,
        }
    }
}

impl FromStr for PvSelector {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text.parse().map_or_else(|_| Self::Name(text.to_owned()), Self::Mac))
    }
}

impl std::fmt::Display for PvSelector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Mac(mac) => mac.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

/// The bus of a VF; a virtio NIC's is "virtio", also when that sits on PCI.
pub const PCI_BUS: &str = "pci";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{self, PV_MAC, VF_MAC};

    fn nic(index: u32, mac: MacAddr, bus: &str) -> Link {
        Link {
            index,
            name: format!("nic{index}"),
            mac: Some(mac),
            permanent_mac: Some(mac),
            bus: Some(bus.into()),
            driver: (bus == "virtio").then(|| "virtio_net".into()),
            ..Link::default()
        }
    }

    fn bond(index: u32, name: &str) -> Link {
        Link {
            index,
            name: name.into(),
            bond: Some(Bond { active_backup: true, active_port: None }),
            ..Link::default()
        }
    }

    fn port(mut link: Link, bond: u32) -> Link {
        link.controller = Some(bond);
        link
    }

    #[test]
    fn a_vf_is_found_by_permanent_mac_when_the_bond_has_swapped_the_current_ones() {
        let mut vf = port(nic(4, VF_MAC, PCI_BUS), 2);
        vf.mac = Some(PV_MAC);
        let mut pv = port(nic(3, PV_MAC, "virtio"), 2);
        pv.mac = Some(VF_MAC);
        let view = View::new(vec![bond(2, "bond0"), pv, vf], &model::selector());
        assert_eq!(view.vf(VF_MAC).unwrap().index, 4);
        assert_eq!(view.vf(PV_MAC), None);
    }

    #[test]
    fn a_software_link_with_the_vfs_mac_is_no_vf() {
        let mut macvlan = nic(4, VF_MAC, PCI_BUS);
        macvlan.bus = None;
        let view = View::new(vec![macvlan], &model::selector());
        assert_eq!(view.vf_state(VF_MAC), VfState::Absent);
    }

    #[test]
    fn among_several_paravirtual_nics_the_one_in_the_bond_is_the_pv() {
        let other = nic(3, MacAddr::new([2, 0, 0, 0, 0, 9]), "virtio");
        let pv = port(nic(5, PV_MAC, "virtio"), 2);
        let links = vec![bond(2, "bond0"), other, pv];
        let view = View::new(links.clone(), &model::selector());
        assert_eq!(view.pv().unwrap().index, 5);
        // Without a bond's name, the bond is found by its PV.
        let mut selector = model::selector();
        selector.bond = None;
        let view = View::new(links, &selector);
        assert_eq!(view.bond().unwrap().index, 2);
    }

    #[test]
    fn of_several_paravirtual_nics_outside_a_bond_none_is_guessed() {
        let links =
            vec![nic(3, PV_MAC, "virtio"), nic(4, MacAddr::new([2, 0, 0, 0, 0, 9]), "virtio")];
        assert_eq!(View::new(links.clone(), &model::selector()).pv(), None);
        let mut selector = model::selector();
        selector.pv = PV_MAC.to_string().parse().unwrap();
        assert_eq!(View::new(links, &selector).pv().unwrap().index, 3);
    }

    /// As many agents, each with a port of its own to the host.
    #[test]
    fn each_of_several_pairs_has_its_own_bond_pv_and_vf() {
        let macs = |pair: u8| [pair, pair + 8].map(|last| MacAddr::new([2, 0xf1, 0, 0, 0, last]));
        let mut links = Vec::new();
        for pair in 1..=2 {
            let ([pv, vf], first) = (macs(pair), u32::from(pair) * 10);
            links.push(bond(first, &format!("bond{pair}")));
            links.push(port(nic(first + 1, pv, "virtio"), first));
            links.push(port(nic(first + 2, vf, PCI_BUS), first));
        }
        for pair in 1..=2 {
            let ([pv, vf], first) = (macs(pair), u32::from(pair) * 10);
            let selector = Selector { bond: None, pv: PvSelector::Mac(pv) };
            let view = View::new(links.clone(), &selector);
            assert_eq!(view.bond().unwrap().index, first);
            assert_eq!(view.pv().unwrap().index, first + 1);
            let vfs: Vec<u32> = view.vf_ports().map(|link| link.index).collect();
            assert_eq!(vfs, [first + 2]);
            assert_eq!(view.vf_state(vf), VfState::Joined);
            // The other pair's is there, and not this one's.
            assert_eq!(view.vf_state(macs(3 - pair)[1]), VfState::Present);
        }
    }

    #[test]
    fn a_port_is_ready_only_when_the_bond_itself_sees_it_up() {
        let mut vf = port(nic(4, VF_MAC, PCI_BUS), 2);
        (vf.up, vf.carrier) = (true, true);
        let links = vec![bond(2, "bond0"), vf];
        let view = View::new(links.clone(), &model::selector());
        assert_eq!(view.vf_state(VF_MAC), VfState::Joined);
        let mut links = links;
        links[1].seen_up_by_bond = true;
        let view = View::new(links, &model::selector());
        assert_eq!(view.vf_state(VF_MAC), VfState::Ready);
    }
}
