//! What the engine keeps of one VM.

use std::time::Duration;

use flexvf_protocol::VmName;

use super::{AgentView, Held, VmSpec};
use crate::logic::policy::Pin;
use crate::logic::rate::{Rate, RateMeter};
use crate::logic::reconcile::{Hold, VmView};
use crate::logic::switch::{Phase, Tenure};

/// First pause after a failed switch; doubled by each further one.
const FIRST_BACKOFF: Duration = Duration::from_secs(10);
/// Longest such pause.
const MAX_BACKOFF: Duration = Duration::from_secs(600);

#[derive(Debug)]
pub(in crate::logic) struct Vm {
    pub(in crate::logic) spec: VmSpec,
    pub(in crate::logic) qemu: Qemu,
    pub(in crate::logic) agent: AgentView,
    pub(in crate::logic) meter: RateMeter,
    pub(in crate::logic) last_interval: Option<(u64, Rate)>,
    pub(in crate::logic) hold: Option<(Held, Tenure)>,
    pub(in crate::logic) turns: u64,
    pub(in crate::logic) backoff: Backoff,
    pub(super) unregistered: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::logic) enum Qemu {
    Unseen,
    Up { free_port: Option<String> },
    Lost(String),
}

#[derive(Debug, Clone, Default)]
pub(in crate::logic) struct Backoff {
    failures: u32,
    pub(in crate::logic) until: Duration,
    pub(in crate::logic) reason: String,
}

impl Vm {
    pub(in crate::logic) fn phase(&self) -> Option<Phase> {
        self.hold.as_ref().map(|(_, tenure)| tenure.phase())
    }

    pub(in crate::logic) const fn is_up(&self) -> bool {
        matches!(self.qemu, Qemu::Up { .. })
    }

    pub(super) fn on_vf(&self) -> bool {
        self.phase() == Some(Phase::OnVf)
    }

    pub(super) fn is_moving(&self) -> bool {
        matches!(self.phase(), Some(Phase::ToVf | Phase::ToPv))
    }

    /// Why it cannot take a VF now, if it cannot.
    pub(in crate::logic) fn unready(&self, now: Duration) -> Option<String> {
        match &self.qemu {
            Qemu::Unseen => return Some("QEMU not reached yet".into()),
            Qemu::Lost(reason) => return Some(reason.clone()),
            Qemu::Up { free_port: None } => return Some("no empty root port".into()),
            Qemu::Up { .. } => {}
        }
        if let Some(reason) = self.agent.unready() {
            return Some(reason);
        }
        (self.backoff.until > now)
            .then(|| format!("rests after a failed switch: {}", self.backoff.reason))
    }

    /// A VM that is away for a moment keeps its place; one without QEMU or agent has none.
    pub(super) fn may_be_ranked(&self) -> bool {
        self.hold.is_some() || (self.is_up() && self.agent.unready().is_none())
    }

    pub(super) fn view(&self, now: Duration, name: &VmName) -> VmView {
        let hold = match self.phase() {
            None => Hold::Pv { ready: self.unready(now).is_none() },
            Some(Phase::OnVf) => Hold::Vf,
            Some(Phase::ToVf | Phase::Quarantined(_)) => Hold::Arriving,
            Some(Phase::ToPv | Phase::Ended) => Hold::Leaving,
        };
        let must_leave = if self.unregistered {
            Some("its registration is gone".to_owned())
        } else {
            (self.spec.pin == Some(Pin::Pv)).then(|| "pinned to PV".to_owned())
        };
        VmView { vm: name.clone(), hold, must_leave }
    }
}

impl Backoff {
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    pub(super) fn fail(&mut self, now: Duration, reason: &str) {
        let pause = FIRST_BACKOFF.saturating_mul(1 << self.failures.min(16)).min(MAX_BACKOFF);
        self.failures = self.failures.saturating_add(1);
        self.until = now + pause;
        self.reason = reason.to_owned();
    }
}
