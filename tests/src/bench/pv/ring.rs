//! Rings alone: DPDK's virtio-user exchanges 64-byte frames with a backend that does nothing else,
//! ours or DPDK's own vhost. The front-end's counters tell.

use anyhow::Result;

use super::SHORT_RUNS;
use crate::bench::drive::{Experiment, Side};
use crate::bench::io::backend::{Backend, Port};
use crate::bench::io::stage::Stage;
use crate::bench::io::testpmd::{Mode, Testpmd};
use crate::bench::logic::pairs::Better;
use crate::bench::logic::row::Row;

/// Both directions.
pub fn experiments(stage: &Stage) -> Vec<Box<dyn Experiment + '_>> {
    let ring = |name, from_guest| -> Box<dyn Experiment + '_> {
        let peer_name = "DPDK net_vhost";
        let row = Row { name, unit: "Mpps", peer_name, better: Better::Higher, wanted: 1.2 };
        Box::new(Ring { stage, row, from_guest, ready: None })
    };
    vec![ring("ring-tx-64", true), ring("ring-rx-64", false)]
}

struct Ring<'s> {
    stage: &'s Stage,
    row: Row,
    from_guest: bool,
    ready: Option<Ready>,
}

/// Both sides' programs.
struct Ready {
    our_front_end: Testpmd,
    ours: Backend,
    peer_front_end: Testpmd,
    peer: Testpmd,
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
            empty => empty.insert(Ready::new(stage, self.from_guest)?),
        };
        let (received, sent) = match side {
            Side::Ours => ready.run_ours(stage)?,
            Side::Peer => ready.run_peer(stage)?,
        };
        Ok(vec![if self.from_guest { sent } else { received } / 1e6])
    }
}

impl Ready {
    fn new(stage: &Stage, from_guest: bool) -> Result<Self> {
        let (front, back, port) = match from_guest {
            true => (Mode::Send(FRAME_BYTES), Mode::Receive, Port::Null),
            false => (Mode::Receive, Mode::Send(FRAME_BYTES), Port::Source),
        };
        let ours = Backend::start(stage, port, 1)?;
        let socket = stage.run.join(stage.new_name("vhost"));
        let peer = Testpmd::backend(stage, &socket, back)?;
        let mut ready = Self {
            our_front_end: Testpmd::front_end(stage, ours.socket(), front, 1)?,
            ours,
            peer_front_end: Testpmd::front_end(stage, &socket, front, 1)?,
            peer,
        };
        // What only the first frames cost is nobody's speed.
        ready.run_ours(stage)?;
        ready.run_peer(stage)?;
        Ok(ready)
    }

    fn run_ours(&mut self, stage: &Stage) -> Result<(f64, f64)> {
        self.our_front_end.go()?;
        let rates = self.our_front_end.rates(stage)?;
        self.our_front_end.halt()?;
        self.ours.check()?;
        Ok(rates)
    }

    fn run_peer(&mut self, stage: &Stage) -> Result<(f64, f64)> {
        self.peer.go()?;
        self.peer_front_end.go()?;
        let rates = self.peer_front_end.rates(stage)?;
        self.peer_front_end.halt()?;
        self.peer.halt()?;
        Ok(rates)
    }
}

const FRAME_BYTES: usize = 64;
