//! What a VM's task does, stage by stage, as the daemon's adapters do it: between two stages the
//! daemon may die, the connection may break, QEMU may end.

use std::time::Duration;

use qmp_allocator::logic::engine::{AgentView, Event, Held};
use qmp_allocator::logic::rate::{Count, Sample, Trust};
use qmp_allocator::logic::switch::{Action, Report};
use qmp_allocator::logic::vf::VfId;

use super::actions::{Reach, TO_PV};
use super::machine::{Request, Said};
use super::plan::QMP;
use super::task::{Job, Link, RECONNECT_PAUSE};
use super::world::World;

/// What came of a stage.
enum Stage {
    /// This is next, after so long.
    Next(Job, Duration),
    /// Nothing is next.
    End,
}

/// What a command without an answer is told with.
pub(super) const NO_ANSWER: &str = "no answer";

impl World {
    /// Lets a task go on.
    pub(super) fn work(&mut self, vm: usize) {
        let (now, sample_interval) = (self.now, self.plan.sample_interval);
        let Some(task) = &mut self.machines[vm].task else { return };
        let Some(job) = task.job.take().or_else(|| task.choose(now, sample_interval)) else {
            if task.ending && task.orders.is_empty() {
                return self.end_task(vm);
            }
            let at = task.wake_at(now);
            return self.wake_task(vm, at);
        };
        let next = match job {
            Job::Connect => self.connect(vm),
            Job::Observe { guest } => self.observe(vm, guest),
            Job::TellDeleted(vf) => {
                let name = self.machines[vm].name.clone();
                self.say(vm, Event::Deleted { vm: name, vf });
                Stage::End
            }
            Job::TellReset => {
                let name = self.machines[vm].name.clone();
                self.say(vm, Event::Reset(name));
                Stage::End
            }
            Job::Sample => {
                self.sample(vm);
                Stage::End
            }
            Job::Look => self.look(vm),
            Job::Act(vf, port, action, stage) => self.act(vm, vf, port, action, stage),
        };
        let pause = match next {
            Stage::Next(job, pause) => {
                if let Some(task) = &mut self.machines[vm].task {
                    task.job = Some(job);
                }
                pause
            }
            Stage::End => self.between(1, 5),
        };
        self.wake_task(vm, self.now + pause);
    }

    fn connect(&mut self, vm: usize) -> Stage {
        let now = self.now;
        let machine = &self.machines[vm];
        let known = machine.task.as_ref().and_then(|task| task.process);
        let running = machine.qemu.as_ref().map(|qemu| qemu.process);
        let ended = known.map(|process| running != Some(process));
        let (exited, pause) = match running {
            Some(_) if machine.hangs(now).is_some() => (ended == Some(true), QMP),
            Some(process) => {
                if let Some(task) = &mut self.machines[vm].task {
                    task.connected(now, process);
                }
                return Stage::End;
            }
            None => (ended.unwrap_or(true), Duration::ZERO),
        };
        let name = machine.name.clone();
        if let Some(task) = &mut self.machines[vm].task {
            task.link = Link::Down(now + pause + RECONNECT_PAUSE);
            if exited {
                task.disconnect_agent();
                task.holds = None;
            }
        }
        self.say(vm, Event::Lost { vm: name, exited, reason: "no QMP".into() });
        Stage::End
    }

    fn observe(&mut self, vm: usize, guest: bool) -> Stage {
        let name = self.machines[vm].name.clone();
        match self.qmp(vm) {
            Reach::Answered => {}
            _ => {
                self.say(vm, Event::Lost { vm: name, exited: false, reason: NO_ANSWER.into() });
                return Stage::End;
            }
        }
        let devices = self.machines[vm].qemu.iter().flat_map(|qemu| &qemu.devices);
        let held = devices.map(|it| Held { vf: it.vf.clone(), port: it.port.clone() }).next();
        let free_port = self.free_port(vm);
        if let Some(task) = &mut self.machines[vm].task
            && let Some(held) = &held
            && task.holds.is_none()
        {
            task.tenure += 1;
            task.holds = Some(held.vf.clone());
        }
        // A failure is complained of; the next look tries again.
        let complains = held.is_none() && self.forward(vm, None, TO_PV).is_err();
        if let Some(task) = &mut self.machines[vm].task {
            task.complains = complains;
        }
        self.say(vm, Event::Observed { vm: name, held, free_port });
        let task = self.machines[vm].task.as_ref();
        if guest && task.is_some_and(|task| task.ready) {
            return Stage::Next(Job::Look, self.between(1, 5));
        }
        Stage::End
    }

    pub(super) fn sample(&mut self, vm: usize) {
        let now = self.now;
        let machine = &mut self.machines[vm];
        let packets = machine.count(now);
        let holds = machine.task.as_ref().is_some_and(|task| task.holds.is_some());
        let epoch = u64::from(machine.processes);
        let pv = machine.is_up(now).then_some(Count { epoch, packets, trust: Trust::Host });
        // A guest that lies has moved more than its link can carry.
        let says = if machine.guest.lies { u64::MAX / 2 } else { 0 };
        let vf = holds.then_some(Count { epoch: 1, packets: says, trust: Trust::Guest });
        let vm_name = machine.name.clone();
        self.say(vm, Event::Sampled { vm: vm_name, sample: Sample { at: now, pv, vf } });
    }

    fn look(&mut self, vm: usize) -> Stage {
        let said = self.ask(vm, Request::Status);
        let view = match said {
            Some(Said::Status(path, _)) => AgentView::Ready { active: Some(path) },
            _ => AgentView::Silent(NO_ANSWER.into()),
        };
        let name = self.machines[vm].name.clone();
        let silent = said.is_none();
        if let Some(task) = &mut self.machines[vm].task {
            task.ready = !silent;
        }
        self.say(vm, Event::Agent { vm: name, view });
        Stage::End
    }

    fn act(&mut self, vm: usize, vf: VfId, port: String, action: Action, stage: u8) -> Stage {
        let again =
            |pause| Stage::Next(Job::Act(vf.clone(), port.clone(), action, stage + 1), pause);
        let report = match (action, stage) {
            (Action::Prepare, 0) => match self.is_free(&vf) {
                Ok(()) => {
                    if let Some(task) = &mut self.machines[vm].task {
                        task.tenure += 1;
                        (task.holds, task.epoch) = (Some(vf.clone()), None);
                    }
                    return again(self.between(5, 50));
                }
                Err(report) => report,
            },
            (Action::Prepare, stage) => match self.prepare(&vf, stage) {
                None => return again(self.between(5, 100)),
                Some(report) => report,
            },
            (Action::Plug, 0) => match self.plug(vm, &vf, &port) {
                Ok(pause) => return again(pause),
                Err(report) => report,
            },
            (Action::Plug, _) => self.plugged(vm, &vf),
            (Action::Join | Action::Leave | Action::Activate(_), _) => self.guest(vm, &vf, action),
            (Action::Forward(target), _) => {
                self.forward(vm, Some(&vf), target).map_or_else(Report::Refused, |()| Report::Ok)
            }
            (Action::Unplug, _) => self.unplug(vm, &vf),
            (Action::Look, _) => match self.qmp(vm) {
                Reach::Answered => Report::DevicePresent(self.machines[vm].device(&vf).is_some()),
                _ => Report::Unknown(NO_ANSWER.into()),
            },
            (Action::Sanitise, 0) => match self.forget(vm, &vf) {
                None => return again(self.between(5, 50)),
                Some(report) => report,
            },
            (Action::Sanitise, _) => self.sanitise(vm, &vf),
        };
        let name = self.machines[vm].name.clone();
        self.say(vm, Event::Done { vm: name, report });
        Stage::End
    }
}
