//! Where a switch stands; [`super`] draws how it goes from one to the next.

use std::time::Duration;

use flexvf_protocol::agent::Path;

/// Where the machine stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    Preparing,
    Plugging,
    Joining {
        deadline: Duration,
        next_ask: Option<Duration>,
    },
    /// The path is the one that is to become active, here and in the two below.
    Overlapping(Path),
    Activating(Path),
    Forwarding(Path),
    OnVf {
        /// From then on the agent's word counts that the bond is not on the VF.
        heed_from: Duration,
    },
    /// The guest may be on either path, and the host is to forward to both.
    Parting(After),
    /// The host forwards to both paths until the guest's agent answers.
    Parted,
    /// The host cannot send the guest's frames to PV: it stays on the VF.
    Kept {
        reason: String,
        retry_at: Duration,
    },
    Draining {
        until: Duration,
    },
    Releasing,
    Unplugging {
        deadline: Duration,
        repeat_at: Duration,
    },
    Quarantined {
        reason: String,
        look_at: Duration,
    },
    Sanitising,
    SanitiseFailed {
        reason: String,
        retry_at: Duration,
    },
    Ended,
}

/// What follows [`State::Parting`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum After {
    /// The agent is there.
    Join,
    /// The guest boots.
    Wait,
}

impl State {
    /// The step's name in records; a state without one costs no time worth telling.
    pub(super) const fn step_name(&self) -> Option<&'static str> {
        Some(match self {
            Self::Preparing => "prepare",
            Self::Plugging => "plug",
            Self::Joining { .. } => "join",
            Self::Overlapping(_) => "overlap",
            Self::Activating(_) => "activate",
            Self::Forwarding(_) => "forward",
            Self::Draining { .. } => "drain",
            Self::Releasing => "release",
            Self::Unplugging { .. } => "unplug",
            Self::Sanitising => "sanitise",
            Self::Parting(_) => "part",
            Self::OnVf { .. }
            | Self::Parted
            | Self::Kept { .. }
            | Self::Quarantined { .. }
            | Self::SanitiseFailed { .. }
            | Self::Ended => return None,
        })
    }
}
