//! Against servers in this process that do what QEMU should not.

use super::*;
use qapi::qmp::{device_del, query_status};
use serde_json::json;
use std::path::PathBuf;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixListener;

/// For what must happen: long enough for a busy machine.
const LONG: Duration = Duration::from_secs(20);
/// For what must not happen.
const SHORT: Duration = Duration::from_millis(50);

/// QEMU 10.0.2's own.
const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": "Debian 1:10.0.2+ds-2+deb13u1~bpo12+1"}, "capabilities": ["oob"]}}"#;

struct Server {
    stream: BufReader<UnixStream>,
}

impl Server {
    async fn accept(listener: &UnixListener) -> Self {
        let (stream, _) = listener.accept().await.unwrap();
        Self { stream: BufReader::new(stream) }
    }

    async fn send(&mut self, text: &str) {
        self.stream.get_mut().write_all(text.as_bytes()).await.unwrap();
        self.stream.get_mut().write_all(b"\n").await.unwrap();
    }

    async fn request(&mut self) -> Value {
        let mut line = String::new();
        self.stream.read_line(&mut line).await.unwrap();
        serde_json::from_str(&line).unwrap()
    }

    async fn answer(&mut self, request: &Value, value: Value) {
        let answer = json!({"return": value, "id": request["id"]});
        self.send(&answer.to_string()).await;
    }

    async fn greet(&mut self) {
        self.send(GREETING).await;
        let request = self.request().await;
        assert_eq!(request["execute"], "qmp_capabilities");
        self.answer(&request, json!({})).await;
    }
}

fn listen() -> (TempDir, PathBuf, UnixListener) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp");
    let listener = UnixListener::bind(&path).unwrap();
    (dir, path, listener)
}

/// A connection, and the server's end of it after the greeting.
async fn connected() -> (Qmp, EventStream, Server) {
    let (_dir, path, listener) = listen();
    let server = async {
        let mut server = Server::accept(&listener).await;
        server.greet().await;
        server
    };
    let (client, server) = tokio::join!(Qmp::connect(&path, LONG), server);
    let (qmp, events) = client.unwrap();
    (qmp, events, server)
}

fn status() -> Value {
    json!({"status": "running", "running": true})
}

#[tokio::test]
async fn the_greeting_tells_the_version() {
    let (qmp, _events, _server) = connected().await;
    assert_eq!(qmp.version(), "10.0.2");
}

#[tokio::test]
async fn a_late_answer_is_dropped_and_the_connection_goes_on() {
    let (qmp, _events, mut server) = connected().await;
    let error = qmp.execute(query_status {}, SHORT).await.unwrap_err();
    let expected = QmpError::Timeout { command: "query-status".into(), deadline: SHORT };
    assert_eq!(error, expected);
    let late = server.request().await;
    let serve = async {
        let next = server.request().await;
        server.answer(&late, json!({"status": "paused", "running": false})).await;
        server.answer(&late, json!("twice")).await;
        server.answer(&next, status()).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute(query_status {}, LONG), serve);
    assert!(answer.unwrap().running);
}

#[tokio::test]
async fn answers_find_their_callers_in_any_order() {
    let (qmp, _events, mut server) = connected().await;
    let serve = async {
        let (first, second) = (server.request().await, server.request().await);
        server.answer(&second, json!("second")).await;
        server.answer(&first, json!("first")).await;
    };
    let call = |command| qmp.execute_value(command, json!({}), LONG);
    let (first, second, ()) = tokio::join!(call("a"), call("b"), serve);
    assert_eq!((first.unwrap(), second.unwrap()), (json!("first"), json!("second")));
}

#[tokio::test]
async fn a_null_is_an_answer() {
    let (qmp, _events, mut server) = connected().await;
    let serve = async {
        let request = server.request().await;
        server.answer(&request, Value::Null).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute_value("x", json!({}), LONG), serve);
    assert_eq!(answer, Ok(Value::Null));
}

#[tokio::test]
async fn a_refusal_carries_class_and_harmless_words() {
    let (qmp, _events, mut server) = connected().await;
    let serve = async {
        let id = server.request().await["id"].clone();
        let error = json!({"class": "DeviceNotFound", "desc": "no\u{1b}[2J\nway"});
        server.send(&json!({"error": error, "id": id}).to_string()).await;
    };
    let command = device_del { id: "x".into() };
    let (answer, ()) = tokio::join!(qmp.execute(command, LONG), serve);
    let expected = QmpError::Refused {
        command: "device_del".into(),
        class: "DeviceNotFound".into(),
        desc: "no\u{fffd}[2J\u{fffd}way".into(),
    };
    assert_eq!(answer.unwrap_err(), expected);
}

#[tokio::test]
async fn known_events_pass_and_unknown_ones_and_garbage_do_not() {
    let (_qmp, mut events, mut server) = connected().await;
    for line in [
        // As QEMU 10 sends it, and with the timestamp of a clock that failed.
        r#"{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "NETDEV_VHOST_USER_CONNECTED", "data": {"netdev-id": "n"}}"#,
        "not json at all",
        "[[[[[[",
        r#"{"event": 5}"#,
        r#"{"return": {}, "id": "not ours"}"#,
        r#"{"return": {}, "id": 99999}"#,
        r#"{"timestamp": {"seconds": -1, "microseconds": -1}, "event": "DEVICE_DELETED", "data": {"device": "flexvf-x", "path": "/machine/peripheral/flexvf-x"}}"#,
        r#"{"event": "STOP"}"#,
    ] {
        server.send(line).await;
    }
    let event = |name: &str, data| {
        let name = name.to_owned();
        Some(Happening::Event(QmpEvent { name, data }))
    };
    let data = json!({"device": "flexvf-x", "path": "/machine/peripheral/flexvf-x"});
    assert_eq!(events.next().await, event("DEVICE_DELETED", data));
    assert_eq!(events.next().await, event("STOP", Value::Null));
    drop(server);
    assert_eq!(events.next().await, None);
}

#[tokio::test]
async fn a_flood_of_events_is_told_as_missed_and_answers_still_come() {
    let (qmp, mut events, mut server) = connected().await;
    let serve = async {
        let request = server.request().await;
        for _ in 0..10 * MAX_QUEUED_EVENTS {
            server.send(r#"{"event": "RESET", "data": {}}"#).await;
        }
        server.answer(&request, status()).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute(query_status {}, LONG), serve);
    answer.unwrap();
    for _ in 0..MAX_QUEUED_EVENTS {
        assert!(matches!(events.next().await, Some(Happening::Event(_))));
    }
    assert_eq!(events.next().await, Some(Happening::Missed));
    server.send(r#"{"event": "STOP"}"#).await;
    assert!(matches!(events.next().await, Some(Happening::Event(e)) if e.name == "STOP"));
}

#[tokio::test]
async fn deep_nesting_is_an_error_and_not_a_crash() {
    let (qmp, _events, mut server) = connected().await;
    let serve = async {
        let id = server.request().await["id"].clone();
        let (open, close) = ("[".repeat(10_000), "]".repeat(10_000));
        server.send(&format!("{{\"return\": {open}{close}, \"id\": {id}}}")).await;
    };
    let (answer, ()) = tokio::join!(qmp.execute_value("x", json!({}), LONG), serve);
    assert!(matches!(answer, Err(QmpError::Protocol(_))), "{answer:?}");
}

#[tokio::test]
async fn a_line_over_the_cap_costs_its_caller_the_answer_and_nobody_else() {
    let (qmp, _events, mut server) = connected().await;
    // Time for the whole of it at the task's reading pace would be seconds: a tenth is enough to
    // see that the next answers are found behind it.
    let serve = async {
        server.request().await;
        let chunk = "x".repeat(64 * 1024);
        for _ in 0..MAX_QMP_LINE / chunk.len() / 10 {
            server.stream.get_mut().write_all(chunk.as_bytes()).await.unwrap();
        }
        server.send("").await;
        let request = server.request().await;
        server.answer(&request, status()).await;
    };
    let calls = async {
        assert!(qmp.execute(query_status {}, SHORT).await.is_err());
        qmp.execute(query_status {}, LONG).await.unwrap();
    };
    tokio::join!(calls, serve);
}

#[tokio::test]
async fn answers_are_found_byte_by_byte() {
    let (qmp, _events, mut server) = connected().await;
    let serve = async {
        let request = server.request().await;
        let answer = json!({"return": status(), "id": request["id"]});
        for byte in format!("{answer}\r\n").bytes() {
            server.stream.get_mut().write_all(&[byte]).await.unwrap();
            tokio::task::yield_now().await;
        }
    };
    let (answer, ()) = tokio::join!(qmp.execute(query_status {}, LONG), serve);
    assert!(answer.unwrap().running);
}

#[tokio::test]
async fn a_close_at_any_byte_is_closed_and_never_a_hang() {
    let script = format!("{GREETING}\n{{\"return\": {{}}, \"id\": 1}}\n{{\"return\": {{}}, ");
    for cut in 0..script.len() {
        let (_dir, path, listener) = listen();
        let serve = async {
            let mut server = Server::accept(&listener).await;
            let bytes = &script.as_bytes()[..cut];
            server.stream.get_mut().write_all(bytes).await.unwrap();
        };
        let calls = async {
            let (qmp, mut events) = Qmp::connect(&path, LONG).await?;
            let answer = qmp.execute(query_status {}, LONG).await;
            assert_eq!(events.next().await, None);
            answer.map(|_| ())
        };
        let (outcome, ()) = tokio::join!(calls, serve);
        assert_eq!(outcome, Err(QmpError::Closed), "cut at {cut}");
    }
}

#[tokio::test]
async fn a_second_client_is_told_so() {
    let (_dir, path, listener) = listen();
    let serve = async {
        let mut first = Server::accept(&listener).await;
        first.greet().await;
        first
    };
    let (first, _server) = tokio::join!(Qmp::connect(&path, LONG), serve);
    first.unwrap();
    // QEMU leaves it in the backlog.
    let error = Qmp::connect(&path, SHORT).await.unwrap_err();
    let shown = path.display().to_string();
    assert_eq!(error, QmpError::NoGreeting { socket: shown.clone() });
    assert_eq!(
        error.to_string(),
        format!(
            "QMP socket {shown}: no greeting; another client is connected? FlexVF needs a -qmp of its own"
        )
    );
}

#[tokio::test]
async fn a_missing_socket_is_named_with_what_to_do() {
    let error = Qmp::connect(Path::new("/no/such/qmp"), LONG).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "QMP socket /no/such/qmp: No such file or directory (os error 2); is QEMU running with `-qmp unix:/no/such/qmp,server=on,wait=off`?"
    );
}

#[tokio::test]
async fn what_greets_otherwise_is_no_qmp() {
    let (_dir, path, listener) = listen();
    let serve = async {
        let mut server = Server::accept(&listener).await;
        server.send("220 mail.example ESMTP").await;
        server
    };
    let (error, _server) = tokio::join!(Qmp::connect(&path, LONG), serve);
    assert!(matches!(error, Err(QmpError::Protocol(_))));
}

#[tokio::test]
async fn a_qemu_that_reads_nothing_times_out_every_caller() {
    let (qmp, _events, _server) = connected().await;
    let long = "x".repeat(MAX_OUTGOING_FOR_TEST);
    for _ in 0..2 * MAX_QUEUED_REQUESTS {
        let call = qmp.execute_value(&long, json!({}), Duration::from_millis(5));
        assert!(matches!(call.await, Err(QmpError::Timeout { .. })));
    }
}

/// More than a socket's buffer and the task's together, in a few calls.
const MAX_OUTGOING_FOR_TEST: usize = 128 * 1024;
