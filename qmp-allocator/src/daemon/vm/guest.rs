//! A guest's agent, as one VM's task uses it: connected when needed, epochs kept, never trusted.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::{ActivateArguments, AgentStatus, Path, VfArguments, VfState};
use tracing::info;

use crate::config::VmConfig;
use crate::io::agent::{Agent, AgentError, AgentKind};
use crate::logic::engine::AgentView;
use crate::logic::rate::{Count, Trust};
use crate::logic::switch::Report;

#[derive(Debug)]
pub(super) struct Guest {
    agent: Option<Agent>,
    deadline: Duration,
    /// Of the switch under way; asked of the agent when the next one begins.
    epoch: Option<u64>,
    ready: bool,
    /// Boot id and start of the agent that was last heard.
    heard: Option<(String, u64)>,
}

impl Guest {
    pub(super) const fn new(deadline: Duration) -> Self {
        Self { agent: None, deadline, epoch: None, ready: false, heard: None }
    }

    /// Forgets the connection: the guest was reset, or the agent has changed.
    pub(super) fn disconnect(&mut self) {
        self.agent = None;
        self.epoch = None;
        self.ready = false;
    }

    /// Ready when last looked at.
    pub(super) const fn is_ready(&self) -> bool {
        self.ready
    }

    /// A guest that needs no agent is always ready.
    pub(super) const fn needs_no_agent(&mut self) {
        self.ready = true;
    }

    /// The next command opens a new epoch.
    pub(super) const fn begin_switch(&mut self) {
        self.epoch = None;
    }

    /// Who is there, and can it switch?
    pub(super) async fn look(&mut self, vm: &VmConfig) -> AgentView {
        let view = match self.try_look(vm).await {
            Ok(view) => view,
            Err(error) => {
                self.agent = None;
                AgentView::Silent(error.to_string())
            }
        };
        self.ready = matches!(view, AgentView::Ready { .. });
        view
    }

    async fn try_look(&mut self, vm: &VmConfig) -> Result<AgentView, AgentError> {
        if vm.agent.is_none() {
            return Ok(AgentView::Silent("the VM's file names no `agent` socket".into()));
        }
        let deadline = self.deadline;
        let agent = self.connected(vm).await?;
        match agent.identify(deadline).await? {
            AgentKind::None => {
                self.agent = None;
                Ok(AgentView::Silent(format!("nothing within {deadline:?}")))
            }
            AgentKind::Stock(_) => Ok(AgentView::Stock),
            AgentKind::Ours(_) => {
                let status = agent.status(deadline).await?;
                self.note(&status.boot_id, status.started_ns);
                Ok(bond_of(&status, vm.mac))
            }
        }
    }

    /// Whether a guest that could switch still can.
    pub(super) async fn check(&mut self, vm: &VmConfig) -> AgentView {
        let deadline = self.deadline;
        let status = match self.connected(vm).await {
            Ok(agent) => agent.status(deadline).await,
            Err(error) => Err(error),
        };
        let view = match self.heed(status) {
            Ok(status) => {
                self.note(&status.boot_id, status.started_ns);
                bond_of(&status, vm.mac)
            }
            Err(error) => AgentView::Silent(error.to_string()),
        };
        self.ready = matches!(view, AgentView::Ready { .. });
        view
    }

    pub(super) async fn join(
        &mut self,
        vm: &VmConfig,
        vf_mac: MacAddr,
    ) -> Result<VfState, AgentError> {
        let epoch = self.epoch(vm).await?;
        let deadline = self.deadline;
        let joined =
            self.connected(vm).await?.join_vf(&VfArguments { vf_mac, epoch }, deadline).await;
        self.heed(joined)
    }

    pub(super) async fn leave(
        &mut self,
        vm: &VmConfig,
        vf_mac: MacAddr,
        deadline: Duration,
    ) -> Result<VfState, AgentError> {
        let epoch = self.epoch(vm).await?;
        let left =
            self.connected(vm).await?.leave_vf(&VfArguments { vf_mac, epoch }, deadline).await;
        self.heed(left)
    }

    pub(super) async fn activate(
        &mut self,
        vm: &VmConfig,
        path: Path,
        vf_mac: MacAddr,
    ) -> Result<(), AgentError> {
        let epoch = self.epoch(vm).await?;
        let deadline = self.deadline;
        let arguments = ActivateArguments { path, vf_mac, epoch };
        let activated = self.connected(vm).await?.activate(&arguments, deadline).await;
        self.heed(activated).map(drop)
    }

    /// What the guest says it has moved over its VFs.
    pub(super) async fn count(&mut self, vm: &VmConfig) -> Option<Count> {
        let deadline = self.deadline;
        let counters = self.connected(vm).await.ok()?.counters(deadline).await;
        let counters = self.heed(counters).inspect_err(|_| self.ready = false).ok()?;
        self.note(&counters.boot_id, counters.started_ns);
        let mut epoch = DefaultHasher::new();
        // Its sums begin anew with the agent.
        (counters.boot_id, counters.started_ns).hash(&mut epoch);
        let packets = counters.vf.rx_packets.saturating_add(counters.vf.tx_packets);
        Some(Count { epoch: epoch.finish(), packets, trust: Trust::Guest })
    }

    /// A closed connection is opened anew by the next command. An agent that was started anew in the
    /// middle of a switch refuses its epoch: the next command asks for another one.
    fn heed<T>(&mut self, result: Result<T, AgentError>) -> Result<T, AgentError> {
        match result {
            Err(AgentError::Closed) => self.agent = None,
            Err(AgentError::Refused { .. }) => self.epoch = None,
            _ => {}
        }
        result
    }

    /// Tells of an agent that was started anew in a guest that was not. A new boot is told by QEMU.
    fn note(&mut self, boot_id: &str, started_ns: u64) {
        let heard = (boot_id.to_owned(), started_ns);
        match &self.heard {
            Some(last) if *last == heard => return,
            Some((boot, _)) if boot == boot_id => {
                info!("the guest's agent was started anew");
                self.epoch = None;
            }
            _ => {}
        }
        self.heard = Some(heard);
    }

    async fn connected(&mut self, vm: &VmConfig) -> Result<&mut Agent, AgentError> {
        if self.agent.is_none() {
            let socket = vm.agent.as_deref().unwrap_or(std::path::Path::new(""));
            self.agent = Some(Agent::connect(socket, self.deadline).await?);
        }
        self.agent.as_mut().ok_or(AgentError::Closed)
    }

    async fn epoch(&mut self, vm: &VmConfig) -> Result<u64, AgentError> {
        if let Some(epoch) = self.epoch {
            return Ok(epoch);
        }
        let deadline = self.deadline;
        let status = self.connected(vm).await?.status(deadline).await;
        let status = self.heed(status)?;
        self.note(&status.boot_id, status.started_ns);
        let epoch = status.epoch.saturating_add(1);
        self.epoch = Some(epoch);
        Ok(epoch)
    }
}

fn bond_of(status: &AgentStatus, mac: MacAddr) -> AgentView {
    match (&status.bond, status.bond_mac) {
        (None, _) => {
            AgentView::NoBond("start qga-extension with --create-bond, or make one".into())
        }
        (Some(_), Some(bond_mac)) if bond_mac != mac => {
            AgentView::NoBond(format!("the bond has {bond_mac}, the VM's file says mac = {mac}"))
        }
        (Some(_), _) => AgentView::Ready { active: status.active },
    }
}

/// An agent that says "no" did not do it; a silent one may have.
pub(super) fn report(result: Result<(), AgentError>) -> Report {
    match result {
        Ok(()) => Report::Ok,
        Err(error @ (AgentError::Refused { .. } | AgentError::NotFound { .. })) => {
            Report::Refused(error.to_string())
        }
        Err(error) => Report::Unknown(error.to_string()),
    }
}

pub(super) fn vf_report(result: Result<VfState, AgentError>) -> Report {
    match result {
        Ok(state) => Report::Vf(state),
        Err(error) => report(Err(error)),
    }
}
