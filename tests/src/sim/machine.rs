//! One VM: its QEMU process, its guest with bond and agent, and what is wrong with them just now.
//!
//! Guests do what a kernel's active-backup bond and `qga-extension` do: a VF is taken in, becomes
//! ready a little later, carries the traffic when told to, and a bond whose active port vanishes goes
//! on with the other one. An agent that hangs takes up the one request that had reached it when it
//! comes back.

use std::time::Duration;

use flexvf_protocol::VmName;
use flexvf_protocol::agent::{Path, VfState};
use qmp_allocator::logic::policy::Pin;
use qmp_allocator::logic::vf::VfId;

use super::task::Task;

/// See the module's text.
#[derive(Debug)]
pub struct Machine {
    /// Its name.
    pub name: VmName,
    /// Its registration file is there, and says this.
    pub listed: Option<Option<Pin>>,
    /// The running process.
    pub qemu: Option<Qemu>,
    /// Processes so far.
    pub processes: u32,
    /// The guest of that process.
    pub guest: Guest,
    /// The daemon's task for it.
    pub task: Option<Task>,
    /// What its guest sends and receives.
    pub pps: u64,
    /// What it has sent and received, and until when that was counted.
    pub counted: (Duration, u64),
    /// Each QMP command may cut the connection, before or after it has worked.
    pub flaky: bool,
    /// The host cannot change where frames go.
    pub forward_fails: Fails,
    /// QEMU's own events are lost or doubled.
    pub noisy: bool,
}

/// Whether something fails.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Fails {
    /// It works.
    #[default]
    Never,
    /// The next time only.
    Once,
    /// Until somebody repairs it.
    Always,
}

impl Fails {
    /// Whether it fails this time.
    pub fn strikes(&mut self) -> bool {
        let strikes = *self != Self::Never;
        if *self == Self::Once {
            *self = Self::Never;
        }
        strikes
    }
}

/// A QEMU process.
#[derive(Debug)]
pub struct Qemu {
    /// Tells processes apart.
    pub process: u32,
    /// FlexVF's devices in it.
    pub devices: Vec<Device>,
    /// It does not answer until then.
    pub hung_until: Option<Duration>,
    /// Commands that it will carry out when it comes back.
    pub backlog: Vec<Ask>,
}

/// A command that changes a QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// `device_add`.
    Add {
        /// Which.
        vf: VfId,
        /// Where.
        port: String,
    },
    /// `device_del`.
    Del {
        /// Which.
        vf: VfId,
    },
}

/// A VF in a QEMU.
#[derive(Debug)]
pub struct Device {
    /// Which.
    pub vf: VfId,
    /// In which root port.
    pub port: String,
    /// Asked to be unplugged, by this daemon.
    pub pending: Option<u32>,
    /// When the guest's driver has it.
    pub seen_at: Duration,
    /// When it is up in the bond, once it is in.
    pub ready_at: Option<Duration>,
}

/// What runs in a QEMU.
#[derive(Debug, Default)]
pub struct Guest {
    /// When its network is up.
    pub up_at: Duration,
    /// Counts boots.
    pub boot: u32,
    /// Carries its traffic: the VF by this name, or PV.
    pub active: Option<VfId>,
    /// Never gives up a VF when asked.
    pub stubborn: bool,
    /// Its agent answers anything.
    pub lies: bool,
    /// Its agent does not answer until then.
    pub agent_hung_until: Duration,
    /// Its agent is not there.
    pub agent_dead: bool,
    /// The agent's largest epoch.
    pub epoch: u64,
    /// The request that reached an agent before it hung.
    pub late: Option<(Request, u64)>,
}

/// What the host asks of an agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// `status`.
    Status,
    /// `join-vf`.
    Join(VfId),
    /// `activate`.
    Activate(Path, VfId),
    /// `leave-vf`.
    Leave(VfId),
}

/// What an agent answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// To `status` and `activate`: the active path, and the largest epoch.
    Status(Path, u64),
    /// To `join-vf` and `leave-vf`.
    Vf(VfState),
    /// No.
    No,
}

/// From `join-vf` to the bond's own view that the VF is up.
const LINK_UP: Duration = Duration::from_millis(300);
/// Root ports that a VM has.
pub const PORTS: [&str; 2] = ["rp0", "rp1"];

impl Qemu {
    /// A process without devices.
    pub const fn new(process: u32) -> Self {
        Self { process, devices: Vec::new(), hung_until: None, backlog: Vec::new() }
    }
}

impl Machine {
    /// A VM that has been up for long, and sends and receives so many packets a second.
    pub fn new(name: VmName, now: Duration, pps: u64) -> Self {
        Self {
            name,
            listed: Some(None),
            qemu: Some(Qemu::new(1)),
            processes: 1,
            guest: Guest::default(),
            task: None,
            pps,
            counted: (now, 0),
            flaky: false,
            forward_fails: Fails::Never,
            noisy: false,
        }
    }

    /// Packets so far.
    pub fn count(&mut self, now: Duration) -> u64 {
        let (until, packets) = &mut self.counted;
        let micros = u64::try_from(now.saturating_sub(*until).as_micros()).unwrap_or(u64::MAX);
        *packets += self.pps * micros / 1_000_000;
        *until = now;
        *packets
    }

    /// The device with this VF.
    pub fn device(&mut self, vf: &VfId) -> Option<&mut Device> {
        self.qemu.as_mut()?.devices.iter_mut().find(|device| device.vf == *vf)
    }

    /// QEMU has this VF.
    pub fn has(&self, vf: &VfId) -> bool {
        self.qemu.iter().flat_map(|qemu| &qemu.devices).any(|device| device.vf == *vf)
    }

    /// QEMU has this VF, or may take it without being asked again.
    pub fn may_hold(&self, vf: &VfId) -> bool {
        self.qemu.as_ref().is_some_and(|qemu| {
            let adds = |ask: &Ask| matches!(ask, Ask::Add { vf: added, .. } if added == vf);
            qemu.devices.iter().any(|device| device.vf == *vf) || qemu.backlog.iter().any(adds)
        })
    }

    /// QEMU runs, and so does its guest.
    pub fn is_up(&self, now: Duration) -> bool {
        self.qemu.is_some() && self.guest.up_at <= now
    }

    /// QEMU does not answer.
    pub fn hangs(&self, now: Duration) -> Option<Duration> {
        self.qemu.as_ref()?.hung_until.filter(|until| *until > now)
    }

    /// The agent would answer now.
    pub fn agent_answers(&self, now: Duration) -> bool {
        self.is_up(now)
            && self.hangs(now).is_none()
            && !self.guest.agent_dead
            && self.guest.agent_hung_until <= now
    }

    /// Takes a device away; its guest's bond goes on with PV.
    pub fn lose(&mut self, vf: &VfId) -> bool {
        if self.guest.active.as_ref() == Some(vf) {
            self.guest.active = None;
        }
        let Some(qemu) = &mut self.qemu else { return false };
        let before = qemu.devices.len();
        qemu.devices.retain(|device| device.vf != *vf);
        qemu.devices.len() < before
    }

    /// The guest begins anew.
    pub fn boot(&mut self, now: Duration, takes: Duration) {
        let up_at = now + takes;
        self.guest = Guest {
            up_at,
            boot: self.guest.boot + 1,
            stubborn: self.guest.stubborn,
            lies: self.guest.lies,
            agent_dead: self.guest.agent_dead,
            ..Guest::default()
        };
        for device in self.qemu.iter_mut().flat_map(|qemu| &mut qemu.devices) {
            (device.seen_at, device.ready_at) = (up_at, None);
        }
    }

    /// The agent's answer to a request that has reached it.
    pub fn ask_agent(&mut self, now: Duration, request: Request, epoch: u64) -> Said {
        if self.guest.lies {
            return match request {
                Request::Status | Request::Activate(..) => Said::Status(Path::Vf, self.guest.epoch),
                Request::Join(_) => Said::Vf(VfState::Ready),
                Request::Leave(_) => Said::Vf(VfState::Present),
            };
        }
        if request != Request::Status {
            if epoch < self.guest.epoch {
                return Said::No;
            }
            self.guest.epoch = epoch;
        }
        match request {
            Request::Status => self.agent_status(),
            Request::Join(vf) => {
                if self.vf_state(now, &vf) == VfState::Present
                    && let Some(device) = self.device(&vf)
                {
                    device.ready_at = Some(now + LINK_UP);
                }
                Said::Vf(self.vf_state(now, &vf))
            }
            Request::Activate(Path::Vf, vf) => match self.vf_state(now, &vf) {
                VfState::Ready | VfState::Active => {
                    self.guest.active = Some(vf);
                    self.agent_status()
                }
                _ => Said::No,
            },
            Request::Activate(Path::Pv, _) => {
                self.guest.active = None;
                self.agent_status()
            }
            Request::Leave(vf) => {
                self.guest.active = None;
                if let Some(device) = self.device(&vf) {
                    device.ready_at = None;
                }
                Said::Vf(self.vf_state(now, &vf))
            }
        }
    }

    fn agent_status(&self) -> Said {
        let path = if self.guest.active.is_some() { Path::Vf } else { Path::Pv };
        Said::Status(path, self.guest.epoch)
    }

    fn vf_state(&mut self, now: Duration, vf: &VfId) -> VfState {
        let active = self.guest.active.as_ref() == Some(vf);
        match self.device(vf) {
            Some(device) if device.seen_at <= now => match device.ready_at {
                None => VfState::Present,
                Some(ready_at) if ready_at > now => VfState::Joined,
                Some(_) if active => VfState::Active,
                Some(_) => VfState::Ready,
            },
            _ => VfState::Absent,
        }
    }
}
