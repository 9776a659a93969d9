//! A TAP: our backend against loops that do nothing but read or write frames (floors).
//!
//! To the host, DPDK's virtio-user sends as fast as it can and the TAP's own counter tells. To the
//! guest, the host's stack is the source ([`crate::bench::io::inject`]), the same for both sides;
//! frames count when they have arrived in the guest's ring, or in the floor's buffer.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, anyhow, bail};

use super::SHORT_RUNS;
use crate::bench::drive::{Experiment, Side};
use crate::bench::io::backend::{Backend, Port};
use crate::bench::io::floor::{GUEST_MAC, Method, read_rate, write_rate};
use crate::bench::io::front_end::FrontEnd;
use crate::bench::io::inject::Injector;
use crate::bench::io::stage::{Stage, pin};
use crate::bench::io::tap::Tap;
use crate::bench::io::testpmd::{Mode, Testpmd};
use crate::bench::logic::pairs::Better;
use crate::bench::logic::row::Row;

/// Both directions against both kinds of floor, and two queue pairs against one.
pub fn experiments(stage: &Stage) -> Vec<Box<dyn Experiment + '_>> {
    let to_host = |name, frame_bytes, floor| -> Box<dyn Experiment + '_> {
        Box::new(ToHost { stage, name, frame_bytes, floor, ours: None })
    };
    let to_guest = |name, frame_bytes, floor| -> Box<dyn Experiment + '_> {
        Box::new(ToGuest { stage, name, frame_bytes, floor, ours: None })
    };
    vec![
        to_host("tap-tx-64", 64, Method::Call),
        to_host("tap-tx-1472", 1472, Method::Call),
        to_host("tap-tx-64-uring-floor", 64, Method::Uring),
        to_guest("tap-rx-64", 64, Method::Call),
        to_guest("tap-rx-1472", 1472, Method::Call),
        to_guest("tap-rx-64-uring-floor", 64, Method::Uring),
        Box::new(TwoPairs { stage, one: None, two: None }),
    ]
}

struct ToHost<'s> {
    stage: &'s Stage,
    name: &'static str,
    frame_bytes: usize,
    floor: Method,
    ours: Option<Sending>,
}

impl Experiment for ToHost<'_> {
    fn rows(&self) -> Vec<Row> {
        let (peer_name, wanted) = match self.floor {
            Method::Call => ("write() loop", 1.1),
            Method::Uring => ("io_uring writes, 64 a batch", 0.9),
        };
        vec![row(self.name, peer_name, wanted)]
    }

    fn pairs(&self, asked: usize) -> usize {
        asked * SHORT_RUNS
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        let rate = match side {
            Side::Ours => sending(&mut self.ours, self.stage, self.frame_bytes, 1)?,
            Side::Peer => write_rate(self.stage, self.floor, self.frame_bytes)?,
        };
        Ok(vec![rate / 1e6])
    }
}

struct ToGuest<'s> {
    stage: &'s Stage,
    name: &'static str,
    frame_bytes: usize,
    floor: Method,
    ours: Option<Receiving>,
}

impl Experiment for ToGuest<'_> {
    fn rows(&self) -> Vec<Row> {
        let (peer_name, wanted) = match self.floor {
            Method::Call => ("read() loop", 0.9),
            Method::Uring => ("io_uring reads, 64 a batch", 0.9),
        };
        vec![row(self.name, peer_name, wanted)]
    }

    fn pairs(&self, asked: usize) -> usize {
        asked * SHORT_RUNS
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        let rate = match (side, &mut self.ours) {
            (Side::Ours, Some(ours)) => ours.rate(self.stage)?,
            (Side::Ours, empty) => {
                empty.insert(Receiving::new(self.stage, self.frame_bytes)?).rate(self.stage)?
            }
            (Side::Peer, _) => read_rate(self.stage, self.floor, self.frame_bytes)?,
        };
        Ok(vec![rate / 1e6])
    }
}

struct TwoPairs<'s> {
    stage: &'s Stage,
    one: Option<Sending>,
    two: Option<Sending>,
}

impl Experiment for TwoPairs<'_> {
    fn rows(&self) -> Vec<Row> {
        vec![row("tap-2pairs", "one pair", 1.8)]
    }

    fn note(&self) -> Option<String> {
        (!self.stage.cores(2).suffice(2)).then(|| {
            "tap-2pairs needs 4 processors, which are not there: its ratio says little".to_owned()
        })
    }

    fn pairs(&self, asked: usize) -> usize {
        asked * SHORT_RUNS
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        let rate = match side {
            Side::Ours => sending(&mut self.two, self.stage, 64, 2)?,
            Side::Peer => sending(&mut self.one, self.stage, 64, 1)?,
        };
        Ok(vec![rate / 1e6])
    }
}

const fn row(name: &'static str, peer_name: &'static str, wanted: f64) -> Row {
    Row { name, unit: "Mpps", peer_name, better: Better::Higher, wanted }
}

/// A guest that sends through our backend.
struct Sending {
    front_end: Testpmd,
    backend: Backend,
    tap: Tap,
}

/// Frames a second; what is needed for it is started the first time.
fn sending(
    ready: &mut Option<Sending>,
    stage: &Stage,
    frame_bytes: usize,
    pairs: usize,
) -> Result<f64> {
    let ready = match ready {
        Some(ready) => ready,
        empty => empty.insert(Sending::new(stage, frame_bytes, pairs)?),
    };
    ready.rate(stage)
}

impl Sending {
    fn new(stage: &Stage, frame_bytes: usize, pairs: usize) -> Result<Self> {
        let tap = Tap::make(stage, pairs)?;
        let backend = Backend::start(stage, Port::Tap(tap.name()), pairs)?;
        let mode = Mode::Send(frame_bytes);
        let front_end = Testpmd::front_end(stage, backend.socket(), mode, pairs)?;
        let mut sending = Self { front_end, backend, tap };
        // What only the first frames cost is nobody's speed.
        sending.rate(stage)?;
        Ok(sending)
    }

    fn rate(&mut self, stage: &Stage) -> Result<f64> {
        self.front_end.go()?;
        let rate = stage.rate(|| {
            self.backend.check()?;
            self.front_end.check()?;
            self.tap.written()
        })?;
        self.front_end.halt()?;
        Ok(rate)
    }
}

/// A guest that is sent frames through our backend.
pub(super) struct Receiving {
    front_end: FrontEnd,
    injector: Injector,
    /// Our backend.
    pub(super) backend: Backend,
    _tap: Tap,
}

impl Receiving {
    /// Starts everything for frames of so many bytes.
    pub(super) fn new(stage: &Stage, frame_bytes: usize) -> Result<Self> {
        let tap = Tap::make(stage, 1)?;
        tap.address(Some(GUEST_MAC))?;
        let backend = Backend::start(stage, Port::Tap(tap.name()), 1)?;
        let front_end = FrontEnd::connect(backend.socket())?;
        let injector = Injector::new(&tap, frame_bytes)?;
        let mut receiving = Self { front_end, injector, backend, _tap: tap };
        // What only the first frames cost is nobody's speed.
        receiving.rate(stage)?;
        Ok(receiving)
    }

    /// Frames a second that arrive.
    pub(super) fn rate(&mut self, stage: &Stage) -> Result<f64> {
        let Self { front_end, injector, backend, .. } = self;
        let (stop, received) = (AtomicBool::new(false), AtomicU64::new(front_end.received()?));
        std::thread::scope(|scope| {
            let feeder = scope.spawn(|| {
                pin(&stage.cores(1).front_end)?;
                injector.feed(&stop, || {
                    let count = front_end.received()?;
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
            stop.store(true, Ordering::Relaxed);
            let injected = feeder.join().map_err(|_| anyhow!("the injector panicked"))??;
            injected.warn_if_it_was_the_bottleneck();
            rate
        })
    }
}
