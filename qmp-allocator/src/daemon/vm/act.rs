//! How one VM's task carries out the actions of a switch.

use std::sync::Arc;

use flexvf_protocol::agent::Path;
use tracing::debug;

use super::{VmTask, guest};
use crate::daemon::process::Process;
use crate::logic::switch::{Action, Report, Target};
use crate::logic::vf::VfId;
use crate::vmm::{Hypervisor, Plug, QmpVmm, VmmError, carry_out};

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
        if config.failover.is_some()
            && let Some(report) = self.act_for_failover(vf, action).await
        {
            return report;
        }
        let vf_mac = host.own_mac(vf);
        match action {
            Action::Prepare => {
                if let Err(error) = host.is_free(&config, vf).await {
                    return Report::Refused(error.to_string());
                }
                self.tenure += 1;
                self.holds = Some(vf.clone());
                self.guest.begin_switch();
                host.prepare(&config, vf, self.qemu.map(Process::pid))
                    .await
                    .map_or_else(|error| Report::Unknown(error.to_string()), |()| Report::Ok)
            }
            Action::Plug => match (vmm, host.backend(&config, vf)) {
                (Some(vmm), Ok(backend)) => {
                    let failover = config.failover.clone();
                    let plug = Plug { device_id: backend.device_id(), port, backend, failover };
                    let report = carry_out(vmm, action, &plug).await;
                    self.sample().await;
                    report.unwrap_or(Report::Ok)
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
            Action::Unplug | Action::Look => match (vmm, host.backend(&config, vf)) {
                (Some(vmm), Ok(backend)) => {
                    let plug =
                        Plug { device_id: backend.device_id(), port, backend, failover: None };
                    carry_out(vmm, action, &plug).await.unwrap_or(Report::Ok)
                }
                (None, _) => Report::Unknown(NO_QEMU.into()),
                (_, Err(error)) => Report::Unknown(error.to_string()),
            },
            Action::Sanitise => self.sanitise(vmm, vf).await,
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
