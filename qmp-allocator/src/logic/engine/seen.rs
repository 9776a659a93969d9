//! How the engine takes in what was seen of VMs and pools.

use std::collections::BTreeMap;
use std::time::Duration;

use flexvf_protocol::VmName;
use flexvf_protocol::agent::Path;

use super::{Backoff, Command, Engine, Input, Qemu, RateMeter, Tenure, VfId, Vm, Words};
use crate::logic::guest_count::Counting;

/// What a VM's registration says, as far as decisions depend on it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VmSpec {
    /// Its pool.
    pub pool: String,
    /// What the operator says of it.
    pub words: Words,
}

/// A VF and the root port that it is in, or is to be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// Which.
    pub vf: VfId,
    /// Id of the root port.
    pub port: String,
}

/// What is known of the agent in a guest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum AgentView {
    /// Nothing yet.
    #[default]
    Unseen,
    /// Ours, with a bond: the VM can switch.
    Ready {
        /// The bond's active path, if it is one of the two.
        active: Option<Path>,
    },
    /// None is needed: the guest's net_failover switches by itself.
    NetFailover {
        /// The path that the host has given it.
        active: Option<Path>,
    },
    /// Ours, without a bond: it says why.
    NoBond(String),
    /// qemu-ga, or another agent without FlexVF's commands.
    Stock,
    /// None that answers; why.
    Silent(String),
}

impl AgentView {
    /// The word for it in `flexvf status`.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Ready { .. } | Self::NoBond(_) => "flexvf",
            Self::NetFailover { .. } => "net-failover",
            Self::Stock => "stock",
            Self::Unseen | Self::Silent(_) => "none",
        }
    }

    /// Why a VM with this agent cannot switch.
    pub(super) fn unready(&self) -> Option<String> {
        match self {
            Self::Ready { .. } | Self::NetFailover { .. } => None,
            Self::Unseen => Some("agent not heard yet".into()),
            Self::NoBond(why) => Some(format!("no bond in the guest: {why}")),
            Self::Stock => Some(
                "a stock qemu-ga cannot run the bond; install qga-extension in the guest".into(),
            ),
            Self::Silent(why) => Some(format!("agent does not answer: {why}")),
        }
    }
}

impl Engine {
    pub(super) fn on_registered(&mut self, name: VmName, spec: VmSpec) {
        let meter = RateMeter::new(self.settings.link_mbps)
            .with_time_constant(self.settings.tuning.rate_time_constant);
        self.unfile(&name);
        let turns = self.turns_before.remove(&name).unwrap_or(0);
        let place = self.saved_place(&name, &spec);
        let vm = self.vms.entry(name).or_insert_with(|| Vm {
            spec: spec.clone(),
            qemu: Qemu::Unseen,
            agent: AgentView::default(),
            obstacle: None,
            node: None,
            meter,
            counting: Counting::default(),
            last_interval: None,
            hold: None,
            turns,
            backoff: Backoff::default(),
            first_plug: None,
            to_vf_took: None,
            to_pv_took: None,
            unregistered: false,
            place,
            filed: None,
        });
        vm.spec = spec;
        vm.unregistered = false;
    }

    /// What QEMU has is what counts: devices found are adopted, holds found gone are let go.
    pub(super) fn on_observed(
        &mut self,
        now: Duration,
        name: &VmName,
        held: Option<Held>,
        free_port: Option<String>,
        out: &mut Vec<Command>,
    ) {
        let limits = self.settings.limits;
        let wins = self.wins(name);
        let Some(vm) = self.vms.get_mut(name) else {
            return;
        };
        vm.qemu = Qemu::Up { free_port };
        match (&vm.hold, held) {
            (None, Some(held)) => {
                let (tenure, action) = Tenure::adopt(now, limits, wins);
                let Held { vf, port } = held.clone();
                out.extend(action.map(|action| Command::Act {
                    vm: name.clone(),
                    vf,
                    port,
                    action,
                }));
                vm.hold = Some((held, tenure));
            }
            (Some(_), None) => self.tell_tenure(now, name, Input::Deleted, out),
            _ => {}
        }
    }

    pub(super) fn on_lost(
        &mut self,
        now: Duration,
        name: &VmName,
        exited: bool,
        reason: String,
        out: &mut Vec<Command>,
    ) {
        let Some(vm) = self.vms.get_mut(name) else {
            return;
        };
        vm.qemu = Qemu::Lost(reason);
        if exited {
            vm.agent = AgentView::Unseen;
            vm.obstacle = None;
            self.tell_tenure(now, name, Input::Exited, out);
        }
    }

    pub(super) fn on_pool(&mut self, name: &str, vfs: Vec<VfId>, problem: Option<String>) {
        let Some(pool) = self.pools.get_mut(name) else {
            return;
        };
        let mut known = std::mem::take(&mut pool.vfs);
        pool.vfs = vfs
            .into_iter()
            .map(|vf| known.remove_entry(&vf).unwrap_or_else(|| (vf, Backoff::default())))
            .collect();
        pool.problem = problem;
        pool.dirty = true;
    }

    /// A quarantined VF is looked at now, and given to nobody before QEMU and host have let it go; one
    /// that rests may be tried again.
    pub(super) fn on_clear(&mut self, now: Duration, vf: &VfId, out: &mut Vec<Command>) {
        if let Some(name) = self.holder(vf).cloned() {
            self.tell_tenure(now, &name, Input::Retry, out);
            return self.settle(now, &name, out);
        }
        for pool in self.pools.values_mut() {
            if let Some(rest) = pool.vfs.get_mut(vf) {
                *rest = Backoff::default();
                pool.dirty = true;
            }
        }
    }

    /// The agent was looked at; what it says of the bond is told to the switch.
    pub(super) fn on_agent(
        &mut self,
        now: Duration,
        name: &VmName,
        view: AgentView,
        out: &mut Vec<Command>,
    ) {
        let Some(vm) = self.vms.get_mut(name) else {
            return;
        };
        let ready = match view {
            AgentView::Ready { active } | AgentView::NetFailover { active } => Some(active),
            _ => None,
        };
        vm.agent = view;
        if let Some(active) = ready {
            self.tell_tenure(now, name, Input::Uses(active), out);
        }
    }

    pub(super) fn on_obstacle(&mut self, name: &VmName, obstacle: Option<String>) {
        if let Some(vm) = self.vms.get_mut(name) {
            vm.obstacle = obstacle;
        }
    }

    pub(super) fn on_vm_node(&mut self, name: &VmName, node: Option<u32>) {
        if let Some(vm) = self.vms.get_mut(name) {
            vm.node = node;
        }
    }

    pub(super) fn on_counting(&mut self, name: &VmName, counting: Counting) {
        if let Some(vm) = self.vms.get_mut(name) {
            vm.counting = counting;
        }
    }

    pub(super) fn on_vm_memory(&mut self, name: &VmName, bytes: u64) {
        if let Some(vm) = self.vms.get_mut(name) {
            vm.first_plug = Some(self.settings.tuning.plug_estimate(bytes));
        }
    }

    pub(super) fn on_vf_nodes(&mut self, pool: &str, nodes: BTreeMap<VfId, u32>) {
        if let Some(pool) = self.pools.get_mut(pool) {
            pool.nodes = nodes;
        }
    }

    /// The guest begins anew, without agent and bond.
    pub(super) fn on_reset(&mut self, now: Duration, name: &VmName, out: &mut Vec<Command>) {
        if let Some(vm) = self.vms.get_mut(name) {
            vm.agent = AgentView::Unseen;
            self.tell_tenure(now, name, Input::Reset, out);
        }
    }

    /// Where the ranking of an earlier daemon has a VM that is seen for the first time.
    fn saved_place(&self, name: &VmName, spec: &VmSpec) -> Option<usize> {
        if self.vms.contains_key(name) {
            return None;
        }
        self.pools.get(&spec.pool)?.places_before.get(name).copied()
    }

    /// By the last decision; without one, whoever has a VF may keep it.
    fn wins(&self, name: &VmName) -> bool {
        let Some(vm) = self.vms.get(name) else {
            return false;
        };
        let winners = self.pools.get(&vm.spec.pool).map_or(0, |pool| pool.desired.winners);
        self.round == 0 || vm.place.is_some_and(|place| place < winners)
    }
}
