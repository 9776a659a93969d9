//! The hypervisor as the engine sees it: plug, unplug, observe, and events.
//!
//! [`Hypervisor`] is all that the engine needs of a VM's monitor, so that another VMM than QEMU (or
//! a test) can be put in its place; [`QmpVmm`] is the implementation for QEMU. Nothing is
//! remembered here: what is plugged is asked of the monitor each time, and a device's id tells what
//! it is ([`Backend::device_id`]). `examples/embed.rs` runs the engine over a monitor of its own.

mod carry;
mod qemu;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;

use flexvf_protocol::{MacAddr, PciAddress};
use tokio::sync::mpsc;

pub use carry::carry_out;
pub(crate) use qemu::IOMMU;
pub use qemu::QmpVmm;

use crate::io::qmp::{EventStream, QmpError};

/// What every id of a device that FlexVF plugs begins with.
pub const ID_PREFIX: &str = "flexvf-";

/// An answer under way.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, VmmError>> + Send + 'a>>;

/// One VM's monitor.
///
/// Every call ends within a deadline that the implementation was given. A call may be dropped while
/// under way; what it had asked may then happen or not, and [`Self::observe`] tells.
pub trait Hypervisor: Send + Sync {
    /// Puts a device into a port. Back when the monitor says that it is there.
    fn plug<'a>(&'a self, plug: &'a Plug) -> Answer<'a, ()>;

    /// Asks the guest to give a device up. Back as soon as it is asked: the end of it is
    /// [`VmmEvent::DeviceDeleted`], or its absence from [`Self::observe`].
    fn unplug<'a>(&'a self, device_id: &'a str) -> Answer<'a, Unplug>;

    /// Clears what a device that is gone has left behind (the back-end of a [`Backend::Nic`]).
    /// Idempotent; a device that is still there is refused with [`VmmError::AlreadyThere`].
    fn forget<'a>(&'a self, device_id: &'a str) -> Answer<'a, ()>;

    /// What is plugged: FlexVF's devices wherever they are, and the state of these ports.
    fn observe<'a>(&'a self, ports: &'a [String]) -> Answer<'a, Observation>;
}

/// A device to plug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plug {
    /// Its id: [`Backend::device_id`] of the backend.
    pub device_id: String,
    /// Id of an empty root port.
    pub port: String,
    /// What it is.
    pub backend: Backend,
    /// Id of the virtio-net device with `failover=on` whose primary it is to be.
    pub failover: Option<String>,
}

/// What stands behind a plugged device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backend {
    /// A PCI function of the host, bound to vfio-pci.
    Vfio {
        /// The function.
        host: PciAddress,
        /// Its own VFIO node (`/dev/vfio/devices/vfio0`), where it is to be used by that and iommufd instead
        /// of its group's.
        node: Option<PathBuf>,
    },
    /// A NIC model of QEMU's on an existing TAP.
    Nic {
        /// QEMU's device model.
        model: String,
        /// The TAP.
        tap: String,
        /// The NIC's own MAC address.
        mac: MacAddr,
    },
}

impl Backend {
    /// The one id that a device with this backend has: `flexvf-0000-01-10-0`, `flexvf-tap-vf0`.
    pub fn device_id(&self) -> String {
        match self {
            Self::Vfio { host, .. } => {
                format!("{ID_PREFIX}{}", host.to_string().replace([':', '.'], "-"))
            }
            Self::Nic { tap, .. } => format!("{ID_PREFIX}{TAP_MARK}{tap}"),
        }
    }
}

/// Between [`ID_PREFIX`] and a TAP's name.
const TAP_MARK: &str = "tap-";

/// What became of a request to unplug.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unplug {
    /// The guest was asked.
    Asked,
    /// An earlier request is still with the guest; this one was not sent on.
    Pending,
    /// There is no such device (any more).
    Gone,
}

/// What a monitor shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observation {
    /// Every device whose id begins with [`ID_PREFIX`].
    pub devices: Vec<PluggedDevice>,
    /// The ports asked for, in the order asked.
    pub ports: Vec<Port>,
}

/// A device that is in the VM (or on its way out: until it is deleted it is here).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PluggedDevice {
    /// Its id.
    pub id: String,
    /// Id of the port that it is in, where that can be told.
    pub port: Option<String>,
    /// What it is.
    pub kind: PluggedKind,
}

/// What a plugged device is, as the monitor tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PluggedKind {
    /// `vfio-pci`.
    Vfio {
        /// The host's function.
        host: Option<PciAddress>,
    },
    /// A NIC model.
    Nic {
        /// The device model.
        model: String,
        /// The TAP, as the device's id tells.
        tap: Option<String>,
        /// The NIC's own MAC address.
        mac: Option<MacAddr>,
    },
}

/// A root port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its id.
    pub id: String,
    /// What is in it.
    pub state: PortState,
}

/// What is in a root port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortState {
    /// Nothing.
    Empty,
    /// A device, FlexVF's or another's, by its id (or path, if it has none).
    Occupied {
        /// Which.
        by: String,
    },
    /// The VM has no such port.
    Missing,
}

/// What a monitor tells by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VmmEvent {
    /// A device is gone, asked or unasked; its id.
    DeviceDeleted(String),
    /// The guest (or QEMU) refused an unplug; the device's id where it is told.
    UnplugError(Option<String>),
    /// The guest was reset.
    Reset,
    /// The guest has shut down; the process may follow.
    Shutdown,
    /// The guest was paused.
    Stopped,
    /// The guest runs again.
    Resumed,
    /// A process in the guest opened (or closed) a virtio-serial port.
    AgentPort {
        /// QEMU's id of the port's device.
        port: String,
        /// Opened or closed.
        open: bool,
    },
    /// Events came faster than they were taken, and some are lost: observe.
    Missed,
    /// The connection has ended. The last event.
    Closed,
}

/// Events of one VM, oldest first.
#[derive(Debug)]
pub struct VmmEvents(Source);

#[derive(Debug)]
enum Source {
    Qemu(EventStream),
    Other(mpsc::Receiver<VmmEvent>),
}

impl VmmEvents {
    /// A stream and its sending end, for other monitors than QEMU's and for tests.
    pub fn channel(capacity: usize) -> (mpsc::Sender<VmmEvent>, Self) {
        let (sender, receiver) = mpsc::channel(capacity);
        (sender, Self(Source::Other(receiver)))
    }

    /// The next event; [`VmmEvent::Closed`] for ever once the connection has ended. May be dropped
    /// while waiting without losing any.
    pub async fn next(&mut self) -> VmmEvent {
        let event = match &mut self.0 {
            Source::Qemu(stream) => qemu::next_event(stream).await,
            Source::Other(receiver) => receiver.recv().await,
        };
        event.unwrap_or(VmmEvent::Closed)
    }
}

/// Why a monitor did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The port has a device.
    #[error(
        "root port {port} is occupied by {by}; unplug that, or list another port in the VM's `ports`"
    )]
    PortOccupied {
        /// The port.
        port: String,
        /// What is in it.
        by: String,
    },
    /// The VM has no such port.
    #[error(
        "there is no root port {0}; start QEMU with `-device pcie-root-port,id={0},chassis=N`, or correct the VM's `ports`"
    )]
    PortMissing(String),
    /// The device is in the VM.
    #[error("device {0} is in the VM already; wait until it is unplugged")]
    AlreadyThere(String),
    /// A VFIO node cannot be opened for QEMU.
    #[error("{path}: {cause}; FlexVF opens it for QEMU and needs root's rights for it")]
    Node {
        /// The node.
        path: String,
        /// The system's word.
        cause: std::io::Error,
    },
    /// QMP failed.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// Another monitor than QEMU's refused: it certainly did not happen.
    #[error("{0}")]
    Other(String),
    /// Another monitor than QEMU's did not answer: it may have happened.
    #[error("{0}")]
    Unanswered(String),
}
