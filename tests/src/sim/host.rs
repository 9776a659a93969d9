//! The host's side: VFs with their settings, and where each VM's frames are sent.

use std::collections::BTreeMap;
use std::time::Duration;

use flexvf_protocol::agent::Path;
use qmp_allocator::logic::switch::Target;
use qmp_allocator::logic::vf::VfId;

use super::machine::{Fails, Machine};
use super::plan::Pool;

/// See the module's text.
#[derive(Debug)]
pub struct Host {
    /// Which kind of pool.
    pub pool: Pool,
    /// Every VF that ever was.
    pub vfs: BTreeMap<VfId, Vf>,
    /// The PF is gone, or its driver: nothing can be asked or set.
    pub pf_down: bool,
    /// By VM; where nothing was set, frames are flooded.
    pub forwards: Vec<(Target, Option<VfId>)>,
}

/// A VF of the host's.
#[derive(Debug, Default)]
pub struct Vf {
    /// The operator has taken it away.
    pub removed: bool,
    /// Its own address, trusted: what a guest's bond needs of it.
    pub trusted: bool,
    /// Another program uses it.
    pub foreign: bool,
    /// The driver's bind.
    pub bind: Fails,
    /// The setting of its address.
    pub mac: Fails,
    /// Its restoration.
    pub sanitise: Fails,
    /// `device_add`.
    pub plug: Fails,
}

impl Vf {
    /// Nothing is wrong with it.
    pub fn is_sound(&self) -> bool {
        let fails = [self.bind, self.mac, self.sanitise, self.plug];
        !self.removed && !self.foreign && fails.iter().all(|fails| *fails == Fails::Never)
    }
}

impl Host {
    /// A host with so many VFs, for so many VMs.
    pub fn new(pool: Pool, vfs: usize, vms: usize) -> Self {
        let vfs = (0..vfs).map(|i| (VfId::new(format!("vf{i}")), Vf::default())).collect();
        Self { pool, vfs, pf_down: false, forwards: vec![(Target::Both, None); vms] }
    }

    /// The VFs that a look at one of so many pools shows.
    pub fn listed(&self, pool: usize, pools: usize) -> Result<Vec<VfId>, String> {
        if self.pf_down {
            return Err("no such PF".into());
        }
        let own = self.vfs.iter().skip(pool).step_by(pools);
        Ok(own.filter(|(_, vf)| !vf.removed).map(|(id, _)| id.clone()).collect())
    }

    /// Why a VM's guest could not send or receive just now.
    pub fn broken_path(&self, vm: usize, machine: &Machine, now: Duration) -> Option<String> {
        if !machine.is_up(now) || machine.guest.lies {
            return None;
        }
        let (target, vf) = &self.forwards[vm];
        let Some(active) = &machine.guest.active else {
            return (*target == Target::Only(Path::Vf))
                .then(|| "the guest is on PV, the host forwards to the VF only".into());
        };
        let settings = self.vfs.get(active)?;
        match self.pool {
            Pool::Sriov if !settings.trusted => {
                Some(format!("the guest is on {active}, which was restored under it"))
            }
            Pool::Emulated if *target == Target::Only(Path::Pv) => {
                Some(format!("the guest is on {active}, the host forwards to PV only"))
            }
            Pool::Emulated if *target == Target::Only(Path::Vf) && vf.as_ref() != Some(active) => {
                Some(format!("the guest is on {active}, the host forwards to {vf:?}"))
            }
            _ => None,
        }
    }
}
