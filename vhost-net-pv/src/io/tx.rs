//! Frames from the guest: taken off its ring in batches, handed to the port, returned in order.

use std::fs::File;
use std::io::Write;
use std::ops::Range;

use flexvf_protocol::stats_page::Counter;

use super::port::{Batch, MAX_FRAME, Port};
use super::sys;
use crate::logic::counters::{FrameFacts, RingCounters};
use crate::logic::features::Negotiated;
use crate::logic::memory::{self, GuestSlice};
use crate::logic::net_header::{NetHeader, RawHeader};
use crate::logic::ring::{Access, Position, Ring};

/// Chains handled before anything else gets its turn.
pub(super) const BATCH: u16 = 64;
/// Chains that a sender is interrupted for at once, at the most of those that come one by one.
const COMPANY: u16 = 16;

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
    in_order: bool,
    batch: Batch<'m>,
    chains: Vec<Chain>,
    /// Chains returned since the guest is to be interrupted for them.
    owed: u16,
}

/// A chain of the batch.
struct Chain {
    head: u16,
    content: Content,
}

/// What a chain turned out to be.
enum Content {
    /// Pieces of the batch, and their length.
    Buffers(Range<usize>, usize),
    Frame(FrameFacts),
    Dropped(Counter),
}

impl<'m> TxPump<'m> {
    pub(super) fn new(ring: Ring<'m>, negotiated: Negotiated) -> Self {
        Self {
            ring,
            header_bytes: negotiated.header_bytes,
            in_order: negotiated.in_order,
            batch: Batch::new(usize::from(BATCH)),
            chains: Vec::new(),
            owed: 0,
        }
    }

    pub(super) const fn position(&self) -> Position {
        self.ring.position()
    }

    /// Sends what the guest has ready, `limit` or a batch at most.
    pub(super) fn turn(
        &mut self,
        port: &mut dyn Port,
        counters: &mut RingCounters,
        call: Option<&File>,
        limit: u16,
    ) -> Turn {
        let count = available(&mut self.ring, counters).min(BATCH).min(limit);
        if count == 0 {
            return Turn::Idle;
        }
        self.ring.decline_kicks();
        self.gather(count);
        self.read();
        if !self.batch.is_empty() {
            port.send(&mut self.batch);
        }
        self.settle(counters);
        counters.add(Counter::Batches, 1);
        self.show(count, counters, call);
        Turn::More
    }

    /// Shows the guest what was returned. An interrupt for it waits a little: nothing but the guest's
    /// own accounts depends on it, and a guest that is interrupted for each frame it sends sends
    /// much less. So it waits for company, as long as the worker allows.
    fn show(&mut self, count: u16, counters: &mut RingCounters, call: Option<&File>) {
        match self.ring.publish() {
            Some(false) if self.owed == 0 => counters.add(Counter::InterruptsSuppressed, 1),
            Some(_) => self.owed = self.owed.saturating_add(count),
            None => {}
        }
        if self.owed >= COMPANY {
            self.interrupt(counters, call);
        }
    }

    /// The guest is to be interrupted before long.
    pub(super) const fn owes_interrupt(&self) -> bool {
        self.owed > 0
    }

    /// Interrupts the guest if that has waited.
    pub(super) fn interrupt(&mut self, counters: &mut RingCounters, call: Option<&File>) {
        if self.owed > 0 {
            self.owed = 0;
            interrupt(counters, call);
        }
    }

    /// Asks for a kick at the next chain. True: there is one already, and no kick will come.
    pub(super) fn ask_for_kick(&mut self, counters: &mut RingCounters) -> bool {
        self.ring.ask_for_kick();
        self.is_offered(counters)
    }

    /// The guest has a chain ready.
    pub(super) fn is_offered(&mut self, counters: &mut RingCounters) -> bool {
        available(&mut self.ring, counters) > 0
    }

    /// Resolves chains. The frames themselves are only asked for, so that the processor fetches
    /// them side by side from where the guest's has left them.
    fn gather(&mut self, count: u16) {
        for ahead in 0..count {
            let head = self.ring.head(ahead);
            let pieces = self.batch.pieces();
            let first = pieces.len();
            let content = match self.ring.walk(head, Access::DeviceReads, pieces) {
                Ok(bytes) => {
                    if let Some(piece) = pieces.get(first) {
                        sys::prefetch(piece);
                    }
                    Content::Buffers(first..pieces.len(), bytes)
                }
                Err(_malformed) => Content::Dropped(Counter::DropMalformed),
            };
            self.chains.push(Chain { head, content });
        }
        self.ring.advance(count);
    }

    /// Makes frames of the chains' buffers.
    fn read(&mut self) {
        for chain in &mut self.chains {
            if let Content::Buffers(pieces, bytes) = &chain.content {
                chain.content = frame(&mut self.batch, self.header_bytes, pieces.clone(), *bytes);
            }
        }
    }

    /// Counts the batch and returns its chains.
    fn settle(&mut self, counters: &mut RingCounters) {
        let mut frame = 0;
        for chain in &self.chains {
            match &chain.content {
                Content::Frame(facts) => {
                    match self.batch.taken(frame) {
                        true => counters.frame(facts),
                        false => counters.add(Counter::DropPort, 1),
                    }
                    frame += 1;
                }
                Content::Dropped(reason) => counters.add(*reason, 1),
                Content::Buffers(..) => {}
            }
            if !self.in_order {
                self.ring.push_used(chain.head, 0);
            }
        }
        if self.in_order
            && let Some(last) = self.chains.last()
        {
            self.ring.push_used_up_to(last.head, self.chains.len());
        }
        self.chains.clear();
        self.batch.clear();
    }
}

/// Makes a frame of a chain's buffers.
fn frame(
    batch: &mut Batch<'_>,
    header_bytes: usize,
    pieces: Range<usize>,
    bytes: usize,
) -> Content {
    match bytes.saturating_sub(header_bytes) {
        0 => Content::Dropped(Counter::DropMalformed),
        frame_bytes @ 1..=MAX_FRAME => batch
            .push(pieces, header_bytes, frame_bytes)
            .map_or(Content::Dropped(Counter::DropPort), Content::Frame),
        _ => Content::Dropped(Counter::DropPort),
    }
}

/// What is to be counted about the frame that starts `skip` bytes into `pieces`.
pub(super) fn facts(
    header: &RawHeader,
    pieces: &[GuestSlice<'_>],
    skip: usize,
    bytes: usize,
) -> FrameFacts {
    let destination = memory::six_bytes(pieces, skip);
    FrameFacts { bytes, destination, segments: segments(header, pieces, skip, bytes) }
}

/// Packets on the wire of the frame that starts `skip` bytes into `pieces`.
pub(super) fn segments(
    header: &RawHeader,
    pieces: &[GuestSlice<'_>],
    skip: usize,
    bytes: usize,
) -> u64 {
    NetHeader::parse(header).wire_segments(bytes, |at| {
        let mut byte = [0];
        (memory::copy_out(pieces, skip + at, &mut byte) == 1).then_some(byte[0])
    })
}

/// Entries that the guest has made available; an index that jumped counts as malformed.
fn available(ring: &mut Ring<'_>, counters: &mut RingCounters) -> u16 {
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
        Some(true) => interrupt(counters, call),
    }
}

/// Interrupts the guest, if it has said how.
pub(super) fn interrupt(counters: &mut RingCounters, call: Option<&File>) {
    if let Some(mut call) = call {
        // A full counter means that an interrupt is on its way already.
        let _ = call.write(&1u64.to_ne_bytes());
        counters.add(Counter::Interrupts, 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::port::{Loopback, Null, Slots, Spills};
    use crate::logic::testing::{BUFFERS, Driver, NEXT, memory};
    use proptest::prelude::*;

    fn pump<'m>(driver: &Driver<'m>, header_bytes: usize) -> TxPump<'m> {
        let ring = Ring::new(driver.memory, &driver.layout, false, Position::default()).unwrap();
        let long = 1 << virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
        TxPump::new(ring, Negotiated::new(if header_bytes == 12 { long } else { 0 }))
    }

    fn run(pump: &mut TxPump<'_>, port: &mut dyn Port) -> RingCounters {
        let mut counters = RingCounters::default();
        while pump.turn(port, &mut counters, None, BATCH) == Turn::More {}
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
        let (mut slots, mut spills) = (Slots::new(), Spills::new());
        slots.push(std::iter::empty());
        port.receive(&mut slots, &mut spills);
        assert_eq!(slots.at(0).unwrap().0.bytes(), Some(60));
        assert_eq!(spills.at(0)[..60], frame);
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

    #[test]
    fn chains_used_in_order_share_an_entry() {
        let memory = memory();
        let mut driver = Driver::new(&memory, 8);
        let heads = [72, 73, 5].map(|bytes| driver.offer(&[(BUFFERS, bytes)], 0));
        let ring = Ring::new(driver.memory, &driver.layout, false, Position::default()).unwrap();
        let accepted = 1 << virtio_bindings::virtio_config::VIRTIO_F_IN_ORDER;
        let mut pump = TxPump::new(ring, Negotiated::new(accepted));
        let counters = run(&mut pump, &mut Null);
        assert_eq!((counters.get(Counter::Frames), counters.get(Counter::DropMalformed)), (2, 1));
        assert_eq!(driver.used_index(), 3);
        assert_eq!(driver.returned_one(), Some((u32::from(heads[2]), 0)));
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
                    while pump.turn(&mut Null, &mut counters, None, BATCH) == Turn::More {}
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
