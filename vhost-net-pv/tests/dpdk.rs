//! DPDK's virtio-user (testpmd of the testbed's sysroot) as front-end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use flexvf_protocol::stats_page::{Counter, Direction, Header};
use nix::sys::signal::Signal;

use program::{Backend, Program, sysroot};

mod program;

/// Frames that show that traffic flows.
const ENOUGH: u64 = 50_000;

/// Starts testpmd; its words go to a file.
fn testpmd(sysroot: &Path, backend: &Backend, queues: u16, mode: &str, log: &Path) -> Program {
    let socket = backend.socket();
    // DPDK keeps its run-time files under this name, which two of them must not share.
    let folder = backend.folder().file_name().unwrap().display();
    let prefix = format!("vhost-net-pv{folder}");
    let child = Command::new(sysroot.join("flexvf-bin/dpdk-testpmd"))
        .args(["-l", "0,1", "--no-huge", "-m", "256", "--no-pci"])
        .args(["--no-telemetry", "--file-prefix", &prefix])
        .arg(format!(
            "--vdev=net_virtio_user0,path={},queues={queues},queue_size=256",
            socket.display()
        ))
        .args(["--", "--auto-start", "--stats-period=1"])
        .args(["--total-num-mbufs=8192", mode])
        .args([format!("--rxq={queues}"), format!("--txq={queues}")])
        .stdin(Stdio::null())
        .stdout(File::create(log).unwrap())
        .spawn()
        .unwrap();
    Program(child)
}

/// The number behind the last occurrence of a word in testpmd's report.
fn last_number(log: &Path, word: &str) -> u64 {
    let text = std::fs::read_to_string(log).unwrap();
    let after = text.rsplit(word).next().unwrap();
    let number = after.split_whitespace().next().unwrap();
    number.parse().unwrap()
}

#[test]
fn every_frame_that_dpdk_sends_is_counted_and_it_may_come_again() {
    let Some(sysroot) = sysroot() else { return };
    let backend = Backend::start("null", 1);
    let log = backend.folder().join("testpmd");
    let mut before = 0;
    for connection in 1..=2 {
        let child = testpmd(&sysroot, &backend, 1, "--forward-mode=txonly", &log);
        let frames = || backend.page().total(Direction::Tx, Counter::Frames);
        backend.until("frames flow", || frames() > before + ENOUGH);
        assert!(child.end(Signal::SIGINT).success());
        backend.until("testpmd is gone", || backend.page().header(Header::Connected) == 0);
        let page = backend.page();
        let sent = last_number(&log, "TX-packets:");
        let counted = page.total(Direction::Tx, Counter::Frames) - before;
        // What is in the ring when it is stopped is neither sent nor counted.
        assert!(
            counted <= sent && sent - counted <= 256,
            "testpmd sent {sent}, {counted} were counted"
        );
        let bytes = page.total(Direction::Tx, Counter::Bytes);
        before += counted;
        assert_eq!(bytes, before * 64);
        assert_eq!(page.header(Header::Connections), connection);
        assert_eq!(page.header(Header::Refused), 0);
        assert_eq!(page.total(Direction::Tx, Counter::DropMalformed), 0);
    }
    assert!(backend.end());
}

#[test]
fn frames_go_both_ways_on_two_queue_pairs() {
    let Some(sysroot) = sysroot() else { return };
    let backend = Backend::start("loopback", 2);
    let log = backend.folder().join("testpmd");
    let child = testpmd(&sysroot, &backend, 2, "--tx-first", &log);
    for pair in 0..2 {
        let frames = || backend.page().ring(pair, Direction::Rx, Counter::Frames);
        backend.until("frames come back", || frames() > ENOUGH);
    }
    assert!(child.end(Signal::SIGINT).success());
    assert!(backend.end());
}
