//! What must hold at every step, by what really is, not by what the engine believes.

use std::collections::BTreeMap;
use std::time::Duration;

use flexvf_protocol::VmName;
use qmp_allocator::logic::engine::{Command, Event};
use qmp_allocator::logic::switch::{Action, Outcome, Report};
use qmp_allocator::logic::vf::VfId;

use super::daemon::Daemon;
use super::host::Host;
use super::machine::{Fails, Machine};
use super::plan::Plan;
use super::task::Link;

/// Something that must not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which invariant.
    pub rule: &'static str,
    /// What was seen.
    pub what: String,
}

/// See the module's text.
#[derive(Debug)]
pub struct Judge {
    steps: u64,
    vms: Vec<Case>,
    /// Whom this daemon knows, or could know, to have a VF.
    known: BTreeMap<VfId, usize>,
    last_look: Duration,
    most_switches: usize,
    daemon_started_at: Duration,
    found: Option<Violation>,
}

#[derive(Debug, Default, Clone)]
struct Case {
    /// The last fault that touched it.
    touched_at: Duration,
    /// The last one that was its own.
    hurt_at: Duration,
    /// Until then its path may be broken, for [`GRACE`] at most.
    excused_until: Duration,
    /// How long the daemon could have mended it, and whether it can just now.
    broken_for: Option<(Duration, bool)>,
    /// At the last look the daemon could not see it, or could do nothing for it.
    was_blind: bool,
    switching_since: Option<Duration>,
    acts: (Duration, u32),
    /// The action under way, and its VF.
    out: Option<(Action, VfId)>,
    /// The last preparation was refused, of this VF.
    refused: Option<VfId>,
}

/// Within which a broken path is mended, once the daemon can see it and do something about it.
const GRACE: Duration = Duration::from_secs(25);
/// For so long after a fault its VM's path may break.
const EXCUSE: Duration = Duration::from_secs(60);
/// A switch of a VM without faults, either way: the sum of what the made-up world takes.
const CLEAN_SWITCH: Duration = Duration::from_secs(8);
/// A VM counts as without faults when its last one is so long ago.
const CLEAN_AFTER: Duration = Duration::from_secs(90);
/// Actions for one VM in [`ACTS_WINDOW`]: a join asks ten times a second.
const MAX_ACTS: u32 = 150;
const ACTS_WINDOW: Duration = Duration::from_secs(10);

impl Violation {
    /// Of this rule.
    pub const fn new(rule: &'static str, what: String) -> Self {
        Self { rule, what }
    }
}

impl Judge {
    /// For a world of this plan.
    pub fn new(plan: &Plan) -> Self {
        let vms = vec![Case::default(); plan.vms];
        Self {
            steps: 0,
            vms,
            known: BTreeMap::new(),
            last_look: Duration::ZERO,
            most_switches: plan.settings.max_concurrent_switches,
            daemon_started_at: Duration::ZERO,
            found: None,
        }
    }

    /// Events that the engine has taken.
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    pub(super) const fn step(&mut self) {
        self.steps += 1;
    }

    /// A fault touches a VM: it need not be on time.
    pub(super) fn touch(&mut self, now: Duration, vm: usize) {
        (self.vms[vm].touched_at, self.vms[vm].hurt_at) = (now, now);
    }

    /// A fault touches everybody.
    pub(super) fn touch_all(&mut self, now: Duration) {
        for case in &mut self.vms {
            case.touched_at = now;
        }
    }

    /// A fault may break a VM's path, until the daemon mends it.
    pub(super) fn excuse(&mut self, now: Duration, vm: usize) {
        self.touch(now, vm);
        self.vms[vm].excused_until = now + EXCUSE;
    }

    pub(super) fn daemon_started(&mut self, now: Duration) {
        self.known.clear();
        self.daemon_started_at = now;
        self.touch_all(now);
        for case in &mut self.vms {
            (case.switching_since, case.out, case.refused) = (None, None, None);
        }
    }

    /// What the engine is told. The last words of a task whose VM it has forgotten go unheard.
    pub(super) fn told(&mut self, event: &Event, machines: &[Machine]) {
        if let Event::Observed { vm, held: Some(held), .. } = event
            && let Some(vm) = machines.iter().position(|machine| machine.name == *vm)
            && machines[vm].task.as_ref().is_some_and(|task| !task.ending)
        {
            self.known.insert(held.vf.clone(), vm);
        }
        if let Event::Done { vm, report } = event
            && let Some(vm) = machines.iter().position(|machine| machine.name == *vm)
            && let Some((action, vf)) = self.vms[vm].out.take()
            && action == Action::Prepare
        {
            self.vms[vm].refused = matches!(report, Report::Refused(_)).then_some(vf);
        }
    }

    /// What the engine wants now begins no more switches than it may.
    pub(super) fn planned(
        &self,
        commands: &[Command],
        switching: impl FnOnce() -> usize,
    ) -> Result<(), Violation> {
        let begins =
            |command: &Command| matches!(command, Command::Act { action: Action::Prepare, .. });
        if !commands.iter().any(begins) {
            return Ok(());
        }
        let (switching, most) = (switching(), self.most_switches);
        if switching <= most {
            return Ok(());
        }
        let what = format!("{switching} VMs switch, {most} may");
        Err(Violation::new("switches are bounded", what))
    }

    /// What the engine wants.
    pub(super) fn commanded(
        &mut self,
        now: Duration,
        command: &Command,
        machines: &[Machine],
    ) -> Result<(), Violation> {
        let index = |name: &VmName| machines.iter().position(|machine| machine.name == *name);
        match command {
            Command::Act { vm, vf, action, .. } => {
                let Some(vm) = index(vm) else { return Ok(()) };
                self.acted(now, vm)?;
                self.ordered(vm, vf, *action)?;
                self.vms[vm].switching_since.get_or_insert(now);
                self.given(vm, vf, *action, machines)?;
            }
            Command::Tell(end) => {
                let Some(vm) = index(&end.vm) else { return Ok(()) };
                let since = self.vms[vm].switching_since.take();
                let failed = end.record.outcome != Outcome::Done;
                if failed && since.is_some_and(|since| self.is_clean(vm, since)) {
                    let what = format!("vm{vm}: {:?}", end.record);
                    return Err(Violation::new("VMs without faults are switched", what));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn acted(&mut self, now: Duration, vm: usize) -> Result<(), Violation> {
        let (since, count) = &mut self.vms[vm].acts;
        if now >= *since + ACTS_WINDOW {
            (*since, *count) = (now, 0);
        }
        *count += 1;
        if *count > MAX_ACTS {
            let what = format!("vm{vm}: {count} actions in {ACTS_WINDOW:?}");
            return Err(Violation::new("no busy loop", what));
        }
        Ok(())
    }

    /// Two actions at once would overtake each other; and what was refused has changed nothing.
    fn ordered(&mut self, vm: usize, vf: &VfId, action: Action) -> Result<(), Violation> {
        let case = &mut self.vms[vm];
        if let Some((earlier, _)) = case.out.replace((action, vf.clone())) {
            let what = format!("vm{vm}: {action:?} while {earlier:?} is under way");
            return Err(Violation::new("one action of a VM at a time", what));
        }
        if action == Action::Sanitise && case.refused.as_ref() == Some(vf) {
            let what = format!("vm{vm}: {vf} is restored, whose preparation was refused");
            return Err(Violation::new("what was refused is not undone", what));
        }
        Ok(())
    }

    fn given(
        &mut self,
        vm: usize,
        vf: &VfId,
        action: Action,
        machines: &[Machine],
    ) -> Result<(), Violation> {
        if !matches!(action, Action::Prepare | Action::Plug) {
            return Ok(());
        }
        let holder = machines.iter().position(|machine| machine.may_hold(vf));
        let other = holder.filter(|holder| *holder != vm);
        // A preparation finds out by itself who has a VF that nobody could know of.
        let known = |other: usize| {
            let case = &self.vms[other];
            // A VM that answers is looked at before anything is given away.
            let answers = machines[other].listed.is_some()
                && machines[other].has(vf)
                && case.hurt_at + CLEAN_AFTER < self.daemon_started_at;
            let has = machines[other].has(vf) && action == Action::Plug;
            has || self.known.get(vf) == Some(&other) || answers
        };
        if let Some(other) = other.filter(|other| known(*other)) {
            let what = format!("{action:?} {vf} for vm{vm}, while vm{other} may hold it");
            return Err(Violation::new("a VF that QEMU may hold is never given away", what));
        }
        if action == Action::Plug {
            self.known.insert(vf.clone(), vm);
        }
        Ok(())
    }

    /// A VF's settings were put back.
    pub(super) fn restored(&mut self, vf: &VfId, machines: &[Machine]) {
        // A plug that an earlier daemon asked a QEMU for, which still hangs, is known to nobody.
        let known = |vm: usize| machines[vm].has(vf) || self.known.get(vf) == Some(&vm);
        let holder = (0..machines.len()).find(|vm| machines[*vm].may_hold(vf) && known(*vm));
        if let Some(holder) = holder {
            let what = format!("{vf} was restored while vm{holder} may hold it");
            self.found.get_or_insert(Violation::new("a VF that QEMU may hold is left alone", what));
        }
    }

    fn is_clean(&self, vm: usize, since: Duration) -> bool {
        self.vms[vm].touched_at + CLEAN_AFTER < since
    }

    /// Looks at everything.
    pub(super) fn look(
        &mut self,
        now: Duration,
        machines: &[Machine],
        host: &Host,
        daemon: &Daemon,
    ) -> Result<(), Violation> {
        if let Some(violation) = self.found.take() {
            return Err(violation);
        }
        let passed = now.saturating_sub(self.last_look);
        self.last_look = now;
        one_vm_a_vf(machines)?;
        for (vm, machine) in machines.iter().enumerate() {
            let broken = host.broken_path(vm, machine, now);
            let blind = is_blind(now, machine, host, daemon);
            self.look_at_path(now, vm, passed, broken, blind)?;
            let since = self.vms[vm].switching_since;
            if since.is_some_and(|since| now > since + CLEAN_SWITCH && self.is_clean(vm, since)) {
                let what = format!("vm{vm} switches since {since:?}");
                return Err(Violation::new("VMs without faults are switched on time", what));
            }
        }
        Ok(())
    }

    fn look_at_path(
        &mut self,
        now: Duration,
        vm: usize,
        passed: Duration,
        broken: Option<String>,
        blind: bool,
    ) -> Result<(), Violation> {
        let case = &mut self.vms[vm];
        if case.was_blind {
            case.excused_until += passed;
        }
        case.was_blind = blind;
        let Some(why) = broken else {
            case.broken_for = None;
            if blind && case.excused_until > now {
                case.excused_until = now + EXCUSE;
            }
            return Ok(());
        };
        let excused = case.excused_until > now;
        if blind && excused {
            case.excused_until = now + EXCUSE;
        }
        let lasts = match case.broken_for {
            Some((lasts, false)) if !blind => lasts + passed,
            _ => Duration::ZERO,
        };
        case.broken_for = Some((lasts, blind));
        let allowed = if excused { GRACE } else { Duration::ZERO };
        if lasts > allowed || !excused {
            let what = format!("vm{vm}, for {lasts:?}: {why}");
            return Err(Violation::new("no VM is ever without a working path", what));
        }
        Ok(())
    }
}

/// The daemon cannot see a VM, or can do nothing for it.
fn is_blind(now: Duration, machine: &Machine, host: &Host, daemon: &Daemon) -> bool {
    let linked = machine.task.as_ref().is_some_and(|task| matches!(task.link, Link::Up(_)));
    daemon.engine.is_none()
        || daemon.frozen_until > now
        || !linked
        || !machine.agent_answers(now)
        || machine.flaky
        || machine.forward_fails != Fails::Never
        || host.pf_down
}

fn one_vm_a_vf(machines: &[Machine]) -> Result<(), Violation> {
    let mut seen: Vec<(&VfId, usize)> = Vec::new();
    for (vm, machine) in machines.iter().enumerate() {
        for device in machine.qemu.iter().flat_map(|qemu| &qemu.devices) {
            if let Some((_, other)) = seen.iter().find(|(vf, _)| **vf == device.vf) {
                let what = format!("{} is in vm{other} and in vm{vm}", device.vf);
                return Err(Violation::new("a VF is in at most one VM", what));
            }
            if seen.iter().any(|(_, other)| *other == vm) {
                let what = format!("vm{vm} has {} besides another", device.vf);
                return Err(Violation::new("a VM has at most one VF", what));
            }
            seen.push((&device.vf, vm));
        }
    }
    Ok(())
}
