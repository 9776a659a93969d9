//! Against Debian's own qemu-ga: its recorded words, and, where `FLEXVF_TEST_STOCK_AGENTS` names the folder
//! that `scripts/testbed/stock-agents` prints, alive.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

use super::*;

const DEADLINE: Duration = Duration::from_secs(20);
const RECORDED: [&str; 2] = [
    include_str!("../../../../tests/transcripts/qemu-ga-7.2.txt"),
    include_str!("../../../../tests/transcripts/qemu-ga-10.0.txt"),
];
/// Of the bond in the recordings.
const BOND_MAC: &str = "52:54:00:12:34:56";

/// A registration that names only an agent, and a device with net_failover if there is to be one.
fn vm(agent: PathBuf, mac: &str, failover: bool) -> VmConfig {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("web.toml");
    let mut text = format!("qmp = \"/q\"\nmac = \"{mac}\"\nports = [\"rp\"]\nagent = {agent:?}\n");
    if failover {
        text += "failover = \"pv\"\n";
    }
    std::fs::write(&file, text).unwrap();
    VmConfig::load(&file).unwrap()
}

/// The recorded answer to a command, without its id.
fn recorded(text: &str, command: &str) -> Value {
    let mut lines = text.lines();
    let asked = format!("\"execute\":\"{command}\"");
    lines.find(|line| line.starts_with('>') && line.contains(&asked)).unwrap();
    let answer = lines.next().unwrap().strip_prefix("< ").unwrap();
    serde_json::from_str(answer).unwrap()
}

async fn play(text: &'static str, stream: UnixStream) {
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line).await.is_ok_and(|count| count > 0) {
        let request: Value =
            serde_json::from_slice(line.strip_prefix(b"\xff").unwrap_or(&line)).unwrap();
        let answer = match request["execute"].as_str().unwrap() {
            "guest-sync-delimited" => {
                stream.get_mut().write_all(&[0xff]).await.unwrap();
                json!({"return": request["arguments"]["id"]})
            }
            command => {
                let mut answer = recorded(text, command);
                answer["id"] = request["id"].clone();
                answer
            }
        };
        stream.get_mut().write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        line.clear();
    }
}

/// What a qemu-ga is to the daemon: one that counts both paths together, and switches nothing.
async fn check(vm: &VmConfig) -> Tally {
    let mut guest = Guest::new(DEADLINE);
    assert_eq!(guest.counts(vm).await, None, "nobody was looked for yet");
    assert_eq!(guest.look(vm).await, AgentView::Stock);
    assert!(guest.is_settled() && !guest.is_ready());
    assert_eq!(guest.counter(), Some(Counter::QemuGa));
    let Some(Told::Both(sum)) = guest.counts(vm).await else { panic!("it tells no counters") };
    sum
}

#[tokio::test]
async fn a_stock_agent_counts_both_paths_together_as_recorded() {
    for text in RECORDED {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("qga.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let played = tokio::spawn(async move {
            loop {
                play(text, listener.accept().await.unwrap().0).await;
            }
        });
        for failover in [false, true] {
            check(&vm(socket.clone(), BOND_MAC, failover)).await;
            let mut guest = Guest::new(DEADLINE);
            // No interface with the guest's address: nothing is made up.
            let other = vm(socket.clone(), "52:54:00:00:00:01", failover);
            guest.look(&other).await;
            assert_eq!(guest.counts(&other).await, None);
        }
        played.abort();
    }
}

#[tokio::test]
async fn a_living_stock_agent_counts_what_its_kernel_counts() {
    const TEST: &str = "a_living_stock_agent_counts_what_its_kernel_counts";
    let Ok(folder) = std::env::var("FLEXVF_TEST_STOCK_AGENTS") else {
        eprintln!(
            "SKIPPED {TEST}: FLEXVF_TEST_STOCK_AGENTS names no folder (scripts/testbed/stock-agents prints one)"
        );
        return;
    };
    let Some((name, mac)) = own_interface() else {
        eprintln!("SKIPPED {TEST}: this machine has no interface with a MAC address");
        return;
    };
    for program in ["qemu-ga-7.2", "qemu-ga-10.0"] {
        let state = tempfile::tempdir().unwrap();
        let socket = state.path().join("qga.sock");
        let child = Command::new(PathBuf::from(&folder).join(program))
            .arg("--method=unix-listen")
            .arg(format!("--path={}", socket.display()))
            .arg(format!("--statedir={}", state.path().display()))
            .arg(format!("--pidfile={}", state.path().join("pid").display()))
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
        let before = moved(&name);
        let sum = check(&vm(socket, &mac, false)).await;
        assert!((before..=moved(&name)).contains(&sum.packets), "{program}: {sum:?}");
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

/// An interface of this machine that is up, for qemu-ga counts no other, and whose MAC address no other has.
fn own_interface() -> Option<(String, String)> {
    let folder = std::fs::read_dir("/sys/class/net").unwrap();
    let mut found: Vec<(String, String)> = folder
        .flatten()
        .filter_map(|entry| {
            let file = |name: &str| std::fs::read_to_string(entry.path().join(name)).ok();
            let (mac, flags) = (file("address")?, file("flags")?);
            let flags = u32::from_str_radix(flags.trim().trim_start_matches("0x"), 16).ok()?;
            let is_up = flags & 1 != 0;
            is_up.then_some((entry.file_name().into_string().ok()?, mac.trim().to_owned()))
        })
        .collect();
    let macs: Vec<String> = found.iter().map(|(_, mac)| mac.clone()).collect();
    found.retain(|(_, mac)| {
        let is_mac = mac.parse().is_ok_and(|mac: MacAddr| mac.is_unicast());
        is_mac && mac != "00:00:00:00:00:00" && macs.iter().filter(|it| *it == mac).count() == 1
    });
    found.into_iter().next()
}

/// Packets both ways.
fn moved(interface: &str) -> u64 {
    let counter = |which: &str| -> u64 {
        let path = format!("/sys/class/net/{interface}/statistics/{which}_packets");
        std::fs::read_to_string(path).unwrap().trim().parse().unwrap()
    };
    counter("rx") + counter("tx")
}
