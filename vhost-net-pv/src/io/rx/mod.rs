//! Frames to the guest: read from the port straight into the guest's buffers.
//!
//! How long a frame is shows only once it was read. Three ways of reading deal with that. Usually
//! each buffer is expected to hold a frame, and as many are read at once as came the last times. A
//! frame that turns out longer ends in a spill of ours; then, for a while, frames are read singly,
//! each into as many buffers as the longest frame needs. While all are small, and the port likes it
//! better, they are read to us and copied: one run of memory costs the kernel much less than three.
//!
//! A frame that cannot stay where it was read (its rest is in the spill, or one before it has no
//! place yet) is held back and copied to its place once there is one. Nothing else is read
//! meanwhile: frames wait in the port, where the kernel can drop them fairly.

use std::fs::File;

use flexvf_protocol::stats_page::Counter;

use super::port::{MAX_FRAME, MAX_SLOTS, Port, Slots};
use super::tx::{BATCH, Turn, notify};
use crate::logic::counters::RingCounters;
use crate::logic::dirty_log::SliceLog;
use crate::logic::features::Negotiated;
use crate::logic::memory;
use crate::logic::ring::{Position, Ring};

mod held;
mod window;

use held::Held;
pub(super) use held::RxState;
use window::{Fill, Window};

/// Frames that fit one buffer, in a row, after which no longer ones are expected.
const SHORT_RUN: u16 = 32;

/// Frames of which none is longer are copied.
const SMALL_FRAME: usize = 244;

/// A guest's receive ring in use.
pub(super) struct RxPump<'m> {
    window: Window<'m>,
    slots: Slots<'m>,
    mode: Mode,
}

/// What frames are expected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Small ones, about so many at once.
    Small(usize),
    /// Frames that fit one buffer, about so many at once.
    Many(usize),
    /// Longer ones, until so many in a row were no longer than `short`.
    Single { run: u16, short: usize },
}

/// What came of an attempt to deliver frames.
enum Round {
    /// So many frames were dealt with.
    Handled(u16),
    /// The same, and nothing more waits in the port.
    Dry(u16),
    /// The guest has too few buffers.
    NoBuffers,
}

impl<'m> RxPump<'m> {
    pub(super) const fn new(
        ring: Ring<'m>,
        negotiated: Negotiated,
        log: Option<SliceLog<'m>>,
    ) -> Self {
        let window = Window::new(ring, negotiated, log);
        Self { window, slots: Slots::new(), mode: Mode::Many(1) }
    }

    pub(super) const fn position(&self) -> Position {
        self.window.ring.position()
    }

    /// Delivers frames, `limit` or a batch at most.
    pub(super) fn turn(
        &mut self,
        port: &mut dyn Port,
        state: &mut RxState,
        counters: &mut RingCounters,
        call: Option<&File>,
        limit: u16,
    ) -> Turn {
        self.window.ring.decline_kicks();
        let mut left = limit.min(BATCH);
        let mut turn = Turn::More;
        let mut handled = 0;
        while left > 0 && turn == Turn::More {
            let frames = match self.round(port, state, counters, left) {
                Round::Handled(frames) => frames,
                Round::Dry(frames) => {
                    turn = Turn::Idle;
                    frames
                }
                Round::NoBuffers => {
                    turn = Turn::Starved;
                    0
                }
            };
            left = left.saturating_sub(frames);
            handled += frames;
        }
        if handled > 0 {
            counters.add(Counter::Batches, 1);
        }
        notify(&mut self.window.ring, counters, call);
        turn
    }

    /// Asks for a kick at the next buffer. True: there is one already, and no kick will come.
    pub(super) fn ask_for_kick(&mut self, counters: &mut RingCounters) -> bool {
        self.window.ring.ask_for_kick();
        self.window.is_offered(counters)
    }

    /// The guest has given buffers that were not looked at yet.
    pub(super) fn is_offered(&mut self, counters: &mut RingCounters) -> bool {
        self.window.is_offered(counters)
    }

    fn round(
        &mut self,
        port: &mut dyn Port,
        state: &mut RxState,
        counters: &mut RingCounters,
        limit: u16,
    ) -> Round {
        if let Some(held) = state.next() {
            return self.deliver_held(held, state, counters);
        }
        self.slots.clear();
        match self.mode {
            Mode::Small(expected) => {
                let wanted = expected.min(usize::from(limit));
                for _ in 0..self.window.fill_chains(wanted, counters) {
                    self.slots.push(std::iter::empty());
                }
            }
            Mode::Many(expected) => {
                let wanted = expected.min(usize::from(limit));
                let count = self.window.fill_chains(wanted, counters);
                self.window.slots(count, &mut self.slots);
            }
            Mode::Single { .. } => {
                self.window.fill(MAX_FRAME, counters);
                if !self.window.is_empty() {
                    self.window.one_slot(&mut self.slots);
                }
            }
        }
        if self.slots.is_empty() {
            return Round::NoBuffers;
        }
        port.receive(&mut self.slots, &mut state.spills);
        self.settle(state, counters, port.wants_one_piece())
    }

    /// Hands over what was read, or holds it back.
    fn settle(
        &mut self,
        state: &mut RxState,
        counters: &mut RingCounters,
        one_piece: bool,
    ) -> Round {
        let (mut handled, mut longest, mut dry) = (0, 0, false);
        let mut in_place = true;
        for index in 0..self.slots.len() {
            let Some((slot, pieces)) = self.slots.at(index) else { break };
            let Some(bytes) = slot.bytes() else {
                // Whatever came into a later slot did so between two looks.
                (dry, in_place) = (true, false);
                continue;
            };
            dry = false;
            handled += 1;
            in_place &= bytes <= slot.room();
            longest = longest.max(bytes);
            if in_place {
                self.window.finish(slot.header, bytes, counters);
                continue;
            }
            let spill = state.spills.at(index);
            if pieces.is_empty() && !state.is_holding() && self.window.has_room_for(bytes) {
                self.window.write(spill.get(..bytes).unwrap_or_default());
                self.window.finish(slot.header, bytes, counters);
                continue;
            }
            let mut frame = vec![0; bytes.min(slot.room())];
            memory::copy_out(pieces, 0, &mut frame);
            frame.extend_from_slice(&spill[..(bytes - frame.len()).min(spill.len())]);
            state.hold(Held { header: slot.header, frame });
        }
        self.learn(handled, longest, one_piece);
        match dry && !state.is_holding() {
            true => Round::Dry(handled),
            false => Round::Handled(handled),
        }
    }

    /// Adapts to the frames that come.
    fn learn(&mut self, frames: u16, longest: usize, one_piece: bool) {
        // More than came, so that a port that had more is asked for more.
        let next = (2 * usize::from(frames)).clamp(1, MAX_SLOTS);
        self.mode = match self.mode {
            Mode::Small(_) if longest > SMALL_FRAME => Mode::Many(next),
            Mode::Small(_) => Mode::Small(next),
            Mode::Many(_) => match self.slots.at(0).map(|(slot, _)| slot.room()) {
                Some(short) if longest > short => Mode::Single { run: SHORT_RUN, short },
                Some(short) if one_piece && longest <= SMALL_FRAME.min(short) => Mode::Small(next),
                _ => Mode::Many(next),
            },
            Mode::Single { short, .. } if longest > short => Mode::Single { run: SHORT_RUN, short },
            Mode::Single { run: 0, .. } => Mode::Many(1),
            Mode::Single { run, short } => Mode::Single { run: run.saturating_sub(frames), short },
        };
    }

    fn deliver_held(
        &mut self,
        held: Held,
        state: &mut RxState,
        counters: &mut RingCounters,
    ) -> Round {
        match self.window.fill(held.frame.len(), counters) {
            Fill::Enough => {
                self.window.write(&held.frame);
                self.window.finish(held.header, held.frame.len(), counters);
                Round::Handled(1)
            }
            Fill::Later if !self.window.all_given(counters) => {
                state.put_back(held);
                Round::NoBuffers
            }
            Fill::Later | Fill::Never => {
                counters.add(Counter::DropNoBuffer, 1);
                Round::Handled(1)
            }
        }
    }
}

#[cfg(test)]
mod marks;

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
                pump: RxPump::new(ring, Negotiated::new(accepted), None),
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
                let (state, counters) = (&mut self.state, &mut self.counters);
                let turn = self.pump.turn(&mut self.port, state, counters, None, BATCH);
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
    fn frames_that_are_forgotten_while_held_are_told() {
        let memory = memory();
        let mut guest = Guest::new(&memory, 64, all());
        guest.give(1536);
        guest.send(&frame(20_000, 7));
        assert_eq!(guest.run(), Turn::Starved);
        assert_eq!(guest.state.reset(), 1);
        assert_eq!(guest.state.reset(), 0);
        assert!(!guest.state.is_holding());
    }

    #[test]
    fn an_index_that_jumps_takes_the_buffers_before_it_along() {
        let memory = memory();
        let mut guest = Guest::new(&memory, 64, all());
        for _ in 0..5 {
            guest.give(1536);
        }
        guest.send(&frame(20_000, 7));
        assert_eq!(guest.run(), Turn::Starved);
        guest.driver.set_available(1000);
        guest.buffers.clear();
        assert!(!guest.pump.is_offered(&mut guest.counters));
        assert_eq!(guest.counters.get(Counter::DropMalformed), 1);
        for _ in 0..20 {
            guest.give(1536);
        }
        assert!(guest.pump.is_offered(&mut guest.counters));
        assert_eq!(guest.run(), Turn::Idle);
        assert_eq!(guest.received(), [frame(20_000, 7)]);
        assert_eq!(guest.counters.get(Counter::DropMalformed), 1);
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
    fn without_mergeable_buffers_a_long_frame_does_not_spill_over_into_the_next_chain() {
        let memory = memory();
        let mergeable = 1 << virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
        let mut guest = Guest::new(&memory, 16, all() & !mergeable);
        for _ in 0..12 {
            guest.give(2048);
        }
        for seed in 0..3 {
            guest.send(&frame(60, seed));
        }
        guest.run();
        // Twice, since the first one changes how frames are read.
        for _ in 0..2 {
            guest.send(&frame(3000, 9));
            guest.send(&frame(61, 4));
            guest.run();
        }
        assert_eq!(guest.counters.get(Counter::DropNoBuffer), 2);
        let expected = [frame(60, 0), frame(60, 1), frame(60, 2), frame(61, 4), frame(61, 4)];
        assert_eq!(guest.received(), expected);
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
