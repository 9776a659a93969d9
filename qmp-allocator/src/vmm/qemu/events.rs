//! QEMU's events, as the engine's.

use serde_json::Value;

use crate::io::qmp::{EventStream, Happening, QmpEvent};
use crate::vmm::VmmEvent;

/// The next event that means something; `None` once the connection has ended.
pub(in crate::vmm) async fn next_event(stream: &mut EventStream) -> Option<VmmEvent> {
    loop {
        match stream.next().await? {
            Happening::Missed => return Some(VmmEvent::Missed),
            Happening::Event(event) => {
                if let Some(event) = translate(&event) {
                    return Some(event);
                }
            }
        }
    }
}

fn translate(QmpEvent { name, data }: &QmpEvent) -> Option<VmmEvent> {
    let text = |key| data.get(key).and_then(Value::as_str).map(str::to_owned);
    Some(match name.as_str() {
        // Devices without an id are nobody's here.
        "DEVICE_DELETED" => VmmEvent::DeviceDeleted(text("device")?),
        "DEVICE_UNPLUG_GUEST_ERROR" => VmmEvent::UnplugError(text("device")),
        "RESET" => VmmEvent::Reset,
        "SHUTDOWN" => VmmEvent::Shutdown,
        "STOP" => VmmEvent::Stopped,
        "RESUME" => VmmEvent::Resumed,
        "VSERPORT_CHANGE" => {
            VmmEvent::AgentPort { port: text("id")?, open: data.get("open")?.as_bool()? }
        }
        _ => return None,
    })
}
