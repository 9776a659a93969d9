//! What a switch asks of the outside world, and what it is told.

use flexvf_protocol::agent::{Path, VfState};

/// Something to be done to the outside world, for this VM and VF. All are idempotent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Host: set the VF's MAC and the like on the PF, bind it to vfio-pci; or fail and say who uses it.
    Prepare,
    /// QEMU: `device_add`.
    Plug,
    /// Agent: take the VF into the bond; tells how far it is.
    Join,
    /// Agent: make this path the bond's active one.
    Activate(Path),
    /// Host: forward the VM's frames there (PF filter, bridge FDB).
    Forward(Target),
    /// Agent: take the VF out of the bond.
    Leave,
    /// QEMU: `device_del`.
    Unplug,
    /// QEMU: is the device still there?
    Look,
    /// Host: undo what [`Action::Prepare`] did.
    Sanitise,
}

/// Where the host forwards a VM's frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To both paths: whichever the bond uses just now takes them, and the other one drops them.
    Both,
    /// To this path.
    Only(Path),
}

/// What came of an action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Report {
    /// Done.
    Ok,
    /// The answer to [`Action::Join`].
    Vf(VfState),
    /// The answer to [`Action::Look`], to an unplug of what is not there, and to a
    /// [`Action::Sanitise`] that found the device in QEMU and did nothing.
    DevicePresent(bool),
    /// It certainly did not happen, and nothing was changed.
    Refused(String),
    /// No answer in time: it may have happened, or may still.
    Unknown(String),
}

/// What the machine is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The action that was under way has ended.
    Done(Report),
    /// The guest was reset.
    Reset,
    /// The guest's agent says which path its bond uses, if one of the two.
    Uses(Option<Path>),
    /// QEMU said DEVICE_DELETED.
    Deleted,
    /// QEMU has ended: the kernel has closed the device.
    Exited,
    /// Take the VF back.
    Take {
        /// In words, for people.
        reason: String,
    },
    /// Somebody has done something about what keeps the VF: try now what would be tried later.
    Retry,
    /// Time has passed.
    Tick,
}

impl Report {
    pub(super) fn failure(self) -> Option<String> {
        match self {
            Self::Refused(reason) | Self::Unknown(reason) => Some(reason),
            Self::Ok | Self::Vf(_) | Self::DevicePresent(_) => None,
        }
    }
}
