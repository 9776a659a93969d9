//! Netlink's messages → the agent's types. Unknown attributes are passed over.

use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::LinkCounters;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    BondMode, InfoBond, InfoBondPort, InfoData, InfoKind, InfoPortData, LinkAttribute, LinkFlags,
    LinkInfo, LinkMessage, MiiStatus, Stats64,
};

use crate::logic::interfaces::Address;
use crate::logic::links::{Bond, Link, LinkStats};

/// A link. Driver, and bus on kernels that do not tell it, are left open: netlink has no driver.
pub(super) fn link(message: &LinkMessage) -> Link {
    let flags = message.header.flags;
    let mut link = Link {
        index: message.header.index,
        up: flags.contains(LinkFlags::Up),
        carrier: flags.contains(LinkFlags::LowerUp),
        ..Link::default()
    };
    let mut mac_at_enslaving = None;
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(bytes) => link.mac = MacAddr::from_slice(bytes),
            LinkAttribute::PermAddress(bytes) => link.permanent_mac = MacAddr::from_slice(bytes),
            LinkAttribute::Controller(index) if *index != 0 => link.controller = Some(*index),
            LinkAttribute::ParentDevBusName(bus) => link.bus = Some(bus.clone()),
            LinkAttribute::Stats64(stats) => link.stats = link_stats(stats),
            LinkAttribute::LinkInfo(infos) => {
                mac_at_enslaving = mac_at_enslaving.or(read_infos(&mut link, infos));
            }
            _ => {}
        }
    }
    // Kernels before 5.6 do not tell the permanent address. A port's is what it had before; any
    // other link still has its own.
    link.permanent_mac =
        link.permanent_mac.or(mac_at_enslaving).or(link.mac.filter(|_| link.controller.is_none()));
    link
}

/// A link's counters, where the message has them.
pub(super) fn counters(message: &LinkMessage) -> Option<LinkCounters> {
    message.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Stats64(stats) => Some(link_stats(stats).counters),
        _ => None,
    })
}

/// An address of a link.
pub(super) fn address(message: &AddressMessage) -> Option<Address> {
    let mut ip = None;
    for attribute in &message.attributes {
        match attribute {
            // On a point-to-point link 'address' is the far end's and 'local' our own.
            AddressAttribute::Local(local) => ip = Some(*local),
            AddressAttribute::Address(address) => ip = ip.or(Some(*address)),
            _ => {}
        }
    }
    Some(Address { link: message.header.index, ip: ip?, prefix: message.header.prefix_len })
}

/// Fills in what the link is to bonds; gives the address that a port had when it was enslaved.
fn read_infos(link: &mut Link, infos: &[LinkInfo]) -> Option<MacAddr> {
    let mut mac_at_enslaving = None;
    for info in infos {
        match info {
            LinkInfo::Kind(InfoKind::Bond) => {
                link.bond.get_or_insert_default();
            }
            LinkInfo::Kind(InfoKind::Team) => link.is_team = true,
            LinkInfo::Data(InfoData::Bond(options)) => link.bond = Some(bond(options)),
            LinkInfo::PortData(InfoPortData::BondPort(options)) => {
                for option in options {
                    match option {
                        InfoBondPort::MiiStatus(status) => {
                            link.seen_up_by_bond = *status == MiiStatus::Up;
                        }
                        InfoBondPort::PermHwaddr(bytes) => {
                            mac_at_enslaving = MacAddr::from_slice(bytes);
                        }
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    mac_at_enslaving
}

fn bond(options: &[InfoBond]) -> Bond {
    let mut bond = Bond::default();
    for option in options {
        match option {
            InfoBond::Mode(mode) => bond.active_backup = *mode == BondMode::ActiveBackup,
            InfoBond::ActivePort(index) if *index != 0 => bond.active_port = Some(*index),
            _ => {}
        }
    }
    bond
}

const fn link_stats(stats: &Stats64) -> LinkStats {
    LinkStats {
        counters: LinkCounters {
            rx_packets: stats.rx_packets,
            tx_packets: stats.tx_packets,
            rx_bytes: stats.rx_bytes,
            tx_bytes: stats.tx_bytes,
            rx_dropped: stats.rx_dropped,
            tx_dropped: stats.tx_dropped,
        },
        rx_errors: stats.rx_errors,
        tx_errors: stats.tx_errors,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::InfoPortKind;

    const OWN: [u8; 6] = [2, 0xf1, 0, 0, 0, 1];
    const SHARED: [u8; 6] = [2, 0xf1, 0, 0, 0, 2];

    fn message(attributes: Vec<LinkAttribute>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = 7;
        message.header.flags = LinkFlags::Up;
        message.attributes = attributes;
        message
    }

    fn port(mii: MiiStatus) -> LinkAttribute {
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bond),
            LinkInfo::PortData(InfoPortData::BondPort(vec![
                InfoBondPort::MiiStatus(mii),
                InfoBondPort::PermHwaddr(OWN.to_vec()),
            ])),
        ])
    }

    #[test]
    fn a_bonds_active_port_and_mode_are_read() {
        let infos = LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bond),
            LinkInfo::Data(InfoData::Bond(vec![
                InfoBond::Mode(BondMode::ActiveBackup),
                InfoBond::ActivePort(3),
            ])),
        ]);
        let expected = Bond { active_backup: true, active_port: Some(3) };
        assert_eq!(link(&message(vec![infos])).bond, Some(expected));
    }

    #[test]
    fn a_team_is_told_from_a_bond() {
        let kind = |kind| link(&message(vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)])]));
        let (team, bond) = (kind(InfoKind::Team), kind(InfoKind::Bond));
        assert_eq!((team.is_team, team.bond), (true, None));
        assert_eq!((bond.is_team, bond.bond.is_some()), (false, true));
    }

    #[test]
    fn a_ports_permanent_mac_is_never_its_current_one() {
        let shared = LinkAttribute::Address(SHARED.to_vec());
        let told = LinkAttribute::PermAddress(OWN.to_vec());
        let in_bond = LinkAttribute::Controller(3);
        let own = Some(MacAddr::new(OWN));
        let read = |attributes| link(&message(attributes)).permanent_mac;
        assert_eq!(read(vec![shared.clone(), in_bond.clone(), told]), own);
        // An old kernel: the bond remembers.
        let old = vec![shared.clone(), in_bond.clone(), port(MiiStatus::Up)];
        assert_eq!(read(old), own);
        assert_eq!(read(vec![shared.clone(), in_bond]), None);
        assert_eq!(read(vec![shared]), Some(MacAddr::new(SHARED)));
    }

    #[test]
    fn only_up_counts_as_seen_up_by_the_bond() {
        assert!(link(&message(vec![port(MiiStatus::Up)])).seen_up_by_bond);
        for status in [MiiStatus::Down, MiiStatus::GoingBack, MiiStatus::GoingDown] {
            assert!(!link(&message(vec![port(status)])).seen_up_by_bond);
        }
    }
}
