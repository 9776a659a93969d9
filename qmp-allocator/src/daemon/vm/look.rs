//! What one VM's task sees: devices in QEMU, the guest's agent, counters.

use std::path::Path;

use flexvf_protocol::stats_page::{Counter, Direction, Header};
use tracing::{debug, info, warn};

use super::VmTask;
use super::act::TO_PV;
use crate::daemon::clock::now;
use crate::daemon::process::Process;
use crate::io::{proc, stats};
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
        let mut complaints: Vec<String> = seen.ports.iter().filter_map(complaint).collect();
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
            complaints.push(format!("frames for this VM are not pointed to its PV port: {error}"));
        }
        self.complain(complaints);
        let free_port = seen.ports.iter().find(|port| port.state == PortState::Empty);
        let free_port = free_port.map(|port| port.id.clone());
        self.send(Event::Observed { vm: self.name.clone(), held, free_port }).await;
    }

    /// Where QEMU runs, and whether it may lock its guest's memory. Before any plug: afterwards QEMU would say no more than that it cannot allocate memory. A QEMU
    /// whose limit is not known, or that does not say how much memory its guest has, is let through.
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
        let of_process = || proc::numa_node(self.qemu.map(Process::pid)?);
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
        for id in self.shared.host.tap_devices(&self.config) {
            // A device that is there is refused; one that never was is none.
            if let Err(error) = vmm.forget(&id).await {
                debug!(%error, "back-end kept");
            }
        }
    }

    pub(super) async fn look_at_guest(&mut self) {
        let view = self.guest.look(&self.config).await;
        self.send(Event::Agent { vm: self.name.clone(), view }).await;
    }

    pub(super) async fn sample(&mut self) {
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
        self.send(Event::Sampled { vm: self.name.clone(), sample: Sample { at: now(), pv, vf } })
            .await;
        if was_ready && !self.guest.is_ready() {
            self.look_at_guest().await;
        }
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

fn count_pv(page: &Path) -> Option<Count> {
    let page = stats::read(page).inspect_err(|error| debug!(%error, "no sample of PV")).ok()?;
    let segments = |direction| page.total(direction, Counter::Segments);
    let packets = segments(Direction::Rx).wrapping_add(segments(Direction::Tx));
    Some(Count { epoch: page.header(Header::Generation), packets, trust: Trust::Host })
}
