//! The wire format, pinned: recorded sessions replayed against the agent over its Unix socket.
//!
//! In a transcript `>` is what the host sends and `<` what it gets, one line each; `\xff` is the
//! sentinel byte, and a `>` line that ends in `\` has no newline. The links are this machine's.

#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a test that fails")]

use std::path::Path;

use flexvf_protocol::MacAddr;
use qga_extension::agent::Agent;
use qga_extension::io::{Netlink, UnixChannel};
use qga_extension::logic::identity::Identity;
use qga_extension::logic::links::{PvSelector, Selector};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;

/// Runs a client against an agent that has no bond.
async fn with_agent<F: Future>(client: impl FnOnce(std::path::PathBuf) -> F) -> F::Output {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let mut channel = UnixChannel::bind(&socket).unwrap();
    let selector = Selector {
        bond: Some("no-such-bond".into()),
        pv: PvSelector::Mac(MacAddr::new([2, 0, 0, 0, 0, 1])),
    };
    let identity = Identity { boot_id: "boot".into(), ..Identity::default() };
    let mut agent = Agent::new(Netlink::open().unwrap(), selector, identity);
    tokio::select! {
        error = agent.serve(&mut channel) => panic!("{error}"),
        output = client(socket) => output,
    }
}

async fn replay(socket: &Path, transcript: &str) {
    let mut stream = BufReader::new(UnixStream::connect(socket).await.unwrap());
    for line in transcript.lines() {
        match line.split_at_checked(2) {
            Some(("> ", text)) => {
                let bytes = match text.strip_suffix('\\') {
                    Some(part) => raw(part),
                    None => raw(&format!("{text}\n")),
                };
                stream.write_all(&bytes).await.unwrap();
            }
            Some(("< ", text)) => {
                let mut got = Vec::new();
                stream.read_until(b'\n', &mut got).await.unwrap();
                assert_eq!(
                    String::from_utf8_lossy(&got),
                    String::from_utf8_lossy(&raw(&format!("{text}\n")))
                );
            }
            _ => assert!(line.is_empty() || line.starts_with('#'), "{line}"),
        }
    }
}

fn raw(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (index, part) in text.split("\\xff").enumerate() {
        if index > 0 {
            bytes.push(0xff);
        }
        bytes.extend(part.as_bytes());
    }
    bytes
}

#[tokio::test]
async fn sync_discovery_and_errors_look_as_recorded() {
    with_agent(async |socket| replay(&socket, include_str!("transcripts/basics.txt")).await).await;
}

#[tokio::test]
async fn a_guest_without_a_bond_answers_as_recorded() {
    with_agent(async |socket| replay(&socket, include_str!("transcripts/no-bond.txt")).await).await;
}

#[tokio::test]
async fn a_half_request_of_a_client_that_left_is_no_part_of_the_next_ones() {
    with_agent(async |socket| {
        replay(&socket, "> {\"execute\":\"guest-\\").await;
        replay(&socket, "> {\"execute\":\"guest-ping\"}\n< {\"return\":{}}").await;
    })
    .await;
}

#[tokio::test]
async fn an_endless_line_gets_one_error_and_the_next_request_is_served() {
    with_agent(async |socket| {
        let mut stream = BufReader::new(UnixStream::connect(&socket).await.unwrap());
        stream.write_all(&vec![b'x'; 300_000]).await.unwrap();
        stream.write_all(b"\n{\"execute\":\"guest-ping\"}\n").await.unwrap();
        let mut lines = stream.lines();
        let error = lines.next_line().await.unwrap().unwrap();
        assert!(error.contains("the request is too long"), "{error}");
        assert_eq!(lines.next_line().await.unwrap().unwrap(), "{\"return\":{}}");
    })
    .await;
}

#[tokio::test]
async fn a_client_that_never_reads_costs_only_itself() {
    with_agent(async |socket| {
        let stream = UnixStream::connect(&socket).await.unwrap();
        // Until both directions are full: the agent waits with one answer in hand.
        let request = b"{\"execute\":\"guest-info\"}\n".repeat(100);
        for _ in 0..10_000 {
            tokio::task::yield_now().await;
            if stream.try_write(&request).is_err() {
                break;
            }
        }
        drop(stream);
        replay(&socket, "> {\"execute\":\"guest-ping\"}\n< {\"return\":{}}").await;
    })
    .await;
}

#[tokio::test]
async fn name_system_and_time_come_in_qemu_gas_schema() {
    with_agent(async |socket| {
        let mut stream = BufReader::new(UnixStream::connect(&socket).await.unwrap());
        let mut ask = async |command: &str| {
            let request = format!("{{\"execute\":\"{command}\"}}\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut line = String::new();
            stream.read_line(&mut line).await.unwrap();
            let mut answer: serde_json::Value = serde_json::from_str(&line).unwrap();
            answer["return"].take()
        };
        assert!(ask("guest-get-host-name").await["host-name"].is_string());
        let os = ask("guest-get-osinfo").await;
        assert!(os["kernel-release"].is_string() && os["machine"].is_string(), "{os}");
        // After 2020, in nanoseconds.
        assert!(ask("guest-get-time").await.as_i64().unwrap() > 1_577_836_800_000_000_000);
    })
    .await;
}

#[tokio::test]
async fn loopback_is_listed_with_address_and_statistics() {
    with_agent(async |socket| {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        let request = b"{\"execute\":\"guest-network-get-interfaces\"}\n";
        stream.write_all(request).await.unwrap();
        let mut bytes = vec![0; 65_536];
        let mut filled = 0;
        while !bytes[..filled].ends_with(b"\n") {
            filled += stream.read(&mut bytes[filled..]).await.unwrap();
        }
        let answer: serde_json::Value = serde_json::from_slice(&bytes[..filled]).unwrap();
        let lo = answer["return"].as_array().unwrap().iter().find(|i| i["name"] == "lo").unwrap();
        assert_eq!(lo["hardware-address"], "00:00:00:00:00:00");
        assert!(lo["statistics"]["rx-packets"].is_u64());
    })
    .await;
}
