//! The twin of the daemon's own loop: events to the engine, its commands to the VMs' tasks, the state
//! file to disk.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use qmp_allocator::logic::engine::{Command, Engine, Event, Saved, VmSpec};
use qmp_allocator::logic::policy::{Pin, Words};
use qmp_allocator::logic::switch::Report;

use super::judge::Violation;
use super::plan::{POOL_LOOK, SCAN};
use super::task::{Order, Task};
use super::world::{Due, World};

/// See the module's text.
#[derive(Debug, Default)]
pub struct Daemon {
    /// None while no daemon runs.
    pub engine: Option<Engine>,
    /// Counts daemons.
    pub incarnation: u32,
    /// Only the newest timer counts.
    pub wake: u64,
    /// The process is stopped until then.
    pub frozen_until: Duration,
    /// What is on disk, and what was before.
    pub disk: [Option<String>; 2],
    known: BTreeMap<usize, Option<Pin>>,
    ticks: u32,
}

/// The boot of the host that the state file is written in.
const BOOT_ID: &str = "boot";
/// Ticks at one moment after which the engine's timer stands for a busy loop.
const MAX_TICKS: u32 = 8;

impl Daemon {
    /// The state file is written; a killed daemon's last one may be, too.
    pub fn landed(&mut self, incarnation: u32, text: String) {
        if incarnation + 1 >= self.incarnation {
            self.disk = [Some(text), self.disk[0].take()];
        }
    }
}

impl World {
    /// A daemon starts on what is on disk.
    pub(super) fn start_daemon(&mut self) {
        if self.daemon.engine.is_some() {
            return;
        }
        let saved =
            self.daemon.disk[0].as_deref().and_then(|text| Saved::decode(text, BOOT_ID).ok());
        let pools: Vec<String> = (0..self.plan.pools).map(|pool| self.plan.pool_of(pool)).collect();
        let engine = Engine::new(self.now, self.plan.settings.clone(), &pools, saved);
        self.trace.line(self.now, || "daemon starts".into());
        self.daemon.engine = Some(engine);
        self.daemon.incarnation += 1;
        self.daemon.known.clear();
        self.judge.daemon_started(self.now);
        let (now, incarnation) = (self.now, self.daemon.incarnation);
        self.agenda.add(now, Due::Scan(incarnation));
        self.agenda.add(now, Due::Pools(incarnation));
        self.set_timer();
    }

    /// SIGKILL: what is under way in the daemon is gone; the world stays.
    pub(super) fn kill_daemon(&mut self) {
        self.trace.line(self.now, || "daemon is killed".into());
        self.daemon.engine = None;
        self.daemon.incarnation += 1;
        self.daemon.frozen_until = self.now;
        for machine in &mut self.machines {
            machine.task = None;
        }
    }

    /// As `Daemon::scan`.
    pub(super) fn scan(&mut self) -> Result<(), Violation> {
        let (now, incarnation) = (self.now, self.daemon.incarnation);
        self.agenda.add(now + SCAN, Due::Scan(incarnation));
        let mut events = Vec::new();
        for (vm, machine) in self.machines.iter_mut().enumerate() {
            let known = self.daemon.known.get(&vm).copied();
            if machine.listed == known {
                continue;
            }
            let name = machine.name.clone();
            if let Some(pin) = machine.listed {
                self.daemon.known.insert(vm, pin);
                let (pool, weight) = (self.plan.pool_of(vm), 1 + vm as u32 % 3);
                let (priority, min_percent) = self.plan.words_of(vm);
                let tenant = self.plan.tenant_of(vm);
                let words = Words { pin, weight, priority, min_percent, tenant };
                let spec = VmSpec { pool, words };
                events.push((vm, Event::Registered { vm: name, spec }));
            } else {
                self.daemon.known.remove(&vm);
                events.push((vm, Event::Unregistered(name)));
            }
        }
        for (vm, event) in events {
            if matches!(event, Event::Registered { .. }) && self.machines[vm].task.is_none() {
                self.machines[vm].task = Some(Task::new(now, self.plan.settings.interval));
                self.wake_task(vm, now);
            }
            self.tell_engine(event)?;
        }
        Ok(())
    }

    /// As `look_at_pools`.
    pub(super) fn look_at_pools(&mut self) {
        let (now, incarnation) = (self.now, self.daemon.incarnation);
        self.agenda.add(now + POOL_LOOK, Due::Pools(incarnation));
        let mut at = now;
        for pool in 0..self.plan.pools {
            let (vfs, problem) = match self.host.listed(pool, self.plan.pools) {
                Ok(vfs) => (vfs, None),
                Err(problem) => (Vec::new(), Some(problem)),
            };
            at += self.between(1, 50);
            let event = Event::Pool { pool: self.plan.pool_of(pool), vfs, problem };
            self.agenda.add(at, Due::Event(incarnation, event));
        }
    }

    /// As `Daemon::handle`.
    pub(super) fn tell_engine(&mut self, event: Event) -> Result<(), Violation> {
        let now = self.now;
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            let Some(engine) = &mut self.daemon.engine else { return Ok(()) };
            self.trace.line(now, || format!("  {event:?}"));
            self.judge.told(&event, &self.machines);
            self.daemon.ticks = if event == Event::Tick { self.daemon.ticks + 1 } else { 0 };
            let commands = engine.on(now, event);
            self.judge.step();
            self.judge.planned(&commands, || {
                let status = engine.status(now);
                status.vms.iter().filter(|vm| vm.path == "switching").count()
            })?;
            engine
                .audit(now)
                .map_err(|what| Violation::new("the engine's indices are true", what))?;
            for command in commands {
                self.trace.line(now, || format!("      {command:?}"));
                self.judge.commanded(now, &command, &self.machines)?;
                events.extend(self.carry_out_command(command));
            }
        }
        self.set_timer();
        if self.daemon.ticks > MAX_TICKS {
            return Err(Violation::new(
                "no busy loop",
                format!("{MAX_TICKS} ticks at one moment, and the engine wants another"),
            ));
        }
        Ok(())
    }

    fn carry_out_command(&mut self, command: Command) -> Option<Event> {
        match command {
            Command::Act { vm, vf, port, action } => {
                let index = self.index(vm.as_str());
                let task = index.and_then(|index| self.machines[index].task.as_mut());
                if task.is_some_and(|task| task.order(Order::Act(vf, port, action))) {
                    index.into_iter().for_each(|index| self.nudge(index));
                } else {
                    let report = Report::Unknown("the VM's task takes no orders".into());
                    return Some(Event::Done { vm, report });
                }
            }
            Command::Observe(vm) => {
                if let Some(index) = self.index(vm.as_str()) {
                    if let Some(task) = &mut self.machines[index].task {
                        task.order(Order::Observe);
                    }
                    self.nudge(index);
                }
            }
            Command::Forget(vm) => {
                if let Some(index) = self.index(vm.as_str()) {
                    if let Some(task) = &mut self.machines[index].task {
                        task.ending = true;
                    }
                    self.daemon.known.remove(&index);
                    self.nudge(index);
                }
            }
            Command::Save(saved) => {
                let at = self.now + self.between(1, 500);
                let text = saved.encode(BOOT_ID);
                self.agenda.add(at, Due::Disk(self.daemon.incarnation, text));
            }
            Command::Tell(_) => {}
        }
        None
    }

    /// A forgotten VM's task ends; one that is registered anew gets a new one.
    pub(super) fn end_task(&mut self, vm: usize) {
        let old = self.machines[vm].task.take();
        if self.daemon.known.contains_key(&vm) {
            let mut task = Task::new(self.now, self.plan.settings.interval);
            // QEMU serves one client at a time: what the old task said came before.
            task.last_said = old.map_or(self.now, |old| old.last_said);
            self.machines[vm].task = Some(task);
            self.wake_task(vm, self.now);
        }
    }

    fn set_timer(&mut self) {
        let Some(engine) = &self.daemon.engine else { return };
        let at = engine.wake_at(self.now);
        // A timer is late by a little, or not at all.
        let late = if self.rng.bool() { Duration::ZERO } else { Duration::from_micros(800) };
        self.daemon.wake += 1;
        let due = if at <= self.now { self.now } else { at + late };
        self.daemon.ticks = if at <= self.now { self.daemon.ticks } else { 0 };
        self.agenda.add(due, Due::Timer(self.daemon.wake));
    }

    fn index(&self, name: &str) -> Option<usize> {
        name.strip_prefix("vm")?.parse().ok()
    }
}
