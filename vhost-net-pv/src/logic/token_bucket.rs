//! Rate limits: token buckets that may go into debt.
//!
//! What a batch costs shows only once it was handled. So a batch may go as soon as there is any
//! credit, and what it costs is taken afterwards; the debt is waited off before the next one. In
//! the long run the rate is exact, and a burst is at most the bucket and one batch.

use std::time::Duration;

use super::tuning::Limit;

/// A bucket holds what flows in this part of a second.
const BURSTS_A_SECOND: u64 = 50;
/// It holds this many bits at least: the largest frame.
const LARGEST_FRAME_BITS: u64 = 65_557 * 8;
const SECOND_NS: i128 = 1_000_000_000;

/// The limits of one queue.
#[derive(Debug, Clone, Default)]
pub struct Limiter {
    packets: Option<Bucket>,
    bits: Option<Bucket>,
}

/// What a queue may do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Allowance {
    /// Handle up to so many frames.
    Frames(u16),
    /// Nothing for so long.
    Wait(Duration),
}

impl Limiter {
    /// A limiter with full buckets.
    pub fn new(limit: Limit) -> Self {
        let packets = limit.packets.map(|rate| Bucket::new(rate.get(), 1));
        let bits = limit.bits.map(|rate| Bucket::new(rate.get(), LARGEST_FRAME_BITS));
        Self { packets, bits }
    }

    /// There is a limit.
    pub const fn is_on(&self) -> bool {
        self.packets.is_some() || self.bits.is_some()
    }

    /// What may be done at `now`, a time that only grows.
    pub fn allowance(&mut self, now: Duration) -> Allowance {
        let mut frames = u16::MAX;
        let mut wait = Duration::ZERO;
        if let Some(bucket) = &mut self.packets {
            bucket.fill(now);
            wait = wait.max(bucket.wait());
            frames = bucket.whole();
        }
        if let Some(bucket) = &mut self.bits {
            bucket.fill(now);
            wait = wait.max(bucket.wait());
        }
        match wait.is_zero() {
            true => Allowance::Frames(frames),
            false => Allowance::Wait(wait),
        }
    }

    /// Takes what was handled.
    pub fn charge(&mut self, packets: u64, bytes: u64) {
        if let Some(bucket) = &mut self.packets {
            bucket.take(packets);
        }
        if let Some(bucket) = &mut self.bits {
            bucket.take(bytes.saturating_mul(8));
        }
    }
}

/// Tokens that flow in at a rate; each is counted in billionths, so that nothing is rounded away.
#[derive(Debug, Clone)]
struct Bucket {
    rate: i128,
    most: i128,
    tokens: i128,
    filled_at: Duration,
}

impl Bucket {
    fn new(rate_per_s: u64, least: u64) -> Self {
        let most = i128::from((rate_per_s / BURSTS_A_SECOND).max(least)) * SECOND_NS;
        Self { rate: i128::from(rate_per_s), most, tokens: most, filled_at: Duration::ZERO }
    }

    fn fill(&mut self, now: Duration) {
        let since = now.saturating_sub(self.filled_at).as_nanos();
        let gained = i128::try_from(since).unwrap_or(i128::MAX).saturating_mul(self.rate);
        self.tokens = self.tokens.saturating_add(gained).min(self.most);
        self.filled_at = now;
    }

    fn take(&mut self, count: u64) {
        self.tokens = self.tokens.saturating_sub(i128::from(count) * SECOND_NS);
    }

    /// Tokens there are, begun ones as whole ones.
    fn whole(&self) -> u16 {
        u16::try_from((self.tokens + SECOND_NS - 1) / SECOND_NS).unwrap_or(u16::MAX)
    }

    /// Time until there is any credit; zero if there is.
    fn wait(&self) -> Duration {
        if self.tokens > 0 {
            return Duration::ZERO;
        }
        let nanos = -self.tokens / self.rate + 1;
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::num::NonZeroU64;

    fn limit(packets: u64, bits: u64) -> Limit {
        Limit { packets: NonZeroU64::new(packets), bits: NonZeroU64::new(bits) }
    }

    /// Packets that a greedy queue gets through in `time`, each of `bytes`.
    fn greedy(limiter: &mut Limiter, bytes: u64, time: Duration) -> u64 {
        let (mut now, mut packets) = (Duration::ZERO, 0);
        while now < time {
            match limiter.allowance(now) {
                Allowance::Frames(frames) => {
                    let batch = u64::from(frames.min(64));
                    limiter.charge(batch, batch * bytes);
                    packets += batch;
                }
                Allowance::Wait(wait) => now += wait,
            }
        }
        packets
    }

    #[test]
    fn without_a_limit_everything_goes() {
        let mut limiter = Limiter::new(Limit::default());
        assert!(!limiter.is_on());
        limiter.charge(u64::MAX, u64::MAX);
        assert_eq!(limiter.allowance(Duration::ZERO), Allowance::Frames(u16::MAX));
    }

    #[test]
    fn a_large_frame_is_waited_off() {
        let mut limiter = Limiter::new(limit(10, 0));
        assert_eq!(limiter.allowance(Duration::ZERO), Allowance::Frames(1));
        limiter.charge(45, 65_000);
        let Allowance::Wait(wait) = limiter.allowance(Duration::ZERO) else {
            panic!("a debt of 44 packets was forgotten");
        };
        assert_eq!(wait.as_millis(), 4400);
        assert_eq!(limiter.allowance(wait), Allowance::Frames(1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn in_the_long_run_the_rate_is_the_limit(
            packets in 0u64..200_000,
            megabits in 0u64..200,
            bytes in 60u64..1500,
        ) {
            prop_assume!(packets > 0 || megabits > 0);
            let limit = limit(packets, megabits * 1_000_000);
            let seconds = 2;
            let sent = greedy(&mut Limiter::new(limit), bytes, Duration::from_secs(seconds));
            let by_packets = if packets == 0 { u64::MAX } else { packets };
            let by_bits = match megabits {
                0 => u64::MAX,
                some => some * 1_000_000 / (bytes * 8),
            };
            let rate = by_packets.min(by_bits);
            // A bucket at the start and a batch at the end may come on top.
            let bucket = rate / 50 + LARGEST_FRAME_BITS / (bytes * 8) + 65;
            prop_assert!(sent <= rate * seconds + bucket, "{sent} at {rate}/s");
            prop_assert!(sent + 65 >= rate * seconds, "{sent} at {rate}/s");
        }
    }
}
