//! A PF's list of VFs in netlink's attributes: read, and the steps from what is to what is wished.

use flexvf_protocol::MacAddr;
use netlink_packet_route::link::{
    LinkAttribute, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac, VfInfoRate,
    VfInfoSpoofCheck, VfInfoTrust, VfInfoVlan, VfLinkState, VfStats,
};

use super::Counters;

/// A VF's settings in its PF, and its counters. `None` where the driver does not tell; but the
/// kernel shows spoof check and trust as off for a driver that has neither.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VfSettings {
    /// The VF's number.
    pub index: u32,
    /// Its admin MAC address; all zeroes when none was set.
    pub mac: Option<MacAddr>,
    /// VLAN, 0 for none.
    pub vlan: Option<u16>,
    /// 802.1p priority of the VLAN.
    pub qos: Option<u8>,
    /// Source address check.
    pub spoof_check: Option<bool>,
    /// Whether the guest may change addresses.
    pub trust: Option<bool>,
    /// Link state policy.
    pub link_state: Option<VfLink>,
    /// Least send rate in Mbit/s, 0 for none.
    pub min_tx_rate_mbps: Option<u32>,
    /// Greatest send rate in Mbit/s, 0 for no limit.
    pub max_tx_rate_mbps: Option<u32>,
    /// Counters, seen from the VF (rx is what the guest receives).
    pub counters: Option<Counters>,
}

/// A VF's link state policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VfLink {
    /// As the PF's.
    Auto,
    /// Always up.
    Enable,
    /// Always down.
    Disable,
}

/// Settings to change; what is `None` stays.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VfChange {
    /// Admin MAC address.
    pub mac: Option<MacAddr>,
    /// VLAN and its priority, 0 for none.
    pub vlan: Option<(u16, u8)>,
    /// Source address check.
    pub spoof_check: Option<bool>,
    /// Whether the guest may change addresses.
    pub trust: Option<bool>,
    /// Link state policy.
    pub link_state: Option<VfLink>,
    /// Least and greatest send rate in Mbit/s, 0 for none.
    pub tx_rate_mbps: Option<(u32, u32)>,
}

/// One setting to make.
#[derive(Debug, PartialEq)]
pub(super) struct Step {
    /// For people: `trust to true`.
    pub(super) what: String,
    /// The value that is there, for people.
    pub(super) found: String,
    pub(super) attribute: LinkAttribute,
}

/// The VFs in a link message, by index.
pub(super) fn parse(message: LinkMessage) -> Vec<VfSettings> {
    let lists = message.attributes.into_iter().filter_map(|attribute| match attribute {
        LinkAttribute::VfInfoList(list) => Some(list),
        _ => None,
    });
    let mut vfs: Vec<_> = lists.flatten().map(|vf| settings(&vf)).collect();
    vfs.sort_by_key(|vf| vf.index);
    // The kernel fills in zeroes for drivers without counters: believe none until one counts.
    if vfs.iter().all(|vf| vf.counters.unwrap_or_default() == Counters::default()) {
        for vf in &mut vfs {
            vf.counters = None;
        }
    }
    vfs
}

fn settings(LinkVfInfo(attributes): &LinkVfInfo) -> VfSettings {
    let mut vf = VfSettings::default();
    for attribute in attributes {
        match attribute {
            VfInfo::Mac(VfInfoMac { vf_id, mac, .. }) => {
                vf.index = *vf_id;
                vf.mac = mac.get(..6).and_then(MacAddr::from_slice);
            }
            VfInfo::Vlan(vlan) => {
                vf.vlan = u16::try_from(vlan.vlan_id).ok();
                vf.qos = u8::try_from(vlan.qos).ok();
            }
            VfInfo::SpoofCheck(check) => vf.spoof_check = Some(check.enabled),
            VfInfo::Trust(trust) => vf.trust = Some(trust.enabled),
            VfInfo::LinkState(link) => vf.link_state = VfLink::of(link.state),
            VfInfo::Rate(rate) => {
                vf.min_tx_rate_mbps = Some(rate.min_tx_rate);
                vf.max_tx_rate_mbps = Some(rate.max_tx_rate);
            }
            VfInfo::Stats(stats) => vf.counters = Some(counters(stats)),
            _ => {}
        }
    }
    vf
}

fn counters(stats: &[VfStats]) -> Counters {
    let mut counters = Counters::default();
    for stat in stats {
        match stat {
            VfStats::RxPackets(count) => counters.rx_packets = *count,
            VfStats::TxPackets(count) => counters.tx_packets = *count,
            VfStats::RxBytes(count) => counters.rx_bytes = *count,
            VfStats::TxBytes(count) => counters.tx_bytes = *count,
            VfStats::RxDropped(count) => counters.rx_dropped = *count,
            VfStats::TxDropped(count) => counters.tx_dropped = *count,
            _ => {}
        }
    }
    counters
}

/// What is still to be set, trust first: drivers ask it for some of the others.
pub(super) fn steps(index: u32, change: &VfChange, found: &VfSettings) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(trust) = change.trust {
        let info = VfInfo::Trust(VfInfoTrust::new(index, trust));
        steps.extend(step("trust", &Some(trust), &found.trust, info));
    }
    if let Some(mac) = change.mac {
        let info = VfInfo::Mac(VfInfoMac::new(index, &mac.octets()));
        steps.extend(step("MAC address", &Some(mac), &found.mac, info));
    }
    if let Some((vlan, qos)) = change.vlan {
        let there = found.vlan.zip(found.qos);
        let info = VfInfo::Vlan(VfInfoVlan::new(index, vlan.into(), qos.into()));
        steps.extend(step("VLAN and priority", &Some((vlan, qos)), &there, info));
    }
    if let Some(check) = change.spoof_check {
        let info = VfInfo::SpoofCheck(VfInfoSpoofCheck::new(index, check));
        steps.extend(step("spoof check", &Some(check), &found.spoof_check, info));
    }
    if let Some(state) = change.link_state {
        let info = VfInfo::LinkState(VfInfoLinkState::new(index, state.into()));
        steps.extend(step("link state", &Some(state), &found.link_state, info));
    }
    if let Some((least, most)) = change.tx_rate_mbps {
        let there = found.min_tx_rate_mbps.zip(found.max_tx_rate_mbps);
        let info = VfInfo::Rate(VfInfoRate::new(index, least, most));
        let wished = Some((least, most));
        steps.extend(step("send rates (Mbit/s)", &wished, &there, info));
    }
    steps
}

fn step<T: PartialEq + std::fmt::Debug>(
    name: &str,
    wished: &Option<T>,
    found: &Option<T>,
    info: VfInfo,
) -> Option<Step> {
    let shown = |value: &Option<T>| match value {
        Some(value) => format!("{value:?}"),
        None => "nothing".to_owned(),
    };
    (wished != found).then(|| Step {
        what: format!("{name} to {}", shown(wished)),
        found: shown(found),
        attribute: LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])]),
    })
}

impl VfLink {
    fn of(state: VfLinkState) -> Option<Self> {
        match state {
            VfLinkState::Auto => Some(Self::Auto),
            VfLinkState::Enable => Some(Self::Enable),
            VfLinkState::Disable => Some(Self::Disable),
            _ => None,
        }
    }
}

impl From<VfLink> for VfLinkState {
    fn from(link: VfLink) -> Self {
        match link {
            VfLink::Auto => Self::Auto,
            VfLink::Enable => Self::Enable,
            VfLink::Disable => Self::Disable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::LinkHeader;
    use rtnetlink::packet_core::{Emitable, ParseableParametrized};

    fn vf(index: u32, packets: u64) -> LinkVfInfo {
        LinkVfInfo(vec![
            VfInfo::Mac(VfInfoMac::new(index, &[2, 0xf1, 0, 0, 0, 1])),
            VfInfo::Vlan(VfInfoVlan::new(index, 7, 3)),
            VfInfo::SpoofCheck(VfInfoSpoofCheck::new(index, true)),
            VfInfo::Rate(VfInfoRate::new(index, 0, 1000)),
            VfInfo::LinkState(VfInfoLinkState::new(index, VfLinkState::Auto)),
            VfInfo::Stats(vec![VfStats::RxPackets(packets), VfStats::TxBytes(0)]),
            VfInfo::Trust(VfInfoTrust::new(index, false)),
        ])
    }

    fn message(vfs: Vec<LinkVfInfo>) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header = LinkHeader::default();
        message.attributes.push(LinkAttribute::VfInfoList(vfs));
        message
    }

    #[test]
    fn settings_are_read_and_sorted_by_index() {
        let vfs = parse(message(vec![vf(1, 5), vf(0, 0)]));
        assert_eq!(vfs.iter().map(|vf| vf.index).collect::<Vec<_>>(), [0, 1]);
        assert_eq!((vfs[1].vlan, vfs[1].qos), (Some(7), Some(3)));
        assert_eq!(vfs[1].mac, Some(MacAddr::new([2, 0xf1, 0, 0, 0, 1])));
        assert_eq!((vfs[1].spoof_check, vfs[1].trust), (Some(true), Some(false)));
        assert_eq!(vfs[1].max_tx_rate_mbps, Some(1000));
        assert_eq!(vfs[1].counters.unwrap().rx_packets, 5);
    }

    #[test]
    fn counters_that_are_zero_for_every_vf_are_no_counters() {
        let vfs = parse(message(vec![vf(0, 0), vf(1, 0)]));
        assert!(vfs.iter().all(|vf| vf.counters.is_none()));
    }

    #[test]
    fn only_what_differs_is_set_and_trust_comes_first() {
        let found = parse(message(vec![vf(4, 0)])).remove(0);
        let change = VfChange {
            mac: Some(MacAddr::new([2, 0, 0, 0, 0, 9])),
            vlan: Some((7, 3)),
            spoof_check: Some(true),
            trust: Some(true),
            link_state: Some(VfLink::Auto),
            tx_rate_mbps: Some((0, 500)),
        };
        let whats: Vec<_> = steps(4, &change, &found).into_iter().map(|s| s.what).collect();
        assert_eq!(
            whats,
            [
                "trust to true",
                "MAC address to 02:00:00:00:00:09",
                "send rates (Mbit/s) to (0, 500)"
            ]
        );
        assert_eq!(steps(4, &VfChange::default(), &found), []);
    }

    #[test]
    fn a_step_survives_the_wire() {
        let change =
            VfChange { mac: Some(MacAddr::new([2, 0, 0, 0, 0, 9])), ..VfChange::default() };
        let attribute = steps(3, &change, &VfSettings::default()).remove(0).attribute;
        let mut bytes = vec![0; attribute.buffer_len()];
        attribute.emit(&mut bytes);
        // IFLA_VFINFO_LIST > IFLA_VF_INFO > IFLA_VF_MAC { u32 vf, u8 mac[32] }
        assert_eq!(bytes[..2], 48u16.to_ne_bytes());
        assert_eq!(bytes[2] & 0x3f, 22);
        assert_eq!(bytes[12..16], 3u32.to_ne_bytes());
        assert_eq!(bytes[16..22], [2, 0, 0, 0, 0, 9]);
        let nla = rtnetlink::packet_core::NlaBuffer::new(&bytes[..]);
        let family = netlink_packet_route::AddressFamily::Unspec;
        assert_eq!(LinkAttribute::parse_with_param(&nla, family).unwrap(), attribute);
    }
}
