//! A result → the line that goes to the host.
//!
//! `{"return", "id"}` or `{"error": {"class", "desc"}, "id"}`; `guest-sync-delimited` puts the
//! sentinel byte before its answer. No line is longer than what the host takes from a guest.

use flexvf_protocol::frame::{MAX_AGENT_LINE, RESET_BYTE};
use serde::Serialize;
use serde_json::{Value, json};

use super::request::COMMANDS;

/// Why a request gets an error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The agent has no such command.
    #[error("The command {0} has not been found")]
    CommandNotFound(String),
    /// Everything else.
    #[error("{0}")]
    Generic(String),
}

impl Fault {
    const fn class(&self) -> &'static str {
        match self {
            Self::CommandNotFound(_) => "CommandNotFound",
            Self::Generic(_) => "GenericError",
        }
    }
}

/// The line for a result, newline included.
pub fn encode(id: Option<&Value>, result: Result<Value, Fault>) -> Vec<u8> {
    let line = line(id, &result);
    if line.len() <= MAX_AGENT_LINE {
        return line;
    }
    let fault = Err(Fault::Generic("the answer is too long".into()));
    // An id of nearly a line's length may be the reason; the host knows its own by the sync then.
    let short_id = id.filter(|id| id.to_string().len() <= MAX_KEPT_ID);
    self::line(short_id, &fault)
}

/// The line of `guest-sync-delimited`.
pub fn encode_delimited(id: Option<&Value>, result: Result<Value, Fault>) -> Vec<u8> {
    let mut bytes = vec![RESET_BYTE];
    bytes.extend(encode(id, result));
    bytes
}

/// A value of the wire's types.
pub fn value(of: impl Serialize) -> Result<Value, Fault> {
    serde_json::to_value(of).map_err(|error| Fault::Generic(error.to_string()))
}

/// `guest-info`.
pub fn info() -> Value {
    let commands: Vec<Value> = COMMANDS
        .iter()
        .map(|name| json!({"name": name, "enabled": true, "success-response": true}))
        .collect();
    json!({"version": env!("CARGO_PKG_VERSION"), "supported_commands": commands})
}

fn line(id: Option<&Value>, result: &Result<Value, Fault>) -> Vec<u8> {
    let mut answer = match result {
        Ok(value) => json!({"return": value}),
        Err(fault) => json!({"error": {"class": fault.class(), "desc": fault.to_string()}}),
    };
    if let (Some(id), Value::Object(members)) = (id, &mut answer) {
        members.insert("id".into(), id.clone());
    }
    let mut bytes = answer.to_string().into_bytes();
    bytes.push(b'\n');
    bytes
}

/// The longest id that comes back with "the answer is too long".
const MAX_KEPT_ID: usize = 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_carries_class_text_and_id() {
        let bytes = encode(Some(&json!(1)), Err(Fault::CommandNotFound("guest-x".into())));
        let answer: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(answer["id"], 1);
        assert_eq!(answer["error"]["class"], "CommandNotFound");
        assert!(bytes.ends_with(b"\n"));
    }

    #[test]
    fn no_answer_is_longer_than_the_host_takes() {
        let long = json!("x".repeat(MAX_AGENT_LINE));
        for (id, value) in [(json!(1), long.clone()), (long, json!({}))] {
            let bytes = encode(Some(&id), Ok(value));
            assert!(bytes.len() < 2048, "{}", bytes.len());
            let answer: Value = serde_json::from_slice(&bytes).unwrap();
            assert_eq!(answer["error"]["desc"], "the answer is too long");
        }
    }

    #[test]
    fn only_the_delimited_answer_begins_with_the_sentinel() {
        assert_eq!(encode_delimited(None, Ok(json!(5))), b"\xff{\"return\":5}\n");
        assert_eq!(encode(None, Ok(json!(5))), b"{\"return\":5}\n");
    }
}
