//! Rings alone: 64-byte frames to and from a backend that does nothing else with them, ours or DPDK's
//! own vhost. Once with a front-end so light that the backend is what is measured, and once with
//! DPDK's virtio-user, which takes about as long for a frame as the backends do. DPDK polls; so does
//! ours (`--poll-us`), but for the rows that say otherwise.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Result, anyhow, bail};

use super::SHORT_RUNS;
use crate::bench::drive::{Experiment, Side};
use crate::bench::io::backend::{Backend, Port};
use crate::bench::io::front_end::FrontEnd;
use crate::bench::io::stage::{Stage, pin};
use crate::bench::io::testpmd::{Mode, Testpmd};
use crate::bench::logic::pairs::Better;
use crate::bench::logic::row::Row;

/// Both directions with both front-ends.
pub fn experiments(stage: &Stage) -> Vec<Box<dyn Experiment + '_>> {
    let ring = |name, kind, direction| -> Box<dyn Experiment + '_> {
        let peer_name = "DPDK net_vhost";
        let row = Row { name, unit: "Mpps", peer_name, better: Better::Higher, wanted: 1.2 };
        Box::new(Ring { stage, row, kind, direction, ready: None })
    };
    vec![
        ring("ring-tx-64", Kind::Light, Direction::FromGuest),
        ring("ring-rx-64", Kind::Light, Direction::ToGuest),
        ring("ring-tx-64-events", Kind::LightAndEvents, Direction::FromGuest),
        ring("ring-rx-64-events", Kind::LightAndEvents, Direction::ToGuest),
        ring("ring-tx-64-virtio-user", Kind::VirtioUser, Direction::FromGuest),
        ring("ring-rx-64-virtio-user", Kind::VirtioUser, Direction::ToGuest),
    ]
}

/// Whose rings they are, and how our backend learns of work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// This process's.
    Light,
    /// The same, and our backend waits for kicks.
    LightAndEvents,
    /// DPDK's.
    VirtioUser,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    FromGuest,
    ToGuest,
}

struct Ring<'s> {
    stage: &'s Stage,
    row: Row,
    kind: Kind,
    direction: Direction,
    ready: Option<Ready>,
}

/// Both sides' programs.
struct Ready {
    our_guest: Guest,
    ours: Backend,
    peer_guest: Guest,
    peer: Testpmd,
}

/// A front-end, and what it does with frames.
struct Guest {
    direction: Direction,
    front_end: AnyFrontEnd,
}

enum AnyFrontEnd {
    Light(Box<FrontEnd>),
    VirtioUser(Testpmd),
}

impl Experiment for Ring<'_> {
    fn rows(&self) -> Vec<Row> {
        vec![self.row]
    }

    fn pairs(&self, asked: usize) -> usize {
        asked * SHORT_RUNS
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        let stage = self.stage;
        let ready = match &mut self.ready {
            Some(ready) => ready,
            empty => empty.insert(Ready::new(stage, self.kind, self.direction)?),
        };
        let rate = match side {
            Side::Ours => ready.run_ours(stage)?,
            Side::Peer => ready.run_peer(stage)?,
        };
        Ok(vec![rate / 1e6])
    }
}

impl Ready {
    fn new(stage: &Stage, kind: Kind, direction: Direction) -> Result<Self> {
        let (mode, port) = match direction {
            Direction::FromGuest => (Mode::Receive, Port::Null),
            Direction::ToGuest => (Mode::Send(FRAME_BYTES), Port::Source),
        };
        let ours = match kind {
            Kind::Light | Kind::VirtioUser => Backend::start_polling(stage, port)?,
            Kind::LightAndEvents => Backend::start(stage, port, 1)?,
        };
        let socket = stage.run.join(stage.new_name("vhost"));
        let peer = Testpmd::backend(stage, &socket, mode)?;
        let mut ready = Self {
            our_guest: Guest::connect(stage, ours.socket(), kind, direction)?,
            ours,
            peer_guest: Guest::connect(stage, &socket, kind, direction)?,
            peer,
        };
        // What only the first frames cost is nobody's speed.
        ready.run_ours(stage)?;
        ready.run_peer(stage)?;
        Ok(ready)
    }

    fn run_ours(&mut self, stage: &Stage) -> Result<f64> {
        let rate = self.our_guest.rate(stage);
        self.ours.check()?;
        rate
    }

    fn run_peer(&mut self, stage: &Stage) -> Result<f64> {
        self.peer.go()?;
        let rate = self.peer_guest.rate(stage);
        self.peer.halt()?;
        rate
    }
}

impl Guest {
    fn connect(stage: &Stage, socket: &Path, kind: Kind, direction: Direction) -> Result<Self> {
        let front_end = match kind {
            Kind::Light | Kind::LightAndEvents => {
                AnyFrontEnd::Light(Box::new(FrontEnd::connect(socket)?))
            }
            Kind::VirtioUser => {
                let mode = match direction {
                    Direction::FromGuest => Mode::Send(FRAME_BYTES),
                    Direction::ToGuest => Mode::Receive,
                };
                AnyFrontEnd::VirtioUser(Testpmd::front_end(stage, socket, mode, 1)?)
            }
        };
        Ok(Self { direction, front_end })
    }

    /// Frames a second that are exchanged, by the front-end's account.
    fn rate(&mut self, stage: &Stage) -> Result<f64> {
        match &mut self.front_end {
            AnyFrontEnd::Light(front_end) => rate(stage, front_end, self.direction),
            AnyFrontEnd::VirtioUser(testpmd) => {
                testpmd.go()?;
                let (received, sent) = testpmd.rates(stage)?;
                testpmd.halt()?;
                Ok(match self.direction {
                    Direction::FromGuest => sent,
                    Direction::ToGuest => received,
                })
            }
        }
    }
}

fn rate(stage: &Stage, front_end: &mut FrontEnd, direction: Direction) -> Result<f64> {
    let (stop, exchanged) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let driver = scope.spawn(|| {
            pin(&stage.cores(1).front_end)?;
            while !stop.load(Ordering::Relaxed) {
                let count = match direction {
                    Direction::FromGuest => front_end.sent()?,
                    Direction::ToGuest => front_end.received()?,
                };
                exchanged.store(count, Ordering::Relaxed);
                std::hint::spin_loop();
            }
            anyhow::Ok(())
        });
        let rate = stage.rate(|| match driver.is_finished() {
            true => bail!("the front-end ended early"),
            false => Ok(exchanged.load(Ordering::Relaxed)),
        });
        stop.store(true, Ordering::Relaxed);
        driver.join().map_err(|_| anyhow!("the front-end panicked"))??;
        rate
    })
}

const FRAME_BYTES: usize = 64;
