//! QEMU's monitor protocol: one connection, bounded and usable after a timeout.
//!
//! `qapi`'s types encode commands and decode answers; its transport is not used (an unknown event
//! ends it, a late answer breaks it, and it has no bounds). Every command carries an id; an answer
//! that nobody waits for any more is dropped by it. A task owns the socket, so that a caller that
//! gives up never leaves half a line behind.

mod task;
#[cfg(test)]
mod tests;
mod wire;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use flexvf_protocol::frame::{Frame, LineSplitter, MAX_QMP_LINE};
use qapi::Execute;
use qapi::qmp::{QmpCommand, getfd, qmp_capabilities};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use super::read_some;

/// One connection to QEMU. Clones share it; it closes with the last of them.
#[derive(Debug, Clone)]
pub struct Qmp {
    version: Arc<str>,
    pid: Option<i32>,
    requests: mpsc::Sender<task::Request>,
    next_id: Arc<AtomicU64>,
}

/// An event that FlexVF knows.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// Its name, as in QEMU's schema.
    pub name: String,
    /// Its data; null where it has none.
    pub data: Value,
}

/// Events of one connection.
#[derive(Debug)]
pub struct EventStream(mpsc::Receiver<Happening>);

/// What an [`EventStream`] gives.
#[derive(Debug, Clone, PartialEq)]
pub enum Happening {
    /// An event.
    Event(QmpEvent),
    /// Some events were lost here, because they came faster than they were taken.
    Missed,
}

impl EventStream {
    /// The next event; `None` once the connection has ended. May be dropped while waiting without
    /// losing any.
    pub async fn next(&mut self) -> Option<Happening> {
        self.0.recv().await
    }
}

/// Why a command has no answer, or not the one hoped for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum QmpError {
    /// Nothing listens on the socket.
    #[error(
        "QMP socket {socket}: {cause}; is QEMU running with `-qmp unix:{socket},server=on,wait=off`?"
    )]
    Connect {
        /// The socket.
        socket: String,
        /// The system's word.
        cause: String,
    },
    /// Something listens, but greets nobody.
    #[error(
        "QMP socket {socket}: no greeting; another client is connected? FlexVF needs a -qmp of its own"
    )]
    NoGreeting {
        /// The socket.
        socket: String,
    },
    /// The connection has ended.
    #[error("the QMP connection is closed")]
    Closed,
    /// No answer in time. The command may still be carried out.
    #[error("QEMU did not answer {command} within {deadline:?}")]
    Timeout {
        /// The command.
        command: String,
        /// The time it had.
        deadline: Duration,
    },
    /// QEMU said no.
    #[error("QEMU refused {command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's class of error, such as `DeviceNotFound`.
        class: String,
        /// QEMU's words.
        desc: String,
    },
    /// Not QMP, or not the answer that the schema promises.
    #[error("unexpected answer from QEMU: {0}")]
    Protocol(String),
}

impl Qmp {
    /// Connects, takes the greeting and leaves negotiation mode, all within `deadline`.
    ///
    /// # Errors
    /// [`QmpError`]; see its variants.
    pub async fn connect(
        socket: &Path,
        deadline: Duration,
    ) -> Result<(Self, EventStream), QmpError> {
        let until = Instant::now() + deadline;
        let shown = socket.display().to_string();
        let no_greeting = || QmpError::NoGreeting { socket: shown.clone() };
        let stream = timeout_at(until, UnixStream::connect(socket))
            .await
            .map_err(|_| no_greeting())?
            .map_err(|cause| match cause.kind() {
                // The backlog is full: others wait for the same socket.
                std::io::ErrorKind::WouldBlock => no_greeting(),
                _ => QmpError::Connect { socket: shown.clone(), cause: cause.to_string() },
            })?;
        let greeted = timeout_at(until, Self::start(stream)).await;
        let (qmp, events) = greeted.map_err(|_| no_greeting())??;
        let left = until.saturating_duration_since(Instant::now());
        qmp.execute(qmp_capabilities { enable: None }, left).await?;
        Ok((qmp, events))
    }

    /// Takes the greeting, and hands the socket to a task of its own.
    async fn start(stream: UnixStream) -> Result<(Self, EventStream), QmpError> {
        let mut splitter = LineSplitter::new(MAX_QMP_LINE);
        let greeting = loop {
            match splitter.next_frame() {
                Some(Frame::Line(line)) => break line,
                Some(_) => return Err(QmpError::Protocol("no greeting of QMP's".into())),
                None => read_some(&stream, &mut splitter).await.map_err(|_| QmpError::Closed)?,
            };
        };
        let version = wire::greeting(&greeting)
            .ok_or_else(|| QmpError::Protocol("no greeting of QMP's".into()))?;
        // Zero: a process of a PID namespace that this one cannot see.
        let peer = stream.peer_cred().ok();
        let pid = peer.and_then(|peer| peer.pid()).filter(|pid| *pid > 0);
        let (requests, request_queue) = mpsc::channel(MAX_QUEUED_REQUESTS);
        let (event_sender, events) = mpsc::channel(MAX_QUEUED_EVENTS);
        tokio::spawn(task::run(stream, splitter, request_queue, event_sender));
        let qmp =
            Self { version: version.into(), pid, requests, next_id: Arc::new(AtomicU64::new(1)) };
        Ok((qmp, EventStream(events)))
    }

    /// QEMU's version, as its greeting told: `10.0.2`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// QEMU's process, where the kernel tells it.
    pub const fn pid(&self) -> Option<i32> {
        self.pid
    }

    /// Runs a command of QEMU's schema.
    ///
    /// # Errors
    /// [`QmpError`]; after [`QmpError::Timeout`] the connection is as usable as before.
    pub async fn execute<C: QmpCommand>(
        &self,
        command: C,
        deadline: Duration,
    ) -> Result<C::Ok, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = Execute::with_id(command, id);
        self.exchange(C::NAME, id, &request, None, deadline).await
    }

    /// Runs a command by name, with arguments that the schema leaves open.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn execute_value(
        &self,
        command: &str,
        arguments: Value,
        deadline: Duration,
    ) -> Result<Value, QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = serde_json::json!({"execute": command, "arguments": arguments, "id": id});
        self.exchange(command, id, &request, None, deadline).await
    }

    /// Hands a file to QEMU, which then knows it by this name.
    ///
    /// # Errors
    /// As [`Self::execute`].
    pub async fn give_file(
        &self,
        name: &str,
        file: OwnedFd,
        deadline: Duration,
    ) -> Result<(), QmpError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let request = Execute::with_id(getfd { fdname: name.to_owned() }, id);
        let answer = self.exchange::<Value>("getfd", id, &request, Some(file), deadline).await;
        answer.map(|_| ())
    }

    async fn exchange<R: DeserializeOwned>(
        &self,
        command: &str,
        id: u64,
        request: &(impl Serialize + Sync),
        fd: Option<OwnedFd>,
        deadline: Duration,
    ) -> Result<R, QmpError> {
        let mut line = serde_json::to_vec(request)
            .map_err(|cause| QmpError::Protocol(format!("{command} has no JSON form: {cause}")))?;
        line.push(b'\n');
        let (sender, answer) = oneshot::channel();
        let request = task::Request { id, line, fd, answer: sender };
        let bytes = timeout(deadline, async {
            let sent = self.requests.send(request).await;
            sent.map_err(|_| QmpError::Closed)?;
            answer.await.map_err(|_| QmpError::Closed)
        });
        let bytes =
            bytes.await.map_err(|_| QmpError::Timeout { command: command.into(), deadline })??;
        wire::answer(command, &bytes)
    }
}

/// Commands that wait for the socket. A VM's task has one or two under way.
const MAX_QUEUED_REQUESTS: usize = 16;
/// Events that wait to be taken; more of them are told as [`Happening::Missed`].
const MAX_QUEUED_EVENTS: usize = 64;
