//! One VM: what its QEMU and its guest share.

use std::collections::BTreeSet;
use std::time::Duration;

use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::{Path, VfState};

use super::manner::Manner;

/// How long a QEMU and its guest take. All others of their answers come at once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Latencies {
    /// `device_add`, during which the monitor answers nothing else.
    pub plug: Duration,
    /// From then on until the guest's bond has seen the VF's link.
    pub link: Duration,
    /// From `device_del` to `DEVICE_DELETED`.
    pub unplug: Duration,
}

/// Which of a VM's two sockets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Channel {
    /// QEMU's monitor.
    Qmp,
    /// The guest's agent.
    Agent,
}

/// Bytes that leave the VM at a moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// When.
    pub at: Duration,
    /// Where.
    pub channel: Channel,
    /// A whole line, its end included.
    pub bytes: Vec<u8>,
}

/// One VM.
#[derive(Debug)]
pub struct Machine {
    /// How it behaves.
    pub manner: Manner,
    pub(super) mac: MacAddr,
    pub(super) latencies: Latencies,
    pub(super) port: String,
    pub(super) device: Option<Device>,
    pub(super) netdevs: BTreeSet<String>,
    /// The monitor is in a command until then.
    pub(super) busy_until: Duration,
    pub(super) active: Path,
    pub(super) joined: bool,
    pub(super) epoch: u64,
}

/// What is plugged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Device {
    pub(super) id: String,
    pub(super) driver: String,
    pub(super) mac: Option<MacAddr>,
    pub(super) plugged_at: Duration,
    pub(super) gone_at: Option<Duration>,
}

impl Machine {
    /// A VM with one empty root port, whose bond has this address and whose guest runs our agent.
    pub fn new(mac: MacAddr, port: &str, latencies: Latencies) -> Self {
        Self {
            manner: Manner::Good,
            mac,
            latencies,
            port: port.into(),
            device: None,
            netdevs: BTreeSet::new(),
            busy_until: Duration::ZERO,
            active: Path::Pv,
            joined: false,
            epoch: 0,
        }
    }

    /// The device that is plugged at this moment.
    pub(super) fn plugged(&self, now: Duration) -> Option<&Device> {
        let device = self.device.as_ref()?;
        let gone = device.gone_at.is_some_and(|gone| gone <= now);
        (device.plugged_at <= now && !gone).then_some(device)
    }

    /// How far the VF with this address is in the guest.
    pub(super) fn vf_state(&self, now: Duration, mac: MacAddr) -> VfState {
        match self.plugged(now) {
            Some(device) if device.mac.is_none_or(|own| own == mac) => {
                let up = device.plugged_at + self.latencies.link <= now;
                match (self.joined, up, self.active) {
                    (false, ..) => VfState::Present,
                    (true, false, _) => VfState::Joined,
                    (true, true, Path::Pv) => VfState::Ready,
                    (true, true, Path::Vf) => VfState::Active,
                }
            }
            _ => VfState::Absent,
        }
    }
}
