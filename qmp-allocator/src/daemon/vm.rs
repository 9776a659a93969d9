//! One VM's task: its QMP and agent connections, its samples, its actions.
//!
//! Each VM has a task of its own, so that one that does not answer delays nobody else. The task
//! decides nothing: it carries out orders one at a time, in their order, and tells the engine what it
//! sees. Whatever happens, an action is always answered.

mod act;
mod count;
mod failover;
mod grid;
mod guest;
mod look;

use std::sync::Arc;
use std::time::Duration;

use flexvf_protocol::VmName;
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::{debug, info, warn};

use self::count::Counts;
use self::failover::Primary;
pub(super) use self::grid::Grid;
use self::guest::Guest;
use super::host::Host;
use super::process::Process;
use crate::config::{Deadlines, VmConfig};
use crate::io::qmp::QmpError;
use crate::io::stats::StatsPage;
use crate::logic::engine::Event;
use crate::logic::switch::Action;
use crate::logic::vf::VfId;
use crate::vmm::{QmpVmm, VmmEvent, VmmEvents};

/// What a VM's task is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Carry this out, with this VF and root port, and report.
    Act { vf: VfId, port: String, action: Action },
    /// Look what QEMU has, and report.
    Observe,
    /// The registration has changed.
    Reconfigure(Arc<VmConfig>),
}

/// What all VMs' tasks share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) host: Host,
    pub(super) deadlines: Deadlines,
    pub(super) grid: Grid,
}

/// Between two tries to reach a QEMU.
const RECONNECT_PAUSE: Duration = Duration::from_secs(1);

pub(super) struct VmTask {
    name: VmName,
    config: Arc<VmConfig>,
    shared: Arc<Shared>,
    events: mpsc::Sender<Event>,
    orders: mpsc::Receiver<Order>,
    guest: Guest,
    page: StatsPage,
    counts: Counts,
    /// Counts holds, so that a VF's counter is never compared over two of them.
    tenure: u64,
    holds: Option<VfId>,
    /// Of a guest with net_failover: its VF on the way there.
    primary: Primary,
    qemu: Option<Process>,
    /// When the host last pointed the guest's frames to PV, with no switch since.
    pointed: Option<Instant>,
    /// What forbids a VF, as last told to the engine.
    obstacle: Option<String>,
    /// Its NUMA node, as last told to the engine.
    node: Option<u32>,
    /// Its guest's memory, as last told to the engine.
    memory_bytes: Option<u64>,
    /// The guest's agent may have changed; looked at by the timer, not for each event of a guest's making.
    look_due: bool,
    /// What was last complained of, so that it is told once and not at every look.
    complaints: String,
}

/// A connection to a QEMU.
struct Link {
    vmm: QmpVmm,
    events: VmmEvents,
}

impl VmTask {
    pub(super) fn new(
        config: Arc<VmConfig>,
        shared: Arc<Shared>,
        events: mpsc::Sender<Event>,
        orders: mpsc::Receiver<Order>,
    ) -> Self {
        let guest = Guest::new(shared.deadlines.agent);
        let name = config.name.clone();
        Self {
            name,
            config,
            shared,
            events,
            orders,
            guest,
            page: StatsPage::default(),
            counts: Counts::default(),
            tenure: 0,
            holds: None,
            primary: Primary::default(),
            qemu: None,
            pointed: None,
            obstacle: None,
            node: None,
            memory_bytes: None,
            look_due: true,
            complaints: String::new(),
        }
    }

    /// Runs until its order channel is closed.
    pub(super) async fn run(mut self) {
        let mut told = String::new();
        loop {
            let Deadlines { plug, qmp, .. } = self.shared.deadlines;
            match QmpVmm::connect(&self.config.qmp, plug, qmp).await {
                Ok((vmm, events)) => {
                    info!(version = vmm.version(), "connected to QEMU");
                    told.clear();
                    self.qemu = vmm.pid().and_then(Process::of);
                    self.memory_bytes = None;
                    let since = Instant::now();
                    if !self.serve(Link { vmm, events }).await {
                        break;
                    }
                    // A socket that takes connections and drops them would keep this loop hot.
                    if since.elapsed() < RECONNECT_PAUSE && !self.wait_unconnected().await {
                        break;
                    }
                }
                Err(error) => {
                    let exited = self.qemu_has_exited(&error);
                    let reason = error.to_string();
                    // Once, not once a second.
                    if told != reason {
                        warn!("{reason}");
                        told.clone_from(&reason);
                    }
                    if exited {
                        self.guest.disconnect();
                        self.holds = None;
                        self.obstacle = None;
                        self.counts.trust_anew();
                    }
                    self.send(Event::Lost { vm: self.name.clone(), exited, reason }).await;
                    if !self.wait_unconnected().await {
                        break;
                    }
                }
            }
        }
        // A guest that runs on without FlexVF needs its frames all the same.
        if self.qemu.is_none_or(Process::has_ended) {
            self.shared.host.withdraw(&self.config).await;
        }
    }

    /// Between connections: orders are answered, samples of PV go on being missed.
    async fn wait_unconnected(&mut self) -> bool {
        let until = Instant::now() + RECONNECT_PAUSE;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return true,
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(None, order).await,
                    None => return false,
                },
            }
        }
    }

    /// Serves one connection; false when the task is to end.
    async fn serve(&mut self, mut link: Link) -> bool {
        self.guest.disconnect();
        self.pointed = None;
        self.clear_remains(&link.vmm).await;
        // What there is to begin with, and the base line of what follows.
        self.observe(&link.vmm).await;
        self.sample().await;
        let mut samples = self.shared.grid.samples(&self.name);
        let mut agent_look = every(AGENT_LOOK);
        let mut looks = self.shared.grid.looks(&self.name);
        let mut soon_looks = every(SOON_LOOK);
        loop {
            // Orders first: a guest that makes events as fast as it can must not keep its VF by it.
            tokio::select! {
                biased;
                order = self.orders.recv() => match order {
                    Some(order) => {
                        self.obey(Some(&link.vmm), order).await;
                        // A switch says itself what becomes of the bond.
                        soon_looks.reset();
                    }
                    None => return false,
                },
                event = link.events.next() => match event {
                    VmmEvent::Closed => {
                        debug!("QMP connection closed");
                        return true;
                    }
                    event => self.on_vmm_event(&link.vmm, event).await,
                },
                _ = looks.tick() => {
                    self.observe(&link.vmm).await;
                    self.check_guest().await;
                    self.cross_check().await;
                    self.look_due |= self.guest.counter().is_none();
                }
                _ = soon_looks.tick(), if self.may_change_unseen() => {
                    if !self.complaints.is_empty() {
                        self.observe(&link.vmm).await;
                    }
                    self.check_guest().await;
                    self.cross_check().await;
                }
                _ = samples.tick() => self.sample().await,
                _ = agent_look.tick(), if self.look_due || !self.guest.is_settled() => {
                    if std::mem::take(&mut self.look_due) {
                        self.guest.disconnect();
                    }
                    self.look_at_guest().await;
                }
            }
        }
    }

    /// Which path the bond of a guest with a VF uses, and whether a complaint still holds, no event says.
    fn may_change_unseen(&self) -> bool {
        !self.complaints.is_empty() || self.holds.is_some() && self.guest.is_ready()
    }

    async fn on_vmm_event(&mut self, vmm: &QmpVmm, event: VmmEvent) {
        match event {
            VmmEvent::DeviceDeleted(id) => {
                let vf = self
                    .holds
                    .clone()
                    .filter(|vf| self.device_id(vf).is_some_and(|known| known == id));
                match vf {
                    Some(vf) => self.send(Event::Deleted { vm: self.name.clone(), vf }).await,
                    // Somebody else's device: a root port may have become free.
                    None => self.observe(vmm).await,
                }
            }
            VmmEvent::UnplugError(id) => {
                warn!(device = id.as_deref().unwrap_or("?"), "the guest refused the unplug");
            }
            VmmEvent::Reset => {
                info!("the guest was reset");
                self.look_due = true;
                self.send(Event::Reset(self.name.clone())).await;
            }
            VmmEvent::AgentPort { open, .. } => {
                debug!(open, "a virtio-serial port was opened or closed");
                self.look_due = true;
            }
            VmmEvent::Missed => self.observe(vmm).await,
            VmmEvent::Shutdown | VmmEvent::Stopped | VmmEvent::Resumed | VmmEvent::Closed => {}
        }
    }

    async fn obey(&mut self, vmm: Option<&QmpVmm>, order: Order) {
        match (order, vmm) {
            (Order::Act { vf, port, action }, vmm) => {
                self.pointed = None;
                let report = self.act(vmm, &vf, port, action).await;
                debug!(%vf, ?action, ?report, "action ended");
                self.send(Event::Done { vm: self.name.clone(), report }).await;
            }
            (Order::Observe, Some(vmm)) => self.observe(vmm).await,
            (Order::Observe, None) => {}
            (Order::Reconfigure(config), vmm) => {
                self.look_due |= self.config.agent != config.agent;
                self.config = config;
                self.pointed = None;
                self.page = StatsPage::default();
                self.counts.trust_anew();
                if let Some(vmm) = vmm {
                    self.observe(vmm).await;
                }
            }
        }
    }

    fn device_id(&self, vf: &VfId) -> Option<String> {
        self.shared.host.backend(&self.config, vf).ok().map(|backend| backend.device_id())
    }

    /// A closed socket is no proof: the process must be gone. Where it cannot be seen, that nobody
    /// listens any more has to do; a VF that is held all the same is refused when it is prepared.
    fn qemu_has_exited(&self, error: &QmpError) -> bool {
        match self.qemu {
            Some(process) => process.has_ended(),
            None => matches!(error, QmpError::Connect { .. }),
        }
    }

    /// A QEMU that lives but cannot be asked.
    fn is_cut_off(&self) -> bool {
        self.qemu.is_some_and(|process| !process.has_ended())
    }

    async fn send(&self, event: Event) {
        // The daemon takes events until it ends, and ends this task then.
        let _ = self.events.send(event).await;
    }
}

fn every(period: Duration) -> Interval {
    let mut timer = interval_at(Instant::now(), period);
    // After a long action one tick is enough.
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    timer
}

/// Between two looks at a guest whose agent is not ready.
const AGENT_LOOK: Duration = Duration::from_secs(1);
/// Between two looks at a VM of which something may change that nobody tells.
const SOON_LOOK: Duration = Duration::from_secs(10);
