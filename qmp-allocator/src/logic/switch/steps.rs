//! What the machine does at each report, tick and event, state by state.

use std::time::Duration;

use flexvf_protocol::agent::{Path, VfState};

use super::record::Recorder;
use super::state::{After, State};
use super::{Action, Direction, Input, Outcome, Report, Target, Tenure};

/// Between two looks at a guest that is taking the VF in.
const JOIN_POLL: Duration = Duration::from_millis(100);
/// Between two looks at a quarantined VF.
const QUARANTINE_POLL: Duration = Duration::from_secs(10);
/// After a switch to the VF, before a guest's word that it is elsewhere makes it join again: a guest
/// that lies costs its host this little.
const REJOIN_PAUSE: Duration = Duration::from_secs(10);

impl Tenure {
    pub(super) fn on_done(&mut self, now: Duration, report: Report) -> Option<Action> {
        if self.state == State::Preparing
            && let Report::Refused(reason) = report
        {
            return self.on_not_prepared(now, reason);
        }
        if self.device_gone && self.state != State::Sanitising {
            return self.sanitise(now);
        }
        match self.state.clone() {
            State::Preparing => match report.failure() {
                None => self.go(now, State::Plugging, Action::Plug),
                Some(reason) => {
                    self.recorder.undo(reason);
                    self.sanitise(now)
                }
            },
            State::Plugging => match report {
                Report::Unknown(reason) => {
                    self.recorder.undo(reason);
                    self.unplug(now)
                }
                Report::Refused(reason) => {
                    self.recorder.undo(reason);
                    self.sanitise(now)
                }
                _ => Some(self.join(now)),
            },
            State::Joining { deadline, .. } => self.on_joining(now, deadline, report),
            State::Overlapping(path) | State::Activating(path) | State::Forwarding(path) => {
                self.on_moving(now, path, report)
            }
            State::Parting(after) => self.on_parted(now, after, report),
            State::Releasing => self.unplug(now),
            State::Unplugging { deadline, repeat_at } => {
                self.on_unplugging(now, deadline, repeat_at, report)
            }
            State::Quarantined { reason, .. } => self.on_quarantined(now, reason, report),
            State::Sanitising => self.on_sanitised(now, report),
            State::OnVf { .. }
            | State::Parted
            | State::Kept { .. }
            | State::Draining { .. }
            | State::SanitiseFailed { .. }
            | State::Ended => None,
        }
    }

    /// A refused preparation has changed nothing. To put things back would take the VF from whoever
    /// has it.
    fn on_not_prepared(&mut self, now: Duration, reason: String) -> Option<Action> {
        self.recorder.undo(reason.clone());
        self.enter(now, State::Ended);
        self.recorder.finish(now, Outcome::Undone(reason));
        None
    }

    /// Towards PV, a guest that does not answer loses its VF and its bond fails over by itself, so its
    /// frames go both ways until then. A host that cannot send frames to PV keeps the guest on its VF.
    fn on_moving(&mut self, now: Duration, path: Path, report: Report) -> Option<Action> {
        match (&self.state, path, report.failure()) {
            (_, Path::Vf, Some(reason)) => self.undo(now, reason),
            (State::Overlapping(_), Path::Pv, Some(reason)) => self.keep(now, reason),
            (State::Activating(_), Path::Pv, Some(_)) => self.drain(now),
            (State::Overlapping(_), ..) => {
                self.go(now, State::Activating(path), Action::Activate(path))
            }
            (State::Activating(_), ..) => {
                self.go(now, State::Forwarding(path), Action::Forward(Target::Only(path)))
            }
            (_, Path::Vf, None) => {
                self.enter(now, State::OnVf { heed_from: now + REJOIN_PAUSE });
                self.recorder.finish(now, Outcome::Done);
                None
            }
            (_, Path::Pv, _) => self.drain(now),
        }
    }

    fn drain(&mut self, now: Duration) -> Option<Action> {
        self.enter(now, State::Draining { until: now + self.limits.drain });
        None
    }

    fn keep(&mut self, now: Duration, reason: String) -> Option<Action> {
        self.recorder.finish(now, Outcome::Quarantined(reason.clone()));
        self.enter(now, State::Kept { reason, retry_at: now + QUARANTINE_POLL });
        None
    }

    pub(super) fn on_reset(&mut self, now: Duration) -> Option<Action> {
        match self.state {
            State::OnVf { .. } => self.part(now, After::Wait, "the guest was reset"),
            State::Parting(_) => {
                self.state = State::Parting(After::Wait);
                None
            }
            _ => None,
        }
    }

    pub(super) fn on_use(&mut self, now: Duration, path: Option<Path>) -> Option<Action> {
        match self.state {
            State::OnVf { heed_from } if path != Some(Path::Vf) && now >= heed_from => {
                self.part(now, After::Join, "the guest's bond has left the VF")
            }
            State::Parting(After::Wait) => {
                self.state = State::Parting(After::Join);
                None
            }
            State::Parted => Some(self.join(now)),
            _ => None,
        }
    }

    fn on_parted(&mut self, now: Duration, after: After, report: Report) -> Option<Action> {
        if report.failure().is_some() {
            // Nothing has changed; the agent's next word makes it try again.
            self.recorder.close();
            self.enter(now, State::OnVf { heed_from: Duration::ZERO });
            return None;
        }
        match after {
            After::Join => Some(self.join(now)),
            After::Wait => {
                self.enter(now, State::Parted);
                None
            }
        }
    }

    fn on_joining(&mut self, now: Duration, deadline: Duration, report: Report) -> Option<Action> {
        match report {
            Report::Vf(VfState::Ready | VfState::Active) => self.overlap(now, Path::Vf),
            // A guest that answers "no" may say "yes" once its driver is up; only time ends this.
            _ if now >= deadline => {
                let what = match report {
                    Report::Vf(state) => {
                        format!("the VF is still {state:?} in the guest").to_lowercase()
                    }
                    other => {
                        other.failure().unwrap_or_else(|| "unexpected answer of the agent".into())
                    }
                };
                self.undo(now, format!("not joined within {:?}: {what}", self.limits.join))
            }
            _ => {
                self.state = State::Joining { deadline, next_ask: Some(now + JOIN_POLL) };
                None
            }
        }
    }

    fn on_unplugging(
        &mut self,
        now: Duration,
        deadline: Duration,
        repeat_at: Duration,
        report: Report,
    ) -> Option<Action> {
        if report == Report::DevicePresent(false) {
            self.device_gone = true;
            return self.sanitise(now);
        }
        if now >= deadline {
            let reason = report.failure().unwrap_or_else(|| {
                format!(
                    "no DEVICE_DELETED within {:?}; does the guest refuse hot-unplug?",
                    self.limits.unplug
                )
            });
            self.recorder.finish(now, Outcome::Quarantined(reason.clone()));
            let look_at = now + QUARANTINE_POLL;
            self.enter(now, State::Quarantined { reason, look_at });
            return None;
        }
        self.state = State::Unplugging { deadline, repeat_at };
        None
    }

    fn on_quarantined(&mut self, now: Duration, reason: String, report: Report) -> Option<Action> {
        if report == Report::DevicePresent(false) {
            self.device_gone = true;
            return self.sanitise(now);
        }
        // The guest may have come to its senses (or booted anew): ask again, slowly.
        let ask = report == Report::DevicePresent(true);
        let look_at = now + QUARANTINE_POLL;
        self.state = State::Quarantined { reason, look_at };
        ask.then(|| self.act(Action::Unplug))
    }

    fn on_sanitised(&mut self, now: Duration, report: Report) -> Option<Action> {
        if report == Report::DevicePresent(true) {
            // The event spoke of an earlier device of this id: the way back begins with the bond.
            self.device_gone = false;
            return self.undo(now, "the VF is still in QEMU".into());
        }
        match report.failure() {
            None => {
                self.enter(now, State::Ended);
                let outcome = match self.recorder.undoing() {
                    Some(reason) => Outcome::Undone(reason.to_owned()),
                    None => Outcome::Done,
                };
                self.recorder.finish(now, outcome);
            }
            Some(reason) => {
                self.recorder.finish(now, Outcome::Quarantined(reason.clone()));
                self.state = State::SanitiseFailed { reason, retry_at: now + QUARANTINE_POLL };
            }
        }
        None
    }

    pub(super) fn on_tick(&mut self, now: Duration) -> Option<Action> {
        match self.state.clone() {
            State::Joining { deadline, next_ask: Some(ask) } if now >= ask => {
                self.state = State::Joining { deadline, next_ask: None };
                Some(self.act(Action::Join))
            }
            State::Draining { until } if now >= until => {
                self.go(now, State::Releasing, Action::Leave)
            }
            State::Unplugging { deadline, repeat_at } if now >= deadline.min(repeat_at) => {
                // The event may have been lost, or the request; at the end the last look decides.
                let ask = now < deadline;
                let repeat_at = now + self.limits.unplug_repeat;
                self.state = State::Unplugging { deadline, repeat_at };
                Some(self.act(if ask { Action::Unplug } else { Action::Look }))
            }
            State::Quarantined { look_at: at, .. }
            | State::Kept { retry_at: at, .. }
            | State::SanitiseFailed { retry_at: at, .. }
                if now >= at =>
            {
                self.on_retry(now)
            }
            _ => None,
        }
    }

    /// What keeps the VF is looked at; nothing else gives it back.
    pub(super) fn on_retry(&mut self, now: Duration) -> Option<Action> {
        match self.state {
            State::Quarantined { .. } => Some(self.act(Action::Look)),
            State::Kept { .. } => self.overlap(now, Path::Pv),
            State::SanitiseFailed { .. } => self.sanitise(now),
            _ => None,
        }
    }

    pub(super) fn on_device_gone(&mut self, now: Duration, why: &Input) -> Option<Action> {
        if matches!(self.state, State::Ended | State::Sanitising | State::SanitiseFailed { .. }) {
            return None;
        }
        // While a plug is under way, DEVICE_DELETED can only speak of an earlier device of this id.
        if *why == Input::Deleted && matches!(self.state, State::Preparing | State::Plugging) {
            return None;
        }
        let text = if *why == Input::Exited {
            "QEMU ended"
        } else {
            "the guest let go of the VF by itself"
        };
        if self.is_on_vf() {
            self.recorder = Recorder::begin(now, Direction::ToPv, text.into());
        } else if !self.leaving() {
            self.recorder.undo(text.into());
        }
        self.device_gone = true;
        // With an action out, its end leads on: two at once would overtake each other.
        if self.busy { None } else { self.sanitise(now) }
    }
}
