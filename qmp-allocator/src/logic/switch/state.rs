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
    OnVf,
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
            Self::OnVf | Self::Quarantined { .. } | Self::SanitiseFailed { .. } | Self::Ended => {
                return None;
            }
        })
    }
}
