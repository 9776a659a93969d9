//! One VM's task: its QMP and agent connections, its samples, its actions.
//!
//! Each VM has a task of its own, so that one that does not answer delays nobody else. The task
//! decides nothing: it carries out orders one at a time, in their order, and tells the engine what it
//! sees. Whatever happens, an action is always answered.

mod guest;

use std::path::Path as FilePath;
use std::sync::Arc;
use std::time::Duration;

use flexvf_protocol::VmName;
use flexvf_protocol::agent::Path;
use flexvf_protocol::stats_page::{Counter, Direction, Header};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval_at};
use tracing::{debug, info, warn};

use self::guest::Guest;
use super::clock::now;
use super::host::Host;
use super::process::Process;
use crate::config::{Deadlines, VmConfig};
use crate::io::qmp::QmpError;
use crate::io::stats;
use crate::logic::engine::{Event, Held};
use crate::logic::rate::{Count, Sample, Trust};
use crate::logic::switch::{Action, Report, Target};
use crate::logic::vf::VfId;
use crate::vmm::{
    Hypervisor, Plug, PluggedKind, PortState, QmpVmm, Unplug, VmmError, VmmEvent, VmmEvents,
};

/// What a VM's task is told.
#[derive(Debug)]
pub(super) enum Order {
    /// Carry this out, with this VF and root port, and report.
    Act {
        vf: VfId,
        port: String,
        action: Action,
    },
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
    pub(super) sample_interval: Duration,
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
    /// Counts holds, so that a VF's counter is never compared over two of them.
    tenure: u64,
    holds: Option<VfId>,
    qemu: Option<Process>,
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
            tenure: 0,
            holds: None,
            qemu: None,
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
                    if !self.serve(Link { vmm, events }).await {
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
                    }
                    self.send(Event::Lost {
                        vm: self.name.clone(),
                        exited,
                        reason,
                    })
                    .await;
                    if !self.wait_unconnected().await {
                        break;
                    }
                }
            }
        }
        self.shared.host.withdraw(&self.config).await;
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
        self.observe(&link.vmm).await;
        self.look_at_guest().await;
        let period = self.shared.sample_interval;
        let mut samples = interval_at(Instant::now(), period);
        samples.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut agent_look = interval_at(Instant::now() + AGENT_LOOK, AGENT_LOOK);
        agent_look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                event = link.events.next() => match event {
                    VmmEvent::Closed => {
                        debug!("QMP connection closed");
                        return true;
                    }
                    event => self.on_vmm_event(&link.vmm, event).await,
                },
                order = self.orders.recv() => match order {
                    Some(order) => self.obey(Some(&link.vmm), order).await,
                    None => return false,
                },
                _ = samples.tick() => self.sample().await,
                _ = agent_look.tick(), if !self.guest.is_ready() => self.look_at_guest().await,
            }
        }
    }

    async fn on_vmm_event(&mut self, vmm: &QmpVmm, event: VmmEvent) {
        match event {
            VmmEvent::DeviceDeleted(id) => {
                let vf = self
                    .holds
                    .clone()
                    .filter(|vf| self.device_id(vf).is_some_and(|known| known == id));
                if let Some(vf) = vf {
                    self.send(Event::Deleted {
                        vm: self.name.clone(),
                        vf,
                    })
                    .await;
                }
            }
            VmmEvent::UnplugError(id) => {
                warn!(
                    device = id.as_deref().unwrap_or("?"),
                    "the guest refused the unplug"
                );
            }
            VmmEvent::Reset => {
                info!("the guest was reset");
                self.guest.disconnect();
                self.look_at_guest().await;
            }
            VmmEvent::AgentPort { open, .. } => {
                debug!(open, "a virtio-serial port was opened or closed");
                self.guest.disconnect();
                self.look_at_guest().await;
            }
            VmmEvent::Missed => self.observe(vmm).await,
            VmmEvent::Shutdown | VmmEvent::Stopped | VmmEvent::Resumed | VmmEvent::Closed => {}
        }
    }

    async fn obey(&mut self, vmm: Option<&QmpVmm>, order: Order) {
        match (order, vmm) {
            (Order::Act { vf, port, action }, vmm) => {
                let report = self.act(vmm, &vf, port, action).await;
                debug!(%vf, ?action, ?report, "action ended");
                self.send(Event::Done {
                    vm: self.name.clone(),
                    report,
                })
                .await;
            }
            (Order::Observe, Some(vmm)) => self.observe(vmm).await,
            (Order::Observe, None) => {}
            (Order::Reconfigure(config), _) => self.config = config,
        }
    }

    async fn act(
        &mut self,
        vmm: Option<&QmpVmm>,
        vf: &VfId,
        port: String,
        action: Action,
    ) -> Report {
        let shared = Arc::clone(&self.shared);
        let (host, config) = (&shared.host, Arc::clone(&self.config));
        let vf_mac = host.own_mac(vf);
        match action {
            Action::Prepare => {
                self.tenure += 1;
                self.holds = Some(vf.clone());
                self.guest.begin_switch();
                refused(host.prepare(&config, vf).await)
            }
            Action::Plug => match (vmm, host.backend(&config, vf)) {
                (Some(vmm), Ok(backend)) => {
                    let report = plugged(
                        vmm.plug(&Plug {
                            device_id: backend.device_id(),
                            port,
                            backend,
                        })
                        .await,
                    );
                    self.sample().await;
                    report
                }
                (None, _) => Report::Refused(NO_QEMU.into()),
                (_, Err(error)) => Report::Refused(error.to_string()),
            },
            Action::Join => guest::vf_report(self.guest.join(&config, vf_mac).await),
            Action::Activate(path) => {
                if path == Path::Pv {
                    // The last moment at which all that the VF carried can be counted as its own.
                    self.sample().await;
                }
                guest::report(self.guest.activate(&config, path, vf_mac).await)
            }
            Action::Leave => {
                let deadline = shared.deadlines.leave;
                guest::vf_report(self.guest.leave(&config, vf_mac, deadline).await)
            }
            Action::Forward(target) => refused(host.forward(&config, Some(vf), target).await),
            Action::Unplug | Action::Look => self.unplug_or_look(vmm, vf, action).await,
            Action::Sanitise => self.sanitise(vmm, vf).await,
        }
    }

    async fn unplug_or_look(&self, vmm: Option<&QmpVmm>, vf: &VfId, action: Action) -> Report {
        let Some(vmm) = vmm else {
            return Report::Unknown(NO_QEMU.into());
        };
        let Some(id) = self.device_id(vf) else {
            return Report::Unknown("its pool is gone".into());
        };
        if action == Action::Unplug {
            return match vmm.unplug(&id).await {
                Ok(Unplug::Asked | Unplug::Pending) => Report::Ok,
                Ok(Unplug::Gone) => Report::DevicePresent(false),
                Err(error) => Report::Unknown(error.to_string()),
            };
        }
        match vmm.observe(&[]).await {
            Ok(seen) => Report::DevicePresent(seen.devices.iter().any(|device| device.id == id)),
            Err(error) => Report::Unknown(error.to_string()),
        }
    }

    async fn sanitise(&mut self, vmm: Option<&QmpVmm>, vf: &VfId) -> Report {
        if let (Some(vmm), Some(id)) = (vmm, self.device_id(vf))
            && let Err(error) = vmm.forget(&id).await
        {
            return Report::Unknown(error.to_string());
        }
        if let Err(error) = self
            .shared
            .host
            .forward(&self.config, Some(vf), TO_PV)
            .await
        {
            // The VM's own port may be gone with its QEMU; the VF's restoration does not hang on it.
            debug!(%error, "frames were not pointed back to PV");
        }
        let report = refused(self.shared.host.sanitise(&self.config, vf).await);
        if report == Report::Ok {
            self.holds = None;
        }
        report
    }

    /// Tells the engine what QEMU has.
    async fn observe(&mut self, vmm: &QmpVmm) {
        let seen = match vmm.observe(&self.config.ports).await {
            Ok(seen) => seen,
            Err(error) => {
                warn!(%error, "QEMU was not observed");
                let (vm, reason) = (self.name.clone(), error.to_string());
                return self
                    .send(Event::Lost {
                        vm,
                        exited: false,
                        reason,
                    })
                    .await;
            }
        };
        let mut held = seen.devices.iter().filter_map(|device| {
            let vf = match &device.kind {
                PluggedKind::Vfio { host } => VfId::new(host.as_ref()?),
                PluggedKind::Nic { tap, .. } => VfId::new(tap.as_ref()?),
            };
            Some(Held {
                vf,
                port: device.port.clone().unwrap_or_default(),
            })
        });
        let held = held.next();
        for port in &seen.ports {
            match &port.state {
                PortState::Empty => {}
                PortState::Missing => warn!("{}", VmmError::PortMissing(port.id.clone())),
                PortState::Occupied { by } if by.starts_with(crate::vmm::ID_PREFIX) => {}
                PortState::Occupied { by } => {
                    warn!(
                        "{}",
                        VmmError::PortOccupied {
                            port: port.id.clone(),
                            by: by.clone()
                        }
                    );
                }
            }
        }
        if let Some(held) = &held
            && self.holds.is_none()
        {
            info!(vf = %held.vf, "found plugged");
            self.tenure += 1;
            self.holds = Some(held.vf.clone());
        }
        if held.is_none()
            && let Err(error) = self.shared.host.forward(&self.config, None, TO_PV).await
        {
            warn!(%error, "frames for this VM are not pointed to its PV port");
        }
        let free_port = seen
            .ports
            .iter()
            .find(|port| port.state == PortState::Empty);
        let free_port = free_port.map(|port| port.id.clone());
        self.send(Event::Observed {
            vm: self.name.clone(),
            held,
            free_port,
        })
        .await;
    }

    async fn look_at_guest(&mut self) {
        let view = self.guest.look(&self.config).await;
        self.send(Event::Agent {
            vm: self.name.clone(),
            view,
        })
        .await;
    }

    async fn sample(&mut self) {
        let pv = self.config.stats.as_deref().and_then(count_pv);
        let vf = match &self.holds {
            Some(vf) => self.shared.host.count(&self.config, vf, self.tenure).await,
            None => None,
        };
        let was_ready = self.guest.is_ready();
        let vf = match vf {
            None if was_ready => self.guest.count(&self.config).await,
            host => host,
        };
        self.send(Event::Sampled {
            vm: self.name.clone(),
            sample: Sample { at: now(), pv, vf },
        })
        .await;
        if was_ready && !self.guest.is_ready() {
            self.look_at_guest().await;
        }
    }

    fn device_id(&self, vf: &VfId) -> Option<String> {
        self.shared
            .host
            .backend(&self.config, vf)
            .ok()
            .map(|backend| backend.device_id())
    }

    /// A closed socket is no proof: the process must be gone. Where it cannot be seen, that nobody
    /// listens any more has to do; a VF that is held all the same is refused when it is prepared.
    fn qemu_has_exited(&self, error: &QmpError) -> bool {
        match self.qemu {
            Some(process) => process.has_ended(),
            None => matches!(error, QmpError::Connect { .. }),
        }
    }

    async fn send(&self, event: Event) {
        // The daemon takes events until it ends, and ends this task then.
        let _ = self.events.send(event).await;
    }
}

/// Between two looks at a guest whose agent is not ready.
const AGENT_LOOK: Duration = Duration::from_secs(1);

const TO_PV: Target = Target::Only(Path::Pv);
const NO_QEMU: &str = "QEMU is not connected";

fn refused<E: std::fmt::Display>(result: Result<(), E>) -> Report {
    result.map_or_else(|error| Report::Refused(error.to_string()), |()| Report::Ok)
}

/// A plug that QEMU did not answer may have happened.
fn plugged(result: Result<(), VmmError>) -> Report {
    match result {
        Ok(()) => Report::Ok,
        Err(VmmError::Qmp(
            error @ (QmpError::Timeout { .. } | QmpError::Closed | QmpError::Protocol(_)),
        )) => Report::Unknown(error.to_string()),
        Err(error) => Report::Refused(error.to_string()),
    }
}

fn count_pv(page: &FilePath) -> Option<Count> {
    let page = stats::read(page)
        .inspect_err(|error| debug!(%error, "no sample of PV"))
        .ok()?;
    let segments = |direction| page.total(direction, Counter::Segments);
    let packets = segments(Direction::Rx).wrapping_add(segments(Direction::Tx));
    Some(Count {
        epoch: page.header(Header::Generation),
        packets,
        trust: Trust::Host,
    })
}
