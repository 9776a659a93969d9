//! One load, counted in several places: the counts must be the same, to the packet.
//!
//! Ways are named as the guest sees them, so the TAP's own two are swapped: what it transmits is what
//! the guest receives.

use std::fmt::Write;

use serde::Serialize;

/// Frames and bytes one way; Ethernet header included, FCS not.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Way {
    /// Frames, one of 64 KiB counting once.
    pub frames: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// Counters of one place at one moment, or between two.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Count {
    /// Received by the guest.
    pub to_guest: Way,
    /// Sent by it.
    pub from_guest: Way,
}

/// Packets on the wire, each way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Packets {
    /// To the guest.
    pub to_guest: u64,
    /// From it.
    pub from_guest: u64,
}

/// The same load, seen from everywhere.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Ledger {
    /// By the stats page.
    pub page: Count,
    /// By the TAP's interface counters.
    pub tap: Count,
    /// By the guest's own NIC counters.
    pub guest: Count,
    /// Segments of the stats page.
    pub segments: Packets,
    /// Packets captured after the kernel had segmented them.
    pub captured: Packets,
    /// Packets that the capture's interface was given; less in the capture means that it lost some.
    pub capture_interface: u64,
    /// The longest packet captured; a longer one than the MTU allows was not segmented.
    pub longest: u64,
    /// Frames that the TAP had no room for: captured, but on no ring.
    pub tap_dropped: u64,
}

/// Longest frame on an Ethernet whose MTU is 1500, without FCS.
const MAX_PACKET: u64 = 1514;

impl Count {
    /// What was counted since `earlier`.
    pub const fn since(&self, earlier: &Self) -> Self {
        Self {
            to_guest: self.to_guest.since(earlier.to_guest),
            from_guest: self.from_guest.since(earlier.from_guest),
        }
    }
}

impl Way {
    const fn since(self, earlier: Self) -> Self {
        Self {
            frames: self.frames.wrapping_sub(earlier.frames),
            bytes: self.bytes.wrapping_sub(earlier.bytes),
        }
    }
}

impl Ledger {
    /// Every difference, in words.
    pub fn failures(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for (place, count) in [("the TAP", &self.tap), ("the guest", &self.guest)] {
            let ways = [
                ("to", self.page.to_guest, count.to_guest),
                ("from", self.page.from_guest, count.from_guest),
            ];
            for (way, page, other) in ways.into_iter().filter(|(_, page, other)| page != other) {
                wrong.push(format!(
                    "{way} the guest, the stats page counts {} frames of {} bytes, {place} {} of {}",
                    page.frames, page.bytes, other.frames, other.bytes
                ));
            }
        }
        let packets = [
            ("to", self.segments.to_guest, self.captured.to_guest, self.page.to_guest.frames),
            (
                "from",
                self.segments.from_guest,
                self.captured.from_guest,
                self.page.from_guest.frames,
            ),
        ];
        for (way, segments, captured, frames) in packets {
            if segments != captured {
                wrong.push(format!(
                    "{way} the guest, the stats page counts {segments} segments, captured were {captured}"
                ));
            }
            // Without large frames nothing would have been proven.
            if segments <= frames {
                wrong.push(format!("{way} the guest, no frame was larger than a packet"));
            }
        }
        let Self { captured, capture_interface, longest, tap_dropped, .. } = self;
        if captured.to_guest + captured.from_guest != *capture_interface {
            wrong.push(format!("the capture is not whole: its interface had {capture_interface}"));
        }
        if *longest > MAX_PACKET {
            wrong.push(format!("a packet of {longest} bytes was captured: it was not segmented"));
        }
        if *tap_dropped > 0 {
            wrong.push(format!("the TAP dropped {tap_dropped} frames: send less at once"));
        }
        wrong.into_iter().map(|text| format!("counters: {text}")).collect()
    }

    /// All of it for people.
    pub fn table(&self) -> String {
        let mut text = String::new();
        let head =
            ["frames to", "bytes to", "packets to", "frames from", "bytes from", "packets from"];
        let _ = write!(text, "{:<12}", "guest:");
        for head in head {
            let _ = write!(text, "{head:>14}");
        }
        let none = Packets::default();
        let places = [
            ("stats page", &self.page, &self.segments),
            ("TAP", &self.tap, &none),
            ("guest", &self.guest, &none),
            ("capture", &Count::default(), &self.captured),
        ];
        for (place, Count { to_guest, from_guest }, packets) in places {
            let _ = write!(text, "\n{place:<12}");
            for (way, packets) in [(to_guest, packets.to_guest), (from_guest, packets.from_guest)] {
                for number in [way.frames, way.bytes, packets] {
                    let shown = if number == 0 { "-".into() } else { number.to_string() };
                    let _ = write!(text, "{shown:>14}");
                }
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger() -> Ledger {
        let way = |frames| Way { frames, bytes: frames * 100 };
        let count = Count { to_guest: way(50), from_guest: way(70) };
        let packets = Packets { to_guest: 500, from_guest: 700 };
        Ledger {
            page: count,
            tap: count,
            guest: count,
            segments: packets,
            captured: packets,
            capture_interface: 1200,
            longest: 1514,
            tap_dropped: 0,
        }
    }

    #[test]
    fn equal_counts_are_good() {
        assert!(ledger().failures().is_empty());
    }

    #[test]
    fn one_packet_or_byte_off_is_told() {
        type Break = fn(&mut Ledger);
        let breaks: [(&str, Break); 8] = [
            ("the TAP 51 of 5000", |it| it.tap.to_guest.frames += 1),
            ("the guest 70 of 6999", |it| it.guest.from_guest.bytes -= 1),
            ("captured were 501", |it| it.captured.to_guest += 1),
            ("counts 699 segments", |it| it.segments.from_guest -= 1),
            ("not whole", |it| it.capture_interface += 1),
            ("not segmented", |it| it.longest = 1515),
            ("dropped 1 frames", |it| it.tap_dropped = 1),
            ("no frame was larger", |it| {
                it.segments.to_guest = 50;
                it.captured.to_guest = 50;
            }),
        ];
        for (expected, break_it) in breaks {
            let mut ledger = ledger();
            break_it(&mut ledger);
            let failures = ledger.failures();
            assert!(
                failures.iter().any(|line| line.contains(expected)),
                "{expected}: {failures:?}"
            );
        }
    }

    #[test]
    fn a_difference_is_taken_each_way() {
        let now = ledger().page;
        let earlier = Count { to_guest: Way { frames: 20, bytes: 30 }, ..Count::default() };
        let since = now.since(&earlier);
        assert_eq!(since.to_guest, Way { frames: 30, bytes: 4970 });
        assert_eq!(since.from_guest, now.from_guest);
    }
}
