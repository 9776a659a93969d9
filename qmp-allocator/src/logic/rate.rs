//! Counters → packets per second.
//!
//! A VM's packets are those of its PV path plus those of its VF path, both directions, as they
//! appear on the wire (segments, where the counter tells them). The paper's rate is the mean over an
//! interval (section 4.1): packets counted between the interval's first and last sample, divided by the time
//! between them. A counter that begins anew (another epoch, or a smaller value) sets a new base line
//! and adds nothing: a reset never looks like a rate, and neither does a missing sample.
//!
//! With a time constant ([`RateMeter::with_time_constant`]) the rate at an interval's end is an average over
//! all time, the latest weighing most (`ewma`): it knows of bursts before the interval, and rests on no
//! single one.
//!
//! What a guest says of itself is bounded by what its link can carry, and marked.

mod ewma;

use std::time::Duration;

use ewma::Ewma;
use serde::Serialize;

/// A path's counter as read at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// Tells counters apart that have nothing to do with each other: a page's generation, a
    /// guest's boot, a VF's tenure.
    pub epoch: u64,
    /// Packets since the epoch began, both directions.
    pub packets: u64,
    /// Who counted.
    pub trust: Trust,
}

/// Who counted the packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Trust {
    /// The host: the stats page, the PF, a TAP.
    #[default]
    Host,
    /// The guest: bounded, and to be taken as its word.
    Guest,
}

/// What was read of one VM at one moment; a path that could not be read is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sample {
    /// When, since the host's boot.
    pub at: Duration,
    /// The paravirtual path.
    pub pv: Option<Count>,
    /// The VF path.
    pub vf: Option<Count>,
}

/// A mean over a stretch of time.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Rate {
    /// Packets per second, both paths and directions.
    pub pps: f64,
    /// Of them over the paravirtual path.
    pub pv_pps: f64,
    /// Of them over the VF.
    pub vf_pps: f64,
    /// Begin of the stretch, milliseconds since the host's boot (CLOCK_MONOTONIC).
    pub from_ms: u64,
    /// Its end.
    pub to_ms: u64,
    /// The least trusted counter that added to it.
    pub trust: Trust,
}

/// Most packets a second, one way, that a link can carry: 64-byte frames plus 20 bytes of preamble
/// and gap each (IEEE 802.3).
pub fn line_rate_pps(link_mbps: u64) -> f64 {
    link_mbps as f64 * 1e6 / (84.0 * 8.0)
}

/// One VM's packets, summed from sample to sample.
#[derive(Debug, Clone)]
pub struct RateMeter {
    guest_limit_pps: f64,
    pv: PathMeter,
    vf: PathMeter,
    interval: Stretch,
    recent: Option<Rate>,
    last_at: Option<Duration>,
    /// Of PV and VF.
    averages: Option<(Ewma, Ewma)>,
}

impl RateMeter {
    /// A meter for a VM whose VF's link carries so many megabits a second.
    pub fn new(link_mbps: u64) -> Self {
        Self {
            guest_limit_pps: 2.0 * line_rate_pps(link_mbps),
            pv: PathMeter::default(),
            vf: PathMeter::default(),
            interval: Stretch::default(),
            recent: None,
            last_at: None,
            averages: None,
        }
    }

    /// With rates averaged over this time constant. Zero: the mean of each interval, as in the paper.
    pub fn with_time_constant(self, time_constant: Duration) -> Self {
        let averages = || (Ewma::of_pv(time_constant), Ewma::of_vf(time_constant));
        Self { averages: (!time_constant.is_zero()).then(averages), ..self }
    }

    /// Takes a sample. One that is not later than the last is dropped.
    pub fn on_sample(&mut self, sample: Sample) {
        if self.last_at.is_some_and(|last| sample.at <= last) {
            return;
        }
        let limit = |since: Duration| {
            (self.guest_limit_pps * sample.at.saturating_sub(since).as_secs_f64()).ceil() as u64
        };
        let pv = self.pv.advance(sample.at, sample.pv, limit);
        let vf = self.vf.advance(sample.at, sample.vf, limit);
        if let Some((of_pv, of_vf)) = &mut self.averages {
            pv.iter().for_each(|(since, packets)| of_pv.count(*since, sample.at, *packets));
            vf.iter().for_each(|(since, packets)| of_vf.count(*since, sample.at, *packets));
        }
        let [pv, vf] = [pv, vf].map(|counted| counted.map_or(0, |(_, packets)| packets));
        let by = |count: Option<Count>, packets| count.filter(|_| packets > 0).map(|it| it.trust);
        let trust = by(sample.pv, pv).max(by(sample.vf, vf)).unwrap_or_default();
        if let Some(from) = self.last_at {
            let mut stretch = Stretch::starting(from);
            stretch.add(sample.at, pv, vf, trust);
            self.recent = stretch.rate();
            self.interval.begin(from);
            self.interval.add(sample.at, pv, vf, trust);
        }
        self.last_at = Some(sample.at);
    }

    /// The rate between the last two samples.
    pub const fn recent(&self) -> Option<Rate> {
        self.recent
    }

    #[cfg(test)]
    fn smoothed(&self, now: Duration) -> Option<f64> {
        self.averages.map(|(pv, vf)| pv.pps(now) + vf.pps(now))
    }

    /// Ends the interval: its mean, if there were samples in it, or the average at its end. The next one begins
    /// at the last sample.
    pub fn end_interval(&mut self) -> Option<Rate> {
        let mean = std::mem::take(&mut self.interval).rate()?;
        let Some((pv, vf)) =
            self.averages.zip(self.last_at).map(|((pv, vf), at)| (pv.pps(at), vf.pps(at)))
        else {
            return Some(mean);
        };
        Some(Rate { pps: pv + vf, pv_pps: pv, vf_pps: vf, ..mean })
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct PathMeter {
    last: Option<(Duration, Count)>,
}

impl PathMeter {
    /// Packets since the last comparable count, and when that was.
    fn advance(
        &mut self,
        at: Duration,
        count: Option<Count>,
        limit: impl Fn(Duration) -> u64,
    ) -> Option<(Duration, u64)> {
        let count = count?;
        let (since, last) = self.last.replace((at, count))?;
        if last.epoch != count.epoch || last.trust != count.trust {
            return None;
        }
        let packets = count.packets.checked_sub(last.packets)?;
        let is_bounded = count.trust == Trust::Guest;
        Some((since, if is_bounded { packets.min(limit(since)) } else { packets }))
    }
}

#[derive(Debug, Clone, Copy, Default)]
struct Stretch {
    from: Option<Duration>,
    to: Duration,
    pv: u64,
    vf: u64,
    trust: Trust,
}

impl Stretch {
    fn starting(from: Duration) -> Self {
        Self { from: Some(from), ..Self::default() }
    }

    fn begin(&mut self, from: Duration) {
        self.from.get_or_insert(from);
    }

    fn add(&mut self, to: Duration, pv: u64, vf: u64, trust: Trust) {
        self.to = to;
        self.pv = self.pv.saturating_add(pv);
        self.vf = self.vf.saturating_add(vf);
        self.trust = self.trust.max(trust);
    }

    fn rate(&self) -> Option<Rate> {
        let from = self.from?;
        let seconds = self.to.checked_sub(from).filter(|span| !span.is_zero())?.as_secs_f64();
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Some(Rate {
            pps: self.pv.saturating_add(self.vf) as f64 / seconds,
            pv_pps: self.pv as f64 / seconds,
            vf_pps: self.vf as f64 / seconds,
            from_ms: ms(from),
            to_ms: ms(self.to),
            trust: self.trust,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(super) const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    pub(super) fn host(epoch: u64, packets: u64) -> Option<Count> {
        Some(Count { epoch, packets, trust: Trust::Host })
    }

    pub(super) fn guest(packets: u64) -> Option<Count> {
        Some(Count { epoch: 1, packets, trust: Trust::Guest })
    }

    #[test]
    fn the_interval_mean_is_packets_over_time_of_both_paths() {
        let mut meter = RateMeter::new(10_000);
        meter.on_sample(Sample { at: at(10), pv: host(1, 500), vf: guest(0) });
        meter.on_sample(Sample { at: at(12), pv: host(1, 700), vf: guest(50) });
        meter.on_sample(Sample { at: at(20), pv: host(1, 1500), vf: guest(500) });
        let rate = meter.end_interval().unwrap();
        assert_eq!((rate.pps, rate.pv_pps, rate.vf_pps), (150.0, 100.0, 50.0));
        assert_eq!((rate.from_ms, rate.to_ms, rate.trust), (10_000, 20_000, Trust::Guest));
        assert_eq!(meter.end_interval(), None);
    }

    #[test]
    fn a_rate_is_trusted_no_more_than_either_paths_counter() {
        for (pv, vf, trust) in [(0, 0, Trust::Host), (5, 0, Trust::Guest), (0, 5, Trust::Host)] {
            let mut meter = RateMeter::new(10_000);
            meter.on_sample(Sample { at: at(1), pv: guest(0), vf: host(1, 0) });
            meter.on_sample(Sample { at: at(2), pv: guest(pv), vf: host(1, vf) });
            assert_eq!(meter.recent().unwrap().trust, trust);
        }
    }

    #[test]
    fn a_reset_never_looks_like_a_rate() {
        let mut meter = RateMeter::new(10_000);
        meter.on_sample(Sample { at: at(1), pv: host(1, 1_000_000), vf: None });
        meter.on_sample(Sample { at: at(2), pv: host(1, 3), vf: None });
        meter.on_sample(Sample { at: at(3), pv: host(2, 9_000_000), vf: None });
        meter.on_sample(Sample { at: at(4), pv: host(2, 9_000_004), vf: None });
        assert_eq!(meter.end_interval().unwrap().pps, 4.0 / 3.0);
    }

    #[test]
    fn packets_missed_by_a_failed_reading_are_counted_by_the_next_one() {
        let mut meter = RateMeter::new(10_000);
        meter.on_sample(Sample { at: at(0), pv: host(1, 0), vf: None });
        meter.on_sample(Sample { at: at(1), pv: None, vf: None });
        meter.on_sample(Sample { at: at(2), pv: host(1, 200), vf: None });
        assert_eq!(meter.end_interval().unwrap().pps, 100.0);
    }

    #[test]
    fn a_guest_gains_nothing_beyond_its_line_rate() {
        let mut meter = RateMeter::new(1_000);
        meter.on_sample(Sample { at: at(0), pv: None, vf: guest(0) });
        meter.on_sample(Sample { at: at(1), pv: None, vf: guest(u64::MAX) });
        assert!(meter.end_interval().unwrap().pps <= 2.0 * line_rate_pps(1_000) + 1.0);
    }

    proptest! {
        #[test]
        fn no_sequence_of_samples_makes_a_negative_or_infinite_rate(
            samples in proptest::collection::vec((0u64..50, any::<Option<u64>>(), any::<Option<u64>>()), 0..40)
        ) {
            let mut meter = RateMeter::new(10_000);
            for (second, pv, vf) in samples {
                let pv = pv.and_then(|n| host(n % 3, n));
                meter.on_sample(Sample { at: at(second), pv, vf: vf.and_then(guest) });
                if let Some(rate) = meter.recent() {
                    prop_assert!(rate.pps.is_finite() && rate.pps >= 0.0);
                }
            }
            if let Some(rate) = meter.end_interval() {
                prop_assert!(rate.pps.is_finite() && rate.from_ms < rate.to_ms);
            }
        }
    }
}
