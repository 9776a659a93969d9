//! `flexvf run --dry-run`: all is looked at, counted and decided, and nothing done.
//!
//! The engine may begin no switch (a budget of none). What it does of itself about VFs that it finds
//! plugged, to see that all is in order with them, is answered here as if it were.

use flexvf_protocol::agent::VfState;
use tracing::info;

use crate::logic::decision::Decision;
use crate::logic::switch::{Action, Report};

/// What an action would have come to.
pub(super) fn report(action: Action) -> Report {
    match action {
        Action::Join => Report::Vf(VfState::Ready),
        // What a QEMU has it is left with.
        Action::Look => Report::DevicePresent(true),
        _ => Report::Ok,
    }
}

/// Says what would change, and why.
pub(super) fn tell(decisions: &[Decision]) {
    for decision in decisions {
        let pool = &decision.pool;
        for place in decision.gainers() {
            let from = place.displaces.as_ref().map(tracing::field::display);
            info!(pool, vm = %place.vm, from, reason = %place.reason, "would get a VF");
        }
        for place in decision.losers() {
            let to = place.displaced_by.as_ref().map(tracing::field::display);
            info!(pool, vm = %place.vm, to, reason = %place.reason, "would lose its VF");
        }
    }
}
