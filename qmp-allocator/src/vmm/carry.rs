//! A switch's actions that are the monitor's to carry out, for any [`Hypervisor`].

use super::{Hypervisor, Plug, Unplug, VmmError};
use crate::io::qmp::QmpError;
use crate::logic::switch::{Action, Report};

/// Carries out [`Action::Plug`], [`Action::Unplug`] or [`Action::Look`] with a device, and says what
/// came of it in the engine's terms; `None` for the actions of the host and of the guest's agent.
pub async fn carry_out(vmm: &dyn Hypervisor, action: Action, plug: &Plug) -> Option<Report> {
    let id = &plug.device_id;
    match action {
        Action::Plug => Some(plugged(vmm.plug(plug).await)),
        Action::Unplug => Some(match vmm.unplug(id).await {
            Ok(Unplug::Asked | Unplug::Pending) => Report::Ok,
            Ok(Unplug::Gone) => Report::DevicePresent(false),
            Err(error) => Report::Unknown(error.to_string()),
        }),
        Action::Look => Some(match vmm.observe(&[]).await {
            Ok(seen) => Report::DevicePresent(seen.devices.iter().any(|device| device.id == *id)),
            Err(error) => Report::Unknown(error.to_string()),
        }),
        _ => None,
    }
}

/// A plug that the monitor did not answer may have happened.
fn plugged(result: Result<(), VmmError>) -> Report {
    match result {
        Ok(()) => Report::Ok,
        Err(VmmError::Qmp(
            error @ (QmpError::Timeout { .. } | QmpError::Closed | QmpError::Protocol(_)),
        )) => Report::Unknown(error.to_string()),
        Err(error @ VmmError::Unanswered(_)) => Report::Unknown(error.to_string()),
        Err(error) => Report::Refused(error.to_string()),
    }
}
