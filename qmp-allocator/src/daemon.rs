//! `flexvf run`: the one place that waits.
//!
//! Everything that happens becomes one [`Event`]; the engine answers with [`Command`]s; those go to
//! the VMs' tasks. Nothing here decides anything, and nothing here waits for a VM.

mod answer;
mod clock;
mod dry_run;
mod host;
mod process;
mod record;
mod state;
mod vm;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use flexvf_protocol::VmName;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tracing::{Instrument, Level, debug, enabled, info, info_span, warn};

use self::clock::{now, sleep_until};
use self::host::{Host, HostError};
use self::vm::{Grid, Order, Shared, VmTask};
use crate::config::{Config, Pool, VmConfig};
use crate::control::{ControlError, ControlServer};
use crate::io::recorder::Recorder;
use crate::io::registry::Registry;
use crate::logic::engine::{Command, Engine, Event, Saved, SavedPool, Settings, VmSpec};
use crate::logic::status::Problem;
use crate::logic::switch::{Limits, Outcome, Report};

/// Between two looks at the registration folder.
const SCAN_PERIOD: Duration = Duration::from_secs(1);
/// Between two looks at the pools: VFs come and go by an operator's hand only.
const POOL_PERIOD: Duration = Duration::from_secs(5);
/// Events on their way from VMs' tasks; a full channel makes the tasks wait, never the daemon.
const MAX_EVENTS: usize = 1024;
/// Events taken at once.
const MAX_BATCH: usize = 64;
/// Orders on their way to one VM: an action, and a few looks.
const MAX_ORDERS: usize = 8;
/// Speed of a VF's link where nothing better is known: bounds what a guest may claim.
const LINK_MBPS: u64 = 100_000;

/// What a daemon does about its decisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It carries them out.
    Act,
    /// It tells and records them. No VM and no VF is touched.
    DryRun,
}

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// No netlink socket.
    #[error("cannot reach the host's network configuration: {0}")]
    Host(String),
    /// No control socket.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// No signal handlers, no runtime.
    #[error("cannot start: {0}")]
    System(#[from] std::io::Error),
}

/// Runs until SIGTERM or SIGINT. VFs stay where they are: the next daemon takes them up.
///
/// # Errors
/// [`DaemonError`] when it cannot start; once it runs, faults of the world are told and lived with.
pub async fn run(config: Config, mode: Mode) -> Result<(), DaemonError> {
    let mut control = ControlServer::bind(&config.control_socket).await?;
    let mut daemon = Daemon::new(config, mode)?;
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let mut scan = interval(SCAN_PERIOD);
    scan.set_missed_tick_behavior(MissedTickBehavior::Skip);
    tokio::spawn(look_at_pools(
        daemon.config.pools.clone(),
        Arc::clone(&daemon.shared),
        daemon.to_daemon.clone(),
    ));
    info!(strategy = daemon.config.strategy.name(), interval = ?daemon.config.interval, "FlexVF runs");
    let mut events = Vec::with_capacity(MAX_BATCH);
    loop {
        let wake_at = daemon.engine.wake_at(now());
        tokio::select! {
            biased;
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            _ = daemon.events.recv_many(&mut events, MAX_BATCH) => {}
            () = sleep_until(wake_at) => events.push(Event::Tick),
            _ = scan.tick() => events = daemon.scan(),
            query = control.next() => events.extend(daemon.answer(query)),
        }
        daemon.handle(&mut events, &control);
    }
    drop(daemon.recorder.take());
    info!("FlexVF ends; VFs stay where they are");
    Ok(())
}

struct Daemon {
    config: Config,
    engine: Engine,
    registry: Registry,
    shared: Arc<Shared>,
    vms: BTreeMap<VmName, VmHandle>,
    problems: Vec<Problem>,
    /// A VM's task was too busy to hear of its changed registration.
    untold: bool,
    events: mpsc::Receiver<Event>,
    to_daemon: mpsc::Sender<Event>,
    state: state::Writer,
    recorder: Option<Recorder>,
    pool_problems: BTreeMap<String, String>,
}

struct VmHandle {
    config: Arc<VmConfig>,
    orders: mpsc::Sender<Order>,
    task: JoinHandle<()>,
}

impl Daemon {
    fn new(config: Config, mode: Mode) -> Result<Self, DaemonError> {
        let (to_daemon, events) = mpsc::channel(MAX_EVENTS);
        let names: Vec<String> = config.pools.iter().map(|pool| pool.name.clone()).collect();
        let saved = state::read(&config.state_file);
        let host = Host::new(&config, mode)
            .map_err(|error: HostError| DaemonError::Host(error.to_string()))?;
        let grid = Grid::new(config.sample_interval, config.interval);
        let shared = Shared { host, deadlines: config.deadlines, grid };
        let engine = Engine::new(now(), settings(&config, mode), &names, saved);
        let mut recorder = record::start(&config);
        recorder.iter_mut().for_each(|recorder| record::memories(recorder, &engine));
        Ok(Self {
            engine,
            registry: Registry::new(config.vms_dir.clone(), config.tenants.clone()),
            shared: Arc::new(shared),
            vms: BTreeMap::new(),
            problems: Vec::new(),
            untold: false,
            events,
            to_daemon,
            state: state::Writer::new(config.state_file.clone()),
            pool_problems: BTreeMap::new(),
            recorder,
            config,
        })
    }

    fn handle(&mut self, events: &mut Vec<Event>, control: &ControlServer) {
        for event in events.drain(..) {
            // What follows from an event at once comes before the next one.
            let mut next = Some(event);
            let mut followed = VecDeque::new();
            while let Some(event) = next.take().or_else(|| followed.pop_front()) {
                self.tell_pool_problem(&event);
                if let Some(recorder) = &mut self.recorder {
                    record::event(recorder, &event);
                }
                for command in self.engine.on(now(), event) {
                    followed.extend(self.carry_out(command, control));
                }
            }
        }
    }

    /// What came of a command at once: an action that nobody can carry out is answered here, or its
    /// switch would wait for ever.
    fn carry_out(&mut self, command: Command, control: &ControlServer) -> Option<Event> {
        match command {
            Command::Act { vm, action, .. } if self.shared.host.is_dry_run() => {
                return Some(Event::Done { vm, report: dry_run::report(action) });
            }
            Command::Act { vm, vf, port, action } => {
                if !self.order(&vm, Order::Act { vf, port, action }) {
                    let report = Report::Unknown("the VM's task takes no orders".into());
                    return Some(Event::Done { vm, report });
                }
            }
            // Lost, it is done all the same at the task's next look of its own.
            Command::Observe(vm) => {
                self.order(&vm, Order::Observe);
            }
            Command::Forget(vm) => {
                // Its task ends by itself once nobody can give it orders, and cleans up behind it.
                self.vms.remove(&vm);
                info!(%vm, "VM forgotten");
            }
            Command::Save(saved) => {
                if let Some(recorder) = &mut self.recorder {
                    record::round(recorder, &self.engine);
                }
                self.tell_round(&saved);
                if self.shared.host.is_dry_run() {
                    dry_run::tell(&self.engine.decisions());
                } else {
                    self.state.write(saved);
                }
            }
            Command::Tell(_) if self.shared.host.is_dry_run() => {}
            Command::Tell(end) => {
                let record = &end.record;
                let (total_ms, reason) = (record.total_ms, &record.reason);
                match &record.outcome {
                    Outcome::Done => {
                        info!(vm = %end.vm, vf = %end.vf, direction = ?record.direction, total_ms, reason, "switched")
                    }
                    outcome => {
                        warn!(vm = %end.vm, vf = %end.vf, direction = ?record.direction, total_ms, reason, ?outcome, "switch failed")
                    }
                }
                control.tell("FLEXVF_SWITCH_ENDED", &end);
            }
        }
        None
    }

    fn order(&mut self, vm: &VmName, order: Order) -> bool {
        self.vms.get(vm).is_some_and(|handle| handle.orders.try_send(order).is_ok())
    }

    /// In one line for a pool; a line for each VM is for those who want to know its why.
    fn tell_round(&self, saved: &Saved) {
        for (pool, SavedPool { ranking, winners, .. }) in &saved.pools {
            info!(round = saved.round, pool, ranked = ranking.len(), winners, "decided");
        }
        if !enabled!(Level::DEBUG) {
            return;
        }
        let status = self.engine.status(now());
        for vm in &status.vms {
            let pps = vm.last_interval.as_ref().map(|interval| interval.rate.pps.round());
            debug!(round = status.round, vm = %vm.vm, pps, path = vm.path, reason = vm.reason, "ranked");
        }
    }

    /// Registers new VMs, changed ones, and lets the engine know of those that are gone.
    fn scan(&mut self) -> Vec<Event> {
        let scan = self.registry.scan();
        if !scan.changed && !self.untold {
            return Vec::new();
        }
        self.untold = false;
        let scan = scan.clone();
        let mut problems = scan.problems;
        let mut events: Vec<Event> = Vec::new();
        for (name, config) in &scan.vms {
            let known = self.vms.get(name).map(|handle| Arc::clone(&handle.config));
            if known.as_ref() == Some(config) {
                // It may have gone and come back before it was forgotten.
                if scan.changed {
                    events.push(registered(config));
                }
                continue;
            }
            if let Some(what) = known.and_then(|known| fixed_change(&known, config)) {
                problems.push((config.file.clone(), what));
            } else if self.adopt_config(name, config) {
                events.push(registered(config));
            } else {
                self.untold = true;
            }
        }
        self.tell_problems(&problems);
        let gone = self.vms.keys().filter(|name| scan.changed && !scan.vms.contains_key(*name));
        events.extend(gone.cloned().map(Event::Unregistered));
        events
    }

    /// False when the VM's task is too busy to be told; the next scan tries again.
    fn adopt_config(&mut self, name: &VmName, config: &Arc<VmConfig>) -> bool {
        if let Some(handle) = self.vms.get_mut(name) {
            let told = handle.orders.try_send(Order::Reconfigure(Arc::clone(config))).is_ok();
            if told {
                info!(vm = %name, "registration changed");
                handle.config = Arc::clone(config);
            }
            return told;
        }
        info!(vm = %name, file = %config.file.display(), "registered");
        let (orders, task_orders) = mpsc::channel(MAX_ORDERS);
        let task = VmTask::new(
            Arc::clone(config),
            Arc::clone(&self.shared),
            self.to_daemon.clone(),
            task_orders,
        );
        let task = tokio::spawn(task.run().instrument(info_span!("vm", name = %name)));
        self.vms.insert(name.clone(), VmHandle { config: Arc::clone(config), orders, task });
        true
    }

    fn tell_problems(&mut self, problems: &[(std::path::PathBuf, String)]) {
        let now: Vec<Problem> = problems
            .iter()
            .map(|(file, text)| Problem { subject: file.display().to_string(), text: text.clone() })
            .collect();
        for new in now.iter().filter(|problem| !self.problems.contains(problem)) {
            warn!("{}", new.text);
        }
        self.problems = now;
    }

    fn tell_pool_problem(&mut self, event: &Event) {
        let Event::Pool { pool, problem, .. } = event else { return };
        let told = self.pool_problems.remove(pool);
        if let Some(text) = problem {
            if told.as_ref() != Some(text) {
                warn!("{text}");
            }
            self.pool_problems.insert(pool.clone(), text.clone());
        }
    }
}

impl Drop for VmHandle {
    fn drop(&mut self) {
        if self.orders.is_closed() {
            self.task.abort();
        }
    }
}

fn registered(config: &VmConfig) -> Event {
    let spec = VmSpec { pool: config.pool.clone(), words: config.words.clone() };
    Event::Registered { vm: config.name.clone(), spec }
}

/// What a VM is, as against how it is treated: with a VF in it, a change would leave half of it behind.
fn fixed_change(known: &VmConfig, new: &VmConfig) -> Option<String> {
    let changes = [
        ("qmp", known.qmp != new.qmp),
        ("mac", known.mac != new.mac),
        ("pool", known.pool != new.pool),
    ];
    let (key, _) = changes.into_iter().find(|(_, changed)| *changed)?;
    let (file, vm) = (new.file.display(), &new.name);
    Some(format!(
        "{file}: `{key}` of a registered VM cannot change; remove the file, wait until `flexvf status` does not show {vm} any more, and write it again"
    ))
}

/// A task of its own: netlink may wait for others, and the daemon for nobody.
async fn look_at_pools(pools: Vec<Pool>, shared: Arc<Shared>, to_daemon: mpsc::Sender<Event>) {
    let mut timer = interval(POOL_PERIOD);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        for pool in &pools {
            let (vfs, problem) = shared.host.vfs(pool).await;
            let problem = problem.map(|problem| format!("pool {:?}: {problem}", pool.name));
            let near = Event::VfNodes { pool: pool.name.clone(), nodes: shared.host.nodes(&vfs) };
            if to_daemon.send(near).await.is_err() {
                return;
            }
            let event = Event::Pool { pool: pool.name.clone(), vfs, problem };
            if to_daemon.send(event).await.is_err() {
                return;
            }
        }
    }
}

fn settings(config: &Config, mode: Mode) -> Settings {
    let deadlines = &config.deadlines;
    Settings {
        strategy: config.strategy,
        tuning: config.tuning,
        tenants: config.tenants.clone(),
        interval: config.interval,
        max_concurrent_switches: match mode {
            Mode::Act => config.max_concurrent_switches,
            Mode::DryRun => 0,
        },
        limits: Limits {
            join: deadlines.join,
            drain: deadlines.drain,
            unplug: deadlines.unplug,
            unplug_repeat: deadlines.unplug_repeat,
        },
        first_look: deadlines.qmp * 2 + SCAN_PERIOD,
        link_mbps: LINK_MBPS,
    }
}
