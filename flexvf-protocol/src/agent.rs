//! Commands between the host and the agent in a guest.
//!
//! The wire format is qemu-ga's: one JSON object a line, `{"execute", "arguments", "id"}`, answered
//! by `{"return", "id"}` or `{"error": {"class", "desc"}, "id"}`. FlexVF's commands carry the QAPI
//! prefix for vendors ([`VENDOR_PREFIX`]), so they never clash with qemu-ga's own. Each is short,
//! idempotent and never waits for the network: the host asks again until it sees what it wants, and
//! a host that died in between leaves nothing half-remembered in the guest.
//!
//! A switch to the VF is `join-vf` until [`VfState::Ready`], then `activate vf`; back is
//! `activate pv`, a pause for frames in flight, `leave-vf`. `epoch` grows with each switch the host begins;
//! the agent refuses a command with a smaller one than it has seen, so that a late duplicate cannot
//! undo a newer decision. An agent begins with the milliseconds since its guest's boot, which is more
//! than its predecessor can have come to: what was sent to that one is refused too. The host takes
//! the next epoch from [`AgentStatus`].

use serde::{Deserialize, Serialize};

use crate::MacAddr;

/// Name of the virtio-serial port the agent listens on.
pub const PORT_NAME: &str = "io.flexvf.agent.0";
/// What each of FlexVF's own commands begins with (QAPI naming rules, "downstream extensions").
pub const VENDOR_PREFIX: &str = "__io.flexvf_";

/// [`AgentStatus`]: what bond, PV and VF look like. No arguments.
pub const STATUS: &str = "__io.flexvf_status";
/// [`AgentCounters`]. No arguments.
pub const COUNTERS: &str = "__io.flexvf_counters";
/// Puts the VF into the bond without using it yet. [`VfArguments`] → [`VfAnswer`].
pub const JOIN_VF: &str = "__io.flexvf_join-vf";
/// Makes a path the bond's active one, and announces it. [`ActivateArguments`] → [`AgentStatus`].
pub const ACTIVATE: &str = "__io.flexvf_activate";
/// Takes the VF out of the bond (PV is made active first if it is not). [`VfArguments`] → [`VfAnswer`].
pub const LEAVE_VF: &str = "__io.flexvf_leave-vf";

/// Counts up when an older host or agent could misunderstand a newer one. New commands and new
/// members of answers do not change it.
pub const PROTOCOL: u32 = 1;

/// Which of a guest's two paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Path {
    /// The paravirtual NIC, always there.
    Pv,
    /// The virtual function, given and taken.
    Vf,
}

/// How far the VF is in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum VfState {
    /// No NIC with that permanent MAC address (yet, or any more).
    Absent,
    /// A NIC that is not in the bond.
    Present,
    /// In the bond, which has not seen its link up so far.
    Joined,
    /// In the bond and seen up by it: may be activated.
    Ready,
    /// The bond's active port.
    Active,
}

/// Arguments of [`JOIN_VF`] and [`LEAVE_VF`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct VfArguments {
    /// The VF's permanent MAC address; names may differ from plug to plug.
    pub vf_mac: MacAddr,
    /// See the module's text.
    pub epoch: u64,
}

/// Arguments of [`ACTIVATE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct ActivateArguments {
    /// Where the bond is to send.
    pub path: Path,
    /// The VF's permanent MAC address.
    pub vf_mac: MacAddr,
    /// See the module's text.
    pub epoch: u64,
}

/// Answer of [`JOIN_VF`] and [`LEAVE_VF`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VfAnswer {
    /// How far the VF is now.
    pub state: VfState,
}

/// Answer of [`STATUS`] and [`ACTIVATE`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AgentStatus {
    /// The agent's version.
    pub version: String,
    /// The agent's [`PROTOCOL`].
    #[serde(default = "first_protocol")]
    pub protocol: u32,
    /// Changes at each boot of the guest.
    pub boot_id: String,
    /// When the agent started (CLOCK_BOOTTIME, nanoseconds): another one if it was started anew.
    #[serde(default)]
    pub started_ns: u64,
    /// Largest epoch seen.
    pub epoch: u64,
    /// The bond's name, if there is one.
    pub bond: Option<String>,
    /// The MAC address that the guest is known by.
    pub bond_mac: Option<MacAddr>,
    /// The bond's active path, if it has one of the two.
    pub active: Option<Path>,
    /// The VF in the bond, by permanent MAC address, and its state.
    pub vf: Option<VfInBond>,
}

/// A VF that the bond holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct VfInBond {
    /// Permanent MAC address.
    pub mac: MacAddr,
    /// How far it is.
    pub state: VfState,
}

/// Answer of [`COUNTERS`]: everything read at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct AgentCounters {
    /// Changes at each boot of the guest.
    pub boot_id: String,
    /// As in [`AgentStatus`]. Counters may be compared when this and the boot id are the same; if not,
    /// all of them have begun anew.
    #[serde(default)]
    pub started_ns: u64,
    /// CLOCK_BOOTTIME of the guest, nanoseconds.
    pub boottime_ns: u64,
    /// The bond.
    pub bond: Option<LinkCounters>,
    /// The PV NIC.
    pub pv: Option<LinkCounters>,
    /// The VF path, summed over every VF that the agent has seen since it started: it does not fall
    /// to zero when a VF is taken away.
    pub vf: LinkCounters,
}

/// A link's counters, seen from the guest.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct LinkCounters {
    /// Packets received.
    pub rx_packets: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Received packets dropped.
    pub rx_dropped: u64,
    /// Packets to send that were dropped.
    pub tx_dropped: u64,
}

const fn first_protocol() -> u32 {
    1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_carries_the_vendor_prefix() {
        for command in [STATUS, COUNTERS, JOIN_VF, ACTIVATE, LEAVE_VF] {
            assert!(command.starts_with(VENDOR_PREFIX), "{command}");
        }
    }

    #[test]
    fn arguments_look_like_qapi_on_the_wire() {
        let arguments = ActivateArguments {
            path: Path::Vf,
            vf_mac: MacAddr::new([2, 0xf1, 0, 0, 0, 1]),
            epoch: 3,
        };
        let json = serde_json::to_string(&arguments).unwrap();
        assert_eq!(json, r#"{"path":"vf","vf-mac":"02:f1:00:00:00:01","epoch":3}"#);
        let unknown = json.replace("epoch", "epoc");
        assert!(serde_json::from_str::<ActivateArguments>(&unknown).is_err());
    }
}
