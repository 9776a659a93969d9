//! What a backend costs when nothing happens: against bounds, which are no measurements.

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

use super::tap::Receiving;
use crate::bench::drive::{Experiment, Side};
use crate::bench::io::backend::{Backend, Port};
use crate::bench::io::front_end::FrontEnd;
use crate::bench::io::process::{own_resident_mib, voluntary_switches};
use crate::bench::io::stage::Stage;
use crate::bench::io::tap::Tap;
use crate::bench::logic::pairs::Better;
use crate::bench::logic::row::Row;

/// Sleep, memory, start.
pub fn experiments(stage: &Stage) -> Vec<Box<dyn Experiment + '_>> {
    let row =
        |name, unit| Row { name, unit, peer_name: "the bound", better: Better::Lower, wanted: 1.0 };
    vec![
        Box::new(Footprint {
            stage,
            row: row("idle-wakeups", "in 5 s"),
            bound: 0.0,
            measure: wakeups,
        }),
        Box::new(Footprint { stage, row: row("rss-one-pair", "MiB"), bound: 6.0, measure: memory }),
        Box::new(Footprint {
            stage,
            row: row("start-to-ready", "ms"),
            bound: 20.0,
            measure: start,
        }),
    ]
}

struct Footprint<'s> {
    stage: &'s Stage,
    row: Row,
    bound: f64,
    measure: fn(&Stage) -> Result<f64>,
}

impl Experiment for Footprint<'_> {
    fn rows(&self) -> Vec<Row> {
        vec![self.row]
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        Ok(vec![match side {
            Side::Ours => (self.measure)(self.stage)?,
            Side::Peer => self.bound,
        }])
    }
}

/// Wake-ups of all threads in five seconds with a front-end that is connected and idle.
fn wakeups(stage: &Stage) -> Result<f64> {
    let tap = Tap::make(stage, 1)?;
    let backend = Backend::start(stage, Port::Tap(tap.name()), 1)?;
    let _front_end = FrontEnd::connect(backend.socket())?;
    // The last messages have been answered; their threads may still be on their way to sleep.
    sleep(SETTLING);
    let before = voluntary_switches(backend.pid())?;
    sleep(IDLE);
    Ok((voluntary_switches(backend.pid())? - before) as f64)
}

/// Own resident memory under traffic.
fn memory(stage: &Stage) -> Result<f64> {
    let mut guest = Receiving::new(stage, 64)?;
    guest.rate(stage)?;
    own_resident_mib(guest.backend.pid())
}

/// From the start of the program, which makes its TAP, until its socket accepts a connection.
fn start(stage: &Stage) -> Result<f64> {
    let tap = stage.new_name("bench");
    let (_backend, took) = Backend::start_timed(stage, Port::Tap(&tap))?;
    Ok(took.as_secs_f64() * 1e3)
}

const SETTLING: Duration = Duration::from_millis(500);
const IDLE: Duration = Duration::from_secs(5);
