//! QEMU's monitor, as far as the daemon uses it.

use std::time::Duration;

use serde_json::{Value, json};

use super::machine::{Channel, Device, Machine, Output};
use super::manner::Manner;

/// What QEMU 10.0.2 says first.
pub const GREETING: &[u8] = b"{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 2, \"minor\": 0, \"major\": 10}, \"package\": \"made up\"}, \"capabilities\": [\"oob\"]}}\r\n";

const PERIPHERALS: &str = "/machine/peripheral";
const DEVICES_BUS: &str = "parent_bus";

/// A refusal: class and words.
type Refusal = (&'static str, String);

impl Machine {
    /// One command to the monitor: its answer, and the events that follow.
    pub fn on_qmp(&mut self, now: Duration, line: &[u8]) -> Vec<Output> {
        let request: Value = serde_json::from_slice(line).unwrap_or_default();
        let arguments = request.get("arguments").cloned().unwrap_or_default();
        let text = |key: &str| arguments.get(key).and_then(Value::as_str).unwrap_or_default();
        // A monitor is in one command at a time.
        let mut at = now.max(self.busy_until);
        let mut events = Vec::new();
        let result = match request.get("execute").and_then(Value::as_str).unwrap_or_default() {
            "qmp_capabilities" => Ok(json!({})),
            "qom-list" => self.qom_list(at, text("path")),
            "qom-get" => self.qom_get(at, text("path"), text("property")),
            "netdev_add" => {
                self.netdevs.insert(text("id").into());
                Ok(json!({}))
            }
            "netdev_del" => match self.netdevs.remove(text("id")) {
                true => Ok(json!({})),
                false => Err(not_found(text("id"))),
            },
            "device_add" => {
                let added = self.device_add(at, &arguments);
                if added.is_ok() {
                    at += self.latencies.plug;
                    self.busy_until = at;
                }
                added
            }
            "device_del" => self.device_del(at, text("id"), &mut events),
            other => Err(("CommandNotFound", format!("The command {other} has not been found"))),
        };
        let id = request.get("id").cloned().unwrap_or_default();
        let answer = match result {
            Ok(value) => json!({"return": value, "id": id}),
            Err((class, desc)) => json!({"id": id, "error": {"class": class, "desc": desc}}),
        };
        let mut outputs = vec![output(at, &answer)];
        outputs.append(&mut events);
        outputs
    }

    fn qom_list(&self, at: Duration, path: &str) -> Result<Value, Refusal> {
        let entry = |name: &str, kind: &str| json!({"name": name, "type": kind});
        let device = self.plugged(at);
        if path == PERIPHERALS {
            let mut entries = vec![entry("type", "string")];
            entries.push(entry(&self.port, "child<pcie-root-port>"));
            let child = |device: &Device| entry(&device.id, &format!("child<{}>", device.driver));
            entries.extend(device.map(child));
            return Ok(Value::Array(entries));
        }
        if path != self.bus() {
            return Err(not_found(path));
        }
        let mut entries = vec![entry("type", "string"), entry("realized", "bool")];
        let link = |device: &Device| entry("child[0]", &format!("link<{}>", device.driver));
        entries.extend(device.map(link));
        entries.push(entry("acpi-pcihp-bsel", "uint32"));
        entries.push(entry("hotplug-handler", "link<hotplug-handler>"));
        Ok(Value::Array(entries))
    }

    fn qom_get(&self, at: Duration, path: &str, property: &str) -> Result<Value, Refusal> {
        let device = self.plugged(at);
        let device_path = |device: &Device| format!("{PERIPHERALS}/{}", device.id);
        match (device, property) {
            (Some(device), "child[0]") if path == self.bus() => Ok(json!(device_path(device))),
            (Some(device), DEVICES_BUS) if path == device_path(device) => Ok(json!(self.bus())),
            (Some(device), "mac") if path == device_path(device) => Ok(json!(device.mac)),
            _ => Err(not_found(path)),
        }
    }

    fn device_add(&mut self, at: Duration, arguments: &Value) -> Result<Value, Refusal> {
        let text = |key: &str| arguments.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("bus") != self.port || self.plugged(at).is_some() {
            return Err(("GenericError", format!("Bus '{}' has no room", text("bus"))));
        }
        self.device = Some(Device {
            id: text("id").into(),
            driver: text("driver").into(),
            mac: text("mac").parse().ok(),
            plugged_at: at + self.latencies.plug,
            gone_at: None,
        });
        self.joined = false;
        Ok(json!({}))
    }

    fn device_del(
        &mut self,
        at: Duration,
        id: &str,
        events: &mut Vec<Output>,
    ) -> Result<Value, Refusal> {
        if self.plugged(at).is_none_or(|device| device.id != id) {
            return Err(not_found(id));
        }
        if self.manner == Manner::Clings {
            // QEMU has pressed the button; what the guest does with that is the guest's affair.
            return Ok(json!({}));
        }
        let gone_at = at + self.latencies.unplug;
        let Some(device) = self.device.as_mut().filter(|device| device.gone_at.is_none()) else {
            let desc = format!("Device {id} is already in the process of unplug");
            return Err(("GenericError", desc));
        };
        device.gone_at = Some(gone_at);
        let timestamp =
            json!({"seconds": gone_at.as_secs(), "microseconds": gone_at.subsec_micros()});
        let data = json!({"device": id, "path": format!("{PERIPHERALS}/{id}")});
        let event = json!({"timestamp": timestamp, "event": "DEVICE_DELETED", "data": data});
        events.push(output(gone_at, &event));
        Ok(json!({}))
    }

    fn bus(&self) -> String {
        format!("{PERIPHERALS}/{0}/{0}", self.port)
    }
}

fn not_found(what: &str) -> Refusal {
    ("DeviceNotFound", format!("Device '{what}' not found"))
}

fn output(at: Duration, message: &Value) -> Output {
    Output { at, channel: Channel::Qmp, bytes: format!("{message}\r\n").into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::logic::machine::Latencies;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn machine() -> Machine {
        let latencies = Latencies { plug: ms(400), link: ms(100), unplug: ms(600) };
        Machine::new("52:54:00:00:00:01".parse().unwrap(), "rp1", latencies)
    }

    fn ask(machine: &mut Machine, at_ms: u64, command: &str, arguments: Value) -> Vec<Value> {
        let request = json!({"execute": command, "arguments": arguments, "id": 7});
        let outputs = machine.on_qmp(ms(at_ms), request.to_string().as_bytes());
        let value = |output: &Output| {
            let message: Value = serde_json::from_slice(&output.bytes).unwrap();
            json!([output.at.as_millis() as u64, message])
        };
        outputs.iter().map(value).collect()
    }

    #[test]
    fn a_device_comes_after_its_time_and_goes_with_an_event() {
        let mut machine = machine();
        let device =
            json!({"driver": "e1000e", "id": "d", "bus": "rp1", "mac": "02:f1:00:00:00:01"});
        let plugged = ask(&mut machine, 1000, "device_add", device);
        assert_eq!(plugged, [json!([1400, {"return": {}, "id": 7}])]);
        // What is asked meanwhile is answered after it.
        let bus = json!({"path": "/machine/peripheral/rp1/rp1", "property": "child[0]"});
        let seen = ask(&mut machine, 1100, "qom-get", bus.clone());
        assert_eq!(seen, [json!([1400, {"return": "/machine/peripheral/d", "id": 7}])]);
        let asked = ask(&mut machine, 2000, "device_del", json!({"id": "d"}));
        assert_eq!(asked[0], json!([2000, {"return": {}, "id": 7}]));
        assert_eq!(asked[1][0], 2600);
        assert_eq!(asked[1][1]["data"]["device"], "d");
        let again = ask(&mut machine, 2100, "device_del", json!({"id": "d"}));
        assert!(
            again[0][1]["error"]["desc"].as_str().unwrap().contains("in the process of unplug")
        );
        let gone = ask(&mut machine, 2600, "qom-get", bus);
        assert_eq!(gone[0][1]["error"]["class"], "DeviceNotFound");
    }

    #[test]
    fn what_no_qemu_has_is_refused() {
        let mut machine = machine();
        let answer = ask(&mut machine, 0, "fly", json!({}));
        assert_eq!(answer[0][1]["error"]["class"], "CommandNotFound");
        let answer = ask(&mut machine, 0, "netdev_del", json!({"id": "n"}));
        assert_eq!(answer[0][1]["error"]["class"], "DeviceNotFound");
    }
}
