//! What goes wrong, and how it is mended in the end.

use std::time::Duration;

use qmp_allocator::logic::engine::Event;
use qmp_allocator::logic::policy::Pin;
use qmp_allocator::logic::vf::VfId;

use super::machine::Fails;
use super::task::News;
use super::world::{Due, World};

/// What can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The QMP connection breaks.
    QmpCut,
    /// Each QMP command may break it, before or after it worked.
    QmpFlaky,
    /// QEMU's events come doubled, or are lost.
    QmpNoisy,
    /// QEMU stops for a while.
    QemuHang,
    /// QEMU ends, and is started again later.
    QemuExit,
    /// The guest reboots.
    GuestReboot,
    /// The guest keeps its VF when asked for it.
    GuestStubborn,
    /// The guest lets go of its VF unasked.
    GuestSheds,
    /// The agent hangs for a while.
    AgentHang,
    /// The agent is gone for a while.
    AgentDead,
    /// The agent ends and is started again.
    AgentRestart,
    /// The agent says what is not so.
    AgentLies,
    /// A VF cannot be bound.
    VfBind,
    /// A VF's address cannot be set.
    VfMac,
    /// A VF cannot be restored.
    VfReset,
    /// QEMU cannot take a VF.
    VfPlug,
    /// Another program uses a VF.
    VfForeign,
    /// A VF is removed, and added again.
    VfRemoved,
    /// The PF is gone for a while.
    PfDown,
    /// The host cannot change where a VM's frames go.
    Forward,
    /// A VM's registration is removed, and written again.
    Unregistered,
    /// A VM is pinned.
    Pinned,
    /// An operator clears a VF, whether it is quarantined or not.
    Cleared,
    /// The load moves.
    Load,
    /// The daemon is killed; its state file is as it was, older, torn or gone.
    DaemonKilled,
    /// The daemon is stopped for a while.
    DaemonFrozen,
}

/// All of them.
pub const ALL: [Fault; 26] = [
    Fault::QmpCut,
    Fault::QmpFlaky,
    Fault::QmpNoisy,
    Fault::QemuHang,
    Fault::QemuExit,
    Fault::GuestReboot,
    Fault::GuestStubborn,
    Fault::GuestSheds,
    Fault::AgentHang,
    Fault::AgentDead,
    Fault::AgentRestart,
    Fault::AgentLies,
    Fault::VfBind,
    Fault::VfMac,
    Fault::VfReset,
    Fault::VfPlug,
    Fault::VfForeign,
    Fault::VfRemoved,
    Fault::PfDown,
    Fault::Forward,
    Fault::Unregistered,
    Fault::Pinned,
    Fault::Cleared,
    Fault::Load,
    Fault::DaemonKilled,
    Fault::DaemonFrozen,
];

/// What ends a fault.
#[derive(Debug, Clone)]
pub enum Repair {
    /// All that is wrong with a VM.
    Vm(usize),
    /// All that is wrong with a VF.
    Vf(VfId),
    /// The PF.
    Pf,
}

impl World {
    /// Something goes wrong, and the next time is set.
    pub(super) fn strike(&mut self) {
        let fault = self.plan.menu[self.rng.usize(..self.plan.menu.len())];
        let vm = self.rng.usize(..self.machines.len());
        self.trace.line(self.now, || format!("FAULT {fault:?} (vm{vm})"));
        let lasting = self.between(100, 90_000);
        match fault {
            Fault::VfBind
            | Fault::VfMac
            | Fault::VfReset
            | Fault::VfPlug
            | Fault::VfForeign
            | Fault::VfRemoved => self.hurt_vf(fault, lasting),
            Fault::PfDown => {
                self.host.pf_down = true;
                self.judge.touch_all(self.now);
                self.excuse_all();
                self.agenda.add(self.now + lasting, Due::Repair(Repair::Pf));
            }
            Fault::DaemonKilled => self.kill(),
            Fault::DaemonFrozen => {
                for vm in 0..self.machines.len() {
                    self.judge.touch(self.now, vm);
                }
                self.daemon.frozen_until = self.daemon.frozen_until.max(self.now + lasting);
            }
            Fault::Cleared => {
                let vf = self.rng.usize(..self.host.vfs.len());
                if let Some(vf) = self.host.vfs.keys().nth(vf) {
                    let due = Due::Event(self.daemon.incarnation, Event::Clear(vf.clone()));
                    self.agenda.add(self.now, due);
                }
            }
            Fault::Load => {
                self.machines[vm].count(self.now);
                self.machines[vm].pps = self.rng.u64(0..1_000_000);
            }
            _ => self.hurt_vm(fault, vm, lasting),
        }
        let pause = Duration::from_secs_f64(self.rng.f64() * self.plan.pause.as_secs_f64());
        self.agenda.add(self.now + pause, Due::Fault);
    }

    fn excuse_all(&mut self) {
        for vm in 0..self.machines.len() {
            self.judge.excuse(self.now, vm);
        }
    }

    fn kill(&mut self) {
        if self.daemon.engine.is_none() {
            return;
        }
        self.kill_daemon();
        self.judge.touch_all(self.now);
        match self.rng.u8(..6) {
            0 => self.daemon.disk[0] = None,
            1 => self.daemon.disk[0] = self.daemon.disk[1].clone(),
            2 => {
                if let Some(text) = &mut self.daemon.disk[0] {
                    let length = self.rng.usize(..=text.len());
                    text.truncate(length);
                }
            }
            _ => {}
        }
        for machine in &mut self.machines {
            let Some(qemu) = &mut machine.qemu else { continue };
            // Of what waits in a socket that closes, the first may be under way already.
            qemu.backlog.truncate(usize::from(self.rng.bool()));
        }
        let pause = self.between(1, 30_000);
        self.agenda.add(self.now + pause, Due::Start);
    }

    fn hurt_vf(&mut self, fault: Fault, lasting: Duration) {
        self.judge.touch_all(self.now);
        let index = self.rng.usize(..self.host.vfs.len());
        let fails = if self.rng.bool() { Fails::Once } else { Fails::Always };
        let used = |vf: &VfId| self.machines.iter().any(|machine| machine.may_hold(vf));
        let Some((vf, settings)) = self.host.vfs.iter_mut().nth(index) else { return };
        match fault {
            Fault::VfBind => settings.bind = fails,
            Fault::VfMac => settings.mac = fails,
            Fault::VfReset => settings.sanitise = fails,
            Fault::VfPlug => settings.plug = fails,
            // The kernel lets nobody else in, and removes none that is in use.
            _ if used(vf) => return,
            Fault::VfForeign => settings.foreign = true,
            _ => settings.removed = true,
        }
        self.agenda.add(self.now + lasting, Due::Repair(Repair::Vf(vf.clone())));
    }

    fn hurt_vm(&mut self, fault: Fault, vm: usize, lasting: Duration) {
        let now = self.now;
        self.judge.touch(now, vm);
        let fails = if self.rng.bool() { Fails::Once } else { Fails::Always };
        let pin = if self.rng.bool() { Pin::Vf } else { Pin::Pv };
        let machine = &mut self.machines[vm];
        match fault {
            Fault::QmpCut => self.cut(vm),
            Fault::QmpFlaky => machine.flaky = true,
            Fault::QmpNoisy => machine.noisy = true,
            Fault::QemuHang => self.hang(vm, lasting),
            Fault::QemuExit => self.end_qemu(vm, lasting),
            Fault::GuestReboot => self.reboot(vm),
            Fault::GuestStubborn => machine.guest.stubborn = true,
            Fault::GuestSheds => self.shed(vm),
            Fault::AgentHang => {
                machine.guest.agent_hung_until = now + lasting;
                let boot = machine.guest.boot;
                self.agenda.add(now + lasting, Due::AgentBack(vm, boot));
            }
            Fault::AgentDead => {
                machine.guest.agent_dead = true;
                self.tell_news(vm, News::AgentPort);
            }
            Fault::AgentRestart => {
                machine.guest.epoch = 0;
                machine.guest.late = None;
                self.tell_news(vm, News::AgentPort);
            }
            Fault::AgentLies => {
                self.judge.excuse(now, vm);
                machine.guest.lies = true;
            }
            Fault::Forward => machine.forward_fails = fails,
            Fault::Unregistered => machine.listed = None,
            Fault::Pinned => machine.listed = machine.listed.map(|_| Some(pin)),
            _ => {}
        }
        self.agenda.add(now + lasting, Due::Repair(Repair::Vm(vm)));
    }

    fn cut(&mut self, vm: usize) {
        if let Some(task) = &mut self.machines[vm].task {
            task.cut();
        }
        let keeps = usize::from(self.rng.bool());
        if let Some(qemu) = &mut self.machines[vm].qemu {
            qemu.backlog.truncate(keeps);
        }
        self.nudge(vm);
    }

    fn hang(&mut self, vm: usize, lasting: Duration) {
        let until = self.now + lasting;
        let Some(qemu) = &mut self.machines[vm].qemu else { return };
        qemu.hung_until = Some(until);
        self.agenda.add(until, Due::Thaw(vm, qemu.process));
    }

    fn end_qemu(&mut self, vm: usize, lasting: Duration) {
        let machine = &mut self.machines[vm];
        machine.qemu = None;
        machine.guest.active = None;
        if let Some(task) = &mut machine.task {
            task.cut();
        }
        self.judge.excuse(self.now, vm);
        self.nudge(vm);
        self.agenda.add(self.now + lasting, Due::Process(vm));
    }

    fn reboot(&mut self, vm: usize) {
        let (now, takes) = (self.now, self.between(3000, 40_000));
        if self.machines[vm].qemu.is_none() {
            return;
        }
        self.judge.excuse(now, vm);
        // A reset may complete what the guest was asked for.
        let pending = self.machines[vm].qemu.iter().flat_map(|qemu| &qemu.devices);
        let pending =
            pending.filter(|device| device.pending.is_some()).map(|it| it.vf.clone()).next();
        if let Some(vf) = pending.filter(|_| self.rng.bool()) {
            self.eject(vm, &vf);
        }
        self.machines[vm].boot(now, takes);
        self.machines[vm].guest.active = None;
        let boot = self.machines[vm].guest.boot;
        self.tell_news(vm, News::Reset);
        self.agenda.add(now + takes, Due::AgentUp(vm, boot));
    }

    fn shed(&mut self, vm: usize) {
        let devices = self.machines[vm].qemu.iter().flat_map(|qemu| &qemu.devices);
        if let Some(vf) = devices.map(|device| device.vf.clone()).next() {
            self.judge.excuse(self.now, vm);
            self.eject(vm, &vf);
        }
    }

    /// Something is as it should be again.
    pub(super) fn repair(&mut self, repair: Repair) {
        self.trace.line(self.now, || format!("REPAIR {repair:?}"));
        match repair {
            Repair::Vm(vm) => self.mend(vm),
            Repair::Vf(vf) => {
                self.judge.touch_all(self.now);
                if let Some(settings) = self.host.vfs.get_mut(&vf) {
                    let trusted = settings.trusted;
                    *settings = super::host::Vf { trusted, ..Default::default() };
                }
            }
            Repair::Pf => {
                self.judge.touch_all(self.now);
                self.excuse_all();
                self.host.pf_down = false;
            }
        }
    }

    fn mend(&mut self, vm: usize) {
        let now = self.now;
        self.judge.touch(now, vm);
        let machine = &mut self.machines[vm];
        (machine.flaky, machine.noisy, machine.forward_fails) = (false, false, Fails::Never);
        machine.listed = Some(None);
        machine.guest.stubborn = false;
        if std::mem::take(&mut machine.guest.lies) {
            self.judge.excuse(now, vm);
        }
        if std::mem::take(&mut self.machines[vm].guest.agent_dead) {
            self.tell_news(vm, News::AgentPort);
        }
    }

    /// No more faults, and all that can be mended is.
    pub(super) fn calm(&mut self) {
        self.trace.line(self.now, || "CALM".into());
        self.plan.menu.clear();
        self.agenda.forget_faults();
        for vf in self.host.vfs.keys().cloned().collect::<Vec<_>>() {
            self.repair(Repair::Vf(vf));
        }
        self.repair(Repair::Pf);
        for vm in 0..self.machines.len() {
            self.mend(vm);
            self.machines[vm].guest.agent_hung_until = self.now;
            let boot = self.machines[vm].guest.boot;
            self.agenda.add(self.now, Due::AgentBack(vm, boot));
            self.hang(vm, Duration::ZERO);
            self.agenda.add(self.now, Due::Process(vm));
        }
        self.agenda.add(self.now, Due::Start);
    }
}
