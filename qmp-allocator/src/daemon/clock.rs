//! The one clock: CLOCK_MONOTONIC, as time since the host's boot, the same in every process.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};
use tokio::time::Instant;

/// Now, since boot.
pub(super) fn now() -> Duration {
    // The call cannot fail for this clock on Linux.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// Sleeps until a moment since boot.
pub(super) async fn sleep_until(moment: Duration) {
    tokio::time::sleep_until(Instant::now() + moment.saturating_sub(now())).await;
}
