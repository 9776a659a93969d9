//! When VMs are sampled: a few moments in each interval, many VMs at each of them.
//!
//! A wake-up costs the processor more than a sample. Not all at one moment, or the daemon would be
//! busy with that for milliseconds while a switch waits.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use flexvf_protocol::VmName;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// The moments.
#[derive(Debug)]
pub(in crate::daemon) struct Grid {
    began: Instant,
    interval: Duration,
}

impl Grid {
    /// From now on, each VM once in each interval.
    pub(in crate::daemon) fn new(interval: Duration) -> Self {
        Self { began: Instant::now(), interval }
    }

    /// Ticks at a VM's moments.
    pub(super) fn every(&self, vm: &VmName) -> Interval {
        let mut hasher = DefaultHasher::new();
        vm.hash(&mut hasher);
        let slot = u32::try_from(hasher.finish() % u64::from(SLOTS)).unwrap_or(0);
        let first = next(self.began.elapsed(), self.interval, slot);
        let mut timer = interval_at(self.began + first, self.interval);
        // Back to the grid after a long action.
        timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
        timer
    }
}

/// The next moment of a slot after `now`.
fn next(now: Duration, interval: Duration, slot: u32) -> Duration {
    let offset = interval * slot / SLOTS;
    let past = now.saturating_sub(offset).as_nanos() / interval.as_nanos().max(1);
    let before = offset + interval.saturating_mul(u32::try_from(past).unwrap_or(u32::MAX));
    if before > now { before } else { before + interval }
}

/// With a thousand VMs some sixty are sampled at one moment, which takes below a millisecond.
const SLOTS: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_next_moment_is_on_the_grid_and_within_an_interval(
            now_ms in 0u64..100_000_000, interval_ms in 100u64..300_000, slot in 0..SLOTS
        ) {
            let (now, interval) = (Duration::from_millis(now_ms), Duration::from_millis(interval_ms));
            let next = next(now, interval, slot);
            let offset = interval * slot / SLOTS;
            prop_assert!(next > now || next == offset);
            prop_assert!(next <= now + interval + offset);
            prop_assert_eq!(next.saturating_sub(offset).as_nanos() % interval.as_nanos(), 0);
        }
    }
}
