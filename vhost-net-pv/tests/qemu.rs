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

use namespace::in_namespace;
use program::{Backend, Program, sysroot};

mod namespace;
mod program;

const TAP: &str = "tap-test";
const MAC: [u8; 6] = [0x52, 0x54, 0, 0x12, 0x34, 0x99];
const RARP: [u8; 2] = [0x80, 0x35];
const DEADLINE: Duration = Duration::from_secs(30);

fn qemu(sysroot: &Path, backend: &Backend, queues: u16) -> Program {
    let chardev = format!("socket,id=net0,path={},reconnect-ms=200", backend.socket().display());
    let child = Command::new(sysroot.join("flexvf-bin/qemu-system-x86_64"))
        .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-S"])
        .args(["-M", "q35,memory-backend=mem", "-m", "64"])
        .args(["-object", "memory-backend-memfd,id=mem,size=64M,share=on"])
        .args(["-chardev", &chardev, "-netdev"])
        .arg(format!("vhost-user,id=net0,chardev=net0,queues={queues}"))
        .args(["-device"])
        .arg("virtio-net-pci,netdev=net0,mq=on,host_mtu=1500,romfile=,mac=52:54:00:12:34:99")
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
    for queues in [1, 4] {
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

fn qmp_path(backend: &Backend) -> PathBuf {
    backend.folder().join("qmp")
}

/// Gives QEMU a command and waits until it has taken it.
fn qmp(backend: &Backend, command: &str) {
    let mut stream = UnixStream::connect(qmp_path(backend)).unwrap();
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    assert!(lines.next().unwrap().unwrap().contains("QMP"));
    for command in ["{\"execute\":\"qmp_capabilities\"}", command] {
        writeln!(stream, "{command}").unwrap();
        let mut answers = lines.by_ref().map(Result::unwrap);
        let answer = answers.find(|line| !line.contains("\"event\"")).unwrap();
        assert!(answer.contains("return"), "{command}: {answer}");
    }
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
