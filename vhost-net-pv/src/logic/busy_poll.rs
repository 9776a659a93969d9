//! How long to look for work before sleeping: as long as has lately been worth it.
//!
//! A sleep that was shorter than the longest look allowed would have been better looked through,
//! so the next look is longer; after a longer sleep it is shorter, down to none. (Hypervisors poll
//! for halted processors by the same rule.)

use std::time::Duration;

/// Looks shorter than a wake-up takes are pointless.
const SHORTEST: Duration = Duration::from_micros(4);

/// The length of the next look.
#[derive(Debug, Clone)]
pub struct BusyPoll {
    longest: Duration,
    window: Duration,
}

impl BusyPoll {
    /// Never longer than this; zero: never at all.
    pub const fn new(longest: Duration) -> Self {
        Self { longest, window: Duration::ZERO }
    }

    /// It is allowed at all.
    pub const fn is_on(&self) -> bool {
        !self.longest.is_zero()
    }

    /// How long to look this time.
    pub const fn window(&self) -> Duration {
        self.window
    }

    /// Learns from a sleep.
    pub fn slept(&mut self, time: Duration) {
        self.window = match time <= self.longest {
            true => (self.window * 2).max(SHORTEST).min(self.longest),
            false if self.window <= SHORTEST => Duration::ZERO,
            false => self.window / 2,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LONGEST: Duration = Duration::from_micros(50);

    #[test]
    fn short_sleeps_make_it_look_and_long_ones_stop_it() {
        let mut poll = BusyPoll::new(LONGEST);
        assert_eq!(poll.window(), Duration::ZERO);
        (0..10).for_each(|_| poll.slept(Duration::from_micros(20)));
        assert_eq!(poll.window(), LONGEST);
        (0..10).for_each(|_| poll.slept(Duration::from_secs(1)));
        assert_eq!(poll.window(), Duration::ZERO);
    }

    #[test]
    fn off_is_off() {
        let mut poll = BusyPoll::new(Duration::ZERO);
        poll.slept(Duration::ZERO);
        assert!(!poll.is_on() && poll.window().is_zero());
    }

    proptest! {
        #[test]
        fn a_look_is_never_longer_than_allowed(sleeps in proptest::collection::vec(0u64..200, 0..50)) {
            let mut poll = BusyPoll::new(LONGEST);
            for micros in sleeps {
                poll.slept(Duration::from_micros(micros));
                prop_assert!(poll.window() <= LONGEST);
            }
        }
    }
}
