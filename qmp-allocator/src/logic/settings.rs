//! A VF's settings in its PF: what was found, what is wished, and the steps from one to the other.
//!
//! How a setting is made and read back is left to [`crate::io::netlink`]. Drivers know different
//! ones, so each is a wish of its own, and each says whether the VF may go without it.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;

use flexvf_protocol::MacAddr;
use serde::{Deserialize, Serialize};

/// A VF's settings. `None` where the driver does not tell; but the kernel shows spoof check and
/// trust as off for a driver that has neither.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct VfSettings {
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
}

/// A VF's link state policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VfLink {
    /// As the PF's.
    Auto,
    /// Always up.
    Enable,
    /// Always down.
    Disable,
}

/// One setting and its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setting {
    /// Whether the guest may change addresses.
    Trust(bool),
    /// Admin MAC address.
    Mac(MacAddr),
    /// VLAN and its 802.1p priority, 0 for none.
    Vlan(u16, u8),
    /// Source address check.
    SpoofCheck(bool),
    /// Link state policy.
    LinkState(VfLink),
    /// Least send rate in Mbit/s, 0 for none.
    MinTxRate(u32),
    /// Greatest send rate in Mbit/s, 0 for no limit.
    MaxTxRate(u32),
}

/// Which setting, in the words of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// [`Setting::Trust`].
    Trust,
    /// [`Setting::Mac`].
    Mac,
    /// [`Setting::Vlan`].
    Vlan,
    /// [`Setting::SpoofCheck`].
    SpoofCheck,
    /// [`Setting::LinkState`].
    LinkState,
    /// [`Setting::MinTxRate`].
    MinTxRateMbps,
    /// [`Setting::MaxTxRate`].
    MaxTxRateMbps,
}

/// A setting to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wish {
    /// What.
    pub setting: Setting,
    /// Without it the VF is of no use; else it is tried, and what became of it is told.
    pub required: bool,
}

/// What a VF was like before FlexVF changed it, and what was changed: enough to put it back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Original {
    /// As found.
    pub settings: VfSettings,
    /// What FlexVF has set, or was about to.
    pub changed: BTreeSet<Kind>,
    /// User and group that the VFIO group's node belonged to.
    pub node_owner: Option<(u32, u32)>,
}

/// The settings still to be made, in an order that drivers take: trust first, which some ask for the
/// others; and of the two send rates first the one that keeps the least below the greatest.
pub fn steps(wishes: &[Wish], found: &VfSettings) -> Vec<Wish> {
    let mut steps: Vec<Wish> =
        wishes.iter().filter(|wish| !wish.setting.is_in(found)).copied().collect();
    let greatest = wishes.iter().find_map(|wish| match wish.setting {
        Setting::MaxTxRate(rate) if rate != 0 => Some(rate),
        _ => None,
    });
    let falls = greatest.is_some_and(|rate| found.min_tx_rate_mbps.unwrap_or(0) > rate);
    steps.sort_by_key(|wish| match wish.setting.kind() {
        Kind::MinTxRateMbps if falls => (Kind::MaxTxRateMbps, 0),
        Kind::MinTxRateMbps => (Kind::MaxTxRateMbps, 2),
        Kind::MaxTxRateMbps => (Kind::MaxTxRateMbps, 1),
        kind => (kind, 0),
    });
    steps
}

impl Setting {
    /// Which it is.
    pub const fn kind(self) -> Kind {
        match self {
            Self::Trust(_) => Kind::Trust,
            Self::Mac(_) => Kind::Mac,
            Self::Vlan(..) => Kind::Vlan,
            Self::SpoofCheck(_) => Kind::SpoofCheck,
            Self::LinkState(_) => Kind::LinkState,
            Self::MinTxRate(_) => Kind::MinTxRateMbps,
            Self::MaxTxRate(_) => Kind::MaxTxRateMbps,
        }
    }

    /// Whether a VF has it.
    pub fn is_in(self, found: &VfSettings) -> bool {
        Self::of(self.kind(), found) == Some(self)
    }

    /// A VF's present value of a setting; `None` where the driver does not tell.
    pub fn of(kind: Kind, found: &VfSettings) -> Option<Self> {
        match kind {
            Kind::Trust => found.trust.map(Self::Trust),
            Kind::Mac => found.mac.map(Self::Mac),
            Kind::Vlan => found.vlan.map(|vlan| Self::Vlan(vlan, found.qos.unwrap_or(0))),
            Kind::SpoofCheck => found.spoof_check.map(Self::SpoofCheck),
            Kind::LinkState => found.link_state.map(Self::LinkState),
            Kind::MinTxRateMbps => found.min_tx_rate_mbps.map(Self::MinTxRate),
            Kind::MaxTxRateMbps => found.max_tx_rate_mbps.map(Self::MaxTxRate),
        }
    }

    /// The VF's settings once it has this one.
    pub const fn put_into(self, settings: &mut VfSettings) {
        match self {
            Self::Trust(trust) => settings.trust = Some(trust),
            Self::Mac(mac) => settings.mac = Some(mac),
            Self::Vlan(vlan, qos) => {
                settings.vlan = Some(vlan);
                settings.qos = Some(qos);
            }
            Self::SpoofCheck(check) => settings.spoof_check = Some(check),
            Self::LinkState(state) => settings.link_state = Some(state),
            Self::MinTxRate(rate) => settings.min_tx_rate_mbps = Some(rate),
            Self::MaxTxRate(rate) => settings.max_tx_rate_mbps = Some(rate),
        }
    }
}

impl Wish {
    /// A setting that the VF must have.
    pub const fn required(setting: Setting) -> Self {
        Self { setting, required: true }
    }
}

impl Original {
    /// Takes note of what is about to be changed. The values of an earlier change stay: only the first
    /// one found the VF as it was.
    pub fn note(&mut self, wishes: &[Wish], found: &VfSettings) {
        for wish in steps(wishes, found) {
            let kind = wish.setting.kind();
            if self.changed.insert(kind)
                && let Some(was) = Setting::of(kind, found)
            {
                was.put_into(&mut self.settings);
            }
        }
    }

    /// What puts the VF back. The address is tried only: drivers differ in whether they take the zeroes
    /// back that they show for none.
    pub fn undo(&self) -> Vec<Wish> {
        let was = self.changed.iter().filter_map(|kind| Setting::of(*kind, &self.settings));
        was.map(|setting| Wish { setting, required: setting.kind() != Kind::Mac }).collect()
    }

    /// Whether there is nothing to put back.
    pub fn is_untouched(&self) -> bool {
        self.changed.is_empty() && self.node_owner.is_none()
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let switch = |on: bool| if on { "on" } else { "off" };
        match *self {
            Self::Trust(on) => write!(f, "trust {}", switch(on)),
            Self::Mac(mac) => write!(f, "MAC address {mac}"),
            Self::Vlan(vlan, qos) => write!(f, "VLAN {vlan} with priority {qos}"),
            Self::SpoofCheck(on) => write!(f, "spoof check {}", switch(on)),
            Self::LinkState(state) => {
                write!(f, "link state {}", format!("{state:?}").to_lowercase())
            }
            Self::MinTxRate(rate) => write!(f, "least send rate {rate} Mbit/s"),
            Self::MaxTxRate(rate) => write!(f, "greatest send rate {rate} Mbit/s"),
        }
    }
}
