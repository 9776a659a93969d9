//! The agent in a guest: ours, or a stock qemu-ga, or whatever a hostile guest puts there.
//!
//! The wire is qemu-ga's: a JSON object a line, one client, nothing unsolicited. Whatever a guest
//! sends is bounded in line length, in bytes a call and in time, and its texts are made harmless
//! before anyone sees them. After a timeout, a dropped call or garbage the next call first
//! synchronises anew.

#[cfg(test)]
mod tests;
mod wire;

use std::path::Path;
use std::time::Duration;

use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::{
    ACTIVATE, ActivateArguments, AgentCounters, AgentStatus, COUNTERS, JOIN_VF, LEAVE_VF,
    LinkCounters, STATUS, VfAnswer, VfArguments, VfState,
};
use qapi::Command;
use qapi::qga::{GuestAgentInfo, GuestNetworkInterface, guest_info, guest_network_get_interfaces};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::text::sanitized;
use wire::{Fault, Wire};

/// A connection to a guest's agent port. Needs no agent to be there yet.
#[derive(Debug)]
pub struct Agent {
    wire: Wire,
}

/// Who answers on the port.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AgentKind {
    /// FlexVF's own agent, and its version.
    Ours(String),
    /// A qemu-ga, and its version: counters only.
    Stock(String),
    /// Nobody.
    None,
}

/// An interface, as a stock qemu-ga tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestInterface {
    /// Its name in the guest.
    pub name: String,
    /// Its MAC address, if it has one.
    pub mac: Option<MacAddr>,
    /// Its counters, if the agent tells them.
    pub counters: Option<LinkCounters>,
}

/// Why a guest's agent did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AgentError {
    /// Nothing listens on the socket.
    #[error("agent socket {socket}: {cause}; is QEMU running with a chardev there?")]
    Connect {
        /// The socket.
        socket: String,
        /// The system's word.
        cause: String,
    },
    /// QEMU closed the connection.
    #[error("the agent connection is closed")]
    Closed,
    /// No answer in time.
    #[error("the guest's agent did not answer {command} within {deadline:?}")]
    Silent {
        /// The command.
        command: String,
        /// The time it had.
        deadline: Duration,
    },
    /// The agent does not know the command.
    #[error("the guest's agent does not know {command}")]
    NotFound {
        /// The command.
        command: String,
    },
    /// The agent said no.
    #[error("the guest's agent refused {command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// Its words, made harmless.
        desc: String,
    },
    /// Not what the command's answer looks like, or too much of it.
    #[error("unexpected answer of the guest's agent to {command}: {what}")]
    Protocol {
        /// The command.
        command: String,
        /// What is wrong.
        what: String,
    },
}

impl Agent {
    /// Connects to the chardev's socket; the guest is not asked for anything yet.
    ///
    /// # Errors
    /// [`AgentError::Connect`].
    pub async fn connect(socket: &Path, deadline: Duration) -> Result<Self, AgentError> {
        let failed =
            |cause: String| AgentError::Connect { socket: socket.display().to_string(), cause };
        let stream = timeout(deadline, UnixStream::connect(socket))
            .await
            .map_err(|_| failed(format!("no connection within {deadline:?}")))?
            .map_err(|cause| failed(cause.to_string()))?;
        Ok(Self::over(stream))
    }

    /// The same over a connection that somebody else has made.
    pub fn over(stream: UnixStream) -> Self {
        Self { wire: Wire::new(stream) }
    }

    /// Makes sure that the next line read answers the next command sent.
    ///
    /// # Errors
    /// [`AgentError::Silent`] when nobody is there.
    pub async fn sync(&mut self, deadline: Duration) -> Result<(), AgentError> {
        let synced = timeout(deadline, self.wire.sync()).await;
        typed(wire::SYNC, deadline, synced)
    }

    /// One command and its answer, a synchronisation before it if one is due, all within `deadline`.
    ///
    /// # Errors
    /// [`AgentError`]; any but `Connect` and `Closed` leave the connection usable.
    pub async fn call<A: Serialize + ?Sized + Sync, R: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Option<&A>,
        deadline: Duration,
    ) -> Result<R, AgentError> {
        let answered = timeout(deadline, self.wire.call(command, arguments)).await;
        typed(command, deadline, answered)
    }

    /// Who is there, by `guest-info`. Silence is [`AgentKind::None`], not an error.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn identify(&mut self, deadline: Duration) -> Result<AgentKind, AgentError> {
        let info: GuestAgentInfo = match self.ask(guest_info::NAME, deadline).await {
            Err(AgentError::Silent { .. }) => return Ok(AgentKind::None),
            answer => answer?,
        };
        let version = sanitized(&info.version, MAX_TEXT_CHARS);
        let mut commands = info.supported_commands.iter();
        if commands.any(|command| command.name == STATUS && command.enabled) {
            Ok(AgentKind::Ours(version))
        } else {
            Ok(AgentKind::Stock(version))
        }
    }

    /// Bond, PV and VF, by our agent.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn status(&mut self, deadline: Duration) -> Result<AgentStatus, AgentError> {
        self.ask(STATUS, deadline).await.map(harmless)
    }

    /// Counters, by our agent.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn counters(&mut self, deadline: Duration) -> Result<AgentCounters, AgentError> {
        let mut counters: AgentCounters = self.ask(COUNTERS, deadline).await?;
        counters.boot_id = sanitized(&counters.boot_id, MAX_TEXT_CHARS);
        Ok(counters)
    }

    /// Asks our agent to put the VF into the bond; ask again until it is `Ready`.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn join_vf(
        &mut self,
        arguments: &VfArguments,
        deadline: Duration,
    ) -> Result<VfState, AgentError> {
        let answer: VfAnswer = self.call(JOIN_VF, Some(arguments), deadline).await?;
        Ok(answer.state)
    }

    /// Asks our agent to make a path the active one.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn activate(
        &mut self,
        arguments: &ActivateArguments,
        deadline: Duration,
    ) -> Result<AgentStatus, AgentError> {
        let answer = self.call(ACTIVATE, Some(arguments), deadline).await;
        answer.map(harmless)
    }

    /// Asks our agent to take the VF out of the bond.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn leave_vf(
        &mut self,
        arguments: &VfArguments,
        deadline: Duration,
    ) -> Result<VfState, AgentError> {
        let answer: VfAnswer = self.call(LEAVE_VF, Some(arguments), deadline).await?;
        Ok(answer.state)
    }

    /// A guest's interfaces, by any agent; at most 16 are given.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub async fn interfaces(
        &mut self,
        deadline: Duration,
    ) -> Result<Vec<GuestInterface>, AgentError> {
        let command = guest_network_get_interfaces::NAME;
        let interfaces: Vec<GuestNetworkInterface> = self.ask(command, deadline).await?;
        let interfaces = interfaces.into_iter().take(MAX_INTERFACES);
        Ok(interfaces.map(GuestInterface::from).collect())
    }

    /// A command without arguments.
    async fn ask<R: DeserializeOwned>(
        &mut self,
        command: &str,
        deadline: Duration,
    ) -> Result<R, AgentError> {
        self.call::<(), R>(command, None, deadline).await
    }
}

/// The counters of the interface with this MAC address. A bond shares its address with its ports:
/// the one with the most packets is taken.
pub fn counters_of(interfaces: &[GuestInterface], mac: MacAddr) -> Option<LinkCounters> {
    let with_mac = interfaces.iter().filter(|link| link.mac == Some(mac));
    with_mac
        .filter_map(|link| link.counters)
        .max_by_key(|counters| counters.rx_packets.saturating_add(counters.tx_packets))
}

impl From<GuestNetworkInterface> for GuestInterface {
    fn from(link: GuestNetworkInterface) -> Self {
        Self {
            name: sanitized(&link.name, MAX_TEXT_CHARS),
            mac: link.hardware_address.and_then(|mac| mac.parse().ok()),
            counters: link.statistics.map(|counters| LinkCounters {
                rx_packets: counters.rx_packets,
                tx_packets: counters.tx_packets,
                rx_bytes: counters.rx_bytes,
                tx_bytes: counters.tx_bytes,
                rx_dropped: counters.rx_dropped,
                tx_dropped: counters.tx_dropped,
            }),
        }
    }
}

fn harmless(mut status: AgentStatus) -> AgentStatus {
    status.version = sanitized(&status.version, MAX_TEXT_CHARS);
    status.boot_id = sanitized(&status.boot_id, MAX_TEXT_CHARS);
    status.bond = status.bond.map(|bond| sanitized(&bond, MAX_TEXT_CHARS));
    status
}

/// What went wrong, with its subject.
fn typed<T>(
    command: &str,
    deadline: Duration,
    outcome: Result<Result<T, Fault>, tokio::time::error::Elapsed>,
) -> Result<T, AgentError> {
    let command = || command.to_owned();
    let Ok(outcome) = outcome else {
        return Err(AgentError::Silent { command: command(), deadline });
    };
    outcome.map_err(|fault| match fault {
        Fault::Closed => AgentError::Closed,
        Fault::NotFound => AgentError::NotFound { command: command() },
        Fault::Refused(desc) => AgentError::Refused { command: command(), desc },
        Fault::Protocol(what) => AgentError::Protocol { command: command(), what },
    })
}

/// Interfaces of a guest that are looked at.
const MAX_INTERFACES: usize = 16;
/// Characters kept of a guest's names and versions.
const MAX_TEXT_CHARS: usize = 64;
