//! The host's side of a TAP: up, MTU, membership in a bridge.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::net::if_::if_nametoindex;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::sys;

/// Why an interface is not as asked for.
#[derive(Debug, thiserror::Error)]
pub enum NetdevError {
    /// There is no such interface.
    #[error("there is no interface {0}")]
    Missing(String),
    /// It is a port of a bridge or bond already.
    #[error(
        "{0} is a port of another bridge or bond; take it out (ip link set {0} nomaster), or leave \
         --bridge out"
    )]
    Taken(String),
    /// It is another kind of interface.
    #[error("{0} is no bridge; make one (ip link add NAME type bridge), or give another name")]
    NoBridge(String),
    /// The kernel refuses the change.
    #[error("cannot {action} {interface}: {cause}{}", hint(.cause))]
    Refused {
        /// What was to be done.
        action: &'static str,
        /// To which interface.
        interface: String,
        /// The kernel's words.
        cause: io::Error,
    },
}

/// Changes interfaces of the network namespace it was made in.
#[derive(Debug)]
pub struct Netdev {
    socket: OwnedFd,
}

impl Netdev {
    /// Opens the socket that interface requests go through.
    ///
    /// # Errors
    /// The system gives no socket.
    pub fn new() -> io::Result<Self> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        Ok(Self { socket })
    }

    /// The interface is there.
    pub fn exists(name: &str) -> bool {
        if_nametoindex(name).is_ok()
    }

    /// Sets an interface up; one that is up needs no privilege.
    ///
    /// # Errors
    /// [`NetdevError`] when the kernel refuses.
    pub fn up(&self, name: &str) -> Result<(), NetdevError> {
        sys::interface_up(self.socket.as_fd(), name).map_err(refused("set up", name))
    }

    /// An interface's MTU.
    ///
    /// # Errors
    /// [`NetdevError`] when the kernel does not tell.
    pub fn mtu(&self, name: &str) -> Result<u32, NetdevError> {
        sys::interface_mtu(self.socket.as_fd(), name).map_err(refused("read the MTU of", name))
    }

    /// Sets an interface's MTU; one that has it needs no privilege.
    ///
    /// # Errors
    /// [`NetdevError`] when the kernel refuses.
    pub fn set_mtu(&self, name: &str, mtu: u16) -> Result<(), NetdevError> {
        if self.mtu(name)? == u32::from(mtu) {
            return Ok(());
        }
        sys::set_interface_mtu(self.socket.as_fd(), name, mtu)
            .map_err(refused("set the MTU of", name))
    }

    /// Makes an interface a port of a bridge; one that is a port of it already stays it.
    ///
    /// # Errors
    /// [`NetdevError`] when there is no such bridge, or the kernel refuses.
    pub fn join_bridge(&self, name: &str, bridge: &str) -> Result<(), NetdevError> {
        let index = if_nametoindex(name).map_err(|_| NetdevError::Missing(name.to_owned()))?;
        if !Self::exists(bridge) {
            return Err(NetdevError::Missing(bridge.to_owned()));
        }
        let Err(cause) = sys::bridge_add(self.socket.as_fd(), bridge, index) else {
            return Ok(());
        };
        match cause.raw_os_error() {
            // Before what it says: without privilege the kernel says that first.
            _ if is_port(name, bridge) => Ok(()),
            Some(libc::EBUSY) => Err(NetdevError::Taken(name.to_owned())),
            Some(libc::EOPNOTSUPP) => Err(NetdevError::NoBridge(bridge.to_owned())),
            _ => Err(refused("add to a bridge the interface", name)(cause)),
        }
    }
}

/// Queues of an interface that are in use; `None`: sysfs shows another network namespace, or nothing.
pub(super) fn queues_in_use(name: &str) -> Option<usize> {
    let folder = Path::new("/sys/class/net").join(name);
    let shown: u32 = fs::read_to_string(folder.join("ifindex")).ok()?.trim().parse().ok()?;
    if if_nametoindex(name) != Ok(shown) {
        return None;
    }
    let queues = fs::read_dir(folder.join("queues")).ok()?.flatten();
    Some(queues.filter(|queue| queue.file_name().as_encoded_bytes().starts_with(b"rx-")).count())
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => "; that needs CAP_NET_ADMIN, or to be done before",
        _ => "",
    }
}

fn is_port(name: &str, bridge: &str) -> bool {
    Path::new(&format!("/sys/class/net/{bridge}/brif/{name}")).exists()
}

/// Makes reads and writes return instead of waiting.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn refused(action: &'static str, interface: &str) -> impl FnOnce(io::Error) -> NetdevError {
    let interface = interface.to_owned();
    move |cause| NetdevError::Refused { action, interface, cause }
}
