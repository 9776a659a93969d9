//! The whole of the allocator's decisions as one state machine: events in, commands out.
//!
//! The daemon feeds it what its adapters saw and carries out what it answers; a simulator can do the
//! same with a made-up world. The engine believes only what is observed: it adopts devices it finds
//! in a QEMU, and drops holds that it finds gone. After every event it reconciles each pool in which
//! something has changed that matters (`index`).
//!
//! Left out on purpose: how an action is carried out, how long a single one may take (its report
//! always comes), and everything that is read from files.

mod ask;
mod decide;
mod event;
mod index;
mod saved;
mod seen;
mod vm;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use flexvf_protocol::VmName;

use super::policy::tenant::Tenants;
use super::policy::{Memory, Words};
use super::rate::RateMeter;
use super::reconcile::{Desired, PoolView, Step, near, reconcile};
use super::switch::{Action, Direction, Input, Outcome, Phase, Record, Report, Tenure};
use super::vf::VfId;
use ask::Considered;
pub use event::{Command, Event, Settings, SwitchEnd};
use index::{Index, Seats};
pub use saved::{Saved, SavedPool};
pub use seen::{AgentView, Held, VmSpec};
pub(super) use vm::Backoff;
use vm::{Qemu, Vm};

/// Ended switches that are remembered for `flexvf status`.
const MAX_ENDS: usize = 256;

/// See the module's text.
#[derive(Debug)]
pub struct Engine {
    pub(super) settings: Settings,
    pub(super) vms: BTreeMap<VmName, Vm>,
    pub(super) pools: BTreeMap<String, Pool>,
    pub(super) round: u64,
    pub(super) ends: VecDeque<SwitchEnd>,
    ended: u64,
    /// Of VMs that have not been seen again since the restart.
    turns_before: BTreeMap<VmName, u64>,
    began: Duration,
    looked: bool,
    next_round: Duration,
    index: Index,
}

#[derive(Debug, Default)]
pub(super) struct Pool {
    pub(super) vfs: BTreeMap<VfId, Backoff>,
    pub(super) desired: Desired,
    pub(super) problem: Option<String>,
    /// NUMA nodes of VFs, where the host has several.
    nodes: BTreeMap<VfId, u32>,
    memory: Memory,
    /// What its tenants are due.
    tenants: Tenants,
    /// What the last decision went by, for whoever asks.
    considered: Option<Considered>,
    /// By an earlier daemon's ranking, until this one has decided.
    places_before: BTreeMap<VmName, usize>,
    seats: Seats,
    /// Something has changed that planning depends on.
    dirty: bool,
    planned_at: Duration,
}

impl Engine {
    /// An engine for these pools that takes up what an earlier daemon wrote down.
    pub fn new(now: Duration, settings: Settings, pools: &[String], saved: Option<Saved>) -> Self {
        let saved = saved.unwrap_or_default();
        let next_round = saved.next_round(now, settings.interval);
        let restored = |name: &String| {
            let tenants = settings.tenants.of_pool(name);
            (name.clone(), Pool { tenants, ..saved.pool(name) })
        };
        Self {
            vms: BTreeMap::new(),
            pools: pools.iter().map(restored).collect(),
            round: saved.round,
            ends: VecDeque::new(),
            ended: 0,
            turns_before: saved.turns,
            began: now,
            looked: false,
            next_round,
            index: Index::default(),
            settings,
        }
    }

    /// Takes an event and answers what to do.
    pub fn on(&mut self, now: Duration, event: Event) -> Vec<Command> {
        let mut out = Vec::new();
        let touched = event.touched().cloned();
        self.take_in(now, event, &mut out);
        if let Some(vm) = touched {
            self.settle(now, &vm, &mut out);
        }
        self.on_time(now, &mut out);
        self.plan(now, &mut out);
        out
    }

    /// The next moment at which it wants a [`Event::Tick`].
    pub fn wake_at(&self, now: Duration) -> Duration {
        let resting = self.pools.values().flat_map(|pool| pool.vfs.values().map(|vf| vf.until));
        let first_look = self.began + self.settings.first_look;
        let pauses = resting.chain([first_look]).filter(|until| *until > now);
        pauses.chain(self.index.next_wake()).fold(self.next_round, Duration::min)
    }

    fn take_in(&mut self, now: Duration, event: Event, out: &mut Vec<Command>) {
        match event {
            Event::Tick => {}
            Event::Registered { vm, spec } => self.on_registered(vm, spec),
            Event::Unregistered(vm) => {
                if let Some(vm) = self.vms.get_mut(&vm) {
                    vm.unregistered = true;
                }
            }
            Event::Observed { vm, held, free_port } => {
                self.on_observed(now, &vm, held, free_port, out)
            }
            Event::Lost { vm, exited, reason } => self.on_lost(now, &vm, exited, reason, out),
            Event::Agent { vm, view } => self.on_agent(now, &vm, view, out),
            Event::Obstacle { vm, obstacle } => self.on_obstacle(&vm, obstacle),
            Event::VmNode { vm, node } => self.on_vm_node(&vm, node),
            Event::Counting { vm, counting } => self.on_counting(&vm, counting),
            Event::VmMemory { vm, bytes } => self.on_vm_memory(&vm, bytes),
            Event::VfNodes { pool, nodes } => self.on_vf_nodes(&pool, nodes),
            Event::Reset(vm) => self.on_reset(now, &vm, out),
            Event::Sampled { vm, sample } => {
                if let Some(vm) = self.vms.get_mut(&vm) {
                    vm.meter.on_sample(sample);
                }
            }
            Event::Pool { pool, vfs, problem } => self.on_pool(&pool, vfs, problem),
            Event::Clear(vf) => self.on_clear(now, &vf, out),
            Event::Done { vm, report } => self.tell_tenure(now, &vm, Input::Done(report), out),
            Event::Deleted { vm, vf } => {
                if self.holds(&vm, &vf) {
                    self.tell_tenure(now, &vm, Input::Deleted, out);
                }
            }
        }
    }

    /// What is due by the clock is done at every event: a flood of them delays nothing.
    fn on_time(&mut self, now: Duration, out: &mut Vec<Command>) {
        for vm in self.index.due(now) {
            self.tell_tenure(now, &vm, Input::Tick, out);
            self.settle(now, &vm, out);
        }
        let looked = self.first_look_is_over(now);
        for pool in self.pools.values_mut() {
            // Whoever rested until now may be chosen.
            let rested = pool.vfs.values().any(|vf| vf.until > pool.planned_at && vf.until <= now);
            pool.dirty |= rested || looked != self.looked;
        }
        self.looked = looked;
        if now >= self.next_round {
            self.decide(now);
            out.push(Command::Save(self.saved(now)));
        }
    }

    /// After something has happened to a VM: the indices follow, and who is gone is forgotten.
    fn settle(&mut self, now: Duration, name: &VmName, out: &mut Vec<Command>) {
        let Some(vm) = self.vms.get(name) else { return };
        // One that was not looked at yet may have a VF.
        if vm.unregistered && vm.hold.is_none() && vm.qemu != Qemu::Unseen {
            self.unfile(name);
            self.vms.remove(name);
            out.push(Command::Forget(name.clone()));
        } else {
            self.touch(now, name);
        }
    }

    fn plan(&mut self, now: Duration, out: &mut Vec<Command>) {
        if !self.looked {
            return;
        }
        // Each turn begins a switch, which the budget bounds, or leaves its pool clean.
        while let Some((name, pool)) = self.pools.iter_mut().find(|(_, pool)| pool.dirty) {
            (pool.dirty, pool.planned_at) = (false, now);
            let name = name.clone();
            let seen = self.pool_view(now, &name);
            let Some(pool) = self.pools.get(&name) else { return };
            let steps = reconcile(&seen, &pool.desired);
            let node = |vm: &VmName| self.vms.get(vm).and_then(|vm| vm.node);
            for step in near(steps, &seen.free, &pool.nodes, node) {
                let (Step::Give { vm, .. } | Step::Take { vm, .. }) = &step;
                let vm = vm.clone();
                match step {
                    Step::Give { vf, reason, .. } => self.give(now, &vm, vf, reason, out),
                    Step::Take { reason, .. } => {
                        self.tell_tenure(now, &vm, Input::Take { reason }, out)
                    }
                }
                self.settle(now, &vm, out);
            }
        }
    }

    fn give(
        &mut self,
        now: Duration,
        name: &VmName,
        vf: VfId,
        reason: String,
        out: &mut Vec<Command>,
    ) {
        let limits = self.settings.limits;
        let Some(vm) = self.vms.get_mut(name) else {
            return;
        };
        let Qemu::Up { free_port: Some(port) } = vm.qemu.clone() else {
            return;
        };
        let (tenure, action) = Tenure::begin(now, limits, reason);
        out.push(Command::Act { vm: name.clone(), vf: vf.clone(), port: port.clone(), action });
        vm.hold = Some((Held { vf, port }, tenure));
    }

    fn tell_tenure(&mut self, now: Duration, name: &VmName, input: Input, out: &mut Vec<Command>) {
        let Some((held, tenure)) = self.vms.get_mut(name).and_then(|vm| vm.hold.as_mut()) else {
            return;
        };
        let held = held.clone();
        let mut action = tenure.on(now, input);
        if action == Some(Action::Sanitise) && self.index.is_shared(&held.vf) {
            // A plug that an earlier daemon asked for came through late, in another VM: the VF is that one's.
            action = tenure.on(now, Input::Done(Report::Ok));
        }
        if let Some(action) = action {
            let Held { vf, port } = held.clone();
            out.push(Command::Act { vm: name.clone(), vf, port, action });
        }
        let (record, ended) = (tenure.take_record(), tenure.phase() == Phase::Ended);
        if let Some(record) = record {
            self.learn(now, name, &held.vf, &record);
            self.ended += 1;
            let end = SwitchEnd { n: self.ended, vm: name.clone(), vf: held.vf, record };
            if self.ends.len() == MAX_ENDS {
                self.ends.pop_front();
            }
            self.ends.push_back(end.clone());
            out.push(Command::Tell(end));
        }
        if ended && let Some(vm) = self.vms.get_mut(name) {
            vm.hold = None;
            // What is there now is asked, not assumed: a port that has become free, a second device.
            if let Qemu::Up { free_port } = &mut vm.qemu {
                *free_port = None;
                out.push(Command::Observe(name.clone()));
            }
        }
    }

    /// A failed switch rests whoever failed: the VF before it was plugged, the VM after.
    fn learn(&mut self, now: Duration, name: &VmName, vf: &VfId, record: &Record) {
        let Some(vm) = self.vms.get_mut(name) else {
            return;
        };
        let entry = self.pools.get_mut(&vm.spec.pool).and_then(|pool| pool.vfs.get_mut(vf));
        match &record.outcome {
            Outcome::Done if record.direction == Direction::ToVf => {
                vm.backoff = Backoff::default();
                vm.to_vf_took = Some(record.took());
                if let Some(entry) = entry {
                    *entry = Backoff::default();
                }
            }
            Outcome::Undone(reason) => {
                let reached = |step| record.steps_ms.iter().any(|(name, _)| *name == step);
                if reached("plug") || reached("join") {
                    vm.backoff.fail(now, reason);
                }
                if !reached("join")
                    && let Some(entry) = entry
                {
                    entry.fail(now, reason);
                }
            }
            Outcome::Done => vm.to_pv_took = Some(record.took()),
            Outcome::Quarantined(_) => {}
        }
    }

    pub(super) fn next_round_in(&self, now: Duration) -> Duration {
        self.next_round.saturating_sub(now)
    }

    pub(super) fn members(&self, pool: &str) -> impl Iterator<Item = (&VmName, &Vm)> {
        self.vms.iter().filter(move |(_, vm)| vm.spec.pool == pool)
    }

    fn pool_view(&self, now: Duration, name: &str) -> PoolView {
        let free = self.free(now, name);
        let usable = self.usable_with(&free, name);
        let budget = self.settings.max_concurrent_switches.saturating_sub(self.index.moving());
        let mut view = PoolView {
            holders: Vec::new(),
            takers: Vec::new(),
            all: 0,
            staying: 0,
            usable,
            budget,
            free,
        };
        let Some(pool) = self.pools.get(name) else { return view };
        let seats = &pool.seats;
        view.holders =
            self.holders(pool).filter_map(|(name, vm)| vm.holder(name, &pool.tenants)).collect();
        let ranked = seats
            .ranked
            .range(..pool.desired.bar())
            .filter_map(|place| pool.desired.ranking.get(*place));
        let takers = ranked.map(|ranked| &ranked.vm).chain(&seats.newcomers);
        let takers = takers.filter_map(|name| self.vms.get_key_value(name));
        let most = usable + view.free.len();
        view.takers = takers.take(most).map(|(name, vm)| vm.taker(name, &pool.tenants)).collect();
        (view.all, view.staying) = (seats.all, seats.all - seats.leaving);
        view
    }

    fn holders<'a>(&'a self, pool: &'a Pool) -> impl Iterator<Item = (&'a VmName, &'a Vm)> {
        pool.seats.holders.iter().filter_map(|name| self.vms.get_key_value(name))
    }

    /// Those that failed least come first: a VM that tries again tries another one.
    fn free(&self, now: Duration, pool: &str) -> Vec<VfId> {
        let vfs = self.pools.get(pool).into_iter().flat_map(|pool| &pool.vfs);
        let mut free: Vec<(&VfId, &Backoff)> =
            vfs.filter(|(vf, rest)| rest.until <= now && self.holder(vf).is_none()).collect();
        free.sort_by_key(|(_, rest)| rest.failures());
        free.into_iter().map(|(vf, _)| vf.clone()).collect()
    }

    fn usable(&self, now: Duration, pool: &str) -> usize {
        self.usable_with(&self.free(now, pool), pool)
    }

    fn usable_with(&self, free: &[VfId], pool: &str) -> usize {
        let holders = self.pools.get(pool).into_iter().flat_map(|pool| self.holders(pool));
        free.len() + holders.filter(|(_, vm)| vm.has_usable_vf()).count()
    }

    pub(super) fn holder(&self, vf: &VfId) -> Option<&VmName> {
        self.index.holder(vf)
    }

    fn holds(&self, vm: &VmName, vf: &VfId) -> bool {
        let hold = self.vms.get(vm).and_then(|vm| vm.hold.as_ref());
        hold.is_some_and(|(held, _)| held.vf == *vf)
    }

    /// Until every VM found at start was looked at once, a VF that looks free may be in one of them.
    fn first_look_is_over(&self, now: Duration) -> bool {
        now >= self.began + self.settings.first_look
            || (!self.vms.is_empty() && self.index.unseen() == 0)
    }
}

#[cfg(test)]
pub(super) mod tests;
