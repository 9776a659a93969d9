//! What tenants are due of a pool's VFs, held against an order of its VMs.
//!
//! An order is gone through from its best VM on. A tenant's guaranteed and reserved VFs are set aside for the
//! first of its VMs that want one; who is beyond its tenant's bound is barred. So whatever a policy says, a
//! tenant has no more than its maximum, and no less than its minimum or as many as want one. Reserved VFs that
//! nobody wants now are kept free: a VM of the tenant that wakes up waits for nobody's unplug.
//!
//! VMs that are pinned to a VF have one in any case, and count.

use super::reason::Placed;
use super::tenant::Tenants;
use super::{Candidate, Reason};

/// What is left of all tenants' dues.
pub(super) struct Quotas {
    /// Of each open VM, and whether it wants a VF.
    of: Vec<(Option<usize>, bool)>,
    tenants: Vec<Quota>,
    /// Reserved VFs that nobody wants now.
    kept: usize,
}

/// Of one tenant.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Quota {
    pub(super) weight: u32,
    /// VFs that its VMs may still have.
    room: usize,
    /// VFs that are set aside for those of its VMs that want one.
    need: usize,
    /// Reserved VFs beyond that.
    spare: usize,
    /// What it is behind its share, as [`super::Standing::owed`].
    pub(super) owed: i64,
    max: usize,
}

/// Whom an order leaves with a VF.
pub(super) struct Choice {
    /// Those who are served, the others, and those who may not have one.
    pub(super) order: Vec<Placed>,
    pub(super) served: usize,
    pub(super) barred: usize,
    /// VFs that are kept free.
    pub(super) kept: usize,
}

impl Quotas {
    /// Of a pool that has so many VFs beyond those of the pinned VMs.
    pub(super) fn new(
        tenants: &Tenants,
        pinned: &[&Candidate],
        open: &[&Candidate],
        vfs: usize,
        wants: impl Fn(&Candidate) -> bool,
    ) -> Self {
        if tenants.all().is_empty() {
            return Self { of: Vec::new(), tenants: Vec::new(), kept: 0 };
        }
        let place = |it: &&Candidate| it.words.tenant.as_ref().and_then(|it| tenants.place(it));
        let count = |places: &mut dyn Iterator<Item = usize>| {
            let mut counts = vec![0; tenants.all().len()];
            places.for_each(|place| counts.get_mut(place).into_iter().for_each(|it| *it += 1));
            counts
        };
        let of: Vec<_> = open.iter().map(|it| (place(it), wants(it))).collect();
        let had = count(&mut pinned.iter().filter_map(place));
        let wanting = of.iter().filter(|(_, wants)| *wants);
        let wanting = count(&mut wanting.filter_map(|(place, _)| *place));
        // All together are no more than the VFs: those first by name are met first, wishes before reserves.
        let (mut left, mut quotas) = (vfs, Vec::new());
        for ((tenant, had), wanting) in tenants.all().iter().zip(had).zip(wanting) {
            let max = tenant.max_vfs.unwrap_or(usize::MAX);
            let room = max.saturating_sub(had);
            let due = tenant.min_vfs.max(tenant.reserved_vfs).saturating_sub(had);
            let need = due.min(wanting).min(room).min(left);
            left -= need;
            let spare = tenant.reserved_vfs.saturating_sub(had).saturating_sub(need);
            let spare = spare.min(room - need);
            quotas.push(Quota { weight: tenant.weight, room, need, spare, owed: 0, max });
        }
        let kept = left.min(quotas.iter().map(|it| it.spare).sum());
        Self { of, tenants: quotas, kept }
    }

    /// There are none.
    pub(super) const fn are_none(&self) -> bool {
        self.tenants.is_empty()
    }

    /// VFs that are kept free.
    pub(super) const fn kept(&self) -> usize {
        self.kept
    }

    /// The tenant of an open VM, by its index.
    pub(super) fn of(&self, open: usize) -> Option<usize> {
        self.of.get(open).and_then(|(tenant, _)| *tenant)
    }

    pub(super) fn get(&self, tenant: usize) -> Option<Quota> {
        self.tenants.get(tenant).copied()
    }

    /// What a tenant is behind its share now.
    pub(super) fn owe(&mut self, tenant: usize, owed: i64) {
        self.tenants.get_mut(tenant).into_iter().for_each(|quota| quota.owed = owed);
    }

    /// What each is behind its share.
    pub(super) fn set_owed(&mut self, owed: Vec<i64>) {
        self.tenants.iter_mut().zip(owed).for_each(|(tenant, owed)| tenant.owed = owed);
    }

    /// As it is now.
    pub(super) fn owed(&self) -> impl Iterator<Item = i64> {
        self.tenants.iter().map(|tenant| tenant.owed)
    }

    /// A VM is served.
    pub(super) fn charge(&mut self, placed: &Placed) {
        let tenant = self.of(placed.index).and_then(|tenant| self.tenants.get_mut(tenant));
        tenant.into_iter().for_each(|tenant| tenant.owed -= placed.charge);
    }

    /// How many of these VMs (open ones, by index) may have a VF.
    pub(super) fn room_for(&self, vms: impl Iterator<Item = usize>) -> usize {
        let mut left: Vec<usize> = self.tenants.iter().map(|it| it.room).collect();
        let has_room = |vm: &usize| match self.of(*vm).and_then(|tenant| left.get_mut(tenant)) {
            None => true,
            Some(room) => room.checked_sub(1).is_some_and(|less| {
                *room = less;
                true
            }),
        };
        vms.filter(has_room).count()
    }

    /// Goes through an order of the open VMs, of whom so many can have a VF.
    pub(super) fn choose(&self, order: Vec<Placed>, vfs: usize) -> Choice {
        if self.are_none() {
            let served = vfs.min(order.len());
            return Choice { order, served, barred: 0, kept: 0 };
        }
        let mut left = self.tenants.clone();
        let set_aside: usize = left.iter().map(|it| it.need).sum::<usize>() + self.kept;
        let mut free = vfs.saturating_sub(set_aside);
        let (mut served, mut others, mut barred) = (Vec::new(), Vec::new(), Vec::new());
        for (at, placed) in order.into_iter().enumerate() {
            let quota = self.of(placed.index).and_then(|tenant| left.get_mut(tenant));
            let wants = self.of.get(placed.index).is_some_and(|(_, wants)| *wants);
            let (room, need, max) = quota.as_ref().map_or((usize::MAX, 0, 0), |it| match wants {
                true if it.need > 0 => (it.room, it.need, it.max),
                // What is set aside is not for it.
                _ => (it.room.saturating_sub(it.need + it.spare), 0, it.max),
            });
            let is_ahead = at < vfs;
            if room == 0 {
                barred.push(Placed { reason: Reason::TenantHasAll { max }, ..placed });
                continue;
            }
            let reason = match (need > 0, free > 0) {
                (true, false) if !is_ahead => Reason::TenantDue,
                (false, false) if is_ahead => Reason::SetAside { vfs: set_aside },
                _ => placed.reason,
            };
            let placed = Placed { reason, ..placed };
            if need == 0 && free == 0 {
                others.push(placed);
                continue;
            }
            free -= usize::from(need == 0);
            if let Some(quota) = quota {
                quota.room -= 1;
                quota.need -= usize::from(need > 0);
            }
            served.push(placed);
        }
        let (count, bars) = (served.len(), barred.len());
        served.extend(others);
        served.extend(barred);
        Choice { order: served, served: count, barred: bars, kept: self.kept }
    }
}

impl Quota {
    /// At least and at most so many of `members` are served.
    pub(super) fn bounds(&self, members: usize) -> (usize, usize) {
        let most = self.room.min(members);
        (self.need.min(most), most)
    }
}
