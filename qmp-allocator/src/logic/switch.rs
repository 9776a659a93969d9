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
//! A VF that is not where it was thought to be is taken up again: a guest that was reset, or whose bond
//! has left the VF, gets its frames on both paths at once, and is joined anew once its agent answers
//! (Parting, Parted).
//!
//! One [`Action`] is under way at a time and always comes back as [`Input::Done`], because whoever
//! carries it out has a deadline of his own. What a failed action leaves behind is never assumed:
//! a VF goes back to its pool only once QEMU says that the device is gone and the host's settings
//! are restored.

use std::time::Duration;

use flexvf_protocol::agent::Path;

mod action;
mod record;
mod state;
mod steps;

pub use action::{Action, Input, Report, Target};
use record::Recorder;
pub use record::{Direction, Outcome, Record};
use state::{After, State};

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
    /// With `keep`, the switch to the VF is completed at once; else when the guest's agent is heard of,
    /// and until then the VF counts as held and may be taken.
    pub fn adopt(now: Duration, limits: Limits, keep: bool) -> (Self, Option<Action>) {
        let recorder = Recorder::begin(now, Direction::ToVf, "found plugged at start".into());
        // Which path the guest uses, and where its frames go, is not known: its agent is waited for.
        let mut tenure = Self::new(limits, State::Parted, recorder);
        let action = keep.then(|| tenure.join(now));
        (tenure, action)
    }

    const fn new(limits: Limits, state: State, recorder: Recorder) -> Self {
        Self { limits, state, busy: false, device_gone: false, recorder }
    }

    /// Where the tenure stands.
    pub fn phase(&self) -> Phase {
        match &self.state {
            State::OnVf { .. } | State::Parted => Phase::OnVf,
            State::Quarantined { reason, .. }
            | State::Kept { reason, .. }
            | State::SanitiseFailed { reason, .. } => Phase::Quarantined(reason.clone()),
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
            State::Kept { retry_at, .. } | State::SanitiseFailed { retry_at, .. } => {
                Some(*retry_at)
            }
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
            Input::Take { reason } if self.is_on_vf() => {
                self.recorder = Recorder::begin(now, Direction::ToPv, reason);
                self.overlap(now, Path::Pv)
            }
            Input::Reset => self.on_reset(now),
            Input::Uses(path) => self.on_use(now, path),
            Input::Tick if !self.busy => self.on_tick(now),
            Input::Retry if !self.busy => self.on_retry(now),
            Input::Take { .. } | Input::Tick | Input::Retry => None,
        }
    }

    fn leaving(&self) -> bool {
        self.recorder.direction() == Direction::ToPv || self.recorder.undoing().is_some()
    }

    const fn is_on_vf(&self) -> bool {
        matches!(self.state, State::OnVf { .. } | State::Parted)
    }

    fn join(&mut self, now: Duration) -> Action {
        self.enter(now, State::Joining { deadline: now + self.limits.join, next_ask: None });
        self.act(Action::Join)
    }

    /// The guest may be on either path.
    fn part(&mut self, now: Duration, after: After, why: &str) -> Option<Action> {
        self.recorder = Recorder::begin(now, Direction::ToVf, why.into());
        self.go(now, State::Parting(after), Action::Forward(Target::Both))
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
