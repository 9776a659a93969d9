//! One agent connection's bytes: synchronise, send a line, find its answer.

use std::hash::{BuildHasher, RandomState};

use flexvf_protocol::frame::{Frame, LineSplitter, MAX_AGENT_LINE, RESET_BYTE};
use qapi::Command;
use qapi::qga::guest_sync_delimited;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::io::read_some;
use crate::io::text::{MAX_MESSAGE_CHARS, sanitized};

/// The command that synchronises.
pub(super) const SYNC: &str = guest_sync_delimited::NAME;

/// Read in one call at most: four of the longest lines. An honest agent owes one answer and at most
/// a few stale ones.
const MAX_CALL_BYTES: usize = 4 * MAX_AGENT_LINE;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Fault {
    Closed,
    NotFound,
    Refused(String),
    Protocol(String),
}

/// The connection. `synced` is false while anything may be under way, so that a call that was
/// dropped or timed out is followed by a synchronisation.
#[derive(Debug)]
pub(super) struct Wire {
    stream: UnixStream,
    splitter: LineSplitter,
    synced: bool,
    next_id: u64,
}

#[derive(Serialize)]
struct Request<'a, A: ?Sized> {
    execute: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    arguments: Option<&'a A>,
    id: u64,
}

impl Wire {
    pub(super) fn new(stream: UnixStream) -> Self {
        Self {
            stream,
            splitter: LineSplitter::new(MAX_AGENT_LINE).with_reset_byte(),
            synced: false,
            next_id: 1,
        }
    }

    pub(super) async fn call<A: Serialize + ?Sized + Sync, R: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Option<&A>,
    ) -> Result<R, Fault> {
        let mut budget = MAX_CALL_BYTES;
        if !self.synced {
            self.synchronise(&mut budget).await?;
        }
        self.synced = false;
        let id = self.next_id;
        self.next_id += 1;
        let request = Request { execute: command, arguments, id };
        let mut line = serde_json::to_vec(&request)
            .map_err(|cause| Fault::Protocol(format!("no JSON form: {cause}")))?;
        line.push(b'\n');
        self.send(&line).await?;
        loop {
            match self.next_frame(&mut budget).await? {
                Frame::Line(line) if id_of(&line) == Some(id) => {
                    self.synced = true;
                    return answer(&line);
                }
                Frame::TooLong => {
                    let limit = MAX_AGENT_LINE / 1024;
                    return Err(Fault::Protocol(format!("a line of more than {limit} KiB")));
                }
                Frame::Line(_) | Frame::Reset => {}
            }
        }
    }

    pub(super) async fn sync(&mut self) -> Result<(), Fault> {
        self.synchronise(&mut MAX_CALL_BYTES.clone()).await
    }

    /// Sends the sentinel and a number nobody can have sent before, and drops all up to its echo.
    async fn synchronise(&mut self, budget: &mut usize) -> Result<(), Fault> {
        self.synced = false;
        // Keyed by the system's randomness; positive, as QAPI's int is signed.
        let number = RandomState::new().hash_one(self.next_id) >> 1;
        let request = serde_json::json!({"execute": SYNC, "arguments": {"id": number}});
        let mut line = vec![RESET_BYTE];
        line.extend_from_slice(request.to_string().as_bytes());
        line.push(b'\n');
        self.send(&line).await?;
        let mut after_reset = false;
        loop {
            match self.next_frame(budget).await? {
                Frame::Reset => after_reset = true,
                Frame::Line(line) => {
                    if after_reset && matches!(answer::<u64>(&line), Ok(echo) if echo == number) {
                        self.synced = true;
                        return Ok(());
                    }
                    after_reset = false;
                }
                Frame::TooLong => after_reset = false,
            }
        }
    }

    async fn send(&mut self, line: &[u8]) -> Result<(), Fault> {
        let sent = self.stream.write_all(line).await;
        sent.map_err(|_| Fault::Closed)
    }

    async fn next_frame(&mut self, budget: &mut usize) -> Result<Frame, Fault> {
        loop {
            if let Some(frame) = self.splitter.next_frame() {
                return Ok(frame);
            }
            if *budget == 0 {
                let limit = MAX_CALL_BYTES / 1024;
                return Err(Fault::Protocol(format!("{limit} KiB and no answer in them")));
            }
            let count = read_some(&self.stream, &mut self.splitter).await;
            *budget = budget.saturating_sub(count.map_err(|_| Fault::Closed)?);
        }
    }
}

fn id_of(line: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    struct Head {
        id: Option<u64>,
    }
    serde_json::from_slice::<Head>(line).ok()?.id
}

fn answer<R: DeserializeOwned>(line: &[u8]) -> Result<R, Fault> {
    #[derive(Deserialize)]
    struct Outcome {
        error: Option<Refusal>,
    }
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(default)]
        class: String,
        #[serde(default)]
        desc: String,
    }
    #[derive(Deserialize)]
    #[serde(bound = "R: DeserializeOwned")]
    struct Answer<R> {
        #[serde(rename = "return")]
        value: R,
    }
    let odd = |cause: serde_json::Error| {
        Fault::Protocol(sanitized(&cause.to_string(), MAX_MESSAGE_CHARS))
    };
    match serde_json::from_slice(line).map_err(odd)? {
        Outcome { error: Some(refusal) } if refusal.class == "CommandNotFound" => {
            Err(Fault::NotFound)
        }
        Outcome { error: Some(refusal) } => {
            Err(Fault::Refused(sanitized(&refusal.desc, MAX_MESSAGE_CHARS)))
        }
        Outcome { error: None } => {
            let answer: Answer<R> = serde_json::from_slice(line).map_err(odd)?;
            Ok(answer.value)
        }
    }
}
