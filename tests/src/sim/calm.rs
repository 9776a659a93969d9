//! A storm of faults, and what must be so some time after it.

use std::time::Duration;

use qmp_allocator::logic::engine::Settings;
use qmp_allocator::logic::policy::{Strategy, Tuning};
use qmp_allocator::logic::status::Status;

use super::judge::Violation;
use super::world::World;

/// The longest rest after failed switches, as the engine has it.
const LONGEST_REST: Duration = Duration::from_secs(600);
/// What is under way when faults stop comes to its end, deadline by deadline.
const LAST_SWITCHES: Duration = Duration::from_secs(180);
/// Decisions after which everybody is where he belongs, again and again.
const MORE_ROUNDS: u32 = 2;
/// A decision may be the first one over counts that no fault has touched; then VFs move once more.
const A_SWITCH: Duration = Duration::from_secs(30);
/// Clearly more than the rate from which on a VM wants a VF.
const WANTS_PPS: u64 = 2;
const SECOND: Duration = Duration::from_secs(1);

/// Plays a world to its end.
pub fn storm_and_calm(world: &mut World) -> Result<(), Violation> {
    world.run(world.now + world.plan.storm)?;
    world.calm();
    let interval = world.plan.settings.interval;
    let bound = LONGEST_REST + 3 * interval + LAST_SWITCHES;
    settle(world, bound)?;
    // It stays so: each further round is over long before the next.
    for _ in 0..MORE_ROUNDS {
        world.run(world.now + interval)?;
        settle(world, interval + A_SWITCH)?;
    }
    world.everybody_is_served()
}

fn settle(world: &mut World, bound: Duration) -> Result<(), Violation> {
    let until = world.now + bound;
    loop {
        let Err(why) = world.is_settled() else { return Ok(()) };
        if world.now >= until {
            let what = format!("{bound:?} after faults stopped: {why}");
            return Err(Violation::new("observed = desired within the bound", what));
        }
        world.run(world.now + SECOND)?;
    }
}

impl World {
    /// Whoever wants a VF ends a round on one within the bound of a strategy that has one.
    fn everybody_is_served(&mut self) -> Result<(), Violation> {
        let Settings { strategy, tuning, interval, .. } = self.plan.settings;
        if !self.plan.is_plain() {
            return Ok(());
        }
        let members = |pool: usize, all: usize| (pool..all).step_by(self.plan.pools).count();
        let (vms, vfs) = (self.machines.len(), self.host.vfs.len());
        let in_turn =
            (0..self.plan.pools).map(|pool| members(pool, vms).div_ceil(members(pool, vfs).max(1)));
        let in_turn = in_turn.max().unwrap_or(0) as u32;
        let missed = match strategy {
            Strategy::Fair => in_turn,
            Strategy::Hybrid => {
                in_turn.max((tuning.max_wait.as_nanos() / interval.as_nanos()) as u32)
            }
            Strategy::Activity | Strategy::Weighted => return Ok(()),
        };
        let before = self.turns();
        // The round that runs, those that may be missed, and the one that serves, up to its end.
        self.run(self.now + interval * (missed + 3))?;
        let unserved = self.turns().into_iter().zip(before).zip(&self.machines);
        let unserved = unserved.filter(|((now, before), it)| now == before && it.pps > WANTS_PPS);
        let unserved: Vec<_> = unserved.map(|(_, machine)| machine.name.as_str()).collect();
        if unserved.is_empty() {
            return Ok(());
        }
        let what = format!("{unserved:?} had no VF in {missed} rounds and more");
        Err(Violation::new("nobody waits longer than the strategy allows", what))
    }

    /// Of each machine; of one that is not known none.
    fn turns(&self) -> Vec<Option<u64>> {
        let status = self.daemon.engine.as_ref().map(|engine| engine.status(self.now));
        let vms = status.map(|status| status.vms).unwrap_or_default();
        let turns = |name| vms.iter().find(|vm| vm.vm == name).map(|vm| vm.turns);
        self.machines.iter().map(|machine| turns(machine.name.clone())).collect()
    }

    /// Everything is as it should be; or what is not.
    fn is_settled(&self) -> Result<(), String> {
        let engine = self.daemon.engine.as_ref().ok_or("no daemon")?;
        let status = engine.status(self.now);
        if status.vms.len() != self.machines.len() {
            return Err(format!("{} VMs are known", status.vms.len()));
        }
        let mut on_vf = Vec::new();
        for (vm, machine) in self.machines.iter().enumerate() {
            let shown = status.vms.iter().find(|it| it.vm == machine.name).ok_or("VM not shown")?;
            let holds = machine.qemu.iter().flat_map(|qemu| &qemu.devices).map(|it| &it.vf);
            let holds: Vec<_> = holds.collect();
            let active = machine.guest.active.as_ref();
            let (target, _) = &self.host.forwards[vm];
            let path = if active.is_some() { "vf" } else { "pv" };
            let aim = format!("{target:?}").to_lowercase();
            if holds.len() > 1 || holds.first().copied() != active || shown.vf.as_ref() != active {
                return Err(format!(
                    "vm{vm} has {holds:?}, uses {active:?}, is shown with {:?}: {}",
                    shown.vf, shown.reason
                ));
            }
            if shown.path != path || !aim.contains(path) {
                return Err(format!(
                    "vm{vm} uses {path}, is shown on {}, has frames sent to {aim}",
                    shown.path
                ));
            }
            if active.is_some() {
                on_vf.push(vm);
            }
        }
        (0..self.plan.pools).try_for_each(|pool| self.are_served(&status, &on_vf, pool))
    }

    fn are_served(&self, status: &Status, on_vf: &[usize], pool: usize) -> Result<(), String> {
        let members = |all: usize| (pool..all).step_by(self.plan.pools);
        let (vms, vfs) = (self.machines.len(), self.host.vfs.len());
        let of_tenant = |vm: &usize| self.plan.tenant_of(*vm).is_some();
        let most = self.plan.most_vfs(pool);
        let bounded = members(vms).filter(of_tenant).count().min(most);
        let others = members(vms).filter(|vm| !of_tenant(vm)).count();
        let expected = (bounded + others).min(members(vfs).count());
        let on_vf: Vec<usize> = members(vms).filter(|vm| on_vf.contains(vm)).collect();
        if on_vf.len() != expected {
            let vfs: Vec<_> = status.pools.iter().flat_map(|pool| &pool.vfs).collect();
            return Err(format!("{} of {expected} VFs are in use: {vfs:?}", on_vf.len()));
        }
        if on_vf.iter().filter(|vm| of_tenant(vm)).count() > most {
            return Err(format!("the tenant of pool {pool} has more than {most} VFs: {on_vf:?}"));
        }
        // Others have other reasons than who is busiest now.
        let Settings { strategy, tuning, .. } = &self.plan.settings;
        let steady = Tuning { max_wait: tuning.max_wait, ..Tuning::default() } != *tuning;
        if *strategy == Strategy::Activity && !steady && self.plan.is_plain() {
            let least = on_vf.iter().map(|vm| self.machines[*vm].pps).min();
            let others = members(vms).filter(|vm| !on_vf.contains(vm));
            if let Some(other) = others.max_by_key(|vm| self.machines[*vm].pps)
                && least.is_some_and(|least| self.machines[other].pps > least)
            {
                return Err(format!("vm{other} is busier than another that has a VF"));
            }
        }
        Ok(())
    }
}
