//! How one VM's task carries out the actions of a switch.

use std::sync::Arc;

use flexvf_protocol::agent::Path;
use tracing::debug;

use super::{VmTask, guest};
use crate::io::qmp::QmpError;
use crate::logic::switch::{Action, Report, Target};
use crate::logic::vf::VfId;
use crate::vmm::{Hypervisor, Plug, QmpVmm, Unplug, VmmError};

impl VmTask {
    /// Always answers: whatever hangs has a deadline of its own.
    pub(super) async fn act(
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
                if let Err(error) = host.is_free(&config, vf).await {
                    return Report::Refused(error.to_string());
                }
                self.tenure += 1;
                self.holds = Some(vf.clone());
                self.guest.begin_switch();
                host.prepare(&config, vf)
                    .await
                    .map_or_else(|error| Report::Unknown(error.to_string()), |()| Report::Ok)
            }
            Action::Plug => match (vmm, host.backend(&config, vf)) {
                (Some(vmm), Ok(backend)) => {
                    let report = plugged(
                        vmm.plug(&Plug { device_id: backend.device_id(), port, backend }).await,
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
        if vmm.is_none() && self.is_cut_off() {
            return Report::Unknown(NO_QEMU.into());
        }
        if let (Some(vmm), Some(id)) = (vmm, self.device_id(vf))
            && let Err(error) = vmm.forget(&id).await
        {
            return match error {
                VmmError::AlreadyThere(_) => Report::DevicePresent(true),
                error => Report::Unknown(error.to_string()),
            };
        }
        if let Err(error) = self.shared.host.forward(&self.config, Some(vf), TO_PV).await {
            // The VM's own port may be gone with its QEMU; the VF's restoration does not hang on it.
            debug!(%error, "frames were not pointed back to PV");
        }
        let report = refused(self.shared.host.sanitise(&self.config, vf).await);
        if report == Report::Ok {
            self.holds = None;
        }
        report
    }
}

pub(super) const TO_PV: Target = Target::Only(Path::Pv);
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
