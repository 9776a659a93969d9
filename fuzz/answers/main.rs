//! A guest that means harm: any bytes, and answers of any kind at any time, to the host's side of the
//! agent's protocol.
//!
//! What the host must hold to, whatever it is sent:
//! - no panic, and each call ends by its deadline (the clock is virtual: waiting costs nothing);
//! - what it takes from a guest is bounded, and texts hold nothing that could move a terminal's cursor.
#![no_main]

use std::time::Duration;

use arbitrary::Arbitrary;
use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::{ActivateArguments, Path, VfArguments};
use libfuzzer_sys::fuzz_target;
use qmp_allocator::io::agent::{Agent, AgentError, AgentKind, counters_of};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::runtime::{Builder, Runtime};
use tokio::time::Instant;

#[derive(Debug, Arbitrary)]
struct Input<'a> {
    calls: Vec<Call>,
    replies: Vec<Reply<'a>>,
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Call {
    Sync,
    Identify,
    Status,
    Counters,
    Interfaces,
    Join,
    Activate,
    Leave,
}

/// What the guest does when it is asked.
#[derive(Debug, Arbitrary)]
enum Reply<'a> {
    /// A return of any text, JSON or not, with the request's id.
    Return(&'a str),
    Refuse(&'a str, &'a str),
    /// Texts and numbers where they belong.
    Info(&'a str, bool),
    Status(&'a str, &'a str, Option<&'a str>),
    Interface(&'a str, &'a str, u64, u8),
    /// An answer to a request that is over.
    Stale(&'a str, u8),
    /// Bytes as they are, before the next reply.
    Raw(&'a [u8]),
    Silence,
    Close,
}

const MAX_CALLS: usize = 16;
const MAX_REPLIES: usize = 64;
const DEADLINE: Duration = Duration::from_secs(2);
/// What is shown of a text, and of an error with the words around it.
const MAX_TEXT: usize = 64;
const MAX_ERROR: usize = 500;
const VF_MAC: MacAddr = MacAddr::new([2, 0xf1, 0, 0, 0, 1]);

thread_local! {
    static RUNTIME: Runtime = Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .expect("a runtime");
}

fuzz_target!(|input: Input<'_>| {
    RUNTIME.with(|runtime| runtime.block_on(play(input)));
});

async fn play(input: Input<'_>) {
    let (near, far) = UnixStream::pair().expect("a pair of sockets");
    let mut agent = Agent::over(near);
    let host = async {
        for call in input.calls.into_iter().take(MAX_CALLS) {
            let began = Instant::now();
            make(&mut agent, call).await;
            assert!(began.elapsed() <= DEADLINE * 2, "{call:?} took {:?}", began.elapsed());
        }
    };
    tokio::select! {
        () = host => {}
        () = serve(far, &input.replies) => unreachable!("a guest goes on until its host ends"),
    }
}

/// Serves until the host ends; after its last reply it is silent.
async fn serve(stream: UnixStream, replies: &[Reply<'_>]) {
    let mut stream = Some(BufReader::new(stream));
    let mut replies = replies.iter().take(MAX_REPLIES);
    loop {
        let Some(open) = &mut stream else { return std::future::pending().await };
        let mut line = Vec::new();
        if !matches!(open.read_until(b'\n', &mut line).await, Ok(1..)) {
            return std::future::pending().await;
        }
        let start = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
        let request: Value = serde_json::from_slice(&line[start..]).expect("a request is JSON");
        let mut bytes = Vec::new();
        if request["execute"] == "guest-sync-delimited" {
            bytes.push(0xff);
            bytes.extend(format!("{}\n", json!({"return": request["arguments"]["id"]})).bytes());
        } else {
            loop {
                match replies.next() {
                    Some(Reply::Raw(raw)) => bytes.extend(*raw),
                    Some(Reply::Close) => {
                        stream = None;
                        break;
                    }
                    reply => {
                        bytes.extend(reply.map_or_else(Vec::new, |it| answer(it, &request["id"])));
                        break;
                    }
                }
            }
        }
        if let Some(open) = &mut stream {
            // The host may be gone.
            let _ = open.get_mut().write_all(&bytes).await;
        }
    }
}

fn answer(reply: &Reply<'_>, id: &Value) -> Vec<u8> {
    let returned = |value: Value| json!({"return": value, "id": id}).to_string();
    let line = match reply {
        Reply::Return(text) => format!("{{\"return\":{text},\"id\":{id}}}"),
        Reply::Refuse(class, desc) => {
            json!({"error": {"class": class, "desc": desc}, "id": id}).to_string()
        }
        Reply::Info(version, ours) => {
            let name = if *ours { "__io.flexvf_status" } else { "guest-ping" };
            let command = json!({"name": name, "enabled": true, "success-response": true});
            returned(json!({"version": version, "supported_commands": [command]}))
        }
        Reply::Status(version, boot_id, bond) => returned(json!({
            "version": version, "boot-id": boot_id, "epoch": 3, "bond": bond,
            "bond-mac": VF_MAC, "active": "pv", "vf": null,
        })),
        Reply::Interface(name, mac, packets, count) => {
            let statistics = json!({
                "rx-packets": packets, "tx-packets": packets, "rx-bytes": 0, "tx-bytes": 0,
                "rx-dropped": 0, "tx-dropped": 0, "rx-errs": 0, "tx-errs": 0,
            });
            let one = json!({"name": name, "hardware-address": mac, "statistics": statistics});
            returned(json!(vec![one; (*count).into()]))
        }
        Reply::Stale(text, behind) => {
            let id = id.as_u64().unwrap_or_default().wrapping_sub((*behind).into());
            format!("{{\"return\":{text},\"id\":{id}}}")
        }
        Reply::Silence | Reply::Raw(_) | Reply::Close => return Vec::new(),
    };
    format!("{line}\n").into_bytes()
}

async fn make(agent: &mut Agent, call: Call) {
    let vf = VfArguments { vf_mac: VF_MAC, epoch: 1 };
    let error = match call {
        Call::Sync => agent.sync(DEADLINE).await.err(),
        Call::Identify => match agent.identify(DEADLINE).await {
            Ok(AgentKind::Ours(version) | AgentKind::Stock(version)) => {
                check_text(&version);
                None
            }
            other => other.err(),
        },
        Call::Status => check_status(agent.status(DEADLINE).await),
        Call::Activate => {
            let arguments = ActivateArguments { path: Path::Vf, vf_mac: VF_MAC, epoch: 1 };
            check_status(agent.activate(&arguments, DEADLINE).await)
        }
        Call::Counters => {
            agent.counters(DEADLINE).await.map(|counters| check_text(&counters.boot_id)).err()
        }
        Call::Interfaces => match agent.interfaces(DEADLINE).await {
            Ok(interfaces) => {
                assert!(interfaces.len() <= 16);
                interfaces.iter().for_each(|interface| check_text(&interface.name));
                counters_of(&interfaces, VF_MAC);
                None
            }
            Err(error) => Some(error),
        },
        Call::Join => agent.join_vf(&vf, DEADLINE).await.err(),
        Call::Leave => agent.leave_vf(&vf, DEADLINE).await.err(),
    };
    if let Some(error) = error {
        let text = error.to_string();
        assert!(text.chars().count() <= MAX_ERROR, "{text}");
        assert!(!text.chars().any(char::is_control), "{text:?}");
    }
}

fn check_status(
    status: Result<flexvf_protocol::agent::AgentStatus, AgentError>,
) -> Option<AgentError> {
    match status {
        Ok(status) => {
            [&status.version, &status.boot_id].into_iter().chain(&status.bond).for_each(|text| {
                check_text(text);
            });
            None
        }
        Err(error) => Some(error),
    }
}

fn check_text(text: &str) {
    assert!(text.chars().count() <= MAX_TEXT && !text.chars().any(char::is_control), "{text:?}");
}
