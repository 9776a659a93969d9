//! What the allocator's decisions cost, on one thread: `cargo bench -p qmp-allocator`.
//!
//! `decide` is a whole round: rates, ranking, the first switches, what is to be saved. The bound for
//! 10,000 VMs and 63 VFs is 5 ms. `sample` is what every VM costs each sample interval, `news` an event
//! after which VFs have to be planned anew. `told` is what a decision costs the daemon on top for the flight
//! recorder, and `asked` what `flexvf plan` and `explain` do. Left out: everything that waits.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput};
use flexvf_protocol::VmName;
use flexvf_protocol::agent::{Path, VfState};
use qmp_allocator::logic::engine::{AgentView, Command, Engine, Event, Settings, VmSpec};
use qmp_allocator::logic::policy::tenant::Tenants;
use qmp_allocator::logic::policy::{Strategy, Tuning, Words};
use qmp_allocator::logic::rate::{Count, Sample, Trust};
use qmp_allocator::logic::switch::{Action, Limits, Report};
use qmp_allocator::logic::vf::VfId;

const VFS: usize = 63;
const INTERVAL: Duration = Duration::from_secs(300);
const POOL: &str = "default";

fn main() {
    let mut criterion = Criterion::default().configure_from_args();
    decide(&mut criterion);
    events(&mut criterion);
    questions(&mut criterion);
    criterion.final_summary();
}

fn decide(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("decide");
    group.sample_size(50);
    let steady = Tuning { margin_percent: 20, min_hold: INTERVAL * 2, ..Tuning::default() };
    let mut policies = Strategy::ALL.map(|strategy| (strategy, Tuning::default())).to_vec();
    policies.extend([(Strategy::Activity, steady), (Strategy::Hybrid, steady)]);
    for (strategy, tuning) in policies {
        let name = if tuning == steady { ", hysteresis" } else { "" };
        for vms in [1_000, 10_000] {
            let mut fleet = Fleet::new(strategy, tuning, vms);
            let name = format!("{}{name}, {vms} VMs, {VFS} VFs", strategy.name());
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|rounds| (0..rounds).map(|_| fleet.round()).sum());
            });
            // A fleet in which nothing moves any more would be decided at no cost.
            assert!(fleet.switches > 0);
        }
    }
    group.finish();
}

fn questions(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("operator");
    for vms in [1_000, 10_000] {
        let mut fleet = Fleet::new(Strategy::Activity, Tuning::default(), vms);
        fleet.round();
        let Fleet { engine, now, .. } = &fleet;
        let decided = engine.decisions();
        assert_eq!(decided.iter().map(|decision| decision.vms.len()).sum::<usize>(), vms);
        group.bench_function(format!("told, {vms} VMs"), |bencher| {
            bencher.iter(|| black_box(engine.decisions()));
        });
        group.bench_function(format!("asked, {vms} VMs"), |bencher| {
            bencher.iter(|| black_box(engine.questions(*now)));
        });
    }
    group.finish();
}

fn events(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("event");
    group.throughput(Throughput::Elements(1));
    for vms in [1_000, 10_000] {
        let mut fleet = Fleet::new(Strategy::Activity, Tuning::default(), vms);
        fleet.round();
        let mut turn = 0;
        group.bench_function(format!("sample, {vms} VMs"), |bencher| {
            bencher.iter(|| {
                turn += 1;
                fleet.now += Duration::from_micros(10);
                black_box(fleet.sample(turn % vms));
            });
        });
        group.bench_function(format!("news, {vms} VMs"), |bencher| {
            bencher.iter(|| {
                turn += 1;
                let vm = fleet.names[turn % vms].clone();
                let view = match turn % 2 {
                    0 => AgentView::Ready { active: Some(Path::Pv) },
                    _ => AgentView::Silent("gone".into()),
                };
                let commands = fleet.engine.on(fleet.now, Event::Agent { vm, view });
                black_box(fleet.engine.wake_at(fleet.now));
                black_box(commands);
            });
        });
    }
    group.finish();
}

/// VMs that all run, with agents that all answer, and VFs that all work.
struct Fleet {
    engine: Engine,
    names: Vec<VmName>,
    now: Duration,
    decided_at: Duration,
    rounds: usize,
    switches: usize,
}

impl Fleet {
    fn new(strategy: Strategy, tuning: Tuning, vms: usize) -> Self {
        let now = Duration::from_secs(1000);
        let mut fleet = Self {
            engine: Engine::new(now, settings(strategy, tuning), &[POOL.to_owned()], None),
            names: (0..vms).map(|i| format!("vm{i}").parse().unwrap()).collect(),
            now,
            decided_at: now,
            rounds: 0,
            switches: 0,
        };
        let vfs = (0..VFS).map(|i| VfId::new(format!("0000:01:{i:02x}.0"))).collect();
        fleet.tell(Event::Pool { pool: POOL.into(), vfs, problem: None });
        for (index, vm) in fleet.names.clone().into_iter().enumerate() {
            let spec = VmSpec {
                pool: POOL.into(),
                words: Words { weight: 1 + index as u32 % 9, ..Words::default() },
            };
            fleet.tell(Event::Registered { vm: vm.clone(), spec });
            fleet.tell(Event::Observed { vm: vm.clone(), held: None, free_port: port() });
            fleet.tell(Event::Agent { vm, view: AgentView::Ready { active: Some(Path::Pv) } });
        }
        fleet
    }

    /// A round in which the load has moved, and how long it took to decide it.
    fn round(&mut self) -> Duration {
        self.rounds += 1;
        // The second one before the interval ends: a sample, too, brings a decision that is due.
        self.decided_at += INTERVAL;
        for at in [self.now, self.decided_at - Duration::from_secs(1)] {
            self.now = at;
            for vm in 0..self.names.len() {
                black_box(self.sample(vm));
            }
        }
        self.now = self.decided_at;
        let begin = Instant::now();
        let commands = self.engine.on(self.now, Event::Tick);
        black_box(self.engine.wake_at(self.now));
        let took = begin.elapsed();
        let is_decision = |command: &Command| matches!(command, Command::Save(_));
        assert!(commands.iter().any(is_decision), "what is measured is a decision");
        self.carry_out(commands);
        took
    }

    fn sample(&mut self, vm: usize) -> Vec<Command> {
        // The busiest ones are others in each round.
        let pps = (vm * 7919 + self.rounds * 104_729) % self.names.len() * 10;
        let packets = pps as u64 * self.now.as_secs();
        let pv = Some(Count { epoch: self.rounds as u64, packets, trust: Trust::Host });
        let sample = Sample { at: self.now, pv, vf: None };
        self.engine.on(self.now, Event::Sampled { vm: self.names[vm].clone(), sample })
    }

    fn tell(&mut self, event: Event) {
        let commands = self.engine.on(self.now, event);
        self.carry_out(commands);
    }

    /// Everything works at once.
    fn carry_out(&mut self, mut commands: Vec<Command>) {
        loop {
            for command in std::mem::take(&mut commands) {
                for event in self.answer(command) {
                    commands.extend(self.engine.on(self.now, event));
                }
            }
            let wake_at = self.engine.wake_at(self.now);
            if commands.is_empty() && wake_at > self.now + Duration::from_secs(1) {
                return;
            }
            if commands.is_empty() {
                self.now = wake_at;
                commands = self.engine.on(self.now, Event::Tick);
            }
        }
    }

    fn answer(&mut self, command: Command) -> Vec<Event> {
        match command {
            Command::Act { vm, action, .. } => {
                let report = match action {
                    Action::Join => Report::Vf(VfState::Ready),
                    Action::Unplug => Report::DevicePresent(false),
                    _ => Report::Ok,
                };
                vec![Event::Done { vm, report }]
            }
            Command::Observe(vm) => vec![Event::Observed { vm, held: None, free_port: port() }],
            Command::Tell(_) => {
                self.switches += 1;
                Vec::new()
            }
            Command::Save(_) | Command::Forget(_) => Vec::new(),
        }
    }
}

fn port() -> Option<String> {
    Some("rp0".to_owned())
}

fn settings(strategy: Strategy, tuning: Tuning) -> Settings {
    Settings {
        strategy,
        tuning,
        tenants: Tenants::default(),
        interval: INTERVAL,
        max_concurrent_switches: 4,
        limits: Limits {
            join: Duration::from_secs(15),
            drain: Duration::from_millis(200),
            unplug: Duration::from_secs(20),
            unplug_repeat: Duration::from_secs(6),
        },
        first_look: Duration::from_secs(11),
        link_mbps: 100_000,
    }
}
