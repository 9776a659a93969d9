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
        Self {
            spill: vec![0; MAX_FRAME].into_boxed_slice(),
            held: None,
        }
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
        self.target
            .extend(memory::pieces(pieces, self.negotiated.header_bytes));
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
        let bytes = self
            .ring
            .walk(head, Access::DeviceWrites, &mut self.pieces)?;
        let pieces = self.pieces.len() - before;
        let fits = self.pieces.len() - self.spent <= MAX_PIECES;
        if bytes <= self.negotiated.header_bytes || !fits {
            self.pieces.truncate(before);
            return Err(Malformed::TooShort);
        }
        Ok(Chain {
            head,
            pieces,
            bytes,
        })
    }

    fn window_bytes(&self) -> usize {
        let sum = |sum: usize, chain: &Chain| sum.saturating_add(chain.bytes);
        self.window.iter().fold(0, sum)
    }

    /// Writes the header before a frame that is in place, and hands its chains over.
    fn finish(
        &mut self,
        mut header: RawHeader,
        bytes: usize,
        counters: &mut RingCounters,
    ) -> Step {
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
