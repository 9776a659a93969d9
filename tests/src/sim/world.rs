//! The made-up world and its clock: what is due happens in order of time, and in the same order for
//! the same seed. The daemon's own loop (`qmp-allocator/src/daemon.rs`) has its twin in
//! [`super::daemon`].

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use qmp_allocator::logic::engine::Event;
use qmp_allocator::logic::vf::VfId;

use super::daemon::Daemon;
use super::host::Host;
use super::judge::{Judge, Violation};
use super::machine::{Machine, Qemu};
use super::plan::Plan;
use super::task::News;
use super::trace::Trace;

/// See the module's text.
#[derive(Debug)]
pub struct World {
    pub(super) plan: Plan,
    pub(super) rng: Rng,
    pub(super) now: Duration,
    pub(super) agenda: Agenda,
    pub(super) machines: Vec<Machine>,
    pub(super) host: Host,
    pub(super) daemon: Daemon,
    pub(super) judge: Judge,
    pub(super) trace: Trace,
}

/// What happens at a moment.
#[derive(Debug)]
pub enum Due {
    /// A task goes on; its `wake` of then.
    Task(usize, u64),
    /// An event reaches the daemon of this incarnation.
    Event(u32, Event),
    /// The daemon scans the registrations.
    Scan(u32),
    /// The daemon looks at the pools.
    Pools(u32),
    /// The engine's timer; the daemon's `wake` of then.
    Timer(u64),
    /// What was to be saved is on disk.
    Disk(u32, String),
    /// A daemon starts.
    Start,
    /// The guest of this process lets go of a VF.
    Eject(usize, u32, VfId),
    /// A guest's agent is up; its boot of then.
    AgentUp(usize, u32),
    /// A hung QEMU goes on; its process.
    Thaw(usize, u32),
    /// A hung agent goes on; its boot of then.
    AgentBack(usize, u32),
    /// QEMU is started again.
    Process(usize),
    /// The next fault.
    Fault,
    /// A repair of what a fault did.
    Repair(super::faults::Repair),
}

/// What is due, in order.
#[derive(Debug, Default)]
pub struct Agenda {
    due: BTreeMap<(Duration, u64), Due>,
    count: u64,
}

impl Agenda {
    /// Puts something down.
    pub fn add(&mut self, at: Duration, due: Due) {
        self.count += 1;
        self.due.insert((at, self.count), due);
    }

    /// No more faults.
    pub(super) fn forget_faults(&mut self) {
        self.due.retain(|_, due| !matches!(due, Due::Fault));
    }

    fn next(&mut self, until: Duration) -> Option<(Duration, Due)> {
        let first = self.due.first_entry().filter(|entry| entry.key().0 <= until)?;
        let ((at, _), due) = first.remove_entry();
        Some((at, due))
    }
}

/// When every world begins: some time after its host's boot.
const BEGIN: Duration = Duration::from_secs(1000);

impl World {
    /// The world of a plan, with a daemon about to start.
    pub fn new(plan: Plan, trace: Trace) -> Self {
        let mut rng = Rng::with_seed(plan.seed);
        let names = (0..plan.vms).filter_map(|i| format!("vm{i}").parse().ok());
        let machines: Vec<Machine> =
            names.map(|name| Machine::new(name, BEGIN, rng.u64(0..1_000_000))).collect();
        let mut world = Self {
            host: Host::new(plan.pool, plan.vfs, plan.vms),
            judge: Judge::new(&plan),
            daemon: Daemon::default(),
            now: BEGIN,
            agenda: Agenda::default(),
            machines,
            trace,
            rng,
            plan,
        };
        world.agenda.add(BEGIN, Due::Start);
        if !world.plan.menu.is_empty() {
            world.agenda.add(BEGIN + Duration::from_secs(1), Due::Fault);
        }
        world
    }

    /// Lets time pass.
    pub fn run(&mut self, until: Duration) -> Result<(), Violation> {
        while let Some((at, due)) = self.agenda.next(until) {
            // A stopped process does nothing, and then all at once.
            if at < self.daemon.frozen_until && due.is_daemons() {
                self.agenda.add(self.daemon.frozen_until, due);
                continue;
            }
            self.pass(at);
            self.happen(due)?;
        }
        self.pass(until);
        Ok(())
    }

    fn pass(&mut self, to: Duration) {
        self.now = self.now.max(to);
    }

    fn happen(&mut self, due: Due) -> Result<(), Violation> {
        match due {
            Due::Task(vm, wake) => {
                let task = self.machines[vm].task.as_ref();
                if task.is_some_and(|task| task.wake == wake) {
                    self.work(vm);
                }
            }
            Due::Event(incarnation, event) if incarnation == self.daemon.incarnation => {
                self.tell_engine(event)?;
            }
            Due::Scan(incarnation) if incarnation == self.daemon.incarnation => self.scan()?,
            Due::Pools(incarnation) if incarnation == self.daemon.incarnation => {
                self.look_at_pools()
            }
            Due::Timer(wake) if wake == self.daemon.wake => self.tell_engine(Event::Tick)?,
            Due::Disk(incarnation, text) => self.daemon.landed(incarnation, text),
            Due::Start => self.start_daemon(),
            Due::Eject(vm, process, vf) => self.on_eject(vm, process, &vf),
            Due::AgentUp(vm, boot) if boot == self.machines[vm].guest.boot => {
                self.tell_news(vm, News::AgentPort);
            }
            Due::Thaw(vm, process) => self.thaw(vm, process),
            Due::AgentBack(vm, boot) if boot == self.machines[vm].guest.boot => self.agent_back(vm),
            Due::Process(vm) => self.start_qemu(vm),
            Due::Fault => self.strike(),
            Due::Repair(repair) => self.repair(repair),
            _ => return Ok(()),
        }
        self.judge.look(self.now, &self.machines, &self.host, &self.daemon)
    }

    /// A span of so many milliseconds, by chance.
    pub(super) fn between(&mut self, from_ms: u64, to_ms: u64) -> Duration {
        Duration::from_micros(self.rng.u64(from_ms * 1000..to_ms * 1000))
    }

    /// A task is to be looked at then.
    pub(super) fn wake_task(&mut self, vm: usize, at: Duration) {
        if let Some(task) = &mut self.machines[vm].task {
            task.wake += 1;
            let at = at.max(self.now).max(task.last_said);
            self.agenda.add(at, Due::Task(vm, task.wake));
        }
    }

    /// Something has come in for an idle task.
    pub(super) fn nudge(&mut self, vm: usize) {
        let pause = self.between(0, 3);
        let busy_until = self.machines[vm].task.as_ref().filter(|task| task.job.is_none());
        if let Some(busy_until) = busy_until.map(|task| task.last_said) {
            self.wake_task(vm, (self.now + pause).max(busy_until));
        }
    }

    /// What a task does now takes so long.
    pub(super) fn delay(&mut self, vm: usize, time: Duration) {
        let until = self.now + time;
        if let Some(task) = &mut self.machines[vm].task {
            task.last_said = task.last_said.max(until);
        }
    }

    /// A task tells the engine something, behind all that it told before.
    pub(super) fn say(&mut self, vm: usize, event: Event) {
        let at = self.now + self.between(0, 20);
        let Some(task) = &mut self.machines[vm].task else { return };
        let at = at.max(task.last_said);
        task.last_said = at;
        self.agenda.add(at, Due::Event(self.daemon.incarnation, event));
    }

    /// QEMU tells its task something; a noisy one tells it twice, late, or not at all.
    pub(super) fn tell_news(&mut self, vm: usize, news: News) {
        let noise = if self.machines[vm].noisy { self.rng.u8(..3) } else { 3 };
        let Some(task) = &mut self.machines[vm].task else { return };
        match noise {
            0 => task.missed = true,
            1 => {
                task.hear(news.clone());
                task.hear(news);
            }
            _ => task.hear(news),
        }
        self.nudge(vm);
    }

    /// A guest was asked to let go of a VF, and this is when it does.
    fn on_eject(&mut self, vm: usize, process: u32, vf: &VfId) {
        let (now, stubborn) = (self.now, self.machines[vm].guest.stubborn);
        let machine = &mut self.machines[vm];
        let is_up = machine.is_up(now) && machine.hangs(now).is_none();
        let runs = machine.qemu.as_ref().is_some_and(|qemu| qemu.process == process);
        let asker = machine.device(vf).and_then(|device| device.pending);
        let asked = asker.is_some();
        if asker.is_some_and(|asker| asker != self.daemon.incarnation) {
            // This daemon cannot know of it, and may just have taken the VF up again.
            self.judge.excuse(now, vm);
        }
        if runs && is_up && asked && !stubborn {
            self.eject(vm, vf);
        }
    }

    fn agent_back(&mut self, vm: usize) {
        let now = self.now;
        let machine = &mut self.machines[vm];
        if machine.guest.agent_hung_until > now {
            return;
        }
        if let Some((request, epoch)) = machine.guest.late.take() {
            machine.ask_agent(now, request, epoch);
        }
    }

    fn thaw(&mut self, vm: usize, process: u32) {
        let now = self.now;
        let Some(qemu) = &mut self.machines[vm].qemu else { return };
        if qemu.process != process || qemu.hung_until.is_some_and(|until| until > now) {
            return;
        }
        qemu.hung_until = None;
        for ask in std::mem::take(&mut qemu.backlog) {
            self.carry_out(vm, ask);
        }
    }

    fn start_qemu(&mut self, vm: usize) {
        if self.machines[vm].qemu.is_some() {
            return;
        }
        let takes = self.between(3000, 20_000);
        let now = self.now;
        let machine = &mut self.machines[vm];
        machine.processes += 1;
        machine.qemu = Some(Qemu::new(machine.processes));
        machine.boot(now, takes);
        let boot = machine.guest.boot;
        self.agenda.add(now + takes, Due::AgentUp(vm, boot));
    }
}

impl Due {
    const fn is_daemons(&self) -> bool {
        matches!(
            self,
            Self::Task(..)
                | Self::Event(..)
                | Self::Scan(_)
                | Self::Pools(_)
                | Self::Timer(_)
                | Self::Disk(..)
        )
    }
}
