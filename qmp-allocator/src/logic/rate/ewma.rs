//! A path's rate with a fading memory: an exponentially weighted moving average over time.
//!
//! What was counted over a span is taken to have come evenly. A rate that lasts for one time constant makes
//! up 63 % of the average, one that ended a time constant ago 37 %. A count that comes late covers its whole
//! span, so it gives the same average as if none had been missed.

use std::time::Duration;

/// See the module's text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ewma {
    time_constant: Duration,
    /// For how long silence says nothing; after that it says that nothing is sent.
    patience: Duration,
    /// Of a path that is always there the first rate is all that is known; one that was not there before
    /// had a rate of zero.
    always_there: bool,
    /// The average, and the end of the last span that it knows of.
    known: Option<(f64, Duration)>,
}

impl Ewma {
    /// Of the PV path: a missing sample is one that failed.
    pub(super) const fn of_pv(time_constant: Duration) -> Self {
        Self { time_constant, patience: time_constant, always_there: true, known: None }
    }

    /// Of the VF path: no sample most often means that there is no VF. The packets go over the other
    /// path then, whose average rises as this one falls.
    pub(super) const fn of_vf(time_constant: Duration) -> Self {
        Self { time_constant, patience: Duration::ZERO, always_there: false, known: None }
    }

    /// So many packets between these two moments.
    pub(super) fn count(&mut self, since: Duration, at: Duration, packets: u64) {
        let Some(span) = at.checked_sub(since).filter(|span| !span.is_zero()) else { return };
        let pps = packets as f64 / span.as_secs_f64();
        let first = if self.always_there { pps } else { 0.0 };
        let before = if self.known.is_some() { self.pps(since) } else { first };
        let kept = self.kept_over(span);
        self.known = Some((before * kept + pps * (1.0 - kept), at));
    }

    /// The average as of then.
    pub(super) fn pps(&self, now: Duration) -> f64 {
        let Some((pps, at)) = self.known else { return 0.0 };
        pps * self.kept_over(now.saturating_sub(at).saturating_sub(self.patience))
    }

    fn kept_over(&self, span: Duration) -> f64 {
        (-span.as_secs_f64() / self.time_constant.as_secs_f64()).exp()
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{at, guest, host};
    use super::super::{RateMeter, Sample};
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn meter() -> RateMeter {
        RateMeter::new(10_000).with_time_constant(MINUTE)
    }

    /// Samples of the PV path alone.
    fn after(samples: &[(u64, Option<(u64, u64)>)]) -> f64 {
        let mut meter = meter();
        for (second, count) in samples {
            let pv = count.and_then(|(epoch, packets)| host(epoch, packets));
            meter.on_sample(Sample { at: at(*second), pv, vf: None });
        }
        meter.end_interval().unwrap().pps
    }

    #[test]
    fn a_change_is_63_percent_known_after_one_time_constant() {
        let samples = [(0, Some((1, 0))), (60, Some((1, 0))), (120, Some((1, 60_000)))];
        assert!((after(&samples) - 632.1).abs() < 0.1);
    }

    #[test]
    fn a_missing_sample_changes_nothing_once_the_next_one_is_there() {
        let all: Vec<_> = (0..12).map(|i| (10 * i, Some((1, 700 * i)))).collect();
        let mut missing = all.clone();
        missing[5].1 = None;
        missing[6].1 = None;
        assert!((after(&all) - after(&missing)).abs() < 1e-9);
        // Nor before: the rate stands while nothing is known.
        assert!((after(&missing[..7]) - 70.0).abs() < 1e-9);
    }

    #[test]
    fn a_reset_is_neither_a_burst_nor_a_silence() {
        let before = [(0, Some((1, 5000))), (10, Some((1, 6000)))];
        for reset in [(1, 3), (2, u64::MAX)] {
            let mut samples = before.to_vec();
            samples.push((20, Some(reset)));
            assert_eq!(after(&samples), 100.0);
        }
    }

    #[test]
    fn a_path_that_stays_silent_is_forgotten() {
        let mut samples = vec![(0, Some((1, 0))), (10, Some((1, 1000)))];
        samples.push((10 + 60 + 600, None));
        assert!(after(&samples) < 0.01);
    }

    #[test]
    fn a_move_from_path_to_path_is_no_change_of_the_whole() {
        let mut meter = meter();
        for second in (0..600).step_by(10) {
            // On the VF from 200 s to 400 s, at 50 packets/s all the time.
            let (on_pv, on_vf) = match second {
                0..200 => (second, None),
                200..400 => (200, guest(50 * (second - 200))),
                400 => (200, None),
                _ => (second - 200, None),
            };
            meter.on_sample(Sample { at: at(second), pv: host(1, 50 * on_pv), vf: on_vf });
            if let Some(rate) = meter.smoothed(at(second)).filter(|_| second > 0) {
                // The last count of a VF is taken before it goes: what is sent between is lost.
                assert!((rate - 50.0).abs() < 10.0, "{rate} at {second}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_average_is_never_above_the_highest_rate_seen(
            steps in proptest::collection::vec((1u64..50, 0u64..1_000_000, 0u64..4), 1..40)
        ) {
            let mut meter = meter();
            let (mut now, mut packets, mut epoch, mut most) = (0, 0u64, 0, 0.0_f64);
            let mut unseen = (0, 0);
            meter.on_sample(Sample { at: at(0), pv: host(0, 0), vf: None });
            for (seconds, more, kind) in steps {
                now += seconds;
                packets += more;
                let pv = match kind {
                    0 => {
                        unseen = (unseen.0 + seconds, unseen.1 + more);
                        None
                    }
                    1 => {
                        (epoch, unseen) = (epoch + 1, (0, 0));
                        host(epoch, packets)
                    }
                    _ => {
                        let (span, count) = (unseen.0 + seconds, unseen.1 + more);
                        most = most.max(count as f64 / span as f64);
                        unseen = (0, 0);
                        host(epoch, packets)
                    }
                };
                meter.on_sample(Sample { at: at(now), pv, vf: None });
                let rate = meter.smoothed(at(now)).unwrap();
                prop_assert!((0.0..=most * (1.0 + 1e-9)).contains(&rate), "{rate} of {most}");
            }
        }
    }
}
