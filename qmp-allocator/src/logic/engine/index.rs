//! What the engine would else search all VMs for, kept up to date VM by VM.
//!
//! Each VM has a [`Card`]: all that planning depends on. When a VM was touched, its card is made anew;
//! only if it differs are the indices changed and its pool planned again. So a sample, or a look that
//! shows nothing new, costs the same with ten VMs and with ten thousand. [`Engine::audit`] compares
//! the indices with a search.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use flexvf_protocol::VmName;
use foldhash::HashMap;

use super::vm::Vm;
use super::{Engine, Qemu};
use crate::logic::reconcile::{Hold, PoolView, reconcile};
use crate::logic::vf::VfId;

/// All that planning depends on of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Card {
    /// It must not keep a VF.
    pub(super) leaves: bool,
    /// Its QEMU was not heard of yet.
    pub(super) unseen: bool,
    /// When it wants to be looked at by itself.
    pub(super) wake_at: Option<Duration>,
    pub(super) seat: Seat,
}

/// Where a VM stands, for planning.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Seat {
    /// On PV, and could not take a VF now.
    Away,
    /// On PV, and could; its place in the ranking, or its name if it has none.
    Ready(Result<usize, VmName>),
    /// Has a VF, or is on its way.
    Holds(VfId, Hold),
}

/// Over all pools.
#[derive(Debug, Default)]
pub(super) struct Index {
    wakes: BTreeSet<(Duration, VmName)>,
    /// More than one where an earlier daemon's VM turns up late.
    holders: BTreeMap<VfId, BTreeSet<VmName>>,
    moving: usize,
    unseen: usize,
}

/// Of one pool.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Seats {
    pub(super) all: usize,
    pub(super) leaving: usize,
    pub(super) holders: BTreeSet<VmName>,
    /// Places in the ranking.
    pub(super) ranked: BTreeSet<usize>,
    pub(super) newcomers: BTreeSet<VmName>,
}

impl Index {
    pub(super) const fn moving(&self) -> usize {
        self.moving
    }

    pub(super) const fn unseen(&self) -> usize {
        self.unseen
    }

    pub(super) fn next_wake(&self) -> Option<Duration> {
        self.wakes.first().map(|(at, _)| *at)
    }

    /// VMs that wanted to be looked at by now.
    pub(super) fn due(&self, now: Duration) -> Vec<VmName> {
        self.wakes.iter().take_while(|(at, _)| *at <= now).map(|(_, vm)| vm.clone()).collect()
    }

    pub(super) fn holder(&self, vf: &VfId) -> Option<&VmName> {
        self.holders.get(vf)?.first()
    }

    /// More than one VM has it, or is on its way.
    pub(super) fn is_shared(&self, vf: &VfId) -> bool {
        self.holders.get(vf).is_some_and(|holders| holders.len() > 1)
    }

    fn add(&mut self, vm: &VmName, card: &Card) {
        self.unseen += usize::from(card.unseen);
        self.wakes.extend(card.wake_at.map(|at| (at, vm.clone())));
        if let Seat::Holds(vf, hold) = &card.seat {
            self.moving += usize::from(hold.is_moving());
            self.holders.entry(vf.clone()).or_default().insert(vm.clone());
        }
    }

    fn remove(&mut self, vm: &VmName, card: &Card) {
        self.unseen -= usize::from(card.unseen);
        if let Some(at) = card.wake_at {
            self.wakes.remove(&(at, vm.clone()));
        }
        if let Seat::Holds(vf, hold) = &card.seat {
            self.moving -= usize::from(hold.is_moving());
            if let Some(holders) = self.holders.get_mut(vf) {
                holders.remove(vm);
                if holders.is_empty() {
                    self.holders.remove(vf);
                }
            }
        }
    }
}

impl Seats {
    pub(super) fn add(&mut self, vm: &VmName, card: &Card) {
        self.all += 1;
        self.leaving += usize::from(card.leaves);
        match &card.seat {
            Seat::Away => {}
            Seat::Ready(Ok(place)) => drop(self.ranked.insert(*place)),
            Seat::Ready(Err(name)) => drop(self.newcomers.insert(name.clone())),
            Seat::Holds(..) => drop(self.holders.insert(vm.clone())),
        }
    }

    fn remove(&mut self, vm: &VmName, card: &Card) {
        self.all -= 1;
        self.leaving -= usize::from(card.leaves);
        match &card.seat {
            Seat::Away => {}
            Seat::Ready(Ok(place)) => drop(self.ranked.remove(place)),
            Seat::Ready(Err(name)) => drop(self.newcomers.remove(name)),
            Seat::Holds(..) => drop(self.holders.remove(vm)),
        }
    }
}

impl Engine {
    /// A VM may have changed: brings the indices up to date.
    pub(super) fn touch(&mut self, now: Duration, name: &VmName) {
        let Some(vm) = self.vms.get_mut(name) else { return };
        let card = vm.card(now, name);
        if vm.filed.as_ref() == Some(&card) {
            return;
        }
        let old = vm.filed.replace(card.clone());
        self.file(name, old.as_ref(), Some(&card));
    }

    /// Takes a VM out of the indices; the next [`Self::touch`] puts it back.
    pub(super) fn unfile(&mut self, name: &VmName) {
        if let Some(old) = self.vms.get_mut(name).and_then(|vm| vm.filed.take()) {
            self.file(name, Some(&old), None);
        }
    }

    fn file(&mut self, name: &VmName, old: Option<&Card>, new: Option<&Card>) {
        let moving = self.index.moving;
        if let Some(old) = old {
            self.index.remove(name, old);
        }
        if let Some(new) = new {
            self.index.add(name, new);
        }
        // Room in the budget is room for every pool.
        let all = self.index.moving < moving;
        let own = self.vms.get(name).map(|vm| vm.spec.pool.as_str()).unwrap_or_default();
        for (pool_name, pool) in &mut self.pools {
            let is_own = pool_name == own;
            if let Some(old) = old.filter(|_| is_own) {
                pool.seats.remove(name, old);
            }
            if let Some(new) = new.filter(|_| is_own) {
                pool.seats.add(name, new);
            }
            pool.dirty |= is_own || all;
        }
    }

    /// After a decision: everybody's place, and the seats by it.
    pub(super) fn seat_anew(&mut self, pool_name: &str) {
        let Some(pool) = self.pools.get_mut(pool_name) else { return };
        let ranking = &pool.desired.ranking;
        // Hashed, not sorted: names are long and alike, and a comparison costs more than a hash.
        let places: HashMap<&VmName, usize> =
            ranking.iter().enumerate().map(|(at, ranked)| (&ranked.vm, at)).collect();
        let mut is_ready = vec![false; ranking.len()];
        pool.seats.newcomers.clear();
        for (name, vm) in self.vms.iter_mut().filter(|(_, vm)| vm.spec.pool == pool_name) {
            vm.place = places.get(name).copied();
            // Nothing else of a card depends on the place.
            let Some(Card { seat: Seat::Ready(seat), .. }) = &mut vm.filed else { continue };
            *seat = vm.place.ok_or_else(|| name.clone());
            match seat {
                Ok(place) => is_ready.get_mut(*place).into_iter().for_each(|ready| *ready = true),
                Err(name) => drop(pool.seats.newcomers.insert(name.clone())),
            }
        }
        let places = is_ready.into_iter().enumerate();
        pool.seats.ranked = places.filter_map(|(place, ready)| ready.then_some(place)).collect();
        pool.dirty = true;
    }

    /// Whether the indices are what a search over all VMs finds, and nothing is left to be planned.
    /// For simulations and tests: it searches.
    ///
    /// # Errors
    /// What differs.
    pub fn audit(&self, now: Duration) -> Result<(), String> {
        let mut index = Index::default();
        let mut seats: BTreeMap<&str, Seats> =
            self.pools.keys().map(|name| (name.as_str(), Seats::default())).collect();
        for (name, vm) in &self.vms {
            let card = vm.card(now, name);
            if vm.filed.as_ref() != Some(&card) {
                return Err(format!("{name} is filed as {:?}, and is {card:?}", vm.filed));
            }
            index.add(name, &card);
            if let Some(seats) = seats.get_mut(vm.spec.pool.as_str()) {
                seats.add(name, &card);
            }
        }
        let differs = index.wakes != self.index.wakes
            || index.holders != self.index.holders
            || index.moving != self.index.moving
            || index.unseen != self.index.unseen;
        if differs {
            return Err(format!("the index is {:?}, a search finds {index:?}", self.index));
        }
        for (name, pool) in &self.pools {
            if seats.get(name.as_str()) != Some(&pool.seats) {
                return Err(format!("pool {name} has {:?}, a search finds {seats:?}", pool.seats));
            }
            let steps = reconcile(&self.pool_view(now, name), &pool.desired);
            if !steps.is_empty() && self.first_look_is_over(now) {
                return Err(format!("pool {name} is left with {steps:?}"));
            }
        }
        self.audit_views(now)
    }

    /// Each pool's view against one made without any index.
    fn audit_views(&self, now: Duration) -> Result<(), String> {
        for (name, pool) in &self.pools {
            let view = self.pool_view(now, name);
            let naive = self.naive_view(now, name);
            if view != naive {
                return Err(format!("pool {name} is seen as {view:?}, and is {naive:?}"));
            }
            let places = pool.desired.ranking.iter().enumerate();
            let wrong = places.clone().find(|(place, ranked)| {
                self.vms.get(&ranked.vm).is_some_and(|vm| vm.place.is_some_and(|it| it != *place))
            });
            if let Some((place, ranked)) = wrong {
                return Err(format!("{} has another place than {place}", ranked.vm));
            }
        }
        Ok(())
    }

    fn naive_view(&self, now: Duration, pool_name: &str) -> PoolView {
        let members = || self.vms.iter().filter(|(_, vm)| vm.spec.pool == pool_name);
        let tenants = self.settings.tenants.of_pool(pool_name);
        let bar = self.pools.get(pool_name).map_or(0, |pool| pool.desired.bar());
        let ready =
            |vm: &Vm| vm.hold.is_none() && vm.unready(now).is_none() && vm.must_leave().is_none();
        let held = |vf: &VfId| {
            self.vms.values().any(|vm| vm.hold.as_ref().is_some_and(|(held, _)| held.vf == *vf))
        };
        let vfs = self.pools.get(pool_name).into_iter().flat_map(|pool| &pool.vfs);
        let mut free: Vec<_> = vfs.filter(|(vf, rest)| rest.until <= now && !held(vf)).collect();
        free.sort_by_key(|(_, rest)| rest.failures());
        let free: Vec<VfId> = free.into_iter().map(|(vf, _)| vf.clone()).collect();
        let holders: Vec<_> =
            members().filter_map(|(name, vm)| vm.holder(name, &tenants)).collect();
        let sure = members().filter(|(_, vm)| vm.has_usable_vf()).count();
        let usable = free.len() + sure;
        let mut takers: Vec<_> = members()
            .filter(|(_, vm)| ready(vm))
            .map(|(name, vm)| vm.taker(name, &tenants))
            .collect();
        takers.retain(|taker| taker.place.is_none_or(|place| place < bar));
        takers.sort_by_key(|taker| taker.place.unwrap_or(usize::MAX));
        takers.truncate(usable + free.len());
        let moving = self.vms.values().filter(|vm| vm.is_moving()).count();
        PoolView {
            holders,
            takers,
            all: members().count(),
            staying: members().filter(|(_, vm)| vm.must_leave().is_none()).count(),
            free,
            usable,
            budget: self.settings.max_concurrent_switches.saturating_sub(moving),
        }
    }
}

impl Vm {
    fn card(&self, now: Duration, name: &VmName) -> Card {
        let leaves = self.must_leave().is_some();
        let resting = self.hold.is_none() && self.backoff.until > now;
        let tenure_wake = self.hold.as_ref().and_then(|(_, tenure)| tenure.wake_at());
        let seat = match &self.hold {
            Some((held, _)) => Seat::Holds(held.vf.clone(), self.hold_kind()),
            None if leaves || self.unready(now).is_some() => Seat::Away,
            None => Seat::Ready(self.place.ok_or_else(|| name.clone())),
        };
        Card {
            leaves,
            unseen: self.qemu == Qemu::Unseen,
            wake_at: tenure_wake.or_else(|| resting.then_some(self.backoff.until)),
            seat,
        }
    }
}
