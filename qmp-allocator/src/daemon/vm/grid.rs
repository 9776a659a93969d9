//! When VMs are sampled, and when they are looked at.
//!
//! A wake-up costs the processor more than a sample, so many VMs are sampled at each of a few moments
//! in an interval. Not all at one, or the daemon would be busy with that for milliseconds while a
//! switch waits. A look takes longer than a wake-up: each VM has a moment of its own, more or less.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use flexvf_protocol::VmName;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// The moments.
#[derive(Debug)]
pub(in crate::daemon) struct Grid {
    began: Instant,
    sample_interval: Duration,
    look_period: Duration,
}

impl Grid {
    /// From now on: each VM is sampled once in each sample interval, and looked at once before each
    /// decision, but no oftener than [`LOOK_PERIOD`].
    pub(in crate::daemon) fn new(sample_interval: Duration, interval: Duration) -> Self {
        Self { began: Instant::now(), sample_interval, look_period: interval.max(LOOK_PERIOD) }
    }

    /// Ticks when a VM is to be sampled.
    pub(super) fn samples(&self, vm: &VmName) -> Interval {
        self.every(vm, self.sample_interval, SAMPLE_SLOTS)
    }

    /// Ticks when a VM is to be looked at.
    pub(super) fn looks(&self, vm: &VmName) -> Interval {
        self.every(vm, self.look_period, LOOK_SLOTS)
    }

    fn every(&self, vm: &VmName, period: Duration, slots: u32) -> Interval {
        let mut hasher = DefaultHasher::new();
        vm.hash(&mut hasher);
        let slot = u32::try_from(hasher.finish() % u64::from(slots)).unwrap_or(0);
        let first = next(self.began.elapsed(), period, period * slot / slots);
        let mut timer = interval_at(self.began + first, period);
        // Back to the grid after a long action.
        timer.set_missed_tick_behavior(MissedTickBehavior::Skip);
        timer
    }
}

/// The next moment after `now` that is `offset` after a multiple of `period`.
fn next(now: Duration, period: Duration, offset: Duration) -> Duration {
    let past = now.saturating_sub(offset).as_nanos() / period.as_nanos().max(1);
    let before = offset + period.saturating_mul(u32::try_from(past).unwrap_or(u32::MAX));
    if before > now { before } else { before + period }
}

/// Between two looks at what QEMU and its guest have: events only make it look sooner.
const LOOK_PERIOD: Duration = Duration::from_secs(60);
const LOOK_SLOTS: u32 = 1024;
/// With a thousand VMs some sixty are sampled at one moment, which takes below a millisecond.
const SAMPLE_SLOTS: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_next_moment_is_on_the_grid_and_within_a_period(
            now_ms in 0u64..100_000_000, period_ms in 100u64..300_000, slot in 0u32..16
        ) {
            let (now, period) = (Duration::from_millis(now_ms), Duration::from_millis(period_ms));
            let offset = period * slot / 16;
            let next = next(now, period, offset);
            prop_assert!(next > now || next == offset);
            prop_assert!(next <= now + period + offset);
            prop_assert_eq!(next.saturating_sub(offset).as_nanos() % period.as_nanos(), 0);
        }
    }
}
