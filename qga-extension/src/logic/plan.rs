//! What a switch does to the links, step by step, and how it is undone.
//!
//! ```text
//!   join       vf down · enslave · up            undo: release, left down
//!   activate   active port := vf (or pv)         undo: active port := pv
//!   leave      active port := pv, if it is vf · release · down
//! ```
//!
//! Make before break: PV stays in the bond always, and no step takes away the port that carries the
//! traffic before another one does. Each plan is made from what the kernel shows now, so asking
//! twice does nothing the second time. [`verify`] looks at the result, because the kernel goes on
//! with a failover when a port refuses the shared MAC address.

use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::{Path, VfState};

use super::links::{Link, View};

/// One change to the kernel's links, by index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Administratively up.
    SetUp(u32),
    /// Administratively down.
    SetDown(u32),
    /// Makes a link the port of a bond.
    Enslave {
        /// The link, which must be down.
        port: u32,
        /// The bond.
        bond: u32,
    },
    /// Takes a port out of its bond; the kernel leaves it down.
    Release(u32),
    /// Makes a port the bond's active one; the bond announces it.
    Activate {
        /// The port.
        port: u32,
        /// The bond.
        bond: u32,
    },
    /// Gives a link another current MAC address.
    SetMac {
        /// The link.
        link: u32,
        /// The address.
        mac: MacAddr,
    },
    /// Makes a bond with [`crate::config::BOND`]'s settings still to be given; one that exists is left.
    CreateBond {
        /// Its name.
        name: String,
        /// Its address from the first moment on: udev gives another one to links with a random one.
        mac: Option<MacAddr>,
    },
    /// Gives a bond without ports [`crate::config::BOND`]'s settings.
    ConfigureBond(u32),
}

/// A step and what undoes it, once it was done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// To be done.
    pub step: Step,
    /// Undoes it.
    pub undo: Option<Step>,
}

/// A change of the paths that the host asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Switch {
    /// Put the VF into the bond.
    Join(MacAddr),
    /// Use a path.
    Activate(Path, MacAddr),
    /// Take the VF out of the bond.
    Leave(MacAddr),
}

/// Why a switch is not begun.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Nothing to put a VF into.
    #[error(
        "the guest has no such bond: start the agent with --create-bond, or name yours with --bond"
    )]
    NoBond,
    /// No way back.
    #[error("no paravirtual NIC in bond {0}: name it with --pv")]
    NoPv(String),
    /// Other modes use all ports at once.
    #[error("bond {0} is not in mode active-backup")]
    WrongMode(String),
    /// Somebody else's.
    #[error("VF {name} is a port of another interface (index {controller}): release it there")]
    HeldElsewhere {
        /// The VF's interface name.
        name: String,
        /// Who holds it.
        controller: u32,
    },
    /// Too early.
    #[error("VF {mac} is not ready but {state:?}: join it, and ask again until it is ready")]
    NotReady {
        /// Permanent MAC address.
        mac: MacAddr,
        /// How far it is.
        state: VfState,
    },
    /// The bond would lose its network.
    #[error("PV NIC {0} is not up in its bond")]
    PvNotReady(String),
}

/// What is left to do after a switch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing.
    Good,
    /// These steps, and the switch is good.
    Repair(Vec<Step>),
    /// These steps, and the switch has failed.
    Undo {
        /// To be done.
        steps: Vec<Step>,
        /// What the host is told.
        why: String,
    },
}

impl Switch {
    /// The VF it is about.
    pub const fn vf_mac(self) -> MacAddr {
        match self {
            Self::Join(mac) | Self::Activate(_, mac) | Self::Leave(mac) => mac,
        }
    }
}

impl Step {
    /// The link that the step is about, for logs.
    pub const fn subject(&self) -> Option<u32> {
        match self {
            Self::SetUp(link)
            | Self::SetDown(link)
            | Self::Release(link)
            | Self::SetMac { link, .. }
            | Self::ConfigureBond(link)
            | Self::Enslave { port: link, .. }
            | Self::Activate { port: link, .. } => Some(*link),
            Self::CreateBond { .. } => None,
        }
    }
}

/// The steps of a switch; none when there is nothing (more) to do.
pub fn plan(switch: Switch, view: &View) -> Result<Vec<Planned>, Refusal> {
    let bond = view.bond().ok_or(Refusal::NoBond)?;
    if !bond.bond.is_some_and(|bond| bond.active_backup) {
        return Err(Refusal::WrongMode(bond.name.clone()));
    }
    let pv =
        view.pv().filter(|pv| view.is_port(pv)).ok_or_else(|| Refusal::NoPv(bond.name.clone()))?;
    let vf = view.vf(switch.vf_mac());
    match (switch, vf) {
        (Switch::Join(_), Some(vf)) => join(view, bond, vf),
        (Switch::Leave(_), Some(vf)) => leave(view, bond, pv, vf),
        (Switch::Join(_) | Switch::Leave(_), None) => Ok(Vec::new()),
        (Switch::Activate(Path::Pv, _), _) => activate_pv(view, bond, pv),
        (Switch::Activate(Path::Vf, mac), vf) => activate_vf(view, bond, pv, vf, mac),
    }
}

/// Looks at the links after a switch's steps.
pub fn verify(switch: Switch, view: &View) -> Verdict {
    if let Switch::Activate(Path::Vf, mac) = switch {
        if view.vf_state(mac) != VfState::Active {
            return Verdict::Undo {
                steps: Vec::new(),
                why: format!("VF {mac} did not stay the bond's active port"),
            };
        }
        return verify_vf_mac(view, mac);
    }
    match repairs(view) {
        steps if steps.is_empty() => Verdict::Good,
        steps => Verdict::Repair(steps),
    }
}

/// Steps that give the PV NIC the shared MAC address back when it carries the traffic without it.
/// The kernel swaps addresses at a failover, also when the other port is gone or refused its part.
pub fn repairs(view: &View) -> Vec<Step> {
    let (Some(bond), Some(pv)) = (view.bond(), view.pv()) else {
        return Vec::new();
    };
    match bond.mac {
        Some(mac) if view.active_path() == Some(Path::Pv) && pv.mac != Some(mac) => {
            vec![Step::SetMac { link: pv.index, mac }]
        }
        _ => Vec::new(),
    }
}

fn join(view: &View, bond: &Link, vf: &Link) -> Result<Vec<Planned>, Refusal> {
    let mut steps = Vec::new();
    match vf.controller {
        Some(_) if view.is_port(vf) => {
            if !vf.up {
                steps.push(Planned::with_undo(Step::SetUp(vf.index), Step::SetDown(vf.index)));
            }
            return Ok(steps);
        }
        Some(controller) => {
            let name = vf.name.clone();
            return Err(Refusal::HeldElsewhere { name, controller });
        }
        None => {}
    }
    if vf.up {
        steps.push(Planned::new(Step::SetDown(vf.index)));
    }
    let (port, bond) = (vf.index, bond.index);
    steps.push(Planned::with_undo(Step::Enslave { port, bond }, Step::Release(port)));
    steps.push(Planned::with_undo(Step::SetUp(port), Step::SetDown(port)));
    Ok(steps)
}

fn activate_pv(view: &View, bond: &Link, pv: &Link) -> Result<Vec<Planned>, Refusal> {
    if view.active_path() == Some(Path::Pv) {
        return Ok(Vec::new());
    }
    if !pv.is_ready() {
        return Err(Refusal::PvNotReady(pv.name.clone()));
    }
    let (port, bond) = (pv.index, bond.index);
    Ok(vec![Planned::new(Step::Activate { port, bond })])
}

fn activate_vf(
    view: &View,
    bond: &Link,
    pv: &Link,
    vf: Option<&Link>,
    mac: MacAddr,
) -> Result<Vec<Planned>, Refusal> {
    match (vf, view.vf_state(mac)) {
        (Some(_), VfState::Active) => Ok(Vec::new()),
        (Some(vf), VfState::Ready) => {
            let bond = bond.index;
            let to = |port| Step::Activate { port, bond };
            Ok(vec![Planned::with_undo(to(vf.index), to(pv.index))])
        }
        (_, state) => Err(Refusal::NotReady { mac, state }),
    }
}

fn leave(view: &View, bond: &Link, pv: &Link, vf: &Link) -> Result<Vec<Planned>, Refusal> {
    let mut steps = Vec::new();
    if view.is_port(vf) {
        if view.state_of(vf) == VfState::Active {
            steps = activate_pv(view, bond, pv)?;
        }
        steps.push(Planned::new(Step::Release(vf.index)));
        steps.push(Planned::new(Step::SetDown(vf.index)));
    } else if vf.up && vf.controller.is_none() {
        steps.push(Planned::new(Step::SetDown(vf.index)));
    }
    Ok(steps)
}

/// An active VF without the shared MAC address hears nothing that is sent to the guest.
fn verify_vf_mac(view: &View, mac: MacAddr) -> Verdict {
    let (Some(bond), Some(pv), Some(vf)) = (view.bond(), view.pv(), view.vf(mac)) else {
        return Verdict::Good;
    };
    if vf.mac == bond.mac {
        return Verdict::Good;
    }
    let (port, bond) = (pv.index, bond.index);
    Verdict::Undo {
        steps: vec![Step::Activate { port, bond }],
        why: format!(
            "VF {mac} did not take the shared MAC address: does the host trust it ('ip link set PF vf N trust on')?"
        ),
    }
}

impl Planned {
    /// A step that leaves nothing to undo.
    pub const fn new(step: Step) -> Self {
        Self { step, undo: None }
    }

    /// A step and what undoes it.
    pub const fn with_undo(step: Step, undo: Step) -> Self {
        Self { step, undo: Some(undo) }
    }
}
