//! A TAP: our backend against loops that do nothing but read or write frames (floors).
//!
//! To the host, DPDK's virtio-user sends as fast as it can and the TAP's own counter tells. To the
//! guest, the host's stack is the source ([`crate::bench::io::inject`]), the same for both sides;
//! frames count when they have arrived in the guest's ring, or in the floor's buffer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, anyhow, bail};

use crate::bench::drive::{Experiment, Side};
use crate::bench::io::backend::{Backend, Port};
use crate::bench::io::floor::{GUEST_MAC, Method, read_rate, write_rate};
use crate::bench::io::inject::Injector;
use crate::bench::io::receiver::Receiver;
use crate::bench::io::stage::{Stage, pin};
use crate::bench::io::tap::Tap;
use crate::bench::io::testpmd::{Mode, Testpmd};
use crate::bench::logic::pairs::Better;
use crate::bench::logic::row::Row;

/// Both directions against both kinds of floor, and two queue pairs against one.
pub fn experiments(stage: &Stage) -> Vec<Box<dyn Experiment + '_>> {
    let to_host =
        |name, frame_bytes, floor| OneTap { stage, name, to_host: true, frame_bytes, floor };
    let to_guest =
        |name, frame_bytes, floor| OneTap { to_host: false, ..to_host(name, frame_bytes, floor) };
    vec![
        Box::new(to_host("tap-tx-64", 64, Method::Call)),
        Box::new(to_host("tap-tx-1472", 1472, Method::Call)),
        Box::new(to_host("tap-tx-64-uring-floor", 64, Method::Uring)),
        Box::new(to_guest("tap-rx-64", 64, Method::Call)),
        Box::new(to_guest("tap-rx-1472", 1472, Method::Call)),
        Box::new(to_guest("tap-rx-64-uring-floor", 64, Method::Uring)),
        Box::new(TwoPairs { stage }),
    ]
}

struct OneTap<'s> {
    stage: &'s Stage,
    name: &'static str,
    to_host: bool,
    frame_bytes: usize,
    floor: Method,
}

impl Experiment for OneTap<'_> {
    fn rows(&self) -> Vec<Row> {
        let (peer_name, wanted) = match (self.floor, self.to_host) {
            (Method::Call, true) => ("write() loop", 1.1),
            (Method::Call, false) => ("read() loop", 0.9),
            (Method::Uring, true) => ("io_uring writes, 64 a batch", 0.9),
            (Method::Uring, false) => ("io_uring reads, 64 a batch", 0.9),
        };
        vec![Row { name: self.name, unit: "Mpps", peer_name, better: Better::Higher, wanted }]
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        let (stage, bytes) = (self.stage, self.frame_bytes);
        let rate = match (side, self.to_host) {
            (Side::Ours, true) => send(stage, bytes, 1)?,
            (Side::Ours, false) => receive(stage, bytes, |_| Ok(()))?.0,
            (Side::Peer, true) => write_rate(stage, self.floor, bytes)?,
            (Side::Peer, false) => read_rate(stage, self.floor, bytes)?,
        };
        Ok(vec![rate / 1e6])
    }
}

struct TwoPairs<'s> {
    stage: &'s Stage,
}

impl Experiment for TwoPairs<'_> {
    fn rows(&self) -> Vec<Row> {
        vec![Row {
            name: "tap-2pairs",
            unit: "Mpps",
            peer_name: "one pair",
            better: Better::Higher,
            wanted: 1.8,
        }]
    }

    fn note(&self) -> Option<String> {
        (!self.stage.cores(2).suffice(2)).then(|| {
            "tap-2pairs needs 4 processors, which are not there: its ratio says little".to_owned()
        })
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        let pairs = if side == Side::Ours { 2 } else { 1 };
        Ok(vec![send(self.stage, 64, pairs)? / 1e6])
    }
}

/// Frames a second from the guest, through our backend.
fn send(stage: &Stage, frame_bytes: usize, pairs: usize) -> Result<f64> {
    let tap = Tap::make(stage, pairs)?;
    let mut backend = Backend::start(stage, Port::Tap(tap.name()), pairs)?;
    let mode = Mode::Send(frame_bytes);
    let mut front_end = Testpmd::front_end(stage, backend.socket(), mode, pairs)?;
    stage.rate(|| {
        backend.check()?;
        front_end.check()?;
        tap.written()
    })
}

/// Frames a second to the guest, through our backend; and what `look` sees after that.
pub fn receive<T>(
    stage: &Stage,
    frame_bytes: usize,
    look: impl FnOnce(&Backend) -> Result<T>,
) -> Result<(f64, T)> {
    let tap = Tap::make(stage, 1)?;
    tap.address(Some(GUEST_MAC))?;
    let mut backend = Backend::start(stage, Port::Tap(tap.name()), 1)?;
    let mut receiver = Receiver::connect(backend.socket())?;
    let injector = Injector::new(frame_bytes)?;
    let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let feeder = scope.spawn(|| {
            pin(&stage.cores(1).front_end)?;
            injector.feed(&stop, || {
                let count = receiver.received()?;
                received.store(count, Ordering::Relaxed);
                Ok(count)
            })
        });
        let rate = stage.rate(|| {
            backend.check()?;
            if feeder.is_finished() {
                bail!("the injector ended early");
            }
            Ok(received.load(Ordering::Relaxed))
        });
        let seen = look(&backend);
        stop.store(true, Ordering::Relaxed);
        let injected = feeder.join().map_err(|_| anyhow!("the injector panicked"))??;
        injected.warn_if_it_was_the_bottleneck();
        Ok((rate?, seen?))
    })
}
