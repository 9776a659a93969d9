//! A PF's list of VFs in netlink's attributes: read, and settings written.

use flexvf_protocol::MacAddr;
use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkMessage, LinkVfInfo, VfInfo, VfInfoLinkState, VfInfoMac,
    VfInfoRate, VfInfoSpoofCheck, VfInfoTrust, VfInfoVlan, VfLinkState, VfStats,
};

use super::{Counters, Netlink, NetlinkError};
use crate::logic::settings::{Setting, VfLink, VfSettings, Wish, steps};

/// A VF as its PF shows it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Vf {
    /// The VF's number.
    pub index: u32,
    /// Its settings.
    pub settings: VfSettings,
    /// Counters, seen from the VF (rx is what the guest receives).
    pub counters: Option<Counters>,
}

impl Netlink {
    /// Settings of every VF of a PF, and counters where the driver has them and the list is short
    /// enough for the kernel to carry them.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn vfs(&self, pf: &str) -> Result<Vec<Vf>, NetlinkError> {
        let settings = self.vfs_uncounted(pf).await?;
        if settings.is_empty() || settings.len() > MAX_VFS_WITH_COUNTERS {
            return Ok(settings);
        }
        let message = self.get_link(pf, vec![LinkExtentMask::Vf]).await?;
        Ok(parse(message))
    }

    async fn vfs_uncounted(&self, pf: &str) -> Result<Vec<Vf>, NetlinkError> {
        let mask = vec![LinkExtentMask::Vf, LinkExtentMask::SkipStats];
        self.get_link(pf, mask).await.map(parse)
    }

    /// A VF's settings.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn vf(&self, pf: &str, index: u32) -> Result<VfSettings, NetlinkError> {
        let vfs = self.vfs_uncounted(pf).await?;
        let found = vfs.into_iter().find(|vf| vf.index == index);
        let found = found.ok_or_else(|| NetlinkError::NoVf { pf: pf.to_owned(), index })?;
        Ok(found.settings)
    }

    /// Makes a VF's settings and reads them back; what is so already is not set again. Answers with
    /// what the driver did not take and the VF can do without.
    ///
    /// # Errors
    /// [`NetlinkError::Refused`] and [`NetlinkError::NotKept`] name a setting that is required.
    pub async fn set_vf(
        &self,
        pf: &str,
        index: u32,
        wishes: &[Wish],
    ) -> Result<Vec<(Setting, NetlinkError)>, NetlinkError> {
        let pf_index = self.link(pf).await?.index;
        let mut now = self.vf(pf, index).await?;
        let mut refused: Vec<(Setting, NetlinkError)> = Vec::new();
        for Wish { setting, required } in steps(wishes, &now) {
            let what = format!("VF {index} of {pf}: setting {setting}");
            let mut message = LinkMessage::default();
            message.header.index = pf_index;
            message.attributes.push(attribute(index, setting, &now));
            let request = self.handle.link().set(message).execute();
            match self.within(&what, request).await {
                Ok(()) => setting.put_into(&mut now),
                Err(error @ NetlinkError::Refused { .. }) if !required => {
                    refused.push((setting, error));
                }
                Err(error) => return Err(error),
            }
        }
        let after = self.vf(pf, index).await?;
        for Wish { setting, required } in steps(wishes, &after) {
            if refused.iter().any(|(other, _)| *other == setting) {
                continue;
            }
            let found = Setting::of(setting.kind(), &after);
            let error = NetlinkError::NotKept {
                what: format!("VF {index} of {pf}: setting {setting}"),
                found: found.map_or_else(|| "nothing".to_owned(), |found| found.to_string()),
            };
            if required {
                return Err(error);
            }
            refused.push((setting, error));
        }
        Ok(refused)
    }
}

/// A list of VFs is one netlink attribute of up to 64 KiB; with counters the kernel fits 222 in it
/// at best, and drivers that tell more of each VF about half as many.
const MAX_VFS_WITH_COUNTERS: usize = 100;

/// The VFs in a link message, by index.
pub(super) fn parse(message: LinkMessage) -> Vec<Vf> {
    let lists = message.attributes.into_iter().filter_map(|attribute| match attribute {
        LinkAttribute::VfInfoList(list) => Some(list),
        _ => None,
    });
    let mut vfs: Vec<_> = lists.flatten().map(|vf| one(&vf)).collect();
    vfs.sort_by_key(|vf| vf.index);
    // The kernel fills in zeroes for drivers without counters: believe none until one counts.
    if vfs.iter().all(|vf| vf.counters.unwrap_or_default() == Counters::default()) {
        for vf in &mut vfs {
            vf.counters = None;
        }
    }
    vfs
}

fn one(LinkVfInfo(attributes): &LinkVfInfo) -> Vf {
    let mut vf = Vf::default();
    let found = &mut vf.settings;
    for attribute in attributes {
        match attribute {
            VfInfo::Mac(VfInfoMac { vf_id, mac, .. }) => {
                vf.index = *vf_id;
                found.mac = mac.get(..6).and_then(MacAddr::from_slice);
            }
            VfInfo::Vlan(vlan) => {
                found.vlan = u16::try_from(vlan.vlan_id).ok();
                found.qos = u8::try_from(vlan.qos).ok();
            }
            VfInfo::SpoofCheck(check) => found.spoof_check = Some(check.enabled),
            VfInfo::Trust(trust) => found.trust = Some(trust.enabled),
            VfInfo::LinkState(link) => found.link_state = policy(link.state),
            VfInfo::Rate(rate) => {
                found.min_tx_rate_mbps = Some(rate.min_tx_rate);
                found.max_tx_rate_mbps = Some(rate.max_tx_rate);
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

/// The message that makes a setting. Both rates go in one, so it carries the other as it is.
pub(super) fn attribute(index: u32, setting: Setting, now: &VfSettings) -> LinkAttribute {
    let rates = |least: Option<u32>, most: Option<u32>| {
        VfInfo::Rate(VfInfoRate::new(index, least.unwrap_or(0), most.unwrap_or(0)))
    };
    let info = match setting {
        Setting::Trust(on) => VfInfo::Trust(VfInfoTrust::new(index, on)),
        Setting::Mac(mac) => VfInfo::Mac(VfInfoMac::new(index, &mac.octets())),
        Setting::Vlan(vlan, qos) => VfInfo::Vlan(VfInfoVlan::new(index, vlan.into(), qos.into())),
        Setting::SpoofCheck(on) => VfInfo::SpoofCheck(VfInfoSpoofCheck::new(index, on)),
        Setting::LinkState(state) => {
            VfInfo::LinkState(VfInfoLinkState::new(index, wire_policy(state)))
        }
        Setting::MinTxRate(least) => rates(Some(least), now.max_tx_rate_mbps),
        Setting::MaxTxRate(most) => rates(now.min_tx_rate_mbps, Some(most)),
    };
    LinkAttribute::VfInfoList(vec![LinkVfInfo(vec![info])])
}

const fn policy(state: VfLinkState) -> Option<VfLink> {
    match state {
        VfLinkState::Auto => Some(VfLink::Auto),
        VfLinkState::Enable => Some(VfLink::Enable),
        VfLinkState::Disable => Some(VfLink::Disable),
        _ => None,
    }
}

const fn wire_policy(link: VfLink) -> VfLinkState {
    match link {
        VfLink::Auto => VfLinkState::Auto,
        VfLink::Enable => VfLinkState::Enable,
        VfLink::Disable => VfLinkState::Disable,
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
        let found = &vfs[1].settings;
        assert_eq!((found.vlan, found.qos), (Some(7), Some(3)));
        assert_eq!(found.mac, Some(MacAddr::new([2, 0xf1, 0, 0, 0, 1])));
        assert_eq!((found.spoof_check, found.trust), (Some(true), Some(false)));
        assert_eq!(found.max_tx_rate_mbps, Some(1000));
        assert_eq!(vfs[1].counters.unwrap().rx_packets, 5);
    }

    #[test]
    fn counters_that_are_zero_for_every_vf_are_no_counters() {
        let vfs = parse(message(vec![vf(0, 0), vf(1, 0)]));
        assert!(vfs.iter().all(|vf| vf.counters.is_none()));
    }

    #[test]
    fn setting_one_rate_keeps_the_other() {
        let now = parse(message(vec![vf(4, 0)])).remove(0).settings;
        let rate = |setting| match attribute(4, setting, &now) {
            LinkAttribute::VfInfoList(list) => list[0].0[0].clone(),
            other => panic!("{other:?}"),
        };
        assert_eq!(rate(Setting::MinTxRate(5)), VfInfo::Rate(VfInfoRate::new(4, 5, 1000)));
        assert_eq!(rate(Setting::MaxTxRate(9)), VfInfo::Rate(VfInfoRate::new(4, 0, 9)));
    }

    #[test]
    fn a_step_survives_the_wire() {
        let setting = Setting::Mac(MacAddr::new([2, 0, 0, 0, 0, 9]));
        let attribute = attribute(3, setting, &VfSettings::default());
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
