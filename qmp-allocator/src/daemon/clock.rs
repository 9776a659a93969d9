//! The one clock: CLOCK_MONOTONIC, as time since the host's boot, the same in every process.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Now, since boot.
pub(super) fn now() -> Duration {
    // The call cannot fail for this clock on Linux.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Sleeps until a moment since boot; not at all if it has come, where a timer would take a millisecond.
pub(super) async fn sleep_until(moment: Duration) {
    let left = moment.saturating_sub(now());
    if !left.is_zero() {
        tokio::time::sleep_until(Instant::now() + left).await;
    }
}
