//! The agent in a made-up guest: ours.

use std::time::Duration;

use flexvf_protocol::agent::{
    ACTIVATE, ActivateArguments, AgentCounters, AgentStatus, COUNTERS, JOIN_VF, LEAVE_VF,
    LinkCounters, PROTOCOL, Path, STATUS, VfAnswer, VfArguments, VfState,
};
use flexvf_protocol::frame::RESET_BYTE;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::machine::{Channel, Machine, Output};
use super::manner::{ESCAPES, Lie, Manner, crowd};

const VERSION: &str = "0.1.0";
const BOOT_ID: &str = "6d1e0a52-0000-4000-8000-000000000001";

impl Machine {
    /// One line to the agent, and its answer.
    pub fn on_agent(&mut self, now: Duration, line: &[u8]) -> Vec<Output> {
        let request: Value = serde_json::from_slice(line).unwrap_or_default();
        let command = request.get("execute").and_then(Value::as_str).unwrap_or_default();
        let arguments = request.get("arguments").cloned().unwrap_or_default();
        let lie = match self.manner {
            Manner::Lies(lie) => Some(lie),
            _ => None,
        };
        let result = match command {
            "guest-sync-delimited" => Ok(arguments.get("id").cloned().unwrap_or_default()),
            _ if lie == Some(Lie::Crowd) => Ok(crowd()),
            "guest-info" => Ok(json!({"version": VERSION, "supported_commands":
                [{"enabled": true, "name": STATUS, "success-response": true}]})),
            STATUS => json_of(&self.status()),
            COUNTERS => json_of(&AgentCounters {
                boot_id: BOOT_ID.into(),
                started_ns: 0,
                boottime_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
                bond: Some(LinkCounters::default()),
                pv: Some(LinkCounters::default()),
                vf: LinkCounters {
                    rx_packets: match lie {
                        Some(Lie::Counters) => now.as_micros() as u64 * 5_000,
                        _ => 0,
                    },
                    ..LinkCounters::default()
                },
            }),
            JOIN_VF if lie == Some(Lie::Escapes) => Err(ESCAPES.into()),
            // It stays where it is.
            ACTIVATE if lie == Some(Lie::Lingers) && self.active == Path::Vf => {
                json_of(&AgentStatus { active: Some(Path::Pv), ..self.status() })
            }
            LEAVE_VF if lie == Some(Lie::Lingers) => json_of(&VfAnswer { state: VfState::Present }),
            JOIN_VF => self.join(now, arguments),
            ACTIVATE => self.activate(arguments),
            LEAVE_VF => self.leave(now, arguments),
            other => Err(format!("The command {other} has not been found")),
        };
        let mut answer = match result {
            Ok(value) => json!({"return": value}),
            Err(desc) => json!({"error": {"class": "GenericError", "desc": desc}}),
        };
        if let (Some(id), Some(map)) = (request.get("id"), answer.as_object_mut()) {
            let id = match (lie, id.as_u64()) {
                (Some(Lie::StaleIds), Some(number)) => json!(number.wrapping_sub(1)),
                _ => id.clone(),
            };
            map.insert("id".into(), id);
        }
        let mut bytes = Vec::new();
        if command == "guest-sync-delimited" {
            bytes.push(RESET_BYTE);
        }
        bytes.extend_from_slice(format!("{answer}\n").as_bytes());
        vec![Output { at: now, channel: Channel::Agent, bytes }]
    }

    fn status(&self) -> AgentStatus {
        let text = |text: &str| match self.manner {
            Manner::Lies(Lie::Escapes) => ESCAPES.to_owned(),
            _ => text.to_owned(),
        };
        AgentStatus {
            version: text(VERSION),
            protocol: PROTOCOL,
            boot_id: text(BOOT_ID),
            started_ns: 0,
            epoch: self.epoch,
            bond: Some(text("bond0")),
            bond_mac: Some(self.mac),
            active: Some(self.active),
            vf: None,
        }
    }

    fn join(&mut self, now: Duration, arguments: Value) -> Result<Value, String> {
        let VfArguments { vf_mac, epoch } =
            self.heed(arguments, |known: &VfArguments| known.epoch)?;
        self.epoch = epoch;
        self.joined = true;
        json_of(&VfAnswer { state: self.vf_state(now, vf_mac) })
    }

    fn activate(&mut self, arguments: Value) -> Result<Value, String> {
        let ActivateArguments { path, epoch, .. } =
            self.heed(arguments, |known: &ActivateArguments| known.epoch)?;
        self.epoch = epoch;
        self.active = path;
        json_of(&self.status())
    }

    fn leave(&mut self, now: Duration, arguments: Value) -> Result<Value, String> {
        let VfArguments { vf_mac, epoch } =
            self.heed(arguments, |known: &VfArguments| known.epoch)?;
        self.epoch = epoch;
        self.active = Path::Pv;
        self.joined = false;
        json_of(&VfAnswer { state: self.vf_state(now, vf_mac) })
    }

    /// Arguments of a command that is no late duplicate.
    fn heed<T: DeserializeOwned>(
        &self,
        arguments: Value,
        epoch: impl Fn(&T) -> u64,
    ) -> Result<T, String> {
        let arguments: T = serde_json::from_value(arguments).map_err(|error| error.to_string())?;
        match epoch(&arguments) >= self.epoch {
            true => Ok(arguments),
            false => Err(format!("epoch {} has begun", self.epoch)),
        }
    }
}

fn json_of(value: &impl Serialize) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::logic::machine::Latencies;

    #[test]
    fn a_vf_is_ready_once_it_is_joined_and_its_link_is_up() {
        let link = Duration::from_millis(100);
        let latencies = Latencies { link, ..Latencies::default() };
        let mut machine = Machine::new("52:54:00:00:00:01".parse().unwrap(), "rp1", latencies);
        let mut ask = |at_ms: u64, command: &str, arguments: Value| -> Value {
            let request = json!({"execute": command, "arguments": arguments, "id": 1}).to_string();
            let now = Duration::from_millis(at_ms);
            let outputs = match command {
                "device_add" => machine.on_qmp(now, request.as_bytes()),
                _ => machine.on_agent(now, request.as_bytes()),
            };
            serde_json::from_slice(&outputs[0].bytes).unwrap()
        };
        let vf = json!({"vf-mac": "02:f1:00:00:00:01", "epoch": 3});
        assert_eq!(ask(0, JOIN_VF, vf.clone())["return"]["state"], "absent");
        ask(
            0,
            "device_add",
            json!({"bus": "rp1", "id": "d", "driver": "e1000e", "mac": "02:f1:00:00:00:01"}),
        );
        assert_eq!(ask(99, JOIN_VF, vf.clone())["return"]["state"], "joined");
        assert_eq!(ask(100, JOIN_VF, vf.clone())["return"]["state"], "ready");
        let activate = json!({"path": "vf", "vf-mac": "02:f1:00:00:00:01", "epoch": 3});
        assert_eq!(ask(100, ACTIVATE, activate)["return"]["active"], "vf");
        let stale = json!({"vf-mac": "02:f1:00:00:00:01", "epoch": 2});
        assert!(ask(100, LEAVE_VF, stale)["error"].is_object());
        assert_eq!(ask(100, LEAVE_VF, vf)["return"]["state"], "present");
    }
}
