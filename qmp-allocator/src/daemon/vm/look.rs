//! What one VM's task sees: devices in QEMU, the guest's agent, counters.

use std::time::Duration;

use flexvf_protocol::stats_page::{Counter, Direction, Header};
use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::VmTask;
use super::act::TO_PV;
use crate::daemon::clock::now;
use crate::daemon::host::HostError;
use crate::daemon::process::Process;
use crate::io::proc;
use crate::logic::engine::{Event, Held};
use crate::logic::memlock;
use crate::logic::rate::{Count, Sample, Trust};
use crate::logic::vf::VfId;
use crate::vmm::{Hypervisor, PluggedKind, Port, PortState, QmpVmm, VmmError};

impl VmTask {
    /// Tells the engine what QEMU has.
    pub(super) async fn observe(&mut self, vmm: &QmpVmm) {
        self.look_at_process(vmm).await;
        let seen = match vmm.observe(&self.config.ports).await {
            Ok(seen) => seen,
            Err(error) => {
                self.complain(vec![format!("QEMU was not observed: {error}")]);
                let (vm, reason) = (self.name.clone(), error.to_string());
                return self.send(Event::Lost { vm, exited: false, reason }).await;
            }
        };
        let mut held = seen.devices.iter().filter_map(|device| {
            let vf = match &device.kind {
                PluggedKind::Vfio { host } => VfId::new(host.as_ref()?),
                PluggedKind::Nic { tap, .. } => VfId::new(tap.as_ref()?),
            };
            Some(Held { vf, port: device.port.clone().unwrap_or_default() })
        });
        let held = held.next();
        if held.is_none() && self.shared.host.is_dry_run() {
            // There is no switch to end with it.
            self.holds = None;
        }
        let mut complaints: Vec<String> = seen.ports.iter().filter_map(complaint).collect();
        if let Some(held) = &held
            && self.holds.is_none()
        {
            info!(vf = %held.vf, "found plugged");
            self.tenure += 1;
            self.holds = Some(held.vf.clone());
        }
        if held.is_none()
            && let Err(error) = self.point_to_pv().await
        {
            complaints.push(format!("frames for this VM are not pointed to its PV port: {error}"));
        }
        self.complain(complaints);
        let free_port = seen.ports.iter().find(|port| port.state == PortState::Empty);
        let free_port = free_port.map(|port| port.id.clone());
        self.send(Event::Observed { vm: self.name.clone(), held, free_port }).await;
    }

    /// Others may have taken the host's entries away, so they are made again now and then; not at every look,
    /// which they would cost more than all else in it.
    async fn point_to_pv(&mut self) -> Result<(), HostError> {
        if self.pointed.is_none_or(|at| at.elapsed() >= POINT_PERIOD) {
            self.pointed = None;
            self.shared.host.forward(&self.config, None, TO_PV).await?;
            self.pointed = Some(Instant::now());
        }
        Ok(())
    }

    /// Where QEMU runs, and whether it may lock its guest's memory. Before any plug: afterwards QEMU would
    /// say no more than that it cannot allocate memory. A QEMU whose limit is not known, or that does not
    /// say how much memory its guest has, is let through.
    async fn look_at_process(&mut self, vmm: &QmpVmm) {
        let mut obstacle = None;
        if self.holds.is_none()
            && self.shared.host.pins_memory(&self.config)
            && let Some(pid) = self.qemu.map(Process::pid)
            && let Some(limits) = proc::lock_limits(pid).filter(|limits| limits.most.is_some())
            && let Ok(guest_bytes) = vmm.memory_bytes().await
        {
            obstacle = memlock::obstacle(pid, limits, guest_bytes);
        }
        let process = self.qemu.filter(|_| self.shared.host.has_several_nodes());
        let of_process = || proc::numa_node(process.map(Process::pid)?);
        let node = self.config.numa_node.or_else(of_process);
        if node != self.node {
            self.node = node;
            self.send(Event::VmNode { vm: self.name.clone(), node }).await;
        }
        if obstacle != self.obstacle {
            if let Some(obstacle) = &obstacle {
                warn!("{obstacle}");
            }
            self.obstacle.clone_from(&obstacle);
            self.send(Event::Obstacle { vm: self.name.clone(), obstacle }).await;
        }
    }

    /// Says each set of complaints once, not at every look.
    fn complain(&mut self, complaints: Vec<String>) {
        let now = complaints.join("\n");
        if now != self.complaints {
            for complaint in &complaints {
                warn!("{complaint}");
            }
            self.complaints = now;
        }
    }

    /// Back-ends of devices that went while nobody looked would hold their TAPs for ever.
    pub(super) async fn clear_remains(&self, vmm: &QmpVmm) {
        if self.shared.host.is_dry_run() {
            return;
        }
        let ids = self.shared.host.tap_devices(&self.config);
        if let Err(error) = vmm.forget_all(&ids).await {
            debug!(%error, "back-ends kept");
        }
    }

    pub(super) async fn look_at_guest(&mut self) {
        let view = match self.failover_view() {
            Some(view) => view,
            None => self.guest.look(&self.config).await,
        };
        self.send(Event::Agent { vm: self.name.clone(), view }).await;
    }

    /// An agent that has gone silent, or lost its bond, without a word from QEMU.
    pub(super) async fn check_guest(&mut self) {
        if self.guest.is_ready() {
            let view = match self.failover_view() {
                Some(view) => view,
                None => self.guest.check(&self.config).await,
            };
            self.send(Event::Agent { vm: self.name.clone(), view }).await;
        }
    }

    pub(super) async fn sample(&mut self) {
        let pv = self.count_pv();
        let was_ready = self.guest.is_ready();
        let vf = match &self.holds {
            Some(vf) => self.shared.host.count(&self.config, vf, self.tenure).await,
            None => None,
        };
        // A guest is not troubled for what is known: without a VF its VF path carries nothing.
        let asked = was_ready
            && self.config.failover.is_none()
            && (self.holds.is_some() || self.config.stats.is_none());
        let vf = match vf {
            None if asked => self.guest.count(&self.config).await,
            host => host,
        };
        self.send(Event::Sampled { vm: self.name.clone(), sample: Sample { at: now(), pv, vf } })
            .await;
        if was_ready && !self.guest.is_ready() {
            self.look_at_guest().await;
        }
    }

    fn count_pv(&mut self) -> Option<Count> {
        let page = self.page.read(self.config.stats.as_deref()?);
        let page = page.inspect_err(|error| debug!(%error, "no sample of PV")).ok()?;
        let segments = |direction| page.total(direction, Counter::Segments);
        let packets = segments(Direction::Rx).wrapping_add(segments(Direction::Tx));
        Some(Count { epoch: page.header(Header::Generation), packets, trust: Trust::Host })
    }
}

fn complaint(port: &Port) -> Option<String> {
    match &port.state {
        PortState::Missing => Some(VmmError::PortMissing(port.id.clone()).to_string()),
        PortState::Occupied { by } if !by.starts_with(crate::vmm::ID_PREFIX) => {
            Some(VmmError::PortOccupied { port: port.id.clone(), by: by.clone() }.to_string())
        }
        PortState::Empty | PortState::Occupied { .. } => None,
    }
}

/// Between two times that the host's entries for a guest on PV are made.
const POINT_PERIOD: Duration = Duration::from_secs(300);
