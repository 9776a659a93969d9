//! ICMP echoes as a probe of a guest's path (RFC 792): every guest answers them by itself, from its kernel.

/// What identifies an echo as one of this probe's: the identifier alone is 16 bits that any `ping` may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(pub u64);

/// Shortest payload: tag and number.
pub const MIN_BYTES: usize = 16;
/// Longest that fits into a frame of 1500 bytes.
pub const MAX_BYTES: usize = 1472;

const HEADER: usize = 8;
const REQUEST: u8 = 8;
const REPLY: u8 = 0;

/// The `number`th request, with so much payload.
pub fn request(tag: Tag, number: u64, bytes: usize) -> Vec<u8> {
    let mut packet = vec![REQUEST, 0, 0, 0];
    packet.extend((tag.0 as u16).to_be_bytes());
    packet.extend((number as u16).to_be_bytes());
    packet.extend(tag.0.to_be_bytes());
    packet.extend(number.to_be_bytes());
    packet.resize(HEADER + bytes.clamp(MIN_BYTES, MAX_BYTES), 0);
    let sum = checksum(&packet);
    if let Some(place) = packet.get_mut(2..4) {
        place.copy_from_slice(&sum.to_be_bytes());
    }
    packet
}

/// The number of an answer, of what a raw socket received: an IPv4 packet of anybody's.
pub fn answered(tag: Tag, packet: &[u8]) -> Option<u64> {
    let words = usize::from(packet.first()? & 0xf);
    let icmp = packet.get(4 * words..)?;
    let (kind, payload) = (icmp.first()?, icmp.get(HEADER..)?);
    let word =
        |from: usize| Some(u64::from_be_bytes(payload.get(from..from + 8)?.try_into().ok()?));
    (*kind == REPLY && word(0)? == tag.0).then(|| word(8)).flatten()
}

/// RFC 1071.
fn checksum(packet: &[u8]) -> u16 {
    let pairs = packet.chunks(2).map(|pair| match pair {
        [high, low] => u64::from(u16::from_be_bytes([*high, *low])),
        _ => u64::from(pair.first().copied().unwrap_or(0)) << 8,
    });
    let mut sum: u64 = pairs.sum();
    while sum > 0xffff {
        sum = (sum >> 16) + (sum & 0xffff);
    }
    !(sum as u16)
}

/// What came of a burst of probes.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Echoes {
    /// Requests that were sent.
    pub sent: u64,
    /// Times there and back of those that were answered, µs.
    pub round_trips_us: Vec<f64>,
    /// For how long was sent, seconds.
    pub lasted_s: f64,
}

impl Echoes {
    /// Adds another burst at the same rate.
    pub fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.lasted_s += other.lasted_s;
        self.round_trips_us.extend(other.round_trips_us);
    }

    /// Packets per second, both directions.
    pub fn pps(&self) -> f64 {
        (self.sent + self.answers()) as f64 / self.lasted_s.max(1e-9)
    }

    /// Part of the requests that was not answered.
    pub fn lost(&self) -> f64 {
        1.0 - self.answers() as f64 / self.sent.max(1) as f64
    }

    /// Half of the median round trip, µs; none without an answer.
    pub fn one_way_us(&self) -> Option<f64> {
        let mut sorted = self.round_trips_us.clone();
        sorted.sort_by(f64::total_cmp);
        let upper = sorted.get(sorted.len() / 2)?;
        let lower = sorted.get(sorted.len().saturating_sub(1) / 2)?;
        Some(f64::midpoint(*lower, *upper) / 2.0)
    }

    fn answers(&self) -> u64 {
        self.round_trips_us.len() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TAG: Tag = Tag(0x1122_3344_5566_7788);

    /// As a guest answers and a raw socket shows it.
    fn reply(request: &[u8]) -> Vec<u8> {
        let mut packet = vec![0; 20];
        packet[0] = 0x45;
        packet.extend(request);
        packet[20] = REPLY;
        packet
    }

    #[test]
    fn a_request_adds_up_and_its_answer_is_known_again() {
        let packet = request(TAG, 70_000, 64);
        assert_eq!((packet.len(), packet[0], &packet[4..6]), (72, 8, &[0x77, 0x88][..]));
        assert_eq!(checksum(&packet), 0);
        assert_eq!(checksum(&request(TAG, 1, 65)), 0);
        assert_eq!(answered(TAG, &reply(&packet)), Some(70_000));
        assert_eq!(answered(Tag(1), &reply(&packet)), None);
        // One's own request, as it is seen on the loopback.
        let mut own = reply(&packet);
        own[20] = REQUEST;
        assert_eq!(answered(TAG, &own), None);
    }

    #[test]
    fn what_a_burst_says_is_what_a_hand_reckons() {
        let mut echoes = Echoes { sent: 4, round_trips_us: vec![30.0, 10.0], lasted_s: 1.0 };
        assert_eq!((echoes.pps(), echoes.lost(), echoes.one_way_us()), (6.0, 0.5, Some(10.0)));
        echoes.add(Echoes { sent: 0, round_trips_us: vec![1000.0], lasted_s: 1.0 });
        assert_eq!((echoes.pps(), echoes.lost(), echoes.one_way_us()), (3.5, 0.25, Some(15.0)));
        assert_eq!(Echoes::default().one_way_us(), None);
    }

    proptest! {
        #[test]
        fn nothing_that_a_network_may_bring_breaks_it(packet in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert_eq!(answered(TAG, &packet), None);
        }
    }
}
