//! Settings of a VF as a pool or a VM's file writes them, and what comes of the two together.

use std::collections::BTreeSet;

use serde::Deserialize;
use toml::Spanned;

use super::ConfigError;
use super::text::Text;
use crate::logic::settings::{Kind, Setting, VfLink, Wish};

/// How VFs are set while a VM has them; what is absent stays as it was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VfOptions {
    /// VLAN, 0 for none. `vlan = 7`.
    pub vlan: Option<u16>,
    /// 802.1p priority, 0 to 7. `qos = 3`.
    pub qos: Option<u8>,
    /// Source address check. `spoof_check = true`.
    pub spoof_check: Option<bool>,
    /// Link state policy. `link_state = "auto"`.
    pub link_state: Option<VfLink>,
    /// Least send rate in Mbit/s, 0 for none. `min_tx_rate_mbps = 100`.
    pub min_tx_rate_mbps: Option<u32>,
    /// Greatest send rate in Mbit/s, 0 for no limit. `max_tx_rate_mbps = 1000`.
    pub max_tx_rate_mbps: Option<u32>,
    /// Settings without which a VF is of no use. `required = ["vlan", "spoof_check"]`.
    pub required: Option<BTreeSet<Kind>>,
}

/// The same keys of a table.
pub(super) struct RawVf<'a> {
    pub(super) vlan: Option<&'a Spanned<u16>>,
    pub(super) qos: Option<&'a Spanned<u8>>,
    pub(super) spoof_check: Option<bool>,
    pub(super) link_state: Option<VfLink>,
    pub(super) min_tx_rate_mbps: Option<&'a Spanned<u32>>,
    pub(super) max_tx_rate_mbps: Option<u32>,
    pub(super) required: Option<&'a Vec<Requirable>>,
}

/// What `required` may name: address and trust always are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Requirable {
    Vlan,
    SpoofCheck,
    LinkState,
    MinTxRateMbps,
    MaxTxRateMbps,
}

impl VfOptions {
    pub(super) fn of(text: &Text, raw: &RawVf<'_>) -> Result<Self, ConfigError> {
        if let Some(vlan) = raw.vlan.filter(|vlan| *vlan.get_ref() > MAX_VLAN) {
            let what = format!("VLAN {}", vlan.get_ref());
            return Err(text.refuse(vlan, what, format!("give 1 to {MAX_VLAN}, or 0 for none")));
        }
        if let Some(qos) = raw.qos.filter(|qos| *qos.get_ref() > MAX_QOS) {
            let what = format!("priority {}", qos.get_ref());
            return Err(text.refuse(qos, what, format!("give 0 to {MAX_QOS}")));
        }
        if let (Some(least), Some(most)) = (raw.min_tx_rate_mbps, raw.max_tx_rate_mbps)
            && most != 0
            && *least.get_ref() > most
        {
            let what =
                format!("a least send rate of {} above the greatest, {most}", least.get_ref());
            return Err(text.refuse(least, what, "give no more than max_tx_rate_mbps"));
        }
        Ok(Self {
            vlan: raw.vlan.map(|vlan| *vlan.get_ref()),
            qos: raw.qos.map(|qos| *qos.get_ref()),
            spoof_check: raw.spoof_check,
            link_state: raw.link_state,
            min_tx_rate_mbps: raw.min_tx_rate_mbps.map(|rate| *rate.get_ref()),
            max_tx_rate_mbps: raw.max_tx_rate_mbps,
            required: raw.required.map(|kinds| kinds.iter().map(|kind| (*kind).into()).collect()),
        })
    }

    /// A VM's own settings, and its pool's where it has none.
    pub fn or(&self, pool: &Self) -> Self {
        Self {
            vlan: self.vlan.or(pool.vlan),
            qos: self.qos.or(pool.qos),
            spoof_check: self.spoof_check.or(pool.spoof_check),
            link_state: self.link_state.or(pool.link_state),
            min_tx_rate_mbps: self.min_tx_rate_mbps.or(pool.min_tx_rate_mbps),
            max_tx_rate_mbps: self.max_tx_rate_mbps.or(pool.max_tx_rate_mbps),
            required: self.required.clone().or_else(|| pool.required.clone()),
        }
    }

    /// What a VF is to be set to.
    pub fn wishes(&self) -> Vec<Wish> {
        let vlan = self.vlan.or(self.qos.map(|_| 0));
        let settings = [
            vlan.map(|vlan| Setting::Vlan(vlan, self.qos.unwrap_or(0))),
            self.spoof_check.map(Setting::SpoofCheck),
            self.link_state.map(Setting::LinkState),
            self.min_tx_rate_mbps.map(Setting::MinTxRate),
            self.max_tx_rate_mbps.map(Setting::MaxTxRate),
        ];
        let is_required = |kind| match &self.required {
            Some(required) => required.contains(&kind),
            None => REQUIRED.contains(&kind),
        };
        let wish = |setting: Setting| Wish { setting, required: is_required(setting.kind()) };
        settings.into_iter().flatten().map(wish).collect()
    }
}

impl From<Requirable> for Kind {
    fn from(kind: Requirable) -> Self {
        match kind {
            Requirable::Vlan => Self::Vlan,
            Requirable::SpoofCheck => Self::SpoofCheck,
            Requirable::LinkState => Self::LinkState,
            Requirable::MinTxRateMbps => Self::MinTxRateMbps,
            Requirable::MaxTxRateMbps => Self::MaxTxRateMbps,
        }
    }
}

/// What keeps guests apart; the rest is a matter of comfort.
const REQUIRED: [Kind; 2] = [Kind::Vlan, Kind::SpoofCheck];
/// 4095 is reserved by IEEE 802.1Q.
const MAX_VLAN: u16 = 4094;
/// Three bits of the VLAN tag.
const MAX_QOS: u8 = 7;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vms_settings_go_before_its_pools_one_by_one() {
        let pool = VfOptions { vlan: Some(7), qos: Some(3), ..VfOptions::default() };
        let vm = VfOptions { vlan: Some(8), max_tx_rate_mbps: Some(100), ..VfOptions::default() };
        let both = vm.or(&pool).wishes();
        assert_eq!(
            both,
            [
                Wish { setting: Setting::Vlan(8, 3), required: true },
                Wish { setting: Setting::MaxTxRate(100), required: false },
            ]
        );
        assert_eq!(VfOptions::default().wishes(), []);
    }

    #[test]
    fn what_is_required_is_the_operators_to_say() {
        let required = |kinds: Option<&[Kind]>| {
            let options = VfOptions {
                vlan: Some(7),
                link_state: Some(VfLink::Auto),
                required: kinds.map(|kinds| kinds.iter().copied().collect()),
                ..VfOptions::default()
            };
            options.wishes().iter().map(|wish| wish.required).collect::<Vec<_>>()
        };
        assert_eq!(required(None), [true, false]);
        assert_eq!(required(Some(&[])), [false, false]);
        assert_eq!(required(Some(&[Kind::LinkState])), [false, true]);
    }
}
