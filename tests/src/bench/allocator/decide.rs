//! One decision of the engine's, and the plan that follows from it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use flexvf_protocol::agent::{Path, VfState};
use qmp_allocator::logic::engine::{AgentView, Command, Engine, Event, Settings, VmSpec};
use qmp_allocator::logic::policy::tenant::Tenants;
use qmp_allocator::logic::policy::{Strategy, Tuning};
use qmp_allocator::logic::rate::{Count, Sample, Trust};
use qmp_allocator::logic::switch::{Action, Limits, Report};
use qmp_allocator::logic::vf::VfId;

use super::{VFS, bounded};
use crate::bench::drive::{Experiment, Side};
use crate::bench::logic::row::Row;

const VMS: usize = 10_000;
const BOUND_MS: f64 = 5.0;
const POOL: &str = "default";
const INTERVAL: Duration = Duration::from_secs(300);
const SECOND: Duration = Duration::from_secs(1);
const READY: AgentView = AgentView::Ready { active: Some(Path::Pv) };

/// The engine alone, in this process, and its time.
#[derive(Default)]
pub struct Decide {
    engine: Option<Engine>,
    now: Duration,
    /// Rounds decided so far.
    round: usize,
    /// What each VM has sent and received.
    packets: Vec<u64>,
}

impl Experiment for Decide {
    fn rows(&self) -> Vec<Row> {
        vec![bounded("decide-10000-vms", "ms", "the bound")]
    }

    /// One takes some milliseconds.
    fn pairs(&self, asked: usize) -> usize {
        asked * 5
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
        let mut engine = match self.engine.take() {
            Some(engine) => engine,
            None => self.filled()?,
        };
        self.round += 1;
        // The last samples that the decision knows are a second old.
        self.now += INTERVAL - SECOND;
        self.sample(&mut engine)?;
        self.now += SECOND;
        let began = Instant::now();
        let commands = engine.on(self.now, Event::Tick);
        let took = began.elapsed();
        let acts = commands.iter().filter(|command| matches!(command, Command::Act { .. })).count();
        ensure!(acts == VFS, "{acts} switches were begun, {VFS} VFs are to change hands");
        self.switch(&mut engine, commands)?;
        self.engine = Some(engine);
        Ok(took.as_secs_f64() * 1e3)
    }

    /// All VMs known, and all VFs in use.
    fn filled(&mut self) -> Result<Engine> {
        let settings = Settings {
            strategy: Strategy::Activity,
            tuning: Tuning::default(),
            tenants: Tenants::default(),
            interval: INTERVAL,
            max_concurrent_switches: VFS,
            limits: Limits {
                join: SECOND * 15,
                drain: Duration::from_millis(200),
                unplug: SECOND * 20,
                unplug_repeat: SECOND * 6,
            },
            first_look: SECOND * 11,
            link_mbps: 100_000,
        };
        let mut engine = Engine::new(self.now, settings, &[POOL.to_owned()], None);
        self.packets = vec![0; VMS];
        for vm in 0..VMS {
            let spec = VmSpec { pool: POOL.into(), ..VmSpec::default() };
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
        self.now += INTERVAL;
        let commands = engine.on(self.now, Event::Tick);
        self.switch(&mut engine, commands)?;
        Ok(engine)
    }

    /// QEMUs, guests and host do at once what the engine wants, until it wants nothing more.
    fn switch(&mut self, engine: &mut Engine, commands: Vec<Command>) -> Result<()> {
        let mut commands = VecDeque::from(commands);
        loop {
            while let Some(command) = commands.pop_front() {
                for event in answers(command) {
                    commands.extend(engine.on(self.now, event));
                }
            }
            let wake_at = engine.wake_at(self.now);
            if wake_at > self.now + SECOND {
                break;
            }
            self.now = wake_at;
            commands.extend(engine.on(self.now, Event::Tick));
        }
        let vms = engine.status(self.now).vms;
        let on_vf = vms.iter().filter(|vm| vm.path == "vf").count();
        ensure!(on_vf == VFS, "{on_vf} of {VFS} VFs are in use");
        Ok(())
    }

    /// Each round, 63 others are the busiest.
    fn sample(&mut self, engine: &mut Engine) -> Result<()> {
        let first = self.round * VFS % (VMS - VFS);
        for (vm, packets) in self.packets.iter_mut().enumerate() {
            let busy = (first..first + VFS).contains(&vm);
            *packets += (vm as u64 * 7919 % 10_007) * 300 + u64::from(busy) * 10_000_000;
            let pv = Some(Count { epoch: 1, packets: *packets, trust: Trust::Host });
            let sample = Sample { at: self.now, pv, vf: None };
            engine.on(self.now, Event::Sampled { vm: name(vm)?, sample });
        }
        Ok(())
    }
}

/// What comes of a command where all goes well.
fn answers(command: Command) -> Vec<Event> {
    match command {
        Command::Act { vm, action: Action::Join, .. } => {
            vec![Event::Done { vm, report: Report::Vf(VfState::Ready) }]
        }
        Command::Act { vm, vf, action: Action::Unplug, .. } => {
            vec![Event::Done { vm: vm.clone(), report: Report::Ok }, Event::Deleted { vm, vf }]
        }
        Command::Act { vm, .. } => vec![Event::Done { vm, report: Report::Ok }],
        Command::Observe(vm) => {
            vec![Event::Observed { vm, held: None, free_port: Some("rp1".into()) }]
        }
        Command::Forget(_) | Command::Save(_) | Command::Tell(_) => Vec::new(),
    }
}

fn name(vm: usize) -> Result<flexvf_protocol::VmName> {
    Ok(format!("vm-{vm:05}").parse()?)
}
