//! Links, a PF's settings and counters of its VFs, and forwarding entries, over rtnetlink.
//!
//! Every change is one message a setting (so that a refusal names it) and is read back. Adding
//! what is there and deleting what is not are successes.

mod counters;
#[cfg(test)]
mod tests;
mod vf;

use std::io;
use std::time::Duration;

use flexvf_protocol::MacAddr;
use futures_util::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use nix::errno::Errno;
use nix::net::if_::if_nametoindex;
use rtnetlink::{Handle, LinkBridgePort};
use tokio::time::timeout;

pub use counters::Counters;
pub use vf::Vf;

/// A connection to the kernel's rtnetlink. Clones share it.
#[derive(Debug, Clone)]
pub struct Netlink {
    handle: Handle,
    deadline: Duration,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address.
    pub mac: Option<MacAddr>,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it has a carrier.
    pub carrier: bool,
    /// Number of the bridge or bond that it is a port of.
    pub master: Option<u32>,
}

/// Why the kernel did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket.
    #[error("no netlink socket: {0}")]
    Socket(io::Error),
    /// No such interface.
    #[error("there is no interface {0}; see `ip link`")]
    NoLink(String),
    /// The PF has no such VF.
    #[error("interface {pf} has no VF {index}; see `ip link show {pf}`")]
    NoVf {
        /// The PF.
        pf: String,
        /// The VF.
        index: u32,
    },
    /// The kernel said no.
    #[error("{what}: {cause}")]
    Refused {
        /// What was asked, with its subject.
        what: String,
        /// The kernel's word.
        cause: io::Error,
    },
    /// The kernel said yes, and did something else.
    #[error("{what}: it reads back as {found}")]
    NotKept {
        /// What was asked, with its subject.
        what: String,
        /// What is there.
        found: String,
    },
    /// No answer in time.
    #[error("{what}: no answer within {deadline:?}")]
    Timeout {
        /// What was asked, with its subject.
        what: String,
        /// The time it had.
        deadline: Duration,
    },
    /// Not what rtnetlink promises.
    #[error("{what}: unexpected answer: {found}")]
    Protocol {
        /// What was asked, with its subject.
        what: String,
        /// What came.
        found: String,
    },
}

impl Netlink {
    /// Opens a socket and starts its task on the present runtime; each call may take `deadline`.
    ///
    /// # Errors
    /// [`NetlinkError::Socket`].
    pub fn new(deadline: Duration) -> Result<Self, NetlinkError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(NetlinkError::Socket)?;
        tokio::spawn(connection);
        Ok(Self { handle, deadline })
    }

    /// An interface, by name.
    ///
    /// # Errors
    /// [`NetlinkError::NoLink`] and others.
    pub async fn link(&self, name: &str) -> Result<Link, NetlinkError> {
        let mask = vec![LinkExtentMask::SkipStats];
        let message = self.get_link(name, mask).await?;
        let mut link = Link {
            index: message.header.index,
            name: name.to_owned(),
            mac: None,
            up: message.header.flags.contains(LinkFlags::Up),
            carrier: message.header.flags.contains(LinkFlags::LowerUp),
            master: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(found) => link.name = found,
                LinkAttribute::Address(octets) => link.mac = MacAddr::from_slice(&octets),
                LinkAttribute::Controller(index) => link.master = Some(index),
                _ => {}
            }
        }
        Ok(link)
    }

    /// Has a NIC take frames for an address: `bridge fdb add MAC dev INTERFACE self permanent`.
    ///
    /// # Errors
    /// [`NetlinkError`]; that it is there already is none.
    pub async fn filter_add(&self, interface: &str, mac: MacAddr) -> Result<(), NetlinkError> {
        let what = format!("{interface}: adding the filter for {mac}");
        let index = index_of(interface)?;
        let neighbours = self.handle.neighbours();
        let request = neighbours
            .add_bridge(index, &mac.octets())
            .flags(NeighbourFlags::Own)
            .state(NeighbourState::Permanent);
        unless(Errno::EEXIST, self.within(&what, request.execute()).await)
    }

    /// Undoes [`Self::filter_add`].
    ///
    /// # Errors
    /// [`NetlinkError`]; that there is none is none.
    pub async fn filter_remove(&self, interface: &str, mac: MacAddr) -> Result<(), NetlinkError> {
        let what = format!("{interface}: removing the filter for {mac}");
        self.forget(interface, mac, NeighbourFlags::Own, &what).await
    }

    /// Points a bridge to one of its ports for an address: `bridge fdb replace MAC dev PORT master static
    /// sticky`. Sticky, or the first frame with that source at another port would move the entry: a
    /// NIC with VFs may show the PF what a guest has sent.
    ///
    /// # Errors
    /// [`NetlinkError`].
    pub async fn bridge_point(&self, port: &str, mac: MacAddr) -> Result<(), NetlinkError> {
        let what = format!("{port}: pointing its bridge here for {mac}");
        let index = index_of(port)?;
        let neighbours = self.handle.neighbours();
        let request = neighbours
            .add_bridge(index, &mac.octets())
            .flags(NeighbourFlags::Controller | NeighbourFlags::Sticky)
            .state(NeighbourState::Noarp)
            .replace();
        self.within(&what, request.execute()).await
    }

    /// Takes back [`Self::bridge_point`], so that the bridge learns again.
    ///
    /// # Errors
    /// [`NetlinkError`]; that there is no such entry is none.
    pub async fn bridge_unpoint(&self, port: &str, mac: MacAddr) -> Result<(), NetlinkError> {
        let what = format!("{port}: taking its bridge's entry for {mac}");
        self.forget(port, mac, NeighbourFlags::Controller, &what).await
    }

    /// What a bridge does by itself at a port, learning addresses and flooding frames for unknown
    /// ones: `bridge link set dev PORT learning on|off flood on|off`.
    ///
    /// A bridge whose only port with either is its uplink keeps that out of promiscuous mode and
    /// gives it the static entries of the others as filters (`br_manage_promisc` in the kernel).
    ///
    /// # Errors
    /// [`NetlinkError`]; an interface that is no bridge's port is refused.
    pub async fn bridge_port(
        &self,
        port: &str,
        learning: bool,
        flood: bool,
    ) -> Result<(), NetlinkError> {
        let what = format!("{port}: setting its bridge's learning and flooding");
        let index = index_of(port)?;
        let change = LinkBridgePort::new(index).learning(learning).flood(flood).build();
        let request = self.handle.link().set_port(change).execute();
        self.within(&what, request).await
    }

    async fn forget(
        &self,
        interface: &str,
        mac: MacAddr,
        flags: NeighbourFlags,
        what: &str,
    ) -> Result<(), NetlinkError> {
        let mut message = NeighbourMessage::default();
        message.header.family = AddressFamily::Bridge;
        message.header.ifindex = index_of(interface)?;
        message.header.flags = flags;
        // Asked for by NICs' own tables, and of no account to bridges.
        message.header.state = NeighbourState::Permanent;
        let octets = mac.octets().to_vec();
        message.attributes.push(NeighbourAttribute::LinkLayerAddress(octets));
        let request = self.handle.neighbours().del(message).execute();
        unless(Errno::ENOENT, self.within(what, request).await)
    }

    async fn get_link(
        &self,
        name: &str,
        mask: Vec<LinkExtentMask>,
    ) -> Result<LinkMessage, NetlinkError> {
        let what = format!("{name}: asking for the interface");
        let request = self.handle.link().get().match_name(name.to_owned());
        let request = request.set_filter_mask(AddressFamily::Unspec, mask).execute();
        let answer = async { std::pin::pin!(request).try_next().await };
        match self.within(&what, answer).await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(NetlinkError::NoLink(name.to_owned())),
            // Names that cannot be are told apart by the kernel.
            Err(error) if refused_with(&error, &[Errno::ENODEV, Errno::ERANGE, Errno::EINVAL]) => {
                Err(NetlinkError::NoLink(name.to_owned()))
            }
            Err(error) => Err(error),
        }
    }

    async fn within<T>(
        &self,
        what: &str,
        request: impl Future<Output = Result<T, rtnetlink::Error>>,
    ) -> Result<T, NetlinkError> {
        let what = || what.to_owned();
        match timeout(self.deadline, request).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(rtnetlink::Error::NetlinkError(error))) => {
                Err(NetlinkError::Refused { what: what(), cause: error.to_io() })
            }
            Ok(Err(other)) => {
                Err(NetlinkError::Protocol { what: what(), found: other.to_string() })
            }
            Err(_) => Err(NetlinkError::Timeout { what: what(), deadline: self.deadline }),
        }
    }
}

/// An interface's number, without a question over netlink.
///
/// # Errors
/// [`NetlinkError::NoLink`].
pub fn index_of(name: &str) -> Result<u32, NetlinkError> {
    if_nametoindex(name).map_err(|_| NetlinkError::NoLink(name.to_owned()))
}

fn refused_with(error: &NetlinkError, numbers: &[Errno]) -> bool {
    let NetlinkError::Refused { cause, .. } = error else {
        return false;
    };
    let found = cause.raw_os_error().map(Errno::from_raw);
    found.is_some_and(|found| numbers.contains(&found))
}

/// What was asked for is so already.
fn unless(number: Errno, result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if refused_with(&error, &[number]) => Ok(()),
        other => other,
    }
}
