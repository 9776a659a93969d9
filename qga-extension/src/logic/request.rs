//! A line from the host → what it wants, or which error it gets.
//!
//! The format is qemu-ga's: `{"execute", "arguments", "id"}`. Every byte is the host's, so nothing is
//! taken for granted: no panic, no growth beyond the line. `id` is any JSON value and is echoed even
//! when the rest of the request is wrong.

use flexvf_protocol::agent::{self as wire, ActivateArguments, VfArguments};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use super::answer::Fault;

/// A request, as far as it could be read.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// To be echoed.
    pub id: Option<Value>,
    /// What is asked for, or what is wrong with it.
    pub intent: Result<Intent, Fault>,
}

/// What the host wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Intent {
    /// Give back the number; after a sentinel byte when `delimited`.
    Sync {
        /// The number.
        id: i64,
        /// `guest-sync-delimited`.
        delimited: bool,
    },
    /// Answer at all.
    Ping,
    /// Version and commands.
    Info,
    /// `guest-network-get-interfaces`.
    Interfaces,
    /// `guest-get-host-name`.
    HostName,
    /// `guest-get-osinfo`.
    OsInfo,
    /// `guest-get-time`.
    Time,
    /// [`wire::STATUS`].
    Status,
    /// [`wire::COUNTERS`].
    Counters,
    /// [`wire::JOIN_VF`].
    Join(VfArguments),
    /// [`wire::ACTIVATE`].
    Activate(ActivateArguments),
    /// [`wire::LEAVE_VF`].
    Leave(VfArguments),
}

impl Request {
    /// Reads one line.
    pub fn parse(line: &[u8]) -> Self {
        let mut object = match serde_json::from_slice(line) {
            Ok(Value::Object(object)) => object,
            Ok(_) => return Self::faulty("a request is a JSON object"),
            Err(error) => return Self::faulty(format!("JSON parse error: {error}")),
        };
        let id = object.remove("id");
        Self { id, intent: intent(object) }
    }

    /// A request that says nothing but what is wrong with it.
    pub fn faulty(what: impl Into<String>) -> Self {
        Self { id: None, intent: Err(Fault::Generic(what.into())) }
    }
}

/// Every command that the agent serves.
pub const COMMANDS: [&str; 13] = [
    SYNC,
    SYNC_DELIMITED,
    PING,
    INFO,
    INTERFACES,
    HOST_NAME,
    OS_INFO,
    TIME,
    wire::STATUS,
    wire::COUNTERS,
    wire::JOIN_VF,
    wire::ACTIVATE,
    wire::LEAVE_VF,
];

fn intent(mut object: Map<String, Value>) -> Result<Intent, Fault> {
    let command = match object.remove("execute") {
        Some(Value::String(command)) => command,
        Some(_) => return Err(Fault::Generic("'execute' is a string".into())),
        None => return Err(Fault::Generic("member 'execute' is missing".into())),
    };
    let arguments = object.remove("arguments").unwrap_or(Value::Null);
    if let Some(unexpected) = object.keys().next() {
        let shown = shorten(unexpected);
        return Err(Fault::Generic(format!("member '{shown}' is unexpected")));
    }
    match command.as_str() {
        SYNC | SYNC_DELIMITED => read(arguments)
            .map(|SyncArguments { id }| Intent::Sync { id, delimited: command == SYNC_DELIMITED }),
        PING => nothing(arguments, Intent::Ping),
        INFO => nothing(arguments, Intent::Info),
        INTERFACES => nothing(arguments, Intent::Interfaces),
        HOST_NAME => nothing(arguments, Intent::HostName),
        OS_INFO => nothing(arguments, Intent::OsInfo),
        TIME => nothing(arguments, Intent::Time),
        wire::STATUS => nothing(arguments, Intent::Status),
        wire::COUNTERS => nothing(arguments, Intent::Counters),
        wire::JOIN_VF => read(arguments).map(Intent::Join),
        wire::ACTIVATE => read(arguments).map(Intent::Activate),
        wire::LEAVE_VF => read(arguments).map(Intent::Leave),
        unknown => Err(Fault::CommandNotFound(shorten(unknown))),
    }
}

fn read<T: DeserializeOwned>(arguments: Value) -> Result<T, Fault> {
    let arguments = match arguments {
        Value::Null => Value::Object(Map::new()),
        other => other,
    };
    if !arguments.is_object() {
        // Structs would also be read from arrays, which no QAPI client means.
        return Err(Fault::Generic("'arguments' is an object".into()));
    }
    serde_json::from_value(arguments).map_err(|error| Fault::Generic(shorten(&error.to_string())))
}

fn nothing(arguments: Value, intent: Intent) -> Result<Intent, Fault> {
    read(arguments).map(|NoArguments {}| intent)
}

fn shorten(text: &str) -> String {
    text.chars().take(MAX_ECHOED_CHARS).collect()
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SyncArguments {
    id: i64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NoArguments {}

/// How much of a wrong request comes back in its error: enough to recognise it.
const MAX_ECHOED_CHARS: usize = 200;

const SYNC: &str = "guest-sync";
const SYNC_DELIMITED: &str = "guest-sync-delimited";
const PING: &str = "guest-ping";
const INFO: &str = "guest-info";
const INTERFACES: &str = "guest-network-get-interfaces";
const HOST_NAME: &str = "guest-get-host-name";
const OS_INFO: &str = "guest-get-osinfo";
const TIME: &str = "guest-get-time";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn generic(line: &str) -> String {
        match Request::parse(line.as_bytes()).intent {
            Err(Fault::Generic(what)) => what,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_switch_is_read_with_its_path_mac_and_epoch() {
        let line = br#"{"execute":"__io.flexvf_activate","id":7,
            "arguments":{"path":"vf","vf-mac":"02:f1:00:00:00:01","epoch":3}}"#;
        let request = Request::parse(line);
        assert_eq!(request.id, Some(json!(7)));
        let Ok(Intent::Activate(arguments)) = request.intent else {
            panic!("{request:?}");
        };
        assert_eq!(arguments.epoch, 3);
        assert_eq!(arguments.path, wire::Path::Vf);
    }

    #[test]
    fn an_id_is_kept_when_the_request_is_wrong() {
        let request = Request::parse(br#"{"execute":"guest-shutdown","id":{"a":[1]}}"#);
        assert_eq!(request.id, Some(json!({"a": [1]})));
        let fault = Fault::CommandNotFound("guest-shutdown".into());
        assert_eq!(request.intent, Err(fault));
    }

    #[test]
    fn a_number_of_many_digits_comes_back_as_the_same_number() {
        let id = "5".repeat(39);
        let request = Request::parse(format!(r#"{{"execute":"guest-ping","id":{id}}}"#).as_bytes());
        let echoed = request.id.unwrap().to_string();
        assert_eq!(echoed.parse::<f64>(), id.parse());
    }

    #[test]
    fn what_is_not_a_request_says_what_is_wrong_with_it() {
        assert!(generic("{\"execute\": ").starts_with("JSON parse error"));
        assert_eq!(generic("[]"), "a request is a JSON object");
        assert_eq!(generic("{}"), "member 'execute' is missing");
        assert_eq!(generic(r#"{"execute":"guest-ping","exec":1}"#), "member 'exec' is unexpected");
        assert!(generic(r#"{"execute":"guest-ping","arguments":{"x":1}}"#).contains("`x`"));
        assert!(generic(r#"{"execute":"guest-sync"}"#).contains("`id`"));
        assert!(generic(r#"{"execute":"guest-sync","arguments":[1]}"#).contains("object"));
        assert!(generic(&"[".repeat(10_000)).contains("recursion limit"));
        // A long wrong name does not come back in full.
        let line = format!(r#"{{"execute":"{}"}}"#, "x".repeat(60_000));
        let fault = Request::parse(line.as_bytes()).intent;
        assert_eq!(fault, Err(Fault::CommandNotFound("x".repeat(200))));
    }

    #[test]
    fn every_listed_command_is_known() {
        for command in COMMANDS {
            let line = json!({"execute": command}).to_string();
            let intent = Request::parse(line.as_bytes()).intent;
            assert!(!matches!(intent, Err(Fault::CommandNotFound(_))), "{command}");
        }
    }

    proptest! {
        #[test]
        fn no_line_makes_it_panic(bytes: Vec<u8>) {
            Request::parse(&bytes);
        }

        #[test]
        fn no_arguments_make_it_panic(command in prop::sample::select(&COMMANDS[..]), arguments: String) {
            Request::parse(json!({"execute": command, "arguments": arguments}).to_string().as_bytes());
            let line = format!(r#"{{"execute":"{command}","arguments":{arguments}}}"#);
            Request::parse(line.as_bytes());
        }
    }
}
