//! One client of the control socket.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use flexvf_protocol::frame::{Frame, LineSplitter};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep_until, timeout};

use super::Query;
use crate::logic::explain::Asked;
use crate::logic::vf::VfId;

/// A request is a name and few arguments.
const MAX_REQUEST: usize = 64 * 1024;
/// A client that has not negotiated by then is cut off.
const NEGOTIATION_DEADLINE: Duration = Duration::from_secs(5);
/// A client that takes nothing for so long is cut off.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);

pub(super) struct Session {
    to_daemon: mpsc::Sender<Query>,
    events: broadcast::Receiver<Arc<str>>,
    negotiated: bool,
}

#[derive(Debug, Deserialize)]
struct Request {
    execute: String,
    #[serde(default)]
    arguments: Value,
    #[serde(default)]
    id: Option<Value>,
}

impl Session {
    pub(super) const fn new(
        to_daemon: mpsc::Sender<Query>,
        events: broadcast::Receiver<Arc<str>>,
    ) -> Self {
        Self { to_daemon, events, negotiated: false }
    }

    /// Until the client goes, or breaks the rules.
    pub(super) async fn run(mut self, mut stream: UnixStream) {
        let greeting = json!({"QMP": {"version": {"package": "flexvf", "flexvf": VERSION}, "capabilities": []}});
        if !write(&mut stream, &greeting.to_string()).await {
            return;
        }
        let mut lines = LineSplitter::new(MAX_REQUEST);
        let mut buffer = [0; 4096];
        let give_up = Instant::now() + NEGOTIATION_DEADLINE;
        loop {
            let line = tokio::select! {
                event = self.events.recv() => match event {
                    Ok(event) if self.negotiated => Some(event.to_string()),
                    // A client too slow for its events misses some: it can ask for the status.
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) => None,
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                // Its place may be wanted by somebody who has something to ask.
                () = sleep_until(give_up), if !self.negotiated => return,
                read = stream.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(length) => {
                        lines.push(buffer.get(..length).unwrap_or_default());
                        None
                    }
                },
            };
            if let Some(line) = line
                && !write(&mut stream, &line).await
            {
                return;
            }
            while let Some(frame) = lines.next_frame() {
                let answer = match frame {
                    Frame::Line(line) => self.answer(&line).await,
                    Frame::TooLong | Frame::Reset => {
                        error(None, "GenericError", "the request is too long")
                    }
                };
                if !write(&mut stream, &answer.to_string()).await {
                    return;
                }
            }
        }
    }

    async fn answer(&mut self, line: &[u8]) -> Value {
        let request: Request = match serde_json::from_slice(line) {
            Ok(request) => request,
            Err(cause) => {
                return error(None, "GenericError", &format!("not a QMP request: {cause}"));
            }
        };
        let id = request.id;
        match request.execute.as_str() {
            "qmp_capabilities" => {
                self.negotiated = true;
                answer(id, json!({}))
            }
            _ if !self.negotiated => error(
                id,
                "CommandNotFound",
                "expecting capabilities negotiation with 'qmp_capabilities'",
            ),
            "query-status" => self.status(id).await,
            "query-plan" => self.asked(id, |asked| Ok(json!(asked.plan()))).await,
            "explain" => {
                let vm = request.arguments.get("vm").and_then(Value::as_str).map(str::to_owned);
                let Some(vm) = vm else {
                    return error(id, "GenericError", "parameter 'vm' is missing: a VM's name");
                };
                self.asked(id, move |asked| asked.explain(&vm).map(|told| json!(told))).await
            }
            "clear-quarantine" => self.clear(id, &request.arguments).await,
            "query-version" => answer(id, json!({"flexvf": VERSION})),
            "query-commands" => {
                let name = |name| json!({"name": name});
                answer(
                    id,
                    json!(
                        [
                            "qmp_capabilities",
                            "query-status",
                            "query-plan",
                            "explain",
                            "clear-quarantine",
                            "query-version",
                            "query-commands"
                        ]
                        .map(name)
                    ),
                )
            }
            other => {
                error(id, "CommandNotFound", &format!("the command {other} has not been found"))
            }
        }
    }

    async fn status(&self, id: Option<Value>) -> Value {
        let (reply, status) = oneshot::channel();
        if self.to_daemon.send(Query::Status(reply)).await.is_err() {
            return error(id, "GenericError", "the daemon is ending");
        }
        match status.await.map(|status| serde_json::to_value(&status)) {
            Ok(Ok(status)) => answer(id, status),
            _ => error(id, "GenericError", "the daemon is ending"),
        }
    }

    /// Ranking again and again takes a while: neither the daemon nor other clients wait for it.
    async fn asked(
        &self,
        id: Option<Value>,
        tell: impl FnOnce(&Asked) -> Result<Value, String> + Send + 'static,
    ) -> Value {
        let (reply, asked) = oneshot::channel();
        if self.to_daemon.send(Query::Ask(reply)).await.is_err() {
            return error(id, "GenericError", "the daemon is ending");
        }
        let Ok(asked) = asked.await else {
            return error(id, "GenericError", "the daemon is ending");
        };
        match spawn_blocking(move || tell(&asked)).await {
            Ok(Ok(told)) => answer(id, told),
            Ok(Err(reason)) => error(id, "GenericError", &reason),
            Err(_) => error(id, "GenericError", "no answer was found"),
        }
    }

    async fn clear(&self, id: Option<Value>, arguments: &Value) -> Value {
        let Some(vf) = arguments.get("vf").and_then(Value::as_str) else {
            return error(id, "GenericError", "parameter 'vf' is missing: a PCI address or a TAP");
        };
        let (reply, done) = oneshot::channel();
        let sent = self.to_daemon.send(Query::Clear(VfId::new(vf), reply)).await;
        match (sent, done.await) {
            (Ok(()), Ok(Ok(()))) => answer(id, json!({})),
            (Ok(()), Ok(Err(reason))) => error(id, "GenericError", &reason),
            _ => error(id, "GenericError", "the daemon is ending"),
        }
    }
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// As QMP tells it, since the epoch.
pub(super) fn timestamp() -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    json!({"seconds": now.as_secs(), "microseconds": now.subsec_micros()})
}

fn answer(id: Option<Value>, value: Value) -> Value {
    with_id(id, json!({"return": value}))
}

fn error(id: Option<Value>, class: &str, desc: &str) -> Value {
    with_id(id, json!({"error": {"class": class, "desc": desc}}))
}

fn with_id(id: Option<Value>, mut answer: Value) -> Value {
    if let (Some(id), Some(map)) = (id, answer.as_object_mut()) {
        map.insert("id".to_owned(), id);
    }
    answer
}

async fn write(stream: &mut UnixStream, line: &str) -> bool {
    let line = format!("{line}\r\n");
    matches!(timeout(WRITE_DEADLINE, stream.write_all(line.as_bytes())).await, Ok(Ok(())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncBufReadExt, BufReader};

    async fn talk(requests: &str) -> Vec<Value> {
        let (client, server) = UnixStream::pair().unwrap();
        let (to_daemon, _queries) = mpsc::channel(1);
        let (_keep, events) = broadcast::channel(4);
        let task = tokio::spawn(Session::new(to_daemon, events).run(server));
        let (read, mut write) = client.into_split();
        write.write_all(requests.as_bytes()).await.unwrap();
        drop(write);
        task.await.unwrap();
        let mut lines = BufReader::new(read).lines();
        let mut answers = Vec::new();
        while let Some(line) = lines.next_line().await.unwrap() {
            answers.push(serde_json::from_str(&line).unwrap());
        }
        answers
    }

    #[tokio::test]
    async fn it_speaks_as_qmp_does() {
        let answers = talk(concat!(
            "{\"execute\": \"query-version\"}\n",
            "{\"execute\": \"qmp_capabilities\", \"id\": 1}\n",
            "{\"execute\": \"query-version\", \"id\": \"two\"}\n",
            "{\"execute\": \"nonsense\"}\nnot json\n",
        ))
        .await;
        assert!(answers[0]["QMP"]["version"].is_object());
        assert_eq!(answers[1]["error"]["class"], "CommandNotFound");
        assert_eq!(answers[2], json!({"return": {}, "id": 1}));
        assert_eq!(answers[3], json!({"return": {"flexvf": VERSION}, "id": "two"}));
        assert_eq!(answers[4]["error"]["class"], "CommandNotFound");
        assert_eq!(answers[5]["error"]["class"], "GenericError");
    }

    #[tokio::test]
    async fn an_endless_request_is_refused_and_the_session_goes_on() {
        let long = "x".repeat(MAX_REQUEST + 10);
        let answers = talk(&format!("{long}\n{{\"execute\": \"qmp_capabilities\"}}\n")).await;
        assert_eq!(answers[1]["error"]["desc"], "the request is too long");
        assert_eq!(answers[2], json!({"return": {}}));
    }
}
