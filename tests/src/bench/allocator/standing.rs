//! What the daemon costs while it stands there and samples: processor time and memory.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::switches::AT_ONCE;
use super::{VFS, VMS, World, bounded, vf_taps};
use crate::bench::drive::{Experiment, Side};
use crate::bench::io::process::own_resident_mib;
use crate::bench::io::stage::Stage;
use crate::bench::logic::row::Row;
use crate::fleet::{Plan, Settings};

/// Processor time at three settings, then memory.
pub fn experiments(stage: &Stage) -> Vec<Box<dyn Experiment + '_>> {
    let load =
        |name, strategy, interval_s, sample_s, bound, window_s| -> Box<dyn Experiment + '_> {
            let settings = Settings { strategy, interval_s, sample_s, ..settings() };
            let window = Duration::from_secs_f64(window_s * stage.pace.allocator);
            let row = bounded(name, "% of a core", "the bound");
            Box::new(Load { stage, row, settings, bound, window, world: None })
        };
    vec![
        // All VFs stay where they are, as they do with steady traffic.
        load("cpu-1s-samples", "activity", 10.0, 1.0, 2.0, 10.0),
        // All 63 VFs change hands every ten seconds.
        load("cpu-1s-turns", "fair", 10.0, 1.0, 2.0, 10.0),
        load("cpu-10s-samples", "activity", 300.0, 10.0, 0.2, 30.0),
        Box::new(Memory { stage }),
    ]
}

/// As told in the documentation of the rows.
fn settings() -> Settings {
    Settings {
        strategy: "activity",
        interval_s: 10.0,
        sample_s: 1.0,
        switches: VFS,
        drain_s: 0.2,
        unplug_s: 20.0,
        taps: Vec::new(),
    }
}

const PLAN: Plan = Plan { vms: VMS, latencies: AT_ONCE, without_page: None };

struct Load<'s> {
    stage: &'s Stage,
    row: Row,
    settings: Settings,
    bound: f64,
    window: Duration,
    world: Option<World>,
}

impl Experiment for Load<'_> {
    fn rows(&self) -> Vec<Row> {
        vec![self.row]
    }

    /// Windows are long.
    fn pairs(&self, asked: usize) -> usize {
        asked.div_ceil(2)
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        Ok(vec![match side {
            Side::Ours => self.load()?,
            Side::Peer => self.bound,
        }])
    }
}

impl Load<'_> {
    fn load(&mut self) -> Result<f64> {
        if self.world.is_none() {
            let settings = Settings { taps: vf_taps(VFS)?, ..self.settings.clone() };
            let mut world = World::build(self.stage, PLAN, &settings)?;
            // With T = 300 s the first decision is far: VFs are still with nobody.
            let short = settings.interval_s < 60.0;
            let patience = Duration::from_secs_f64(4.0 * settings.interval_s);
            world.daemon.until(patience, "all VFs are in use", |status| {
                !short || status.vms.iter().filter(|vm| vm.path == "vf").count() == VFS
            })?;
            // What starting has left to do.
            sleep(SETTLING);
            self.world = Some(world);
        }
        let daemon = &self.world.as_ref().context("no daemon")?.daemon;
        let (before, began) = (daemon.cpu_time()?, Instant::now());
        sleep(self.window);
        let (used, took) = (daemon.cpu_time()?.saturating_sub(before), began.elapsed());
        Ok(100.0 * used.as_secs_f64() / took.as_secs_f64())
    }
}

/// Resident memory a VM, with all VFs in use, beyond a daemon that has no VM.
struct Memory<'s> {
    stage: &'s Stage,
}

const BOUND_KIB: f64 = 32.0;

impl Experiment for Memory<'_> {
    fn rows(&self) -> Vec<Row> {
        vec![bounded("rss-per-vm", "KiB", "the bound")]
    }

    fn pairs(&self, asked: usize) -> usize {
        asked.div_ceil(3)
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        if side == Side::Peer {
            return Ok(vec![BOUND_KIB]);
        }
        let settings =
            Settings { strategy: "fair", interval_s: 5.0, taps: vf_taps(VFS)?, ..settings() };
        let empty = World::build(self.stage, Plan { vms: 0, ..PLAN }, &settings)?;
        sleep(SETTLING);
        let base = own_resident_mib(empty.daemon.pid())?;
        drop(empty);
        let mut full = World::build(self.stage, PLAN, &settings)?;
        let patience = Duration::from_secs_f64(6.0 * settings.interval_s);
        // Some rounds: memory that only switches take is part of it.
        full.daemon.until(patience, "a third decision", |status| status.round >= 3)?;
        let all = own_resident_mib(full.daemon.pid())?;
        Ok(vec![(all - base) * 1024.0 / VMS as f64])
    }
}

const SETTLING: Duration = Duration::from_secs(3);
