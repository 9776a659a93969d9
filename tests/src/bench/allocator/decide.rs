//! One decision of the engine's, and the plan that follows from it.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flexvf_protocol::agent::Path;
use qmp_allocator::logic::engine::{AgentView, Command, Engine, Event, Settings, VmSpec};
use qmp_allocator::logic::policy::Strategy;
use qmp_allocator::logic::rate::{Count, Sample, Trust};
use qmp_allocator::logic::switch::Limits;
use qmp_allocator::logic::vf::VfId;

use super::{VFS, bounded};
use crate::bench::drive::{Experiment, Side};
use crate::bench::logic::row::Row;

const VMS: usize = 10_000;
const BOUND_MS: f64 = 5.0;
const POOL: &str = "default";
const INTERVAL: Duration = Duration::from_secs(300);
const READY: AgentView = AgentView::Ready { active: Some(Path::Pv) };

/// The engine alone, in this process, and its time.
#[derive(Default)]
pub struct Decide {
    engine: Option<Engine>,
    now: Duration,
    /// Sampled so far, and so the packets of the next sample.
    samples: u64,
}

impl Experiment for Decide {
    fn rows(&self) -> Vec<Row> {
        vec![bounded("decide-10000-vms", "ms", "the bound")]
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        Ok(vec![match side {
            Side::Ours => self.decide()?,
            Side::Peer => BOUND_MS,
        }])
    }
}

impl Decide {
    /// From the tick that ends an interval to the list of switches to begin.
    fn decide(&mut self) -> Result<f64> {
        if self.engine.is_none() {
            self.engine = Some(self.filled()?);
        }
        // Made anew for the next time: this one's VFs are on their way from here on.
        let mut engine = self.engine.take().context("no engine")?;
        self.now += INTERVAL;
        // Samples that are newer than the decision; the busiest are others each time.
        self.sample(&mut engine)?;
        self.now += Duration::from_secs(1);
        let began = Instant::now();
        let commands = engine.on(self.now, Event::Tick);
        let took = began.elapsed();
        let acts = commands.iter().filter(|command| matches!(command, Command::Act { .. })).count();
        ensure!(acts == VFS, "{acts} switches were begun, {VFS} VFs are free");
        Ok(took.as_secs_f64() * 1e3)
    }

    fn filled(&mut self) -> Result<Engine> {
        let seconds = Duration::from_secs;
        let settings = Settings {
            strategy: Strategy::Activity,
            interval: INTERVAL,
            max_concurrent_switches: VFS,
            limits: Limits {
                join: seconds(15),
                drain: Duration::from_millis(200),
                unplug: seconds(20),
                unplug_repeat: seconds(6),
            },
            first_look: seconds(11),
            link_mbps: 100_000,
        };
        let mut engine = Engine::new(self.now, settings, &[POOL.to_owned()], None);
        for vm in 0..VMS {
            let spec = VmSpec { pool: POOL.into(), pin: None };
            engine.on(self.now, Event::Registered { vm: name(vm)?, spec });
            engine.on(self.now, Event::Agent { vm: name(vm)?, view: READY });
        }
        for vm in 0..VMS {
            let free_port = Some("rp1".into());
            engine.on(self.now, Event::Observed { vm: name(vm)?, held: None, free_port });
        }
        self.sample(&mut engine)?;
        let vfs = (0..VFS).map(|vf| VfId::new(format!("vf{vf:02}"))).collect();
        engine.on(self.now, Event::Pool { pool: POOL.into(), vfs, problem: None });
        Ok(engine)
    }

    fn sample(&mut self, engine: &mut Engine) -> Result<()> {
        self.samples += 1;
        for vm in 0..VMS {
            let packets = self.samples * (vm as u64 * 7919 % 10_007) * 300;
            let pv = Some(Count { epoch: 1, packets, trust: Trust::Host });
            let sample = Sample { at: self.now, pv, vf: None };
            engine.on(self.now, Event::Sampled { vm: name(vm)?, sample });
        }
        Ok(())
    }
}

fn name(vm: usize) -> Result<flexvf_protocol::VmName> {
    Ok(format!("vm-{vm:05}").parse()?)
}
