//! Frames to the guest: read from the port straight into the guest's buffers.
//!
//! How long a frame is shows only once it was read. So chains are resolved a little ahead of the
//! frames (the window), as many as the next frame is likely to need; a frame that turns out longer
//! ends in a buffer of ours, the spill, and its rest is copied on. If the guest has too few buffers
//! for it, it is held back until there are more. Nothing else is read meanwhile: frames wait in
//! the port, where the kernel can drop them fairly.

use std::collections::VecDeque;
use std::fs::File;

use flexvf_protocol::stats_page::Counter;

use super::port::{MAX_FRAME, Port};
use super::tx::{BATCH, Turn, available, facts, notify};
use crate::logic::counters::RingCounters;
use crate::logic::features::Negotiated;
use crate::logic::memory::{self, GuestSlice};
use crate::logic::net_header::{HEADER_BYTES, RawHeader};
use crate::logic::ring::{Access, MAX_PIECES, Malformed, Position, Ring};

/// Frames up to this length are the usual ones, for which a short window is enough.
const USUAL_FRAME: usize = 2048;
/// Usual frames in a row after which no longer ones are expected.
const USUAL_RUN: u16 = 32;

/// What outlives a ring's use: memory for frames that do not fit.
#[derive(Debug)]
pub(super) struct RxState {
    spill: Box<[u8]>,
    held: Option<Held>,
}

/// A frame that waits for buffers.
#[derive(Debug)]
struct Held {
    header: RawHeader,
    frame: Vec<u8>,
}

impl RxState {
    pub(super) fn new() -> Self {
        Self { spill: vec![0; MAX_FRAME].into_boxed_slice(), held: None }
    }

    /// Forgets a frame that was meant for an earlier guest.
    pub(super) fn reset(&mut self) {
        self.held = None;
    }

    pub(super) const fn is_holding(&self) -> bool {
        self.held.is_some()
    }
}

/// A guest's receive ring in use.
pub(super) struct RxPump<'m> {
    ring: Ring<'m>,
    negotiated: Negotiated,
    /// Chains resolved but not used yet; the guest still owns them as far as it can see.
    window: VecDeque<Chain>,
    /// Pieces of the window's chains, behind `spent` ones of earlier chains.
    pieces: Vec<GuestSlice<'m>>,
    spent: usize,
    /// Pieces for one frame.
    target: Vec<GuestSlice<'m>>,
    expected: usize,
    usual_run: u16,
}

struct Chain {
    head: u16,
    pieces: usize,
    bytes: usize,
}

/// What the window has after an attempt to fill it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fill {
    /// Room for the frame.
    Enough,
    /// Too little until the guest gives more.
    Later,
    /// Too little for good: buffers that could be added do not count for this frame.
    Never,
}

/// What came of an attempt to deliver a frame.
enum Step {
    Done,
    NothingWaits,
    NoBuffers,
}

impl<'m> RxPump<'m> {
    pub(super) const fn new(ring: Ring<'m>, negotiated: Negotiated) -> Self {
        Self {
            ring,
            negotiated,
            window: VecDeque::new(),
            pieces: Vec::new(),
            spent: 0,
            target: Vec::new(),
            expected: USUAL_FRAME,
            usual_run: 0,
        }
    }

    pub(super) const fn position(&self) -> Position {
        self.ring.position()
    }

    /// Delivers frames, a batch at most.
    pub(super) fn turn(
        &mut self,
        port: &mut dyn Port,
        state: &mut RxState,
        counters: &mut RingCounters,
        call: Option<&File>,
    ) -> Turn {
        self.ring.decline_kicks();
        let mut turn = Turn::More;
        let mut handled = 0u64;
        for _ in 0..BATCH {
            match self.step(port, state, counters) {
                Step::Done => handled += 1,
                Step::NothingWaits => {
                    turn = Turn::Idle;
                    break;
                }
                Step::NoBuffers => {
                    turn = Turn::Starved;
                    break;
                }
            }
        }
        if handled > 0 {
            counters.add(Counter::Batches, 1);
        }
        notify(&mut self.ring, counters, call);
        if turn == Turn::Starved {
            // Asks for a kick, and looks once more: the guest may have missed the question.
            let before = self.ring.known();
            self.ring.ask_for_kick();
            if available(&mut self.ring, counters) != before {
                turn = Turn::More;
            }
        }
        turn
    }

    fn step(
        &mut self,
        port: &mut dyn Port,
        state: &mut RxState,
        counters: &mut RingCounters,
    ) -> Step {
        if let Some(held) = state.held.take() {
            return self.deliver_held(held, state, counters);
        }
        self.fill(self.expected + self.negotiated.header_bytes, counters);
        if self.window.is_empty() {
            return Step::NoBuffers;
        }
        let in_place = self.window_bytes() - self.negotiated.header_bytes;
        self.target.clear();
        let pieces = self.pieces.get(self.spent..).unwrap_or_default();
        self.target.extend(memory::pieces(pieces, self.negotiated.header_bytes));
        let mut header: RawHeader = [0; HEADER_BYTES];
        match port.receive(&mut header, &self.target, &mut state.spill) {
            // Such as an interface that was deleted or is down: no frames until that ends.
            Ok(None) | Err(_) => Step::NothingWaits,
            Ok(Some(0)) => Step::Done,
            Ok(Some(bytes)) => {
                self.learn(bytes);
                match bytes <= in_place {
                    true => self.finish(header, bytes, counters),
                    false => self.overflow(header, bytes, in_place, state, counters),
                }
            }
        }
    }

    /// Adapts the window to the frames that come.
    fn learn(&mut self, bytes: usize) {
        if bytes > USUAL_FRAME {
            self.expected = MAX_FRAME;
            self.usual_run = 0;
        } else if self.expected > USUAL_FRAME {
            self.usual_run += 1;
            if self.usual_run > USUAL_RUN {
                self.expected = USUAL_FRAME;
            }
        }
    }

    /// Brings a frame in that was longer than the window.
    fn overflow(
        &mut self,
        header: RawHeader,
        bytes: usize,
        in_place: usize,
        state: &mut RxState,
        counters: &mut RingCounters,
    ) -> Step {
        let header_bytes = self.negotiated.header_bytes;
        let spilled = bytes.saturating_sub(in_place).min(state.spill.len());
        let tail = state.spill.get(..spilled).unwrap_or_default();
        let filled = self.fill(header_bytes + bytes, counters);
        let pieces = self.pieces.get(self.spent..).unwrap_or_default();
        if filled == Fill::Enough {
            memory::copy_in(pieces, header_bytes + in_place, tail);
            return self.finish(header, bytes, counters);
        }
        let mut frame = vec![0; in_place];
        memory::copy_out(pieces, header_bytes, &mut frame);
        frame.extend_from_slice(tail);
        self.hold_or_drop(Held { header, frame }, filled, state, counters)
    }

    fn deliver_held(
        &mut self,
        held: Held,
        state: &mut RxState,
        counters: &mut RingCounters,
    ) -> Step {
        let header_bytes = self.negotiated.header_bytes;
        let filled = self.fill(header_bytes + held.frame.len(), counters);
        if filled != Fill::Enough {
            return self.hold_or_drop(held, filled, state, counters);
        }
        let pieces = self.pieces.get(self.spent..).unwrap_or_default();
        memory::copy_in(pieces, header_bytes, &held.frame);
        self.finish(held.header, held.frame.len(), counters)
    }

    fn hold_or_drop(
        &mut self,
        held: Held,
        filled: Fill,
        state: &mut RxState,
        counters: &mut RingCounters,
    ) -> Step {
        let all_given = available(&mut self.ring, counters) == self.ring.size();
        if filled == Fill::Never || all_given {
            counters.add(Counter::DropNoBuffer, 1);
            return Step::Done;
        }
        state.held = Some(held);
        Step::NoBuffers
    }

    /// Resolves chains until the window has room for `bytes`, or the guest has no more.
    fn fill(&mut self, bytes: usize, counters: &mut RingCounters) -> Fill {
        if self.window.is_empty() {
            self.pieces.clear();
            self.spent = 0;
        } else if self.spent > MAX_PIECES {
            self.pieces.drain(..self.spent);
            self.spent = 0;
        }
        let mut have = self.window_bytes();
        // Bounded: a guest that gives nothing but malformed chains gets no more than this at once.
        for _ in 0..MAX_PIECES {
            if have >= bytes {
                return Fill::Enough;
            }
            if !self.negotiated.mergeable && !self.window.is_empty() {
                return Fill::Never;
            }
            let Some(head) = self.next_head(counters) else {
                return Fill::Later;
            };
            match self.resolve(head) {
                Ok(chain) => {
                    have = have.saturating_add(chain.bytes);
                    self.window.push_back(chain);
                }
                // Returned when its turn comes: a frame's chains must follow one another.
                Err(_malformed) if !self.window.is_empty() => return Fill::Never,
                Err(_malformed) => {
                    counters.add(Counter::DropMalformed, 1);
                    self.ring.advance(1);
                    self.ring.push_used(head, 0);
                }
            }
        }
        Fill::Later
    }

    fn next_head(&mut self, counters: &mut RingCounters) -> Option<u16> {
        let ahead = u16::try_from(self.window.len()).ok()?;
        if ahead < self.ring.known() {
            return Some(self.ring.head(ahead));
        }
        match self.ring.available() {
            Ok(count) => (count > ahead).then(|| self.ring.head(ahead)),
            Err(_jump) => {
                counters.add(Counter::DropMalformed, 1);
                self.window.clear();
                None
            }
        }
    }

    fn resolve(&mut self, head: u16) -> Result<Chain, Malformed> {
        let before = self.pieces.len();
        let bytes = self.ring.walk(head, Access::DeviceWrites, &mut self.pieces)?;
        let pieces = self.pieces.len() - before;
        let fits = self.pieces.len() - self.spent <= MAX_PIECES;
        if bytes <= self.negotiated.header_bytes || !fits {
            self.pieces.truncate(before);
            return Err(Malformed::TooShort);
        }
        Ok(Chain { head, pieces, bytes })
    }

    fn window_bytes(&self) -> usize {
        let sum = |sum: usize, chain: &Chain| sum.saturating_add(chain.bytes);
        self.window.iter().fold(0, sum)
    }

    /// Writes the header before a frame that is in place, and hands its chains over.
    fn finish(&mut self, mut header: RawHeader, bytes: usize, counters: &mut RingCounters) -> Step {
        let header_bytes = self.negotiated.header_bytes;
        let mut left = header_bytes + bytes;
        let mut used = 0u16;
        for chain in &self.window {
            if left == 0 {
                break;
            }
            left = left.saturating_sub(chain.bytes);
            used += 1;
        }
        header[10..].copy_from_slice(&used.to_le_bytes());
        let pieces = self.pieces.get(self.spent..).unwrap_or_default();
        memory::copy_in(pieces, 0, header.get(..header_bytes).unwrap_or_default());
        counters.frame(&facts(&header, pieces, header_bytes, bytes));
        let mut left = header_bytes + bytes;
        for chain in self.window.drain(..usize::from(used)) {
            let written = left.min(chain.bytes);
            left -= written;
            self.ring.push_used(chain.head, written as u32);
            self.spent += chain.pieces;
        }
        self.ring.advance(used);
        Step::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::port::{Batch, Loopback};
    use crate::logic::features::{Offloads, offered};
    use crate::logic::testing::{BUFFERS, Driver, NEXT, WRITE, memory};
    use proptest::prelude::*;

    /// A guest's receive ring, a port, and what it has received.
    struct Guest<'m> {
        driver: Driver<'m>,
        pump: RxPump<'m>,
        state: RxState,
        port: Loopback,
        counters: RingCounters,
        next_buffer: u64,
        buffers: Vec<(u16, u64, usize)>,
    }

    impl<'m> Guest<'m> {
        fn new(memory: &'m crate::logic::memory::Memory, size: u16, accepted: u64) -> Self {
            let driver = Driver::new(memory, size);
            let ring = Ring::new(memory, &driver.layout, false, Position::default()).unwrap();
            Self {
                driver,
                pump: RxPump::new(ring, Negotiated::new(accepted)),
                state: RxState::new(),
                port: Loopback::new().unwrap(),
                counters: RingCounters::default(),
                next_buffer: BUFFERS,
                buffers: Vec::new(),
            }
        }

        fn send(&mut self, frame: &[u8]) {
            let mut frame = frame.to_vec();
            self.port.send(&mut Batch::single(&mut frame));
        }

        fn give(&mut self, length: usize) {
            let address = self.next_buffer;
            self.next_buffer += length as u64;
            let head = self.driver.offer(&[(address, length)], WRITE);
            self.buffers.push((head, address, length));
        }

        fn run(&mut self) -> Turn {
            loop {
                let turn =
                    self.pump.turn(&mut self.port, &mut self.state, &mut self.counters, None);
                if turn != Turn::More {
                    return turn;
                }
            }
        }

        /// Frames that the guest makes of the chains returned to it.
        fn received(&mut self) -> Vec<Vec<u8>> {
            let returned = self.driver.returned();
            let mut parts = returned.into_iter();
            let mut frames = Vec::new();
            while let Some((head, written)) = parts.next() {
                if written == 0 {
                    continue;
                }
                let mut bytes = self.take(head, written);
                let count = u16::from_le_bytes([bytes[10], bytes[11]]);
                for _ in 1..count {
                    let (head, written) = parts.next().unwrap();
                    bytes.extend(self.take(head, written));
                }
                frames.push(bytes.split_off(12));
            }
            frames
        }

        fn take(&mut self, head: u32, written: u32) -> Vec<u8> {
            let (first, address, length) = self.buffers.remove(0);
            assert_eq!(u32::from(first), head, "buffers were returned out of order");
            assert!(written as usize <= length);
            self.driver.get(address, written as usize)
        }
    }

    fn all() -> u64 {
        offered(1, Offloads::ALL)
    }

    fn frame(length: usize, seed: u8) -> Vec<u8> {
        (0..length).map(|at| (at as u8).wrapping_mul(31).wrapping_add(seed)).collect()
    }

    #[test]
    fn a_frame_longer_than_a_buffer_spans_several() {
        let memory = memory();
        let mut guest = Guest::new(&memory, 64, all());
        for _ in 0..60 {
            guest.give(1536);
        }
        let frames = [frame(60, 1), frame(40_000, 2), frame(61, 3), frame(9000, 4)];
        for frame in &frames {
            guest.send(frame);
        }
        assert_eq!(guest.run(), Turn::Idle);
        assert_eq!(guest.received(), frames);
        assert_eq!(guest.counters.get(Counter::Frames), 4);
    }

    #[test]
    fn without_buffers_frames_stay_in_the_port() {
        let memory = memory();
        let mut guest = Guest::new(&memory, 8, all());
        guest.send(&frame(100, 1));
        assert_eq!(guest.run(), Turn::Starved);
        assert_eq!(guest.counters.get(Counter::DropNoBuffer), 0);
        guest.give(1536);
        guest.run();
        assert_eq!(guest.received(), [frame(100, 1)]);
    }

    #[test]
    fn a_frame_with_too_few_buffers_is_held_until_there_are_more() {
        let memory = memory();
        let mut guest = Guest::new(&memory, 64, all());
        for _ in 0..5 {
            guest.give(1536);
        }
        guest.send(&frame(20_000, 7));
        guest.send(&frame(60, 8));
        assert_eq!(guest.run(), Turn::Starved);
        assert!(guest.state.is_holding());
        for _ in 0..20 {
            guest.give(1536);
        }
        assert_eq!(guest.run(), Turn::Idle);
        assert_eq!(guest.received(), [frame(20_000, 7), frame(60, 8)]);
    }

    #[test]
    fn a_frame_that_can_never_fit_is_dropped_and_counted() {
        let memory = memory();
        let mut guest = Guest::new(&memory, 4, all());
        for _ in 0..4 {
            guest.give(512);
        }
        guest.send(&frame(3000, 1));
        guest.send(&frame(60, 2));
        guest.run();
        assert_eq!(guest.counters.get(Counter::DropNoBuffer), 1);
        assert_eq!(guest.received(), [frame(60, 2)]);
    }

    #[test]
    fn without_mergeable_buffers_a_frame_has_one_chain() {
        let memory = memory();
        let mergeable = 1 << virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
        let mut guest = Guest::new(&memory, 8, all() & !mergeable);
        guest.give(1600);
        guest.give(1600);
        guest.send(&frame(2000, 1));
        guest.send(&frame(1500, 2));
        guest.run();
        assert_eq!(guest.counters.get(Counter::DropNoBuffer), 1);
        assert_eq!(guest.received(), [frame(1500, 2)]);
    }

    #[test]
    fn a_malformed_buffer_is_returned_unused_and_the_next_one_serves() {
        let memory = memory();
        let mut guest = Guest::new(&memory, 8, all());
        guest.driver.descriptor(7, BUFFERS, 64, NEXT | WRITE, 7);
        guest.driver.offer_head(7);
        guest.give(1536);
        guest.send(&frame(64, 1));
        guest.run();
        assert_eq!(guest.counters.get(Counter::DropMalformed), 1);
        assert_eq!(guest.received(), [frame(64, 1)]);
    }

    proptest! {
        #[test]
        fn frames_arrive_whole_and_in_order_or_are_counted_as_dropped(
            steps in proptest::collection::vec(
                prop_oneof![
                    (60usize..5000).prop_map(Ok),
                    (20usize..3000).prop_map(Err),
                ],
                1..80,
            ),
        ) {
            let memory = memory();
            let mut guest = Guest::new(&memory, 32, all());
            let mut sent = Vec::new();
            let mut received = Vec::new();
            for (seed, step) in steps.iter().enumerate() {
                match step {
                    Ok(length) => {
                        sent.push(frame(*length, seed as u8));
                        guest.send(&sent[sent.len() - 1]);
                    }
                    Err(buffer) if guest.buffers.len() < 32 => guest.give(*buffer),
                    Err(_) => {}
                }
                guest.run();
                received.extend(guest.received());
            }
            let dropped = guest.counters.get(Counter::DropNoBuffer) as usize;
            prop_assert_eq!(guest.counters.get(Counter::Frames), received.len() as u64);
            prop_assert!(received.len() + dropped <= sent.len());
            // What was received is what was sent, with the dropped ones left out.
            let mut rest = sent.iter();
            for frame in &received {
                prop_assert!(rest.any(|sent| sent == frame), "a frame was changed or reordered");
            }
            prop_assert_eq!(guest.counters.get(Counter::DropMalformed), 0);
        }
    }
}
