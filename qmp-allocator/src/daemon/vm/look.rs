//! What one VM's task sees: devices in QEMU, the guest's agent.

use std::time::Duration;

use tokio::time::Instant;
use tracing::{debug, info, warn};

use super::VmTask;
use super::act::TO_PV;
use crate::daemon::host::HostError;
use crate::daemon::process::Process;
use crate::io::proc;
use crate::logic::engine::{Event, Held};
use crate::logic::memlock;
use crate::logic::vf::VfId;
use crate::vmm::{Hypervisor, PluggedDevice, PluggedKind, Port, PortState, QmpVmm, VmmError};

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
        let held = held(&seen.devices, &self.config.ports, self.holds.as_ref());
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
        if self.holds.is_none() && self.shared.host.pins_memory(&self.config) {
            let limits = self.qemu.map(Process::pid).and_then(|pid| {
                let limits = proc::lock_limits(pid).filter(|limits| limits.most.is_some());
                Some((pid, limits?))
            });
            if (limits.is_some() || self.memory_bytes.is_none())
                && let Ok(bytes) = vmm.memory_bytes().await
            {
                obstacle = limits.and_then(|(pid, limits)| memlock::obstacle(pid, limits, bytes));
                if self.memory_bytes.replace(bytes) != Some(bytes) {
                    self.send(Event::VmMemory { vm: self.name.clone(), bytes }).await;
                }
            }
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
        // Also a guest that needs no agent for its switches may have one that counts.
        let seen = self.guest.look(&self.config).await;
        let view = self.failover_view().unwrap_or(seen);
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
}

/// FlexVF's device of this registration. Another NIC of the same QEMU may have a registration, ports and a VF of
/// its own; what was plugged before the ports were listed otherwise stays this one's.
fn held(devices: &[PluggedDevice], ports: &[String], holds: Option<&VfId>) -> Option<Held> {
    devices.iter().find_map(|device| {
        let vf = match &device.kind {
            PluggedKind::Vfio { host } => VfId::new(host.as_ref()?),
            PluggedKind::Nic { tap, .. } => VfId::new(tap.as_ref()?),
        };
        let is_own = device.port.as_ref().is_none_or(|port| ports.contains(port));
        let port = device.port.clone().unwrap_or_default();
        (is_own || holds == Some(&vf)).then_some(Held { vf, port })
    })
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

#[cfg(test)]
mod tests {
    use super::*;

    fn device(tap: &str, port: &str) -> PluggedDevice {
        let kind = PluggedKind::Nic { model: "e1000e".into(), tap: Some(tap.into()), mac: None };
        PluggedDevice { id: format!("flexvf-tap-{tap}"), port: Some(port.into()), kind }
    }

    #[test]
    fn a_vf_in_another_registrations_port_is_not_this_ones() {
        let devices = [device("vf0", "rp1"), device("vf1", "rp2")];
        let of = |port: &str, holds| {
            let found = held(&devices, &[port.to_owned()], holds);
            found.map(|held| (held.vf.to_string(), held.port))
        };
        assert_eq!(of("rp1", None), Some(("vf0".into(), "rp1".into())));
        assert_eq!(of("rp2", None), Some(("vf1".into(), "rp2".into())));
        assert_eq!(of("rp3", None), None);
        // Its ports were listed otherwise while it had a VF.
        let vf = VfId::new("vf1");
        assert_eq!(of("rp3", Some(&vf)), Some(("vf1".into(), "rp2".into())));
    }
}
