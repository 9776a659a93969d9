//! QEMU (of the testbed's sysroot) starts with a NIC on the backend.
//!
//! Only as far as QEMU goes by itself: guests that boot are the end-to-end runs' business.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use flexvf_protocol::stats_page::Header;
use nix::sys::signal::Signal;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;
use serde_json::Value;
use vhost_net_pv::logic::feature_names::FEATURES;

use namespace::in_namespace;
use program::{Backend, Program, sysroot};

mod namespace;
mod program;

const TAP: &str = "tap-test";
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x99];
const RARP: [u8; 2] = [0x80, 0x35];
const DEADLINE: Duration = Duration::from_secs(30);

fn qemu(sysroot: &Path, backend: &Backend, queues: u16) -> Program {
    qemu_with(sysroot, backend, queues, "mq=on,host_mtu=1500")
}

/// The same with other properties of the NIC.
fn qemu_with(sysroot: &Path, backend: &Backend, queues: u16, properties: &str) -> Program {
    let role = "reconnect-ms=200";
    qemu_as(role, sysroot, backend, queues, properties)
}

/// The same that listens, or connects again and again.
fn qemu_as(
    role: &str,
    sysroot: &Path,
    backend: &Backend,
    queues: u16,
    properties: &str,
) -> Program {
    let chardev = format!("socket,id=net0,path={},{role}", backend.socket().display());
    let child = Command::new(sysroot.join("flexvf-bin/qemu-system-x86_64"))
        .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-S"])
        .args(["-M", "q35,memory-backend=mem", "-m", "64"])
        .args(["-object", "memory-backend-memfd,id=mem,size=64M,share=on"])
        .args(["-chardev", &chardev, "-netdev"])
        .arg(format!("vhost-user,id=net0,chardev=net0,queues={queues}"))
        .args(["-device"])
        .arg(format!(
            "virtio-net-pci,id=nic,netdev=net0,romfile=,mac=52:54:00:12:34:99,{properties}"
        ))
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", qmp_path(backend).display()))
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    Program(child)
}

#[test]
fn qemu_starts_is_killed_and_starts_again() {
    let Some(sysroot) = sysroot() else { return };
    for queues in [1, 4, 16] {
        let backend = Backend::start("null", queues);
        for connection in 1..=3 {
            let mut child = qemu(&sysroot, &backend, queues);
            backend.until("QEMU connects", || {
                backend.page().header(Header::Connections) == connection
            });
            // The handshake is over when QEMU has stayed connected through all of it.
            std::thread::sleep(std::time::Duration::from_millis(500));
            let page = backend.page();
            let ended = child.0.try_wait().unwrap();
            assert!(ended.is_none(), "QEMU ended: {ended:?}");
            assert_eq!(page.header(Header::Connected), 1);
            assert_eq!(page.header(Header::Refused), 0);
            child.end(Signal::SIGKILL);
            backend.until("QEMU is gone", || backend.page().header(Header::Connected) == 0);
        }
        assert!(backend.end());
    }
}

#[test]
fn qemu_that_listens_is_found_again_and_finds_a_killed_backend_again() {
    let Some(sysroot) = sysroot() else { return };
    let mut backend = Backend::start_connecting(&["--port", "null", "--queues", "2"]);
    let connected = |backend: &Backend, times| {
        backend.until("the handshake is over", || {
            let page = backend.page();
            page.header(Header::Connected) == 1
                && page.header(Header::Connections) == times
                && backend.log().matches("SET_VRING_ERR").count() >= 4
        });
    };
    for start in 0..2 {
        let mut child = qemu_as("server=on", &sysroot, &backend, 2, "mq=on");
        connected(&backend, 2 * start + 1);
        // It answers once its devices are there: until then a backend's death may be its own.
        backend.until("QEMU has a monitor", || UnixStream::connect(qmp_path(&backend)).is_ok());
        qmp(&backend, r#"{"execute": "query-status"}"#);
        backend.kill_while(|| {});
        backend.restart();
        connected(&backend, 2 * start + 2);
        assert!(child.0.try_wait().unwrap().is_none(), "QEMU has ended");
        assert_eq!(backend.page().header(Header::Refused), 0);
        child.end(Signal::SIGKILL);
        backend.until("QEMU is gone", || backend.page().header(Header::Connected) == 0);
        for left_behind in [backend.socket(), qmp_path(&backend)] {
            std::fs::remove_file(left_behind).unwrap();
        }
    }
    assert!(backend.end());
}

fn qmp_path(backend: &Backend) -> PathBuf {
    backend.folder().join("qmp")
}

/// Gives QEMU a command; its answer.
fn qmp(backend: &Backend, command: &str) -> Value {
    let mut stream = UnixStream::connect(qmp_path(backend)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("QMP"));
    let mut answered = Value::Null;
    for command in ["{\"execute\":\"qmp_capabilities\"}", command] {
        writeln!(stream, "{command}").unwrap();
        let mut answers = lines.by_ref().map(Result::unwrap);
        let answer = answers.find(|line| !line.contains("\"event\"")).unwrap();
        assert!(answer.contains("return"), "{command}: {answer}");
        answered = serde_json::from_str(&answer).unwrap();
    }
    answered["return"].take()
}

/// Sees every frame of this namespace.
fn listener() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let all = SockProtocol::EthAll;
    let listener = socket(AddressFamily::Packet, SockType::Raw, flags, all).unwrap();
    setsockopt(&listener, sockopt::ReceiveTimeout, &TimeVal::new(1, 0)).unwrap();
    listener
}

#[test]
fn announce_self_of_qemu_goes_out_of_the_tap() {
    let Some(sysroot) = sysroot() else { return };
    in_namespace(move || {
        let backend = Backend::start_with(&["--tap", TAP]);
        let listener = listener();
        let child = qemu(&sysroot, &backend, 1);
        backend.until("QEMU has come up", || {
            backend.page().header(Header::Connected) == 1 && qmp_path(&backend).exists()
        });
        // QEMU sends nothing for a machine that stands still.
        qmp(&backend, r#"{"execute": "cont"}"#);
        let rounds = r#"{"initial": 50, "max": 100, "rounds": 3, "step": 10}"#;
        qmp(&backend, &format!(r#"{{"execute": "announce-self", "arguments": {rounds}}}"#));
        let deadline = Instant::now() + DEADLINE;
        let announced = loop {
            assert!(Instant::now() < deadline, "no announcement; log:\n{}", backend.log());
            let mut frame = [0; 2048];
            let Ok(bytes) = recv(listener.as_raw_fd(), &mut frame, MsgFlags::empty()) else {
                continue;
            };
            if frame[12..14] == RARP {
                break frame[..bytes].to_vec();
            }
        };
        assert_eq!(announced[..6], [0xff; 6]);
        assert_eq!(announced[6..12], MAC);
        // "Reverse request" by and for the guest's own address (RFC 903).
        assert_eq!(announced[20..22], [0, 3]);
        assert_eq!((&announced[22..28], &announced[32..38]), (&MAC[..], &MAC[..]));
        assert_eq!(backend.page().header(Header::Refused), 0);
        child.end(Signal::SIGKILL);
        assert!(backend.end());
    });
}

/// Features that QEMU would offer to its guest, by our names.
fn offered_to_the_guest(backend: &Backend) -> Vec<&'static str> {
    let path = "/machine/peripheral/nic/virtio-backend";
    let query =
        format!(r#"{{"execute": "x-query-virtio-status", "arguments": {{"path": "{path}"}}}}"#);
    let offered = qmp(backend, &query)["host-features"].take();
    // Those that QEMU has no name for come as a mask.
    let nameless = offered["unknown-dev-features"].as_u64().unwrap_or(0);
    let texts: Vec<_> = ["dev-features", "transports"]
        .iter()
        .flat_map(|kind| offered[*kind].as_array().unwrap())
        .map(|text| text.as_str().unwrap())
        .collect();
    let has = |constant: &str| texts.iter().any(|text| text.starts_with(&format!("{constant}:")));
    let there = FEATURES.iter().filter(|it| it.is_in(nameless) || has(&it.constant()));
    there.map(|feature| feature.name).collect()
}

#[test]
fn a_guest_is_offered_what_the_backend_and_the_command_line_agree_on() {
    let Some(sysroot) = sysroot() else { return };
    // What QEMU 10 takes from no vhost-user back end, or keeps to itself.
    let never = ["ring_packed", "log_all", "guest_uso4", "guest_uso6", "host_uso"];
    let all: Vec<_> =
        FEATURES.iter().map(|feature| feature.name).filter(|name| !never.contains(name)).collect();
    let without = |names: &[&str]| -> Vec<_> {
        all.iter().copied().filter(|name| !names.contains(name)).collect()
    };
    let everything = "mq=on,host_mtu=1400,failover=on,in_order=on";
    let cases = [
        ("all,standby", everything, all.clone()),
        // Neither is made unasked.
        ("all,standby", "mq=on", without(&["standby", "mtu", "in_order"])),
        (
            "mrg_rxbuf,csum",
            "in_order=on",
            vec!["csum", "mrg_rxbuf", "protocol_features", "version_1"],
        ),
    ];
    for (features, properties, expected) in cases {
        let options = ["--port", "loopback", "--queues", "16", "--features", features];
        let backend = Backend::start_with(&options);
        let child = qemu_with(&sysroot, &backend, 16, properties);
        backend.until("QEMU has come up", || {
            backend.page().header(Header::Connected) == 1 && qmp_path(&backend).exists()
        });
        assert_eq!(offered_to_the_guest(&backend), expected, "{features} {properties}");
        child.end(Signal::SIGKILL);
        assert!(backend.end());
    }
}
