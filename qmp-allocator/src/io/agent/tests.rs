//! Against agents in this process that do what a hostile guest would.

use super::*;
use flexvf_protocol::agent::{PROTOCOL, Path as Side, VfInBond};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// For what must happen: long enough for a busy machine.
const LONG: Duration = Duration::from_secs(20);
/// For what must not happen.
const SHORT: Duration = Duration::from_millis(50);

const VF_MAC: MacAddr = MacAddr::new([2, 0xf1, 0, 0, 0, 1]);

struct Guest {
    stream: BufReader<UnixStream>,
}

fn pair() -> (Agent, Guest) {
    let (near, far) = UnixStream::pair().unwrap();
    let stream = BufReader::new(far);
    (Agent::over(near), Guest { stream })
}

impl Guest {
    async fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).await.unwrap();
    }

    async fn send_line(&mut self, line: Value) {
        self.send(format!("{line}\n").as_bytes()).await;
    }

    /// The next request, without what stands before a sentinel.
    async fn request(&mut self) -> Value {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line).await.unwrap();
        let start = line.iter().rposition(|byte| *byte == 0xff);
        serde_json::from_slice(&line[start.map_or(0, |at| at + 1)..]).unwrap()
    }

    /// Answers a synchronisation as qemu-ga does: with an error line for the stray byte first.
    async fn sync(&mut self) {
        let request = self.request().await;
        assert_eq!(request["execute"], "guest-sync-delimited");
        let number = &request["arguments"]["id"];
        assert!(number.as_i64().is_some_and(|number| number >= 0), "{number}");
        let error = json!({"class": "GenericError", "desc": "JSON parse error"});
        self.send_line(json!({"error": error})).await;
        self.send(&[0xff]).await;
        self.send_line(json!({"return": number})).await;
    }

    async fn answer(&mut self, value: Value) -> Value {
        let request = self.request().await;
        self.send_line(json!({"return": value, "id": request["id"]})).await;
        request
    }

    async fn refuse(&mut self, class: &str, desc: &str) {
        let request = self.request().await;
        let error = json!({"class": class, "desc": desc});
        self.send_line(json!({"error": error, "id": request["id"]})).await;
    }
}

fn status() -> AgentStatus {
    AgentStatus {
        version: "0.1.0".into(),
        protocol: PROTOCOL,
        boot_id: "b".into(),
        started_ns: 7,
        epoch: 4,
        bond: Some("bond0".into()),
        bond_mac: Some(MacAddr::new([0x52, 0x54, 0, 0, 0, 1])),
        active: Some(Side::Pv),
        vf: Some(VfInBond { mac: VF_MAC, state: VfState::Ready }),
    }
}

#[tokio::test]
async fn commands_and_answers_look_as_agreed() {
    let (mut agent, mut guest) = pair();
    let vf = VfArguments { vf_mac: VF_MAC, epoch: 4 };
    let activate = ActivateArguments { path: Side::Vf, vf_mac: VF_MAC, epoch: 4 };
    let serve = async {
        guest.sync().await;
        let told = serde_json::to_value(status()).unwrap();
        let asked = [
            guest.answer(told.clone()).await,
            guest.answer(json!({"state": "joined"})).await,
            guest.answer(told).await,
            guest.answer(json!({"state": "absent"})).await,
        ];
        let arguments = json!({"vf-mac": "02:f1:00:00:00:01", "epoch": 4});
        let activate = json!({"path": "vf", "vf-mac": "02:f1:00:00:00:01", "epoch": 4});
        let expected = [
            json!({"execute": "__io.flexvf_status", "id": 1}),
            json!({"execute": "__io.flexvf_join-vf", "arguments": arguments, "id": 2}),
            json!({"execute": "__io.flexvf_activate", "arguments": activate, "id": 3}),
            json!({"execute": "__io.flexvf_leave-vf", "arguments": arguments, "id": 4}),
        ];
        assert_eq!(asked, expected);
    };
    let calls = async {
        assert_eq!(agent.status(LONG).await, Ok(status()));
        assert_eq!(agent.join_vf(&vf, LONG).await, Ok(VfState::Joined));
        assert_eq!(agent.activate(&activate, LONG).await, Ok(status()));
        assert_eq!(agent.leave_vf(&vf, LONG).await, Ok(VfState::Absent));
    };
    tokio::join!(calls, serve);
}

#[tokio::test]
async fn after_a_timeout_the_late_answer_is_dropped_by_a_new_synchronisation() {
    let (mut agent, mut guest) = pair();
    let serve = async {
        guest.sync().await;
        let late = guest.request().await;
        let sync = guest.request().await;
        guest.send_line(json!({"return": {"state": "active"}, "id": late["id"]})).await;
        // What a stale synchronisation of somebody else's would look like.
        guest.send(&[0xff]).await;
        guest.send_line(json!({"return": 12345})).await;
        guest.send(&[0xff]).await;
        guest.send_line(json!({"return": sync["arguments"]["id"]})).await;
        guest.answer(json!({"state": "ready"})).await;
    };
    let vf = VfArguments { vf_mac: VF_MAC, epoch: 1 };
    let calls = async {
        let silent = agent.join_vf(&vf, SHORT).await.unwrap_err();
        let expected = "the guest's agent did not answer __io.flexvf_join-vf within 50ms";
        assert_eq!(silent.to_string(), expected);
        assert_eq!(agent.join_vf(&vf, LONG).await, Ok(VfState::Ready));
    };
    tokio::join!(calls, serve);
}

#[tokio::test]
async fn a_dropped_call_is_followed_by_a_new_synchronisation() {
    let (mut agent, mut guest) = pair();
    let serve = async {
        guest.sync().await;
        guest.request().await;
        guest.sync().await;
        guest.answer(serde_json::to_value(status()).unwrap()).await;
    };
    let calls = async {
        // As a select! does that has something better to do.
        let dropped = tokio::time::timeout(SHORT, agent.status(LONG)).await;
        assert!(dropped.is_err());
        agent.status(LONG).await.unwrap();
    };
    tokio::join!(calls, serve);
}

#[tokio::test]
async fn who_is_there_is_told_by_guest_info() {
    for (commands, kind) in [
        (
            json!([{"name": STATUS, "enabled": true, "success-response": true}]),
            AgentKind::Ours("7.2".into()),
        ),
        (
            json!([{"name": STATUS, "enabled": false, "success-response": true}]),
            AgentKind::Stock("7.2".into()),
        ),
        (json!([]), AgentKind::Stock("7.2".into())),
    ] {
        let (mut agent, mut guest) = pair();
        let serve = async {
            guest.sync().await;
            let info = json!({"version": "7.2", "supported_commands": commands, "new-in-9": 1});
            assert_eq!(guest.answer(info).await["execute"], "guest-info");
        };
        let (found, ()) = tokio::join!(agent.identify(LONG), serve);
        assert_eq!(found, Ok(kind));
    }
    let (mut agent, _guest) = pair();
    assert_eq!(agent.identify(SHORT).await, Ok(AgentKind::None));
}

#[tokio::test]
async fn a_stock_agents_counters_are_found_by_mac_on_the_bond() {
    let (mut agent, mut guest) = pair();
    let link = |name: &str, mac: &str, packets: u64| {
        let statistics = json!({"rx-bytes": 1, "rx-dropped": 2, "rx-errs": 0, "rx-packets": packets,
            "tx-bytes": 4, "tx-dropped": 5, "tx-errs": 0, "tx-packets": 6});
        json!({"name": name, "hardware-address": mac, "statistics": statistics})
    };
    let serve = async {
        guest.sync().await;
        let mut links = vec![
            json!({"name": "lo"}),
            link("ens1", "52:54:00:00:00:01", 10),
            link("bond0", "52:54:00:00:00:01", 30),
            link("ens2", "52:54:00:00:00:01", 20),
        ];
        links.extend((0..100).map(|n| link(&format!("x{n}"), "52:54:00:00:00:02", 99)));
        guest.answer(json!(links)).await;
    };
    let (links, ()) = tokio::join!(agent.interfaces(LONG), serve);
    let links = links.unwrap();
    assert_eq!(links.len(), MAX_INTERFACES);
    let counters = counters_of(&links, MacAddr::new([0x52, 0x54, 0, 0, 0, 1])).unwrap();
    let found = (counters.rx_packets, counters.tx_packets, counters.tx_dropped);
    assert_eq!(found, (30, 6, 5));
    assert_eq!(counters_of(&links, VF_MAC), None);
}

#[tokio::test]
async fn refusals_are_typed_and_their_words_harmless() {
    let (mut agent, mut guest) = pair();
    let serve = async {
        guest.sync().await;
        guest.refuse("CommandNotFound", "The command is not there").await;
        guest.refuse("GenericError", &format!("\u{1b}]0;owned\u{7}\n{}", "x".repeat(10_000))).await;
        guest.answer(json!({"state": "on fire"})).await;
    };
    let vf = VfArguments { vf_mac: VF_MAC, epoch: 1 };
    let calls = async {
        let error = agent.join_vf(&vf, LONG).await.unwrap_err();
        let command = JOIN_VF.to_owned();
        assert_eq!(error, AgentError::NotFound { command });
        let Err(AgentError::Refused { desc, .. }) = agent.join_vf(&vf, LONG).await else {
            panic!("taken");
        };
        assert!(desc.starts_with("\u{fffd}]0;owned\u{fffd}\u{fffd}xxx"), "{desc}");
        assert_eq!(desc.chars().count(), 200);
        let error = agent.join_vf(&vf, LONG).await.unwrap_err();
        assert!(matches!(error, AgentError::Protocol { .. }), "{error}");
    };
    tokio::join!(calls, serve);
}

#[tokio::test]
async fn a_guests_texts_are_cut_and_made_harmless() {
    let (mut agent, mut guest) = pair();
    let serve = async {
        guest.sync().await;
        let mut told = status();
        told.version = "\u{1b}[2J".repeat(1000);
        told.bond = Some("x".repeat(1000));
        guest.answer(serde_json::to_value(told).unwrap()).await;
    };
    let (told, ()) = tokio::join!(agent.status(LONG), serve);
    let told = told.unwrap();
    assert!(!told.version.contains('\u{1b}'));
    assert_eq!((told.version.chars().count(), told.bond.unwrap().len()), (64, 64));
}

#[tokio::test]
async fn an_endless_line_ends_the_call_and_not_the_memory() {
    let (mut agent, mut guest) = pair();
    let serve = async {
        guest.sync().await;
        guest.request().await;
        loop {
            guest.send(&[b'x'; 4096]).await;
        }
    };
    let call = async {
        let error = agent.status(LONG).await.unwrap_err();
        assert!(error.to_string().ends_with("a line of more than 64 KiB"), "{error}");
        // Nor does it get through a synchronisation for ever.
        let error = agent.status(LONG).await.unwrap_err();
        assert!(error.to_string().ends_with("256 KiB and no answer in them"), "{error}");
    };
    tokio::select! {
        () = call => {}
        () = serve => {}
    }
}

#[tokio::test]
async fn a_flood_of_short_lines_ends_the_call() {
    let (mut agent, mut guest) = pair();
    let serve = async {
        guest.sync().await;
        loop {
            guest.send(b"{\"return\": {}, \"id\": 9999}\n").await;
        }
    };
    let call = async {
        let error = agent.status(LONG).await.unwrap_err();
        assert!(matches!(error, AgentError::Protocol { .. }), "{error}");
    };
    tokio::select! {
        () = call => {}
        () = serve => {}
    }
}

#[tokio::test]
async fn one_byte_now_and_then_does_not_stretch_the_deadline() {
    let (mut agent, mut guest) = pair();
    let serve = async {
        loop {
            guest.send(b"x").await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let call = async {
        let error = agent.status(SHORT).await.unwrap_err();
        assert!(matches!(error, AgentError::Silent { .. }), "{error}");
    };
    tokio::select! {
        () = call => {}
        () = serve => {}
    }
}

#[tokio::test]
async fn answers_are_found_byte_by_byte() {
    let (mut agent, mut guest) = pair();
    let serve = async {
        guest.sync().await;
        let request = guest.request().await;
        let told = serde_json::to_value(status()).unwrap();
        let line = json!({"return": told, "id": request["id"]});
        for byte in format!("{line}\n").bytes() {
            guest.send(&[byte]).await;
            tokio::task::yield_now().await;
        }
    };
    let (told, ()) = tokio::join!(agent.status(LONG), serve);
    assert_eq!(told, Ok(status()));
}

#[tokio::test]
async fn a_close_at_any_byte_is_closed_and_never_a_hang() {
    let script = b"{\"error\": {}}\n\xff{\"return\": 5}\n{\"return\": {";
    for cut in 0..=script.len() {
        let (mut agent, mut guest) = pair();
        guest.send(&script[..cut]).await;
        drop(guest);
        assert_eq!(agent.status(LONG).await, Err(AgentError::Closed), "cut at {cut}");
    }
}

#[tokio::test]
async fn a_missing_socket_is_named() {
    let error = Agent::connect(Path::new("/no/such/agent"), LONG).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "agent socket /no/such/agent: No such file or directory (os error 2); is QEMU running with a chardev there?"
    );
}
