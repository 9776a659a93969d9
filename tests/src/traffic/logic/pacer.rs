//! When the next packets of a stream are due.
//!
//! Deadlines are absolute, so a late wake-up is made up for, in bursts of [`MAX_BURST`]. Who was away
//! for longer than [`MAX_BACKLOG_MS`] does not send what it missed: those packets count as never sent.
//!
//! All streams of a machine send at the same moments, multiples of [`GRID_US`]: an emulated guest
//! spends far more on being woken than on a packet.

/// Packets given out at once, so that catching up does not overrun a 256-entry queue.
pub const MAX_BURST: u64 = 32;

/// Time between two moments at which anything is sent.
pub const GRID_US: u64 = 10_000;

/// How far behind its schedule a stream may be before it gives packets up.
pub const MAX_BACKLOG_MS: u64 = 1000;

/// A stream's schedule.
#[derive(Debug, Clone, Copy)]
pub struct Pacer {
    pps: u32,
    begin_us: u64,
    issued: u64,
}

impl Pacer {
    /// Sends `pps` packets a second from `now_us` on; none at 0.
    pub const fn new(pps: u32, now_us: u64) -> Self {
        Self { pps, begin_us: now_us, issued: 0 }
    }

    /// The rate asked for.
    pub const fn pps(&self) -> u32 {
        self.pps
    }

    /// How many packets to send now; they count as issued.
    pub fn take_due(&mut self, now_us: u64) -> u64 {
        let backlog = self.scheduled(now_us).saturating_sub(self.issued);
        let kept = backlog.min(u64::from(self.pps) * MAX_BACKLOG_MS / 1000 + 1);
        let burst = kept.min(MAX_BURST);
        self.issued += backlog - kept + burst;
        burst
    }

    /// When the next packet is due; never, at rate 0.
    pub fn next_due_us(&self) -> Option<u64> {
        let offset_us = (self.issued * 1_000_000).checked_div(u64::from(self.pps))?;
        Some((self.begin_us + offset_us).next_multiple_of(GRID_US))
    }

    fn scheduled(&self, now_us: u64) -> u64 {
        if self.pps == 0 {
            return 0;
        }
        let now_us = now_us - now_us % GRID_US;
        now_us.saturating_sub(self.begin_us) * u64::from(self.pps) / 1_000_000 + 1
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stopped_stream_is_never_due() {
        let mut pacer = Pacer::new(0, 0);
        assert_eq!(pacer.take_due(u64::MAX / 2), 0);
        assert_eq!(pacer.next_due_us(), None);
    }

    #[test]
    fn a_short_pause_is_made_up_in_bursts_and_a_long_one_is_given_up() {
        let mut pacer = Pacer::new(100, 0);
        let drain = |pacer: &mut Pacer, now_us| {
            std::iter::from_fn(|| Some(pacer.take_due(now_us)).filter(|&due| due > 0))
                .inspect(|&burst| assert!(burst <= MAX_BURST))
                .sum::<u64>()
        };
        assert_eq!(drain(&mut pacer, 500_000), 51);
        assert_eq!(drain(&mut pacer, 10_500_000), 101);
        assert_eq!(drain(&mut pacer, 10_510_000), 1);
    }

    proptest! {
        #[test]
        fn wake_ups_within_the_backlog_lose_nothing(
            pps in 1u32..2000,
            pauses_us in prop::collection::vec(1u64..900_000, 1..50),
        ) {
            let mut pacer = Pacer::new(pps, 0);
            let (mut now_us, mut sent) = (0, 0);
            for pause_us in pauses_us {
                now_us += pause_us;
                while let due @ 1.. = pacer.take_due(now_us) {
                    sent += due;
                }
            }
            let last_us = now_us - now_us % GRID_US;
            prop_assert_eq!(sent, last_us * u64::from(pps) / 1_000_000 + 1);
            let next_us = pacer.next_due_us().unwrap();
            prop_assert!(next_us >= last_us && next_us.is_multiple_of(GRID_US));
        }
    }
}
