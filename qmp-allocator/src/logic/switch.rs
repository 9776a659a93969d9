//! One VM's hold of a VF, from the first preparation to the last restoration: the switch
//! transaction as a state machine.
//!
//! ```text
//!  Preparing ─▶ Plugging ─▶ Joining ─▶ Overlapping ─▶ Activating ─▶ Forwarding ─▶ ON VF
//!      │            │          │           │              │             │          │
//!      │            │          └── undo ───┴──── undo ────┴──── undo ───┤          │ take
//!      │            │                                                   ▼          │
//!      │            │              Overlapping ─▶ Activating ─▶ Forwarding   ◀─────┘
//!      │            │                                                   │
//!      │            │                       Releasing ◀─ Draining ◀─────┘
//!      │            │ undo                       ▼
//!      │            └─ if it may be there ─▶ Unplugging ──deadline──▶ Quarantined
//!      │                                         │                        │
//!      └──────────────── undo ─────────────▶ Sanitising ◀─────────────────┘
//!                                                ▼
//!                                              ended
//! ```
//!
//! Make before break, both ways: the host forwards the guest's frames to both paths (overlapping),
//! then the bond changes its active port, then the host forwards to that one only.
//! One [`Action`] is under way at a time and always comes back as [`Input::Done`], because whoever
//! carries it out has a deadline of his own. What a failed action leaves behind is never assumed:
//! a VF goes back to its pool only once QEMU says that the device is gone and the host's settings
//! are restored.

use std::time::Duration;

use flexvf_protocol::agent::{Path, VfState};

mod action;
mod record;
mod state;

pub use action::{Action, Input, Report, Target};
use record::Recorder;
pub use record::{Direction, Outcome, Record};
use state::State;

/// How long the machine waits before it gives up, and between repetitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// From the plug to the bond's own view that the VF is up.
    pub join: Duration,
    /// After PV is active: frames in flight to the VF still arrive.
    pub drain: Duration,
    /// From the first `device_del` to quarantine.
    pub unplug: Duration,
    /// Between two `device_del`: more than 5 s, within which a second press of the attention
    /// button cancels the first (PCIe 6.7.1.5).
    pub unplug_repeat: Duration,
}

/// Between two looks at a guest that is taking the VF in.
const JOIN_POLL: Duration = Duration::from_millis(100);
/// Between two looks at a quarantined VF.
const QUARANTINE_POLL: Duration = Duration::from_secs(10);

/// What the rest of the program may know of a tenure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// On its way to the VF.
    ToVf,
    /// The VM runs over the VF.
    OnVf,
    /// On its way back to PV.
    ToPv,
    /// QEMU or the host has not let go of the VF.
    Quarantined(String),
    /// The VF is back in its pool.
    Ended,
}

/// One VM's hold of one VF.
#[derive(Debug, Clone)]
pub struct Tenure {
    limits: Limits,
    state: State,
    /// An action is out and has not come back.
    busy: bool,
    /// QEMU has said that the device is gone, or has ended itself.
    device_gone: bool,
    recorder: Recorder,
}

impl Tenure {
    /// Begins a switch to the VF; `reason` is for people.
    pub fn begin(now: Duration, limits: Limits, reason: String) -> (Self, Action) {
        let recorder = Recorder::begin(now, Direction::ToVf, reason);
        let mut tenure = Self::new(limits, State::Preparing, recorder);
        tenure.enter(now, State::Preparing);
        let action = tenure.act(Action::Prepare);
        (tenure, action)
    }

    /// Takes up a hold that an earlier daemon left: the device is in QEMU, the rest is found out.
    /// With `keep`, the switch to the VF is completed; else the VF counts as held until it is taken.
    pub fn adopt(now: Duration, limits: Limits, keep: bool) -> (Self, Option<Action>) {
        let recorder = Recorder::begin(now, Direction::ToVf, "found plugged at start".into());
        let mut tenure = Self::new(limits, State::OnVf, recorder);
        let action = keep.then(|| tenure.join(now));
        if !keep {
            tenure.recorder.close();
        }
        (tenure, action)
    }

    const fn new(limits: Limits, state: State, recorder: Recorder) -> Self {
        Self { limits, state, busy: false, device_gone: false, recorder }
    }

    /// Where the tenure stands.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::OnVf => Phase::OnVf,
            State::Quarantined { reason, .. } | State::SanitiseFailed { reason, .. } => {
                Phase::Quarantined(reason.clone())
            }
            State::Ended => Phase::Ended,
            _ if self.recorder.direction() == Direction::ToVf
                && self.recorder.undoing().is_none() =>
            {
                Phase::ToVf
            }
            _ => Phase::ToPv,
        }
    }

    /// The next moment at which it wants a [`Input::Tick`].
    pub fn wake_at(&self) -> Option<Duration> {
        match &self.state {
            State::Joining { next_ask, .. } => *next_ask,
            State::Draining { until } => Some(*until),
            State::Unplugging { deadline, repeat_at } => Some((*deadline).min(*repeat_at)),
            State::Quarantined { look_at, .. } => Some(*look_at),
            State::SanitiseFailed { retry_at, .. } => Some(*retry_at),
            _ => None,
        }
        .filter(|_| !self.busy)
    }

    /// The record of a switch that has just ended, once.
    pub fn take_record(&mut self) -> Option<Record> {
        self.recorder.take_finished()
    }

    /// Goes on: the next action, if there is one to do now.
    pub fn on(&mut self, now: Duration, input: Input) -> Option<Action> {
        match input {
            Input::Deleted | Input::Exited => self.on_device_gone(now, &input),
            Input::Done(report) => {
                self.busy = false;
                self.on_done(now, report)
            }
            Input::Take { reason } if self.state == State::OnVf => {
                self.recorder = Recorder::begin(now, Direction::ToPv, reason);
                self.overlap(now, Path::Pv)
            }
            Input::Tick if !self.busy => self.on_tick(now),
            Input::Take { .. } | Input::Tick => None,
        }
    }

    fn on_done(&mut self, now: Duration, report: Report) -> Option<Action> {
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
            State::Releasing => self.unplug(now),
            State::Unplugging { deadline, repeat_at } => {
                self.on_unplugging(now, deadline, repeat_at, report)
            }
            State::Quarantined { reason, .. } => self.on_quarantined(now, reason, report),
            State::Sanitising => self.on_sanitised(now, report),
            State::OnVf | State::Draining { .. } | State::SanitiseFailed { .. } | State::Ended => {
                None
            }
        }
    }

    /// Towards PV there is no way but forward: a guest that does not answer loses its VF, and its
    /// bond fails over by itself.
    fn on_moving(&mut self, now: Duration, path: Path, report: Report) -> Option<Action> {
        if path == Path::Vf
            && let Some(reason) = report.failure()
        {
            return self.undo(now, reason);
        }
        match (&self.state, path) {
            (State::Overlapping(_), _) => {
                self.go(now, State::Activating(path), Action::Activate(path))
            }
            (State::Activating(_), _) => {
                self.go(now, State::Forwarding(path), Action::Forward(Target::Only(path)))
            }
            (_, Path::Vf) => {
                self.enter(now, State::OnVf);
                self.recorder.finish(now, Outcome::Done);
                None
            }
            (_, Path::Pv) => {
                self.enter(now, State::Draining { until: now + self.limits.drain });
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

    fn on_tick(&mut self, now: Duration) -> Option<Action> {
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
            State::Quarantined { look_at, .. } if now >= look_at => Some(self.act(Action::Look)),
            State::SanitiseFailed { retry_at, .. } if now >= retry_at => self.sanitise(now),
            _ => None,
        }
    }

    fn on_device_gone(&mut self, now: Duration, why: &Input) -> Option<Action> {
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
        if self.state == State::OnVf {
            self.recorder = Recorder::begin(now, Direction::ToPv, text.into());
        } else if !self.leaving() {
            self.recorder.undo(text.into());
        }
        self.device_gone = true;
        // With an action out, its end leads on: two at once would overtake each other.
        if self.busy { None } else { self.sanitise(now) }
    }

    fn leaving(&self) -> bool {
        self.recorder.direction() == Direction::ToPv || self.recorder.undoing().is_some()
    }

    fn join(&mut self, now: Duration) -> Action {
        self.enter(now, State::Joining { deadline: now + self.limits.join, next_ask: None });
        self.act(Action::Join)
    }

    fn undo(&mut self, now: Duration, reason: String) -> Option<Action> {
        self.recorder.undo(reason);
        self.overlap(now, Path::Pv)
    }

    fn overlap(&mut self, now: Duration, path: Path) -> Option<Action> {
        self.go(now, State::Overlapping(path), Action::Forward(Target::Both))
    }

    fn unplug(&mut self, now: Duration) -> Option<Action> {
        let deadline = now + self.limits.unplug;
        let repeat_at = now + self.limits.unplug_repeat;
        self.go(now, State::Unplugging { deadline, repeat_at }, Action::Unplug)
    }

    fn sanitise(&mut self, now: Duration) -> Option<Action> {
        self.go(now, State::Sanitising, Action::Sanitise)
    }

    fn go(&mut self, now: Duration, state: State, action: Action) -> Option<Action> {
        self.enter(now, state);
        Some(self.act(action))
    }

    fn enter(&mut self, now: Duration, state: State) {
        self.recorder.step(now, state.step_name());
        self.state = state;
    }

    fn act(&mut self, action: Action) -> Action {
        self.busy = true;
        action
    }
}

#[cfg(test)]
mod tests;
