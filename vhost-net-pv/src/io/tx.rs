//! Frames from the guest: taken off its ring in batches, handed to the port, returned in order.

use std::fs::File;
use std::io::Write;

use flexvf_protocol::stats_page::Counter;

use super::port::{Batch, MAX_FRAME, Port};
use crate::logic::counters::{FrameFacts, RingCounters};
use crate::logic::memory::{self, GuestSlice};
use crate::logic::net_header::{HEADER_BYTES, NetHeader, RawHeader};
use crate::logic::ring::{Access, Malformed, Position, Ring};

/// Chains handled before anything else gets its turn.
pub(super) const BATCH: u16 = 64;

/// What a turn has left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// There is more: come back without waiting.
    More,
    /// Nothing to do before the next kick or frame.
    Idle,
    /// Frames may be waiting, but the ring has no buffers for them.
    Starved,
}

/// A guest's transmit ring in use.
pub(super) struct TxPump<'m> {
    ring: Ring<'m>,
    header_bytes: usize,
    batch: Batch<'m>,
    chains: Vec<(u16, Content)>,
}

/// What a chain of the batch turned out to be.
enum Content {
    Frame(FrameFacts),
    Dropped(Counter),
}

impl<'m> TxPump<'m> {
    pub(super) const fn new(ring: Ring<'m>, header_bytes: usize) -> Self {
        Self { ring, header_bytes, batch: Batch::new(), chains: Vec::new() }
    }

    pub(super) const fn position(&self) -> Position {
        self.ring.position()
    }

    /// Sends what the guest has ready, a batch at most.
    pub(super) fn turn(
        &mut self,
        port: &mut dyn Port,
        counters: &mut RingCounters,
        call: Option<&File>,
    ) -> Turn {
        let waiting = available(&mut self.ring, counters);
        if waiting == 0 {
            // Asks to be woken, and looks once more: the guest may have missed the question.
            self.ring.ask_for_kick();
            return match available(&mut self.ring, counters) {
                0 => Turn::Idle,
                _ => Turn::More,
            };
        }
        self.ring.decline_kicks();
        for ahead in 0..waiting.min(BATCH) {
            self.gather(self.ring.head(ahead));
        }
        self.ring.advance(waiting.min(BATCH));
        if !self.batch.is_empty() {
            port.send(&mut self.batch);
        }
        self.settle(counters);
        counters.add(Counter::Batches, 1);
        notify(&mut self.ring, counters, call);
        Turn::More
    }

    fn gather(&mut self, head: u16) {
        let content = match self.read_chain(head) {
            Ok(content) => content,
            Err(_malformed) => Content::Dropped(Counter::DropMalformed),
        };
        self.chains.push((head, content));
    }

    fn read_chain(&mut self, head: u16) -> Result<Content, Malformed> {
        let pieces = self.batch.pieces();
        let start = pieces.len();
        let bytes = self.ring.walk(head, Access::DeviceReads, pieces)?;
        let frame_bytes = bytes.saturating_sub(self.header_bytes);
        if frame_bytes == 0 {
            return Err(Malformed::TooShort);
        }
        if frame_bytes > MAX_FRAME {
            return Ok(Content::Dropped(Counter::DropPort));
        }
        let mut header: RawHeader = [0; HEADER_BYTES];
        let known = header.get_mut(..self.header_bytes).unwrap_or_default();
        memory::copy_out(pieces.get(start..).unwrap_or_default(), 0, known);
        let first = skip(pieces, start, self.header_bytes);
        let facts = facts(&header, pieces.get(first..).unwrap_or_default(), 0, frame_bytes);
        self.batch.push(header, first);
        Ok(Content::Frame(facts))
    }

    /// Counts the batch and returns its chains.
    fn settle(&mut self, counters: &mut RingCounters) {
        let mut frame = 0;
        for (head, content) in self.chains.drain(..) {
            match content {
                Content::Frame(facts) => {
                    match self.batch.taken(frame) {
                        true => counters.frame(&facts),
                        false => counters.add(Counter::DropPort, 1),
                    }
                    frame += 1;
                }
                Content::Dropped(reason) => counters.add(reason, 1),
            }
            self.ring.push_used(head, 0);
        }
        self.batch.clear();
    }
}

/// Cuts `bytes` off the front of the pieces from `start` on; returns the first one that is left.
fn skip(pieces: &mut [GuestSlice<'_>], start: usize, bytes: usize) -> usize {
    let mut left = bytes;
    let mut first = start;
    while let Some(piece) = pieces.get_mut(first) {
        if left < piece.len() {
            if let Ok(rest) = piece.offset(left) {
                *piece = rest;
            }
            break;
        }
        left -= piece.len();
        first += 1;
    }
    first
}

/// What is to be counted about the frame that starts `skip` bytes into `pieces`.
pub(super) fn facts(
    header: &RawHeader,
    pieces: &[GuestSlice<'_>],
    skip: usize,
    bytes: usize,
) -> FrameFacts {
    let mut destination = [0; 6];
    memory::copy_out(pieces, skip, &mut destination);
    let byte_at = |at: usize| {
        let mut byte = [0];
        (memory::copy_out(pieces, skip + at, &mut byte) == 1).then_some(byte[0])
    };
    FrameFacts {
        bytes,
        destination,
        segments: NetHeader::parse(header).wire_segments(bytes, byte_at),
    }
}

/// Entries that the guest has made available; an index that jumped counts as malformed.
pub(super) fn available(ring: &mut Ring<'_>, counters: &mut RingCounters) -> u16 {
    ring.available().unwrap_or_else(|_jump| {
        counters.add(Counter::DropMalformed, 1);
        0
    })
}

/// Shows the guest what was returned, and interrupts it if it wants that.
pub(super) fn notify(ring: &mut Ring<'_>, counters: &mut RingCounters, call: Option<&File>) {
    match ring.publish() {
        None => {}
        Some(false) => counters.add(Counter::InterruptsSuppressed, 1),
        Some(true) => {
            if let Some(mut call) = call {
                // A full counter means that an interrupt is on its way already.
                let _ = call.write(&1u64.to_ne_bytes());
                counters.add(Counter::Interrupts, 1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::port::{Loopback, Null};
    use crate::logic::testing::{BUFFERS, Driver, NEXT, memory};
    use proptest::prelude::*;

    fn pump<'m>(driver: &Driver<'m>, header_bytes: usize) -> TxPump<'m> {
        let ring = Ring::new(driver.memory, &driver.layout, false, Position::default()).unwrap();
        TxPump::new(ring, header_bytes)
    }

    fn run(pump: &mut TxPump<'_>, port: &mut dyn Port) -> RingCounters {
        let mut counters = RingCounters::default();
        while pump.turn(port, &mut counters, None) == Turn::More {}
        counters
    }

    #[test]
    fn a_malformed_chain_is_dropped_and_the_next_good_one_sent() {
        let memory = memory();
        let mut driver = Driver::new(&memory, 8);
        driver.descriptor(5, BUFFERS, 64, NEXT, 5);
        driver.offer_head(5);
        let good = driver.offer(&[(BUFFERS, 72)], 0);
        let counters = run(&mut pump(&driver, 12), &mut Null);
        assert_eq!(counters.get(Counter::DropMalformed), 1);
        assert_eq!(counters.get(Counter::Frames), 1);
        assert_eq!(driver.returned(), [(5, 0), (u32::from(good), 0)]);
    }

    #[test]
    fn a_header_split_over_descriptors_is_legal() {
        let memory = memory();
        let mut driver = Driver::new(&memory, 8);
        let frame: Vec<u8> = (0..60).collect();
        driver.put(BUFFERS + 4, &[0; 8]);
        driver.put(BUFFERS + 12, &frame);
        driver.offer(&[(BUFFERS, 5), (BUFFERS + 5, 4), (BUFFERS + 9, 63)], 0);
        let mut port = Loopback::new().unwrap();
        let counters = run(&mut pump(&driver, 12), &mut port);
        assert_eq!(counters.get(Counter::Bytes), 60);
        let mut sent = vec![0; 100];
        let got = port.receive(&mut [0; 12], &[], &mut sent).unwrap();
        assert_eq!(got, Some(60));
        assert_eq!(sent[..60], frame);
    }

    #[test]
    fn a_chain_that_ends_in_its_header_is_malformed() {
        let memory = memory();
        let mut driver = Driver::new(&memory, 8);
        driver.offer(&[(BUFFERS, 12)], 0);
        driver.offer(&[(BUFFERS, 12)], 0);
        let counters = run(&mut pump(&driver, 12), &mut Null);
        assert_eq!(counters.get(Counter::DropMalformed), 2);
        // The short header of old drivers leaves two bytes of frame.
        driver.offer(&[(BUFFERS, 12)], 0);
        let mut old = pump(&driver, 10);
        assert_eq!(run(&mut old, &mut Null).get(Counter::Frames), 3);
    }

    #[test]
    fn a_frame_larger_than_any_is_the_ports_drop() {
        let memory = memory();
        let mut driver = Driver::new(&memory, 8);
        driver.offer(&[(BUFFERS, MAX_FRAME + 13)], 0);
        let counters = run(&mut pump(&driver, 12), &mut Null);
        assert_eq!(counters.get(Counter::DropPort), 1);
    }

    #[test]
    fn segments_are_counted_behind_a_split_header() {
        let memory = memory();
        let mut driver = Driver::new(&memory, 8);
        // NEEDS_CSUM, TCPv4, gso_size 1448, csum_start 34; TCP header of 32 bytes.
        driver.put(BUFFERS, &[1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0]);
        driver.put(BUFFERS + 12 + 46, &[0x80]);
        driver.offer(&[(BUFFERS, 40), (BUFFERS + 40, 38 + 4 * 1448)], 0);
        let counters = run(&mut pump(&driver, 12), &mut Null);
        assert_eq!(counters.get(Counter::Segments), 4);
    }

    proptest! {
        #[test]
        fn every_chain_is_returned_once_in_order_and_counted_once(
            chains in proptest::collection::vec((0u16..20, any::<bool>()), 1..60),
            lengths in proptest::collection::vec((0u32..200, 0u16..8, 0u16..20), 16),
        ) {
            let memory = memory();
            let mut driver = Driver::new(&memory, 16);
            for (index, (length, flags, next)) in lengths.iter().enumerate() {
                driver.descriptor(index as u16, BUFFERS, *length, *flags, *next);
            }
            let mut pump = pump(&driver, 12);
            let mut counters = RingCounters::default();
            let mut returned = Vec::new();
            for (head, run) in &chains {
                driver.offer_head(*head);
                if *run || driver.returned().is_empty() {
                    while pump.turn(&mut Null, &mut counters, None) == Turn::More {}
                    returned.extend(driver.returned());
                }
            }
            let heads: Vec<_> = chains.iter().map(|(head, _)| (u32::from(*head), 0)).collect();
            prop_assert_eq!(&returned[..], &heads[..returned.len()]);
            let counted = counters.get(Counter::Frames)
                + counters.get(Counter::DropMalformed)
                + counters.get(Counter::DropPort);
            prop_assert_eq!(counted, returned.len() as u64);
        }
    }
}
