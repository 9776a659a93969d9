//! How the actions of a switch come out, as the daemon's adapters carry them out: on the host, in QEMU,
//! and in the guest by its agent.

use std::time::Duration;

use flexvf_protocol::agent::Path;
use qmp_allocator::logic::switch::{Action, Report, Target};
use qmp_allocator::logic::vf::VfId;

use super::jobs::NO_ANSWER;
use super::machine::{Ask, Device, PORTS, Request, Said};
use super::plan::{AGENT, PLUG, Pool, QMP};
use super::task::{Link, News};
use super::world::{Due, World};

/// How a QMP command went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// Carried out and answered.
    Answered,
    /// Carried out; the connection broke before the answer.
    Unanswered,
    /// Not carried out: there is no connection, or it broke.
    Closed,
    /// QEMU does not read; it may carry it out later.
    Hung,
}

/// Where frames go without a VF.
pub(super) const TO_PV: Target = Target::Only(Path::Pv);
const NO_QEMU: &str = "QEMU is not connected";

impl World {
    /// Before a VF is prepared: nobody else must have it.
    pub(super) fn is_free(&self, vf: &VfId) -> Result<(), Report> {
        let refused = |why: &str| Err(Report::Refused(why.into()));
        match self.host.vfs.get(vf) {
            _ if self.host.pf_down => refused("no such PF"),
            Some(settings) if settings.removed => refused("no such VF"),
            Some(settings) if settings.foreign || self.is_plugged(vf) => refused("in use"),
            _ => Ok(()),
        }
    }

    fn is_plugged(&self, vf: &VfId) -> bool {
        let devices = self.machines.iter().flat_map(|machine| &machine.qemu);
        devices.flat_map(|qemu| &qemu.devices).any(|device| device.vf == *vf)
    }

    pub(super) fn prepare(&mut self, vf: &VfId, stage: u8) -> Option<Report> {
        let failed = |why: &str| Some(Report::Unknown(why.into()));
        let pf_down = self.host.pf_down;
        let settings = self.host.vfs.get_mut(vf)?;
        match stage {
            _ if pf_down || settings.removed => failed("no such PF"),
            1 if settings.bind.strikes() => failed("no bind"),
            1 => None,
            _ if settings.mac.strikes() => failed("no address"),
            _ => {
                settings.trusted = true;
                Some(Report::Ok)
            }
        }
    }

    /// How long QEMU takes, or what the daemon says at once.
    pub(super) fn plug(&mut self, vm: usize, vf: &VfId, port: &str) -> Result<Duration, Report> {
        if !self.is_linked(vm) {
            return Err(Report::Refused(NO_QEMU.into()));
        }
        let taken = self.is_plugged(vf);
        let settings = self.host.vfs.get_mut(vf);
        let unusable = settings.is_none_or(|it| it.removed || it.foreign || it.plug.strikes());
        let ask = Ask::Add { vf: vf.clone(), port: port.to_owned() };
        match self.qmp(vm) {
            Reach::Closed => Err(Report::Unknown(NO_ANSWER.into())),
            Reach::Hung => {
                if let Some(qemu) = &mut self.machines[vm].qemu {
                    qemu.backlog.push(ask);
                }
                Ok(PLUG)
            }
            _ if taken || unusable => Err(Report::Refused("vfio says no".into())),
            Reach::Answered => {
                self.carry_out(vm, ask);
                Ok(self.between(100, 2000))
            }
            Reach::Unanswered => {
                self.carry_out(vm, ask);
                Err(Report::Unknown(NO_ANSWER.into()))
            }
        }
    }

    /// The answer, if the connection still stands that the command went over.
    pub(super) fn plugged(&mut self, vm: usize, vf: &VfId) -> Report {
        let hung = self.machines[vm].hangs(self.now).is_some();
        let there = self.machines[vm].device(vf).is_some();
        self.sample(vm);
        if self.is_linked(vm) && !hung && there {
            Report::Ok
        } else {
            Report::Unknown(NO_ANSWER.into())
        }
    }

    pub(super) fn unplug(&mut self, vm: usize, vf: &VfId) -> Report {
        let ask = Ask::Del { vf: vf.clone() };
        match self.qmp(vm) {
            Reach::Answered => {
                if self.machines[vm].device(vf).is_none() {
                    return Report::DevicePresent(false);
                }
                self.carry_out(vm, ask);
                Report::Ok
            }
            reach => {
                match (reach, &mut self.machines[vm].qemu) {
                    (Reach::Unanswered, _) => self.carry_out(vm, ask),
                    (Reach::Hung, Some(qemu)) => qemu.backlog.push(ask),
                    _ => {}
                }
                Report::Unknown(NO_ANSWER.into())
            }
        }
    }

    /// Before a VF is restored: QEMU must not have it.
    pub(super) fn forget(&mut self, vm: usize, vf: &VfId) -> Option<Report> {
        let machine = &self.machines[vm];
        if !self.is_linked(vm) {
            let process = machine.task.as_ref().and_then(|task| task.process);
            let running = machine.qemu.as_ref().map(|qemu| qemu.process);
            let cut_off = process.is_some() && process == running;
            return cut_off.then(|| Report::Unknown(NO_QEMU.into()));
        }
        if self.qmp(vm) != Reach::Answered {
            return Some(Report::Unknown(NO_ANSWER.into()));
        }
        self.machines[vm].device(vf).map(|_| Report::DevicePresent(true))
    }

    pub(super) fn sanitise(&mut self, vm: usize, vf: &VfId) -> Report {
        // The VM's own port may be gone with its QEMU; the VF's restoration does not hang on it.
        let _ = self.forward(vm, Some(vf), TO_PV);
        if self.host.pf_down {
            return Report::Refused("no such PF".into());
        }
        if self.is_plugged(vf) || self.host.vfs.get(vf).is_some_and(|it| it.foreign) {
            return Report::Refused("in use".into());
        }
        let Some(settings) = self.host.vfs.get_mut(vf) else { return Report::Ok };
        if !settings.removed {
            if settings.sanitise.strikes() {
                return Report::Refused("not restored".into());
            }
            settings.trusted = false;
            self.judge.restored(vf, &self.machines);
        }
        if let Some(task) = &mut self.machines[vm].task {
            task.holds = None;
        }
        Report::Ok
    }

    pub(super) fn forward(
        &mut self,
        vm: usize,
        vf: Option<&VfId>,
        target: Target,
    ) -> Result<(), String> {
        let fails = self.machines[vm].forward_fails.strikes();
        if fails || (self.host.pf_down && self.host.pool == Pool::Sriov) {
            return Err("the kernel says no".into());
        }
        self.host.forwards[vm] = (target, vf.cloned());
        Ok(())
    }

    pub(super) fn guest(&mut self, vm: usize, vf: &VfId, action: Action) -> Report {
        let epoch = self.machines[vm].task.as_ref().and_then(|task| task.epoch);
        if epoch.is_none() {
            let Some(Said::Status(_, epoch)) = self.ask(vm, Request::Status) else {
                return Report::Unknown(NO_ANSWER.into());
            };
            if let Some(task) = &mut self.machines[vm].task {
                task.epoch = Some(epoch + 1);
            }
        }
        let request = match action {
            Action::Join => Request::Join(vf.clone()),
            Action::Activate(path) => Request::Activate(path, vf.clone()),
            _ => Request::Leave(vf.clone()),
        };
        match self.ask(vm, request) {
            Some(Said::Vf(state)) => Report::Vf(state),
            Some(Said::Status(..)) => Report::Ok,
            Some(Said::No) => Report::Refused("the agent says no".into()),
            None => Report::Unknown(NO_ANSWER.into()),
        }
    }

    /// An agent's answer, or silence. What it was asked last before it hung it does later.
    pub(super) fn ask(&mut self, vm: usize, request: Request) -> Option<Said> {
        let now = self.now;
        let machine = &mut self.machines[vm];
        let task = machine.task.as_mut()?;
        let (epoch, synced) = (task.epoch.unwrap_or(0), task.synced);
        task.synced = true;
        if machine.agent_answers(now) {
            return Some(machine.ask_agent(now, request, epoch));
        }
        if let Some(task) = &mut machine.task {
            task.synced = false;
        }
        if synced && machine.is_up(now) && !machine.guest.agent_dead {
            machine.guest.late = Some((request, epoch));
        }
        // The time that the daemon waits for nothing.
        self.delay(vm, AGENT);
        None
    }

    pub(super) fn qmp(&mut self, vm: usize) -> Reach {
        if !self.is_linked(vm) {
            return Reach::Closed;
        }
        let hangs = self.machines[vm].hangs(self.now).is_some();
        if hangs {
            self.delay(vm, QMP);
            return Reach::Hung;
        }
        if !self.machines[vm].flaky || self.rng.u8(..10) > 0 {
            return Reach::Answered;
        }
        if let Some(task) = &mut self.machines[vm].task {
            task.cut();
        }
        if self.rng.bool() { Reach::Unanswered } else { Reach::Closed }
    }

    fn is_linked(&self, vm: usize) -> bool {
        let machine = &self.machines[vm];
        let link = machine.task.as_ref().map(|task| task.link);
        machine.qemu.as_ref().is_some_and(|qemu| link == Some(Link::Up(qemu.process)))
    }

    pub(super) fn free_port(&self, vm: usize) -> Option<String> {
        let qemu = self.machines[vm].qemu.as_ref()?;
        let is_free = |port: &&str| qemu.devices.iter().all(|device| device.port != **port);
        PORTS.iter().find(|port| is_free(port)).map(|port| (*port).to_owned())
    }

    /// A command takes effect in QEMU.
    pub(super) fn carry_out(&mut self, vm: usize, ask: Ask) {
        let seen_at = self.now + self.between(100, 1500);
        match ask {
            // vfio lets only one process in.
            Ask::Add { vf, .. } if self.is_plugged(&vf) => {}
            Ask::Add { vf, port } => {
                let seen_at = seen_at.max(self.machines[vm].guest.up_at);
                let qemu = self.machines[vm].qemu.as_mut();
                if let Some(qemu) = qemu
                    && qemu.devices.iter().all(|device| device.vf != vf && device.port != port)
                {
                    qemu.devices.push(Device { vf, port, pending: None, seen_at, ready_at: None });
                }
            }
            Ask::Del { vf } => {
                let (now, pause) = (self.now, self.between(100, 1500));
                let incarnation = self.daemon.incarnation;
                let Some(device) = self.machines[vm].device(&vf) else { return };
                device.pending = Some(incarnation);
                let process = self.machines[vm].processes;
                self.agenda.add(now + pause, Due::Eject(vm, process, vf));
            }
        }
    }

    /// A guest lets go of a VF, asked or not.
    pub(super) fn eject(&mut self, vm: usize, vf: &VfId) {
        if self.machines[vm].lose(vf) {
            self.tell_news(vm, News::Deleted(vf.clone()));
        }
    }
}
