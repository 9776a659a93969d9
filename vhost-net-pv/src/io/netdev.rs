//! The host's side of a TAP: up, MTU, membership in a bridge.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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
    /// The kernel refuses the change.
    #[error("cannot {action} {interface}: {cause}")]
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

    /// Sets an interface up.
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

    /// Sets an interface's MTU.
    ///
    /// # Errors
    /// [`NetdevError`] when the kernel refuses.
    pub fn set_mtu(&self, name: &str, mtu: u16) -> Result<(), NetdevError> {
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
        match sys::bridge_add(self.socket.as_fd(), bridge, index) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && is_port(name, bridge) => {
                Ok(())
            }
            result => result.map_err(refused("add to a bridge the interface", name)),
        }
    }
}

fn is_port(name: &str, bridge: &str) -> bool {
    std::path::Path::new(&format!("/sys/class/net/{bridge}/brif/{name}")).exists()
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
