//! What happened between two looks at a stats page, as rates.

use flexvf_protocol::stats_page::{Counter, Direction, Header, Snapshot};

/// Frames that were not handed over, whatever the reason.
const DROPS: [Counter; 3] = [Counter::DropMalformed, Counter::DropNoBuffer, Counter::DropPort];

/// Rates of one ring, or of several together.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Rates {
    /// Frames handed over a second; one of up to 64 KiB counts once.
    pub frames: f64,
    /// Packets a second, as they appear on the wire.
    pub segments: f64,
    /// Mbit of frames a second.
    pub mbit: f64,
    /// Frames dropped a second.
    pub drops: f64,
    /// Times a second that a rate limit made frames wait.
    pub throttled: f64,
    /// Kicks taken a second.
    pub kicks: f64,
    /// Interrupts sent a second.
    pub interrupts: f64,
    /// Frames in a batch, on average.
    pub batch: f64,
    /// Share of the time in which frames waited for a buffer; of several rings: the fullest one's.
    pub full_percent: f64,
}

/// One ring's rates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RingRates {
    /// Its queue pair.
    pub pair: usize,
    /// Its direction.
    pub direction: Direction,
    /// Its rates.
    pub rates: Rates,
}

/// All rings' rates, and their sum; `None` when the counters began anew in between.
pub fn between(
    before: &Snapshot,
    after: &Snapshot,
    seconds: f64,
) -> Option<(Vec<RingRates>, Rates)> {
    let same = before.header(Header::Generation) == after.header(Header::Generation)
        && before.queue_pairs() == after.queue_pairs();
    if !same || seconds <= 0.0 {
        return None;
    }
    let mut rings = Vec::new();
    let mut sum = [0; Counter::ALL.len()];
    let mut fullest = 0.0_f64;
    for pair in 0..after.queue_pairs() {
        for direction in [Direction::Rx, Direction::Tx] {
            let change = Counter::ALL.map(|counter| {
                let was = before.ring(pair, direction, counter);
                after.ring(pair, direction, counter).wrapping_sub(was)
            });
            for (sum, change) in sum.iter_mut().zip(change) {
                *sum = u64::wrapping_add(*sum, change);
            }
            let rates = rates(&change, seconds);
            fullest = fullest.max(rates.full_percent);
            rings.push(RingRates { pair, direction, rates });
        }
    }
    Some((rings, Rates { full_percent: fullest, ..rates(&sum, seconds) }))
}

fn rates(change: &[u64; Counter::ALL.len()], seconds: f64) -> Rates {
    let count = |counter: Counter| change.get(counter as usize).copied().unwrap_or(0) as f64;
    let frames = count(Counter::Frames);
    let batches = count(Counter::Batches);
    Rates {
        frames: frames / seconds,
        segments: count(Counter::Segments) / seconds,
        mbit: count(Counter::Bytes) * 8.0 / 1e6 / seconds,
        drops: DROPS.into_iter().map(count).sum::<f64>() / seconds,
        throttled: count(Counter::Throttled) / seconds,
        kicks: count(Counter::Kicks) / seconds,
        interrupts: count(Counter::Interrupts) / seconds,
        batch: if batches > 0.0 { frames / batches } else { 0.0 },
        // A ring that was full since before the first look is told of when it ends.
        full_percent: (count(Counter::FullNs) / 1e7 / seconds).min(100.0),
    }
}
