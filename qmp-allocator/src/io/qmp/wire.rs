//! QMP's lines, read with mistrust: what a line is, and what is in it. No I/O.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::{QmpError, QmpEvent};
use crate::io::text::{MAX_MESSAGE_CHARS, sanitized};

/// Events that FlexVF has a use for; all others are dropped unread.
pub(super) const KNOWN_EVENTS: [&str; 7] = [
    "DEVICE_DELETED",
    "DEVICE_UNPLUG_GUEST_ERROR",
    "RESET",
    "RESUME",
    "SHUTDOWN",
    "STOP",
    "VSERPORT_CHANGE",
];

/// What a line is.
#[derive(Debug, PartialEq)]
pub(super) enum Incoming {
    /// An event that is known.
    Event(QmpEvent),
    /// The answer to the command of this id.
    Answer(u64),
    /// Anything else: unknown events, answers without id, no JSON.
    Noise,
}

/// Tells what a line is, without decoding what it carries unless it is a known event.
pub(super) fn classify(line: &[u8]) -> Incoming {
    #[derive(Deserialize)]
    struct Head {
        event: Option<String>,
        id: Option<u64>,
    }
    #[derive(Deserialize)]
    struct Event {
        #[serde(default)]
        data: Value,
    }
    match serde_json::from_slice(line) {
        Ok(Head { event: Some(name), .. }) => {
            if !KNOWN_EVENTS.contains(&name.as_str()) {
                return Incoming::Noise;
            }
            serde_json::from_slice(line)
                .map_or(Incoming::Noise, |Event { data }| Incoming::Event(QmpEvent { name, data }))
        }
        Ok(Head { id: Some(id), .. }) => Incoming::Answer(id),
        _ => Incoming::Noise,
    }
}

/// The answer in a line.
pub(super) fn answer<R: DeserializeOwned>(command: &str, line: &[u8]) -> Result<R, QmpError> {
    #[derive(Deserialize)]
    #[serde(bound = "R: DeserializeOwned")]
    struct Answer<R> {
        #[serde(rename = "return", default, deserialize_with = "present")]
        value: Option<R>,
        error: Option<Refusal>,
    }
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        class: String,
        #[serde(default)]
        desc: String,
    }
    let unexpected = |what: &str| QmpError::Protocol(format!("{command}: {what}"));
    let answer: Answer<R> = serde_json::from_slice(line)
        .map_err(|cause| unexpected(&sanitized(&cause.to_string(), MAX_MESSAGE_CHARS)))?;
    match answer {
        Answer { error: Some(refusal), .. } => Err(QmpError::Refused {
            command: command.into(),
            class: sanitized(&refusal.class, MAX_CLASS_CHARS),
            desc: sanitized(&refusal.desc, MAX_MESSAGE_CHARS),
        }),
        Answer { value: Some(value), .. } => Ok(value),
        _ => Err(unexpected("neither return nor error")),
    }
}

/// The version in a greeting, if it is one.
pub(super) fn greeting(line: &[u8]) -> Option<String> {
    let greeting: qapi::qmp::QapiCapabilities = serde_json::from_slice(line).ok()?;
    let version = greeting.QMP.version.qemu;
    let (major, minor, micro) = (version.major, version.minor, version.micro);
    Some(format!("{major}.{minor}.{micro}"))
}

/// A field that is there, even when it is null.
fn present<'de, D: Deserializer<'de>, R: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<R>, D::Error> {
    R::deserialize(deserializer).map(Some)
}

const MAX_CLASS_CHARS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Lines that begin as QMP's do, and go wrong anywhere.
    fn lines() -> impl Strategy<Value = Vec<u8>> {
        let good = prop::sample::select(vec![
            r#"{"return": {"a": [1, null, "x"]}, "id": 7}"#,
            r#"{"id": 7, "error": {"class": "GenericError", "desc": "no"}}"#,
            r#"{"timestamp": {"seconds": -1}, "event": "RESET", "data": {"guest": true}}"#,
            r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}"#,
        ]);
        (good, any::<prop::sample::Index>(), any::<u8>()).prop_map(|(line, index, byte)| {
            let mut line = line.as_bytes().to_vec();
            let at = index.index(line.len());
            if byte % 3 == 0 {
                line.truncate(at);
            } else {
                line[at] = byte;
            }
            line
        })
    }

    proptest! {
        #[test]
        fn no_line_panics(line in prop_oneof![lines(), any::<Vec<u8>>()]) {
            let _ = (classify(&line), greeting(&line), answer::<Value>("x", &line));
        }
    }
}
