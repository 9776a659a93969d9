//! Rings alone: DPDK's virtio-user exchanges 64-byte frames with a backend that does nothing else,
//! ours or DPDK's own vhost. The front-end's counters tell.

use anyhow::Result;

use crate::bench::drive::{Experiment, Side};
use crate::bench::io::backend::{Backend, Port};
use crate::bench::io::stage::Stage;
use crate::bench::io::testpmd::{Mode, Testpmd};
use crate::bench::logic::pairs::Better;
use crate::bench::logic::row::Row;

/// Both directions.
pub fn experiments(stage: &Stage) -> Vec<Box<dyn Experiment + '_>> {
    let row = |name| Row {
        name,
        unit: "Mpps",
        peer_name: "DPDK net_vhost",
        better: Better::Higher,
        wanted: 1.2,
    };
    vec![
        Box::new(Ring { stage, row: row("ring-tx-64"), from_guest: true }),
        Box::new(Ring { stage, row: row("ring-rx-64"), from_guest: false }),
    ]
}

struct Ring<'s> {
    stage: &'s Stage,
    row: Row,
    from_guest: bool,
}

impl Experiment for Ring<'_> {
    fn rows(&self) -> Vec<Row> {
        vec![self.row]
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        let stage = self.stage;
        let (front, back, port) = match self.from_guest {
            true => (Mode::Send(FRAME_BYTES), Mode::Receive, Port::Null),
            false => (Mode::Receive, Mode::Send(FRAME_BYTES), Port::Source),
        };
        let rates = match side {
            Side::Ours => {
                let mut backend = Backend::start(stage, port, 1)?;
                let mut front_end = Testpmd::front_end(stage, backend.socket(), front, 1)?;
                let rates = front_end.rates(stage)?;
                backend.check()?;
                rates
            }
            Side::Peer => {
                let socket = stage.run.join(stage.new_name("vhost"));
                let mut backend = Testpmd::backend(stage, &socket, back)?;
                let mut front_end = Testpmd::front_end(stage, &socket, front, 1)?;
                let rates = front_end.rates(stage)?;
                backend.check()?;
                rates
            }
        };
        let (received, sent) = rates;
        Ok(vec![if self.from_guest { sent } else { received } / 1e6])
    }
}

const FRAME_BYTES: usize = 64;
