//! A guest with net_failover instead of bond and agent: its kernel takes a VF by itself, by the PV NIC's
//! MAC address, uses it as soon as it has a link, and goes back to PV when it is unplugged.
//!
//! Nobody says when the guest has taken the VF. Its first packet over it does; a guest that sends nothing
//! is let through after a while, and its frames go both ways then: net_failover takes each once. Nobody can
//! tell it to go back before the unplug either, so until the device is gone its frames go both ways again.

use std::time::Duration;

use flexvf_protocol::agent::{Path, VfState};
use tokio::time::Instant;

use super::VmTask;
use crate::logic::engine::AgentView;
use crate::logic::switch::{Action, Report, Target};
use crate::logic::vf::VfId;

/// How far the guest's VF is.
#[derive(Debug, Default)]
pub(super) enum Primary {
    /// Nothing is known of one.
    #[default]
    Unknown,
    /// The guest has sent over it.
    Used,
    /// Looked for.
    Awaited {
        /// Since when.
        since: Instant,
        /// What was counted of the VF then; none where the host cannot count.
        sent: Option<u64>,
    },
}

/// For a guest that sends nothing, or whose packets the PF's driver does not count: its driver and link
/// take no longer.
const SILENT_WAIT: Duration = Duration::from_secs(5);

impl VmTask {
    /// What there is in place of an agent; none for guests that need one.
    pub(super) fn failover_view(&mut self) -> Option<AgentView> {
        self.config.failover.as_ref()?;
        self.guest.needs_no_agent();
        let active = if self.holds.is_some() { Path::Vf } else { Path::Pv };
        Some(AgentView::NetFailover { active: Some(active) })
    }

    /// What such a guest makes different; none where an action is the same.
    pub(super) async fn act_for_failover(&mut self, vf: &VfId, action: Action) -> Option<Report> {
        match action {
            Action::Plug => {
                self.primary = Primary::Unknown;
                // The guest drops what comes on PV from the moment at which its VF has a link.
                let both = self.shared.host.forward(&self.config, Some(vf), Target::Both).await;
                both.err().map(|error| Report::Refused(error.to_string()))
            }
            Action::Join => Some(Report::Vf(self.join_failover(vf).await)),
            Action::Activate(path) => {
                if path == Path::Pv {
                    self.sample().await;
                }
                Some(Report::Ok)
            }
            Action::Leave => Some(Report::Vf(VfState::Present)),
            Action::Forward(Target::Only(Path::Vf)) if matches!(self.primary, Primary::Used) => {
                None
            }
            Action::Forward(_) => {
                let both = self.shared.host.forward(&self.config, Some(vf), Target::Both).await;
                Some(both.map_or_else(|error| Report::Refused(error.to_string()), |()| Report::Ok))
            }
            Action::Prepare | Action::Unplug | Action::Look | Action::Sanitise => None,
        }
    }

    async fn join_failover(&mut self, vf: &VfId) -> VfState {
        let now = self.shared.host.sent_by_guest(&self.config, vf).await;
        let (since, before) = match self.primary {
            Primary::Awaited { since, sent } => (since, sent),
            Primary::Used => return VfState::Active,
            Primary::Unknown => {
                self.primary = Primary::Awaited { since: Instant::now(), sent: now };
                return VfState::Joined;
            }
        };
        if before.zip(now).is_some_and(|(before, now)| before != now) {
            self.primary = Primary::Used;
            return VfState::Active;
        }
        if since.elapsed() >= SILENT_WAIT { VfState::Ready } else { VfState::Joined }
    }
}
