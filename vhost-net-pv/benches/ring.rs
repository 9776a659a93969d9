//! What the logic of the data path costs a packet, on one thread: `cargo bench -p vhost-net-pv`.
//!
//! Criterion reports a batch of 64 packets of 64 bytes, and packets a second: 80 Melem/s are 12.5 ns
//! a packet. Counting is shown as the difference between two walks that differ in nothing else.
//! Left out: system calls, and a guest on another processor; for these there is `scripts/bench pv`.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;

use criterion::{Criterion, Throughput};
use flexvf_protocol::stats_page::Counter;
use vhost_net_pv::logic::counters::{FrameFacts, RingCounters};
use vhost_net_pv::logic::memory::{self, GuestSlice};
use vhost_net_pv::logic::net_header::{HEADER_BYTES, NetHeader, RawHeader, words};
use vhost_net_pv::logic::ring::{self, Access, Position, Ring};

use testing::{BUFFERS, Driver, WRITE};

#[path = "../src/logic/testing.rs"]
#[allow(dead_code, reason = "shared with the unit tests, which use the rest of it")]
mod testing;

/// Packets handled at once, as the worker does.
const BATCH: u16 = 64;
const FRAME_BYTES: usize = 64;
/// Distance of two buffers: odd in cache lines, so that they do not all fall into the same sets.
const BUFFER_BYTES: u64 = 2048 + 64;

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    rings(&mut criterion);
    headers(&mut criterion);
    criterion.final_summary();
}

fn rings(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("ring");
    group.throughput(Throughput::Elements(BATCH.into()));
    let memory = testing::memory();
    let mut bench = |name: &str, flags: u16, handle: fn(&mut Bench<'_>)| {
        let mut bench = Bench::new(&memory, flags);
        group.bench_function(name, |bencher| bencher.iter(|| bench.batch(handle)));
        // A walk that stopped early would look fast.
        assert_eq!(bench.driver.used_index(), bench.offered);
    };
    bench("tx: walk", 0, |bench| bench.each(Access::DeviceReads, |_, _| ()));
    bench("tx: walk, copy", 0, |bench| {
        bench.each(Access::DeviceReads, |pieces, work| work.copy_out(pieces));
    });
    bench("tx: walk, copy, count", 0, |bench| {
        bench.each(Access::DeviceReads, |pieces, work| {
            work.copy_out(pieces);
            work.count();
        });
    });
    bench("rx: walk, copy", WRITE, |bench| {
        bench.each(Access::DeviceWrites, |pieces, work| {
            // A frame is there before its header is known.
            let (header, frame): (&RawHeader, _) = work.front.split_first_chunk().unwrap();
            memory::copy_in(pieces, HEADER_BYTES, frame);
            let (low, high) = words(header, 1);
            memory::put_words(pieces, low, high);
        });
    });
    group.finish();
}

fn headers(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("header");
    let plain: RawHeader = [0; HEADER_BYTES];
    // NEEDS_CSUM, TCPv4, gso_size 1448, csum_start 34.
    let tso: RawHeader = [1, 1, 66, 0, 0xa8, 5, 34, 0, 16, 0, 0, 0];
    for (name, raw, bytes) in [("plain", plain, FRAME_BYTES), ("tso", tso, 65_000)] {
        group.bench_function(format!("segments: {name}"), |bencher| {
            bencher.iter(|| {
                NetHeader::parse(black_box(&raw)).wire_segments(black_box(bytes), |_| Some(0x80))
            });
        });
    }
    let mut counters = RingCounters::default();
    let facts = FrameFacts { bytes: FRAME_BYTES, destination: [2; 6], segments: 1 };
    group.bench_function("count one frame", |bencher| {
        bencher.iter(|| counters.frame(black_box(&facts)));
    });
    black_box(counters.get(Counter::Frames));
    group.finish();
}

/// A guest that always has a full batch on offer, and the device's side of its ring.
struct Bench<'m> {
    driver: Driver<'m>,
    ring: Ring<'m>,
    offered: u16,
    pieces: Vec<GuestSlice<'m>>,
    work: Work,
}

/// What handling a packet works with.
struct Work {
    /// Header and frame, as they are taken out of guest memory.
    front: [u8; HEADER_BYTES + FRAME_BYTES],
    counters: RingCounters,
}

impl<'m> Bench<'m> {
    fn new(memory: &'m memory::Memory, flags: u16) -> Self {
        let mut driver = Driver::new(memory, BATCH);
        driver.restart();
        for index in 0..u64::from(BATCH) {
            // Well within the megabyte that there is.
            let address = BUFFERS + index * BUFFER_BYTES;
            driver.offer(&[(address, HEADER_BYTES + FRAME_BYTES)], flags);
        }
        // Taken back: each batch offers all of them by moving the index alone.
        driver.set_available(0);
        let ring = Ring::new(memory, &driver.layout, true, Position::default()).unwrap();
        let work =
            Work { front: [0; HEADER_BYTES + FRAME_BYTES], counters: RingCounters::default() };
        Self { driver, ring, offered: 0, pieces: Vec::new(), work }
    }

    fn batch(&mut self, handle: fn(&mut Self)) {
        self.offered = self.offered.wrapping_add(BATCH);
        self.driver.set_available(self.offered);
        handle(self);
    }

    /// Walks a batch, handles each packet, returns all of them.
    fn each(&mut self, access: Access, handle: impl Fn(&[GuestSlice<'m>], &mut Work)) {
        let count = self.ring.available().unwrap();
        for ahead in 0..count {
            let head = self.ring.head(ahead);
            self.pieces.clear();
            let bytes = self.ring.walk(head, access, &mut self.pieces).unwrap();
            handle(&self.pieces, &mut self.work);
            self.ring.push_used(head, black_box(bytes) as u32);
        }
        self.ring.advance(count);
        self.ring.publish();
    }
}

impl Work {
    /// Takes header and frame out of guest memory.
    fn copy_out(&mut self, pieces: &[GuestSlice<'_>]) {
        memory::copy_out(pieces, 0, &mut self.front);
        black_box(&self.front);
    }

    /// Counts the frame that was taken, as the transmit path does.
    fn count(&mut self) {
        let (header, frame): (&RawHeader, _) = self.front.split_first_chunk().unwrap();
        let destination = *frame.first_chunk().unwrap();
        let segments = NetHeader::parse(header).wire_segments(frame.len(), |_| None);
        self.counters.frame(&FrameFacts { bytes: frame.len(), destination, segments });
    }
}
