//! What the engine keeps of one VM.

use std::time::Duration;

use flexvf_protocol::VmName;

use super::index::Card;
use super::{AgentView, Held, VmSpec};
use crate::logic::guest_count::Counting;
use crate::logic::policy::Pin;
use crate::logic::policy::tenant::Tenants;
use crate::logic::rate::{Rate, RateMeter};
use crate::logic::reconcile::{Cap, Hold, Holder, Taker};
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
    /// What about its QEMU forbids a VF.
    pub(super) obstacle: Option<String>,
    /// The NUMA node that it runs on.
    pub(super) node: Option<u32>,
    pub(in crate::logic) meter: RateMeter,
    pub(in crate::logic) counting: Counting,
    pub(in crate::logic) last_interval: Option<(u64, Rate)>,
    pub(in crate::logic) hold: Option<(Held, Tenure)>,
    pub(in crate::logic) turns: u64,
    pub(in crate::logic) backoff: Backoff,
    /// How long its first plug is taken to be, once it is known how much memory there is to pin.
    pub(super) first_plug: Option<Duration>,
    /// Its last switch to a VF that worked.
    pub(super) to_vf_took: Option<Duration>,
    /// Its last switch back.
    pub(super) to_pv_took: Option<Duration>,
    pub(super) unregistered: bool,
    /// In the last ranking, from 0.
    pub(in crate::logic) place: Option<usize>,
    /// What the indices have of it.
    pub(super) filed: Option<Card>,
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
        if let Some(reason) = self.obstacle.clone().or_else(|| self.agent.unready()) {
            return Some(reason);
        }
        (self.backoff.until > now)
            .then(|| format!("rests after a failed switch: {}", self.backoff.reason))
    }

    /// A VM that is away for a moment keeps its place; one without QEMU or agent has none, nor has one
    /// whose QEMU could not take a VF.
    pub(super) fn may_be_ranked(&self) -> bool {
        let fit = self.obstacle.is_none() && self.agent.unready().is_none();
        self.hold.is_some() || (self.is_up() && fit)
    }

    /// How it has its VF, if it has one.
    pub(super) fn hold_kind(&self) -> Hold {
        match self.phase() {
            Some(Phase::OnVf) => Hold::Vf,
            Some(Phase::ToVf) => Hold::Arriving,
            Some(Phase::Quarantined(_)) => Hold::Stuck,
            Some(Phase::ToPv | Phase::Ended) | None => Hold::Leaving,
        }
    }

    /// Why it must not keep a VF, if it must not.
    pub(super) fn must_leave(&self) -> Option<&'static str> {
        if self.unregistered {
            return Some("its registration is gone");
        }
        (self.spec.words.pin == Some(Pin::Pv)).then_some("pinned to PV")
    }

    /// It has a VF that its pool can count on.
    pub(super) fn has_usable_vf(&self) -> bool {
        self.hold.is_some() && self.hold_kind() != Hold::Stuck
    }

    /// Its tenant's bound, if that has one.
    fn cap(&self, tenants: &Tenants) -> Option<Cap> {
        let tenant = tenants.get(self.spec.words.tenant.as_ref()?)?;
        Some(Cap { tenant: tenant.name.clone(), max: tenant.max_vfs? })
    }

    pub(super) fn holder(&self, name: &VmName, tenants: &Tenants) -> Option<Holder> {
        self.hold.as_ref().map(|_| Holder {
            vm: name.clone(),
            place: self.place,
            hold: self.hold_kind(),
            must_leave: self.must_leave().map(str::to_owned),
            cap: self.cap(tenants),
        })
    }

    pub(super) fn taker(&self, name: &VmName, tenants: &Tenants) -> Taker {
        Taker { vm: name.clone(), place: self.place, cap: self.cap(tenants) }
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
