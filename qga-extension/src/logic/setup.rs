//! Makes the bond at the agent's start, when asked to.
//!
//! ```text
//!   no bond ──▶ create ──▶ bond without ports ──▶ address, configure, PV down · enslave · up, bond up ──▶ done
//!                          (the module's own one has another mode)
//! ```
//!
//! Each round looks at the links and gives the steps that are missing, so a restart of the agent, or
//! one in the middle, changes nothing that is right already. A bond that is in use is used as it is.
//! Addresses are never moved: a PV NIC that has some is refused, since taking it into a bond would
//! cut the guest off.

use std::net::IpAddr;

use super::interfaces::Address;
use super::links::{Link, PvSelector};
use super::plan::{Planned, Step};

/// Why there will be no bond.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SetupRefusal {
    /// The name is taken.
    #[error("interface {0} exists and is no bond: name another with --create-bond")]
    NotABond(String),
    /// The bond is somebody's, and of no use to us.
    #[error(
        "bond {0} is in use in another mode than active-backup: change it, or name another with --create-bond"
    )]
    WrongMode(String),
    /// No such NIC.
    #[error("no NIC matches --pv {0}: give its driver, its name or its permanent MAC address")]
    NoPv(String),
    /// Too many.
    #[error("several NICs match --pv {selector}: {names}; name one by its MAC address")]
    ManyPvs {
        /// What was asked for.
        selector: String,
        /// What was found.
        names: String,
    },
    /// The NIC belongs to something else.
    #[error(
        "NIC {0} is a port of another interface already: use that one with --bond, or release it"
    )]
    HeldElsewhere(String),
    /// The guest would lose its network.
    #[error(
        "NIC {name} has address {ip}: take a NIC without addresses into the bond, and give them to the bond"
    )]
    HasAddress {
        /// The NIC.
        name: String,
        /// Its first address.
        ip: IpAddr,
    },
}

/// The next round of steps; none when the bond is complete.
pub fn next_round(
    links: &[Link],
    addresses: &[Address],
    bond_name: &str,
    pv: &PvSelector,
) -> Result<Vec<Planned>, SetupRefusal> {
    let Some(bond) = links.iter().find(|link| link.name == bond_name) else {
        // Checked now, so that a refusal leaves no empty bond behind.
        let pv = find_pv(links, pv, None)?;
        check_pv(pv, addresses)?;
        let (name, mac) = (bond_name.to_owned(), pv.mac);
        return Ok(vec![Planned::new(Step::CreateBond { name, mac })]);
    };
    let state = bond.bond.ok_or_else(|| SetupRefusal::NotABond(bond_name.to_owned()))?;
    let pv = find_pv(links, pv, Some(bond.index))?;
    let mut steps = Vec::new();
    if !state.active_backup {
        // Without ports it carries nothing: it may even have its addresses already.
        if links.iter().any(|l| l.controller == Some(bond.index)) {
            return Err(SetupRefusal::WrongMode(bond_name.to_owned()));
        }
        if bond.up {
            steps.push(Planned::new(Step::SetDown(bond.index)));
        }
        // Before the settings: with fail_over_mac=follow the kernel takes no address any more. The
        // module's own bond has a random one, or what udev has made of it.
        if let Some(mac) = pv.mac.filter(|mac| bond.mac != Some(*mac)) {
            steps.push(Planned::new(Step::SetMac { link: bond.index, mac }));
        }
        steps.push(Planned::new(Step::ConfigureBond(bond.index)));
    }
    if pv.controller != Some(bond.index) {
        check_pv(pv, addresses)?;
        steps.extend(take_pv(pv, bond));
    }
    if !bond.up || !state.active_backup {
        steps.push(Planned::new(Step::SetUp(bond.index)));
    }
    Ok(steps)
}

fn find_pv<'a>(
    links: &'a [Link],
    selector: &PvSelector,
    bond: Option<u32>,
) -> Result<&'a Link, SetupRefusal> {
    let found: Vec<&Link> = links.iter().filter(|link| selector.matches(link)).collect();
    let in_bond = |link: &&&Link| bond.is_some() && link.controller == bond;
    match (found.as_slice(), found.iter().find(in_bond)) {
        (_, Some(port)) => Ok(port),
        ([only], None) => Ok(only),
        ([], None) => Err(SetupRefusal::NoPv(selector.to_string())),
        (several, None) => {
            let names: Vec<&str> = several.iter().map(|link| link.name.as_str()).collect();
            Err(SetupRefusal::ManyPvs { selector: selector.to_string(), names: names.join(", ") })
        }
    }
}

fn check_pv(pv: &Link, addresses: &[Address]) -> Result<(), SetupRefusal> {
    let name = || pv.name.clone();
    if pv.controller.is_some() {
        return Err(SetupRefusal::HeldElsewhere(name()));
    }
    let mut own = addresses.iter().filter(|address| address.link == pv.index);
    match own.find(|address| !is_automatic(address.ip)) {
        Some(address) => Err(SetupRefusal::HasAddress { name: name(), ip: address.ip }),
        None => Ok(()),
    }
}

fn take_pv(pv: &Link, bond: &Link) -> Vec<Planned> {
    let (port, bond) = (pv.index, bond.index);
    let mut steps = Vec::new();
    if pv.up {
        steps.push(Planned::with_undo(Step::SetDown(port), Step::SetUp(port)));
    }
    steps.push(Planned::with_undo(Step::Enslave { port, bond }, Step::Release(port)));
    steps.push(Planned::new(Step::SetUp(port)));
    steps
}

/// Addresses that the kernel gives a link by itself, and gives the bond as well.
const fn is_automatic(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(_) => false,
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use flexvf_protocol::MacAddr;

    use super::*;
    use crate::logic::links::Bond;

    const PV: u32 = 2;
    const MAC: MacAddr = MacAddr::new([2, 0xaa, 0, 0, 0, 1]);

    fn pv() -> Link {
        Link {
            index: PV,
            name: "eth0".into(),
            mac: Some(MAC),
            up: true,
            bus: Some("virtio".into()),
            driver: Some("virtio_net".into()),
            ..Link::default()
        }
    }

    fn bond(active_backup: bool) -> Link {
        let bond = Bond { active_backup, active_port: None };
        Link { index: 3, name: "bond0".into(), bond: Some(bond), ..Link::default() }
    }

    fn steps(links: &[Link], addresses: &[Address]) -> Result<Vec<Step>, SetupRefusal> {
        let pv = PvSelector::Name("virtio_net".into());
        let planned = next_round(links, addresses, "bond0", &pv)?;
        Ok(planned.into_iter().map(|planned| planned.step).collect())
    }

    fn address(link: u32, ip: &str) -> Address {
        Address { link, ip: ip.parse().unwrap(), prefix: 24 }
    }

    #[test]
    fn a_missing_bond_is_created_first() {
        let expected = Step::CreateBond { name: "bond0".into(), mac: Some(MAC) };
        assert_eq!(steps(&[pv()], &[]).unwrap(), [expected]);
    }

    #[test]
    fn a_bond_in_the_modules_default_mode_is_configured_and_given_the_pv() {
        let expected = [
            Step::SetMac { link: 3, mac: MAC },
            Step::ConfigureBond(3),
            Step::SetDown(PV),
            Step::Enslave { port: PV, bond: 3 },
            Step::SetUp(PV),
            Step::SetUp(3),
        ];
        assert_eq!(steps(&[pv(), bond(false)], &[]).unwrap(), expected);
    }

    #[test]
    fn a_complete_bond_is_left_as_it_is() {
        let (mut pv, mut bond) = (pv(), bond(true));
        pv.controller = Some(bond.index);
        bond.up = true;
        // Addresses are where they belong, and another virtio NIC is nobody's business.
        let mut other = super::tests::pv();
        (other.index, other.name) = (9, "eth1".into());
        let links = [pv, other, bond];
        assert_eq!(steps(&links, &[address(3, "10.0.0.2")]).unwrap(), []);
    }

    #[test]
    fn a_nic_with_addresses_is_refused_and_a_link_local_one_is_none() {
        let links = [pv(), bond(true)];
        for links in [&links[..1], &links] {
            let refusal = steps(links, &[address(PV, "10.0.0.2")]).unwrap_err();
            assert!(refusal.to_string().contains("10.0.0.2"), "{refusal}");
        }
        assert!(steps(&links, &[address(PV, "fe80::1")]).is_ok());
    }

    #[test]
    fn what_belongs_to_others_is_refused() {
        let mut held = pv();
        held.controller = Some(7);
        let refused = Err(SetupRefusal::HeldElsewhere("eth0".into()));
        assert_eq!(steps(&[held.clone(), bond(true)], &[]), refused);
        // No bond is made that would then stay empty.
        assert_eq!(steps(&[held], &[]), refused);
        let mut plain = bond(true);
        plain.bond = None;
        let taken = steps(&[pv(), plain], &[]);
        assert_eq!(taken, Err(SetupRefusal::NotABond("bond0".into())));
        let mut other = pv();
        (other.index, other.name, other.driver) = (9, "eth1".into(), None);
        other.controller = Some(3);
        let used = steps(&[pv(), other, bond(false)], &[]);
        assert_eq!(used, Err(SetupRefusal::WrongMode("bond0".into())));
        let mut second = pv();
        second.index = 9;
        let many = steps(&[pv(), second], &[]).unwrap_err();
        assert!(matches!(many, SetupRefusal::ManyPvs { .. }), "{many}");
        assert!(matches!(steps(&[], &[]), Err(SetupRefusal::NoPv(_))));
    }
}
