//! The host's side against Debian's own qemu-ga: as recorded, and, where `FLEXVF_TEST_STOCK_AGENTS` names
//! the folder that `scripts/testbed/stock-agents` prints, alive.

#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a test that fails")]

use std::collections::VecDeque;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use flexvf_protocol::MacAddr;
use qmp_allocator::io::agent::{Agent, AgentError, AgentKind, counters_of};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

const DEADLINE: Duration = Duration::from_secs(20);
/// Of the bridge in the recordings' network.
const BOND_MAC: MacAddr = MacAddr::new([0x52, 0x54, 0, 0x12, 0x34, 0x56]);

const RECORDED: [(&str, &str); 2] = [
    ("7.2.22", include_str!("transcripts/qemu-ga-7.2.txt")),
    ("10.0.2", include_str!("transcripts/qemu-ga-10.0.txt")),
];

/// A recording: each request, and the lines that answer it.
struct Recording(Vec<(Value, Vec<String>)>);

impl Recording {
    fn read(text: &str) -> Self {
        let mut exchanges: Vec<(Value, Vec<String>)> = Vec::new();
        for line in text.lines() {
            if let Some(request) = line.strip_prefix("> ") {
                let request = serde_json::from_str(request.trim_start_matches("\\xff")).unwrap();
                exchanges.push((request, Vec::new()));
            } else if let Some(answer) = line.strip_prefix("< ") {
                exchanges.last_mut().unwrap().1.push(answer.to_owned());
            }
        }
        Self(exchanges)
    }

    /// The bytes that answer a request: the recorded ones, with the number or id of this request.
    fn answer(&self, request: &Value) -> Vec<u8> {
        let command = &request["execute"];
        let (recorded, lines) =
            self.0.iter().find(|(recorded, _)| recorded["execute"] == *command).unwrap();
        let number = |request: &Value| request["arguments"]["id"].to_string();
        let mut bytes = Vec::new();
        for line in lines {
            let (line, sentinel) = match line.strip_prefix("\\xff") {
                Some(rest) => (rest, true),
                None => (line.as_str(), false),
            };
            bytes.extend(sentinel.then_some(0xff));
            let line = match command.as_str() {
                Some("guest-sync-delimited") => line.replace(&number(recorded), &number(request)),
                _ => {
                    let id = |request: &Value| format!("\"id\": {}", request["id"]);
                    assert!(line.contains(&id(recorded)), "{line}");
                    line.replace(&id(recorded), &id(request))
                }
            };
            bytes.extend(line.bytes());
            bytes.push(b'\n');
        }
        bytes
    }
}

/// What every stock agent is to the host.
async fn check(agent: &mut Agent, version: Option<&str>) {
    agent.sync(DEADLINE).await.unwrap();
    let kind = agent.identify(DEADLINE).await.unwrap();
    assert!(
        matches!(&kind, AgentKind::Stock(told) if version.is_none_or(|it| it == told)),
        "{kind:?}"
    );
    let interfaces = agent.interfaces(DEADLINE).await.unwrap();
    let lo = interfaces.iter().find(|link| link.name == "lo").unwrap();
    assert!(lo.counters.is_some());
    if version.is_some() {
        assert!(counters_of(&interfaces, BOND_MAC).is_some());
    }
    let unknown = agent.status(DEADLINE).await.unwrap_err();
    assert!(matches!(unknown, AgentError::NotFound { .. }), "{unknown}");
    // The connection is usable after a refusal.
    agent.call::<(), Value>("guest-ping", None, DEADLINE).await.unwrap();
}

#[tokio::test]
async fn a_stock_agent_is_recognised_counted_and_refused_as_recorded() {
    for (version, text) in RECORDED {
        let recording = Recording::read(text);
        let (near, far) = UnixStream::pair().unwrap();
        let mut agent = Agent::over(near);
        let mut asked = VecDeque::new();
        let serve = async {
            let mut far = BufReader::new(far);
            loop {
                let mut line = Vec::new();
                far.read_until(b'\n', &mut line).await.unwrap();
                let start = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
                let request: Value = serde_json::from_slice(&line[start..]).unwrap();
                asked.push_back(request["execute"].as_str().unwrap().to_owned());
                far.get_mut().write_all(&recording.answer(&request)).await.unwrap();
            }
        };
        tokio::select! {
            () = check(&mut agent, Some(version)) => {}
            () = serve => unreachable!(),
        }
        assert_eq!(asked[0], "guest-sync-delimited");
        assert_eq!(asked[asked.len() - 1], "guest-ping");
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn living_stock_agents_are_recognised_counted_and_refused() {
    let Ok(folder) = std::env::var("FLEXVF_TEST_STOCK_AGENTS") else {
        eprintln!(
            "SKIPPED living_stock_agents_are_recognised_counted_and_refused: FLEXVF_TEST_STOCK_AGENTS names no folder (scripts/testbed/stock-agents prints one)"
        );
        return;
    };
    for program in ["qemu-ga-7.2", "qemu-ga-10.0"] {
        let state = tempfile::tempdir().unwrap();
        let socket = state.path().join("qga.sock");
        let option = |name: &str, path: &Path| format!("--{name}={}", path.display());
        let child = Command::new(Path::new(&folder).join(program))
            .args(["--method=unix-listen", &option("path", &socket)])
            .args([option("statedir", state.path()), option("pidfile", &state.path().join("pid"))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let _running = Running(child);
        let end = Instant::now() + DEADLINE;
        while !socket.exists() {
            assert!(Instant::now() < end, "{program} does not listen");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let mut agent = Agent::connect(&socket, DEADLINE).await.unwrap();
        check(&mut agent, None).await;
    }
}
