//! What one seed stands for: how large its world is, what the daemon is set to, which faults strike.

use std::time::Duration;

use fastrand::Rng;
use qmp_allocator::logic::engine::Settings;
use qmp_allocator::logic::gain::Gain;
use qmp_allocator::logic::policy::tenant::{Tenant, TenantName, Tenants};
use qmp_allocator::logic::policy::{Strategy, Tuning};
use qmp_allocator::logic::switch::Limits;

use super::faults::{ALL, Fault};

/// What a seed stands for.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The seed itself.
    pub seed: u64,
    /// VMs.
    pub vms: usize,
    /// VFs.
    pub vfs: usize,
    /// Pools, into which VMs and VFs are dealt in turn: they share only the budget of switches.
    pub pools: usize,
    /// Which kind of pool; they forward differently.
    pub pool: Pool,
    /// The engine's settings.
    pub settings: Settings,
    /// Between two samples of a VM's counters.
    pub sample_interval: Duration,
    /// For how long faults strike.
    pub storm: Duration,
    /// Longest pause between two faults.
    pub pause: Duration,
    /// The faults that strike in this world: all of them, a few, one, or none.
    pub menu: Vec<Fault>,
}

/// The two kinds of pool, as far as frames go different ways.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// VFs filter for themselves.
    Sriov,
    /// The bridge has one entry for a guest's address.
    Emulated,
}

/// The agent's deadline (`agent_s`).
pub const AGENT: Duration = Duration::from_secs(2);
/// A QMP command's (`qmp_s`).
pub const QMP: Duration = Duration::from_secs(5);
/// `device_add`'s (`plug_s`).
pub const PLUG: Duration = Duration::from_secs(30);
/// The scan of registrations, as the daemon has it.
pub const SCAN: Duration = Duration::from_secs(1);
/// The look at the pools, as the daemon has it.
pub const POOL_LOOK: Duration = Duration::from_secs(5);

/// A VF's way from one VM to another, where nothing fails.
const A_CHANGE: Duration = Duration::from_secs(5);

impl Plan {
    /// The pool that a VM or a VF of this number is in.
    pub fn pool_of(&self, number: usize) -> String {
        format!("pool{}", number % self.pools)
    }

    /// What is said of a VM, its priority and its guarantee: in a quarter of the worlds there is something.
    pub const fn words_of(&self, number: usize) -> (u8, u8) {
        match self.seed % 8 {
            3 => ((number % 3) as u8, 0),
            6 => (0, if number.is_multiple_of(2) { 25 } else { 0 }),
            _ => (0, 0),
        }
    }

    /// Whose a VM is: in a quarter of the worlds every other VM of a pool is that pool's one tenant's.
    pub fn tenant_of(&self, number: usize) -> Option<TenantName> {
        let tenants = self.settings.tenants.all();
        let own = tenants.iter().find(|tenant| tenant.pool == self.pool_of(number))?;
        (number / self.pools).is_multiple_of(2).then(|| own.name.clone())
    }

    /// VFs that VMs of a tenant may have in a pool.
    pub fn most_vfs(&self, pool: usize) -> usize {
        let tenants = self.settings.tenants.all();
        let own = tenants.iter().find(|tenant| tenant.pool == self.pool_of(pool));
        own.and_then(|tenant| tenant.max_vfs).unwrap_or(usize::MAX)
    }

    /// Nothing goes before the strategy.
    pub fn is_plain(&self) -> bool {
        self.settings.tenants.all().is_empty()
            && (0..self.vms).all(|vm| self.words_of(vm) == (0, 0))
    }

    /// The same for the same seed, always.
    pub fn of(seed: u64) -> Self {
        let mut rng = Rng::with_seed(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // Small worlds meet most; some have more VMs, so that switches compete for the budget.
        let (vms, vfs) = match rng.u8(..10) {
            0..6 => (rng.usize(1..5), rng.usize(1..3)),
            6..9 => (rng.usize(3..9), rng.usize(1..5)),
            _ => (rng.usize(12..25), rng.usize(3..8)),
        };
        // Each has a VM and a VF at least.
        let pools = if rng.u8(..3) == 0 { 2.min(vms).min(vfs) } else { 1 };
        let seconds = |rng: &mut Rng, from: u64, to: u64| Duration::from_secs(rng.u64(from..to));
        let mut settings = Settings {
            strategy: Strategy::ALL[rng.usize(..Strategy::ALL.len())],
            tuning: Tuning::default(),
            tenants: Tenants::default(),
            interval: seconds(&mut rng, 20, 60),
            max_concurrent_switches: rng.usize(1..5),
            limits: Limits {
                join: Duration::from_secs(15),
                drain: Duration::from_millis(200),
                unplug: Duration::from_secs(20),
                unplug_repeat: Duration::from_secs(6),
            },
            first_look: QMP * 2 + SCAN,
            link_mbps: 100_000,
        };
        // The VFs can change hands within an interval, one after the other if they must.
        let in_turn = A_CHANGE * vfs.div_ceil(settings.max_concurrent_switches) as u32;
        settings.interval = settings.interval.max(2 * in_turn);
        settings.tuning = tuning(seed, settings.interval);
        settings.tenants =
            (0..pools).filter_map(|pool| tenant(seed, pool)).collect::<Vec<_>>().into();
        let menu = match rng.u8(..10) {
            0 => Vec::new(),
            1..4 => vec![ALL[rng.usize(..ALL.len())]],
            4..7 => (0..3).map(|_| ALL[rng.usize(..ALL.len())]).collect(),
            _ => ALL.to_vec(),
        };
        Self {
            seed,
            vms,
            vfs,
            pools,
            pool: if rng.bool() { Pool::Sriov } else { Pool::Emulated },
            settings,
            sample_interval: seconds(&mut rng, 2, 11),
            storm: seconds(&mut rng, 60, 400),
            pause: seconds(&mut rng, 2, 40),
            menu,
        }
    }
}

/// The tenant of a pool, with a bound or with a guarantee.
fn tenant(seed: u64, pool: usize) -> Option<Tenant> {
    let (weight, min_vfs, max_vfs) = match seed % 8 {
        1 => (1, 0, Some(1)),
        4 => (3, 1, None),
        _ => return None,
    };
    let (name, pool) = (format!("tenant{pool}").parse().ok()?, format!("pool{pool}"));
    Some(Tenant { name, pool, weight, min_vfs, max_vfs, reserved_vfs: 0 })
}

/// In half of the worlds something goes beyond the paper. By dice of their own, so that all else of a seed
/// stays as it was.
fn tuning(seed: u64, interval: Duration) -> Tuning {
    let mut rng = Rng::with_seed(!seed);
    let default = Tuning { max_wait: interval * rng.u32(1..6), ..Tuning::default() };
    if rng.bool() {
        return default;
    }
    Tuning {
        margin_percent: rng.u32(..100),
        min_hold: interval * rng.u32(..3),
        switch_cost: Duration::from_secs(rng.u64(..3)),
        rate_time_constant: interval * rng.u32(..3),
        gain: if rng.bool() { Gain::Queue } else { Gain::Packets },
        ..default
    }
}
