//! What a guest counts of itself: who counted what, how far a guest's word goes, and whether it agrees
//! with what the host has counted of the same path.
//!
//! A guest is believed where the host cannot count, and no more than its line carries ([`LineBound`]).
//! Where both count, its numbers are held against the host's ([`CrossCheck`]): a guest that was found to
//! tell more than there was is not believed in anything any more. One that tells less gains nothing by it,
//! and may be honest: it counts a 64 KiB frame once.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use flexvf_protocol::agent::LinkCounters;
use serde::Serialize;

use super::rate::{Count, Trust, line_rate_pps};

/// Who counts a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Counter {
    /// The PV NIC's backend, in its stats page.
    StatsPage,
    /// The host's interface of the PV NIC.
    PvInterface,
    /// The PF.
    Pf,
    /// The TAP of an emulated VF.
    Tap,
    /// FlexVF's agent in the guest.
    FlexvfAgent,
    /// A qemu-ga in the guest.
    QemuGa,
}

/// How far what a guest tells of its traffic is to be trusted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum GuestWord {
    /// It tells nothing.
    #[default]
    Unheard,
    /// The host has nothing to compare it with, or not yet.
    Unchecked,
    /// It tells no more than the host has counted of the same.
    Agrees,
    /// It told more than there was, and is not believed since; how much, in words.
    Diverges(String),
}

impl GuestWord {
    /// The word for it in `flexvf status`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Unheard => "unheard",
            Self::Unchecked => "unchecked",
            Self::Agrees => "agrees",
            Self::Diverges(_) => "diverges",
        }
    }
}

/// Who counts a VM's paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Counting {
    /// PV; none when nobody does.
    pub pv: Option<Counter>,
    /// The VF; none when there is none, or nobody counts it.
    pub vf: Option<Counter>,
    /// What the guest's own numbers are worth.
    pub word: GuestWord,
}

/// A path's counters at one moment, both directions together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// As in [`Count`].
    pub epoch: u64,
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Counter {
    /// Of two that are added up, the one that tells less of packets.
    pub fn coarser(self, other: Self) -> Self {
        if Unit::of(self) == Unit::Bytes { self } else { other }
    }
}

impl Tally {
    /// Of a link as its guest tells it. What a guest boots anew with falls back to zero.
    pub const fn of_link(epoch: u64, link: &LinkCounters) -> Self {
        Self {
            epoch,
            packets: link.rx_packets.saturating_add(link.tx_packets),
            bytes: link.rx_bytes.saturating_add(link.tx_bytes),
        }
    }

    /// Its packets, as counted by the host or by a guest.
    pub const fn count(self, trust: Trust) -> Count {
        Count { epoch: self.epoch, packets: self.packets, trust }
    }

    /// Both together; comparable only while both are.
    pub fn plus(self, other: Self) -> Self {
        Self {
            epoch: both(self.epoch, other.epoch),
            packets: self.packets.wrapping_add(other.packets),
            bytes: self.bytes.wrapping_add(other.bytes),
        }
    }

    /// What is left of a sum of two paths without the one that is known. The difference may be below zero and
    /// then wraps: only what it grows by means something.
    pub fn without(self, known: Self) -> Self {
        Self {
            epoch: both(self.epoch, known.epoch),
            packets: self.packets.wrapping_sub(known.packets),
            bytes: self.bytes.wrapping_sub(known.bytes),
        }
    }
}

/// What a guest tells of its traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Of each path, as FlexVF's agent does.
    Paths {
        /// The PV NIC, if there is one.
        pv: Option<Tally>,
        /// All VFs.
        vf: Tally,
    },
    /// Of both together: of the interface with the guest's MAC address, bond or net_failover. A qemu-ga does
    /// not tell which of its ports is which.
    Both(Tally),
}

impl Told {
    /// The guest's numbers for the paths, PV and VF, that the host cannot count. A VF that the guest has not
    /// got counts nothing.
    pub fn fill(
        self,
        pv: Option<Tally>,
        vf: Option<Tally>,
        has_vf: bool,
    ) -> (Option<Tally>, Option<Tally>) {
        match (self, pv, vf) {
            (Self::Paths { pv: told, vf: told_vf }, pv, vf) => {
                let lacks_vf = has_vf && vf.is_none();
                (told.filter(|_| pv.is_none()), lacks_vf.then_some(told_vf))
            }
            (Self::Both(sum), Some(pv), None) if has_vf => (None, Some(sum.without(pv))),
            (Self::Both(sum), None, Some(vf)) => (Some(sum.without(vf)), None),
            (Self::Both(sum), None, None) => (Some(sum), None),
            (Self::Both(_), Some(_), _) => (None, None),
        }
    }
}

/// Lets a guest's counter grow no faster than its line can carry, both ways.
#[derive(Debug, Clone, Copy, Default)]
pub struct LineBound {
    last: Option<(Duration, Count)>,
    believed: u64,
}

impl LineBound {
    /// The counter with so much as the line may have carried since the last time.
    pub fn take(&mut self, at: Duration, told: Count, link_mbps: u64) -> Count {
        if let Some((since, last)) = self.last.replace((at, told))
            && last.epoch == told.epoch
        {
            let span = at.saturating_sub(since).as_secs_f64();
            let limit = (2.0 * line_rate_pps(link_mbps) * span).ceil() as u64;
            let grown = told.packets.saturating_sub(last.packets).min(limit);
            self.believed = self.believed.saturating_add(grown);
        }
        Count { packets: self.believed, ..told }
    }
}

/// What a count is compared in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Where the host counts packets as they are on the wire.
    Packets,
    /// Where it counts a frame that is still to be cut to packets once, as a TAP does.
    Bytes,
}

/// One look at a path by both sides: the guest's in the middle of the host's.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// When.
    pub at: Duration,
    /// The host's, before the guest was asked.
    pub before: Tally,
    /// The guest's.
    pub told: Tally,
    /// The host's, after its answer.
    pub after: Tally,
}

/// Compares a guest's counter of a path with the host's.
///
/// Whatever the guest tells at one look, the host must have counted at the next: a NIC's counters may be
/// some seconds late. What is compared begins anew each minute, so that long honesty is no cover.
#[derive(Debug, Clone, Copy, Default)]
pub struct CrossCheck {
    base: Option<Reading>,
    last: Option<Reading>,
}

impl CrossCheck {
    /// What came of this look; none when there was nothing to compare it with.
    pub fn take(&mut self, now: Reading, unit: Unit) -> Option<GuestWord> {
        let (Some(base), Some(last)) = (self.base, self.last) else {
            (self.base, self.last) = (Some(now), Some(now));
            return None;
        };
        let is_reset = |last: Tally, now: Tally| {
            last.epoch != now.epoch || now.packets < last.packets || now.bytes < last.bytes
        };
        if is_reset(last.told, now.told) || is_reset(last.after, now.before) {
            *self = Self { base: Some(now), last: Some(now) };
            return None;
        }
        if now.at.saturating_sub(last.at) < LATENESS {
            return None;
        }
        self.last = Some(now);
        let told = unit.of_guest(base.told, last.told);
        let counted = unit.of_host(base.before, now.after);
        let span = now.at.saturating_sub(base.at);
        if last.at.saturating_sub(base.at) >= COMPARED_OVER {
            self.base = Some(last);
        }
        if told <= counted.saturating_add(counted / TOLERATED).saturating_add(unit.slack(span)) {
            return (last.at > base.at).then_some(GuestWord::Agrees);
        }
        let (unit, seconds) = (unit.name(), span.as_secs());
        Some(GuestWord::Diverges(format!(
            "the guest told of {told} {unit} where the host counted {counted} in {seconds} s"
        )))
    }
}

impl Unit {
    /// For this counter of the host's.
    pub const fn of(host: Counter) -> Self {
        match host {
            Counter::StatsPage | Counter::Pf => Self::Packets,
            _ => Self::Bytes,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Packets => "packets",
            Self::Bytes => "bytes",
        }
    }

    const fn of_host(self, from: Tally, to: Tally) -> u64 {
        match self {
            Self::Packets => to.packets.wrapping_sub(from.packets),
            Self::Bytes => to.bytes.wrapping_sub(from.bytes),
        }
    }

    /// Packets without the bytes that they must have had are no less of a lie.
    fn of_guest(self, from: Tally, to: Tally) -> u64 {
        let packets = to.packets.saturating_sub(from.packets);
        match self {
            Self::Packets => packets,
            Self::Bytes => {
                to.bytes.saturating_sub(from.bytes).max(packets.saturating_mul(SMALLEST_FRAME))
            }
        }
    }

    /// What the two may differ by for good reasons: packets in rings, and those that only one of the two
    /// counts, such as broadcasts on a VF.
    const fn slack(self, span: Duration) -> u64 {
        let packets = span.as_secs().saturating_add(1).saturating_mul(SLACK_PPS);
        match self {
            Self::Packets => packets,
            Self::Bytes => packets.saturating_mul(USUAL_FRAME),
        }
    }
}

/// A number that stands for both.
fn both(a: u64, b: u64) -> u64 {
    let mut hasher = DefaultHasher::new();
    (a, b).hash(&mut hasher);
    hasher.finish()
}

/// Drivers read a NIC's counters each two seconds.
const LATENESS: Duration = Duration::from_secs(3);
const COMPARED_OVER: Duration = Duration::from_secs(60);
/// A quarter more than the host has counted: headers, padding and FCS are in one side's bytes only.
const TOLERATED: u64 = 4;
const SLACK_PPS: u64 = 1000;
/// Bytes of an ARP request as Linux counts it.
const SMALLEST_FRAME: u64 = 42;
/// Bytes of a full Ethernet frame.
const USUAL_FRAME: u64 = 1514;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    const fn tally(packets: u64) -> Tally {
        Tally { epoch: 1, packets, bytes: packets.saturating_mul(1000) }
    }

    const fn told(packets: u64) -> Count {
        tally(packets).count(Trust::Guest)
    }

    const fn diverges(word: &Option<GuestWord>) -> bool {
        matches!(word, Some(GuestWord::Diverges(_)))
    }

    /// A look each ten seconds at what guest and host had counted by then.
    fn compare(looks: &[(Tally, Tally)], unit: Unit) -> Vec<Option<GuestWord>> {
        let mut check = CrossCheck::default();
        let look = |(number, (told, host)): (u64, &(Tally, Tally))| {
            let reading = Reading { at: at(10 * number), before: *host, told: *told, after: *host };
            check.take(reading, unit)
        };
        (0..).zip(looks).map(look).collect()
    }

    #[test]
    fn a_guests_counter_grows_no_faster_than_its_line() {
        let mut bound = LineBound::default();
        assert_eq!(bound.take(at(0), told(500), 1000).packets, 0);
        assert_eq!(bound.take(at(1), told(700), 1000).packets, 200);
        // 1 Gb/s carries 1,488,095 of the smallest frames a second, each way.
        assert_eq!(bound.take(at(3), told(u64::MAX), 1000).packets, 200 + 2 * 2_976_191 - 1);
        // One that falls, or is another one, adds nothing.
        let before = bound.take(at(4), told(5), 1000).packets;
        assert_eq!(bound.take(at(5), Count { epoch: 2, ..told(900) }, 1000).packets, before);
    }

    #[test]
    fn a_guest_that_counts_what_the_host_counts_agrees_also_when_the_nic_is_late() {
        // The host's counter shows at each look what there was ten seconds before.
        let late = |look: u64| (tally(100_000 * look), tally(100_000 * look.saturating_sub(1)));
        let looks: Vec<_> = (0..20).map(late).collect();
        let words = compare(&looks, Unit::Packets);
        assert!(words.iter().skip(2).all(|word| *word == Some(GuestWord::Agrees)), "{words:?}");
    }

    #[test]
    fn a_guest_that_tells_more_is_found_out_after_however_long_an_honesty() {
        for honest in [2, 100] {
            let looks: Vec<_> = (0..honest + 12)
                .map(|look: u64| {
                    (
                        tally(100_000 * look + 100_000 * look.saturating_sub(honest)),
                        tally(100_000 * look),
                    )
                })
                .collect();
            let words = compare(&looks, Unit::Packets);
            assert!(words.iter().any(diverges), "{words:?}");
        }
    }

    #[test]
    fn the_finding_says_who_counted_what() {
        let looks = [(tally(0), tally(0)), (tally(900_000), tally(5)), (tally(900_000), tally(10))];
        let words = compare(&looks, Unit::Packets);
        let expected = "the guest told of 900000 packets where the host counted 10 in 20 s";
        assert_eq!(words[2], Some(GuestWord::Diverges(expected.into())));
        // In bytes, too, when it hides the bytes of its packets.
        let hidden = looks.map(|(told, host)| (Tally { bytes: 0, ..told }, host));
        assert!(matches!(compare(&hidden, Unit::Bytes)[2], Some(GuestWord::Diverges(_))));
    }

    #[test]
    fn a_guest_is_asked_only_for_what_the_host_cannot_count() {
        let (pv, vf) = (Some(tally(100)), Some(tally(10)));
        let paths = Told::Paths { pv: Some(tally(1)), vf: tally(2) };
        assert_eq!(paths.fill(pv, vf, true), (None, None));
        assert_eq!(paths.fill(pv, None, true), (None, Some(tally(2))));
        assert_eq!(paths.fill(pv, None, false), (None, None));
        assert_eq!(paths.fill(None, None, false), (Some(tally(1)), None));
        let sum = |packets| Told::Both(tally(packets));
        assert_eq!(sum(150).fill(None, None, true), (Some(tally(150)), None));
        assert_eq!(sum(150).fill(pv, None, false), (None, None));
        // What both grow by is PV's.
        let rest = |told, pv| sum(told).fill(Some(tally(pv)), None, true).1.unwrap();
        let (first, second) = (rest(50, 100), rest(90, 120));
        assert_eq!(second.packets.wrapping_sub(first.packets), 20);
        assert_eq!(first.epoch, second.epoch);
    }

    #[test]
    fn large_frames_that_the_guest_counts_as_packets_are_no_lie_in_bytes() {
        let frames = |frames| Tally { epoch: 1, packets: frames, bytes: frames * 65_000 };
        let packets = |frames| Tally { epoch: 1, packets: frames * 45, bytes: frames * 67_000 };
        let looks: Vec<_> =
            (0..10).map(|look| (packets(9_000 * look), frames(9_000 * look))).collect();
        assert!(compare(&looks, Unit::Bytes).contains(&Some(GuestWord::Agrees)));
        assert!(compare(&looks, Unit::Packets).iter().any(diverges));
    }

    proptest! {
        /// An honest guest: at each look it has counted what the host has or will have by the next one.
        #[test]
        fn no_traffic_makes_an_honest_guest_a_liar(
            bursts in prop::collection::vec((0u64..1_000_000, 0u64..100, 0u64..1000), 1..60)
        ) {
            let (mut packets, mut looks) = (0, Vec::new());
            for (burst, percent_late, fewer) in bursts {
                let late = burst * percent_late / 100;
                packets += burst;
                looks.push((tally(packets.saturating_sub(fewer)), tally(packets - late)));
            }
            // Counters only grow.
            for at in 1..looks.len() {
                looks[at].0.packets = looks[at].0.packets.max(looks[at - 1].0.packets);
                looks[at].1.packets = looks[at].1.packets.max(looks[at - 1].1.packets);
            }
            let words = compare(&looks, Unit::Packets);
            prop_assert!(!words.iter().any(diverges), "{words:?}");
        }

        /// What it is believed is bounded whatever it tells.
        #[test]
        fn no_tale_is_believed_beyond_the_line(
            tale in prop::collection::vec((1u64..100, any::<u64>(), 0u64..3), 1..40)
        ) {
            let mut bound = LineBound::default();
            let (mut now, mut last) = (0, 0);
            for (seconds, packets, epoch) in tale {
                now += seconds;
                let count = Count { epoch, packets, trust: Trust::Guest };
                let believed = bound.take(at(now), count, 10).packets;
                prop_assert!(believed >= last);
                prop_assert!((believed - last) as f64 <= 2.0 * line_rate_pps(10) * seconds as f64 + 1.0);
                last = believed;
            }
        }
    }
}
