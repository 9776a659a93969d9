//! DPDK's virtio-user (testpmd of the testbed's sysroot) as front-end.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use flexvf_protocol::stats_page::{Counter, Direction, Header};
use nix::sys::signal::Signal;
use vhost_net_pv::logic::feature_names::{self, FEATURES};

use program::{Backend, Program, sysroot};

mod program;

/// Frames that show that traffic flows.
const ENOUGH: u64 = 50_000;
/// Frames that show that a ring works.
const A_FEW: u64 = 500;

/// Starts testpmd; its words go to a file.
fn testpmd(sysroot: &Path, backend: &Backend, queues: u16, mode: &str, log: &Path) -> Program {
    testpmd_with(sysroot, backend, &format!(",queues={queues}"), queues, &[mode], log)
}

/// The same with more properties of the device, each behind a comma, and options of testpmd's own.
fn testpmd_with(
    sysroot: &Path,
    backend: &Backend,
    properties: &str,
    queues: u16,
    options: &[&str],
    log: &Path,
) -> Program {
    let socket = backend.socket();
    // DPDK keeps its run-time files under this name, which two of them must not share.
    let folder = backend.folder().file_name().unwrap().display();
    let prefix = format!("vhost-net-pv{folder}");
    let child = Command::new(sysroot.join("flexvf-bin/dpdk-testpmd"))
        .args(["-l", "0,1", "--no-huge", "-m", "256", "--no-pci"])
        .args(["--no-telemetry", "--file-prefix", &prefix])
        .arg(format!(
            "--vdev=net_virtio_user0,path={},queue_size=256{properties}",
            socket.display()
        ))
        .args(["--", "--auto-start", "--stats-period=1"])
        .arg("--total-num-mbufs=16384")
        .args(options)
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

/// Waits until frames have come back to each of so many queue pairs.
fn wait_for_frames(backend: &Backend, queues: u16, enough: u64) {
    for pair in 0..queues.into() {
        let frames = || backend.page().ring(pair, Direction::Rx, Counter::Frames);
        backend.until("frames come back", || frames() > enough);
    }
}

#[test]
fn frames_go_both_ways_on_two_queue_pairs_and_on_eight() {
    let Some(sysroot) = sysroot() else { return };
    // DPDK 22.11 has no more than eight.
    for (queues, enough) in [(2, ENOUGH), (8, A_FEW)] {
        let backend = Backend::start("loopback", queues);
        let log = backend.folder().join("testpmd");
        let child = testpmd(&sysroot, &backend, queues, "--tx-first", &log);
        wait_for_frames(&backend, queues, enough);
        assert!(child.end(Signal::SIGINT).success());
        assert!(backend.end());
    }
}

/// What the front-end has accepted last.
fn accepted(backend: &Backend) -> u64 {
    let log = backend.log();
    let (_, mask) = log.rsplit_once("features accepted features=0x").unwrap();
    u64::from_str_radix(mask.split_whitespace().next().unwrap(), 16).unwrap()
}

#[test]
fn virtio_user_agrees_to_what_it_is_told_to_and_frames_flow() {
    let Some(sysroot) = sysroot() else { return };
    let always = "protocol_features,indirect_desc,version_1";
    // Segmentation and checksums, which a program that has DPDK asks for by port.
    let [sends, takes] = ["--tx-offloads=0x802c", "--rx-offloads=0x1c"];
    let cases: [(&str, &[&str], &str); 3] = [
        ("", &[], "mrg_rxbuf,in_order"),
        (",mrg_rxbuf=0,in_order=0", &[], ""),
        (
            "",
            &[sends, takes],
            "mrg_rxbuf,in_order,csum,guest_csum,host_tso4,host_tso6,guest_tso4,guest_tso6",
        ),
    ];
    for (properties, options, more) in cases {
        let backend = Backend::start_verbose(&["--port", "loopback", "--features", "all,standby"]);
        let log = backend.folder().join("testpmd");
        let options = [&["--tx-first"], options].concat();
        let child = testpmd_with(&sysroot, &backend, properties, 1, &options, &log);
        wait_for_frames(&backend, 1, A_FEW);
        let names = [always, more].join(",");
        let names: Vec<_> = names.split(',').filter(|name| !name.is_empty()).collect();
        let agreed = FEATURES.iter().filter(|feature| names.contains(&feature.name));
        let agreed = agreed.fold(0, |sum, feature| sum | 1 << feature.bit);
        let found = accepted(&backend);
        assert_eq!(found, agreed, "{properties} {options:?}: {:?}", feature_names::names(found));
        assert_eq!(agreed.count_ones() as usize, names.len());
        assert!(child.end(Signal::SIGINT).success());
        for message in ["SET_MEM_TABLE", "SET_STATUS", "GET_STATUS"] {
            assert!(backend.log().contains(&format!("request=Ok({message})")), "no {message}");
        }
        assert!(backend.end());
    }
}

#[test]
fn a_pinned_set_is_all_that_virtio_user_gets() {
    let Some(sysroot) = sysroot() else { return };
    let backend = Backend::start_verbose(&["--port", "loopback", "--features", "mrg_rxbuf"]);
    let log = backend.folder().join("testpmd");
    let child = testpmd_with(&sysroot, &backend, "", 1, &["--tx-first"], &log);
    wait_for_frames(&backend, 1, A_FEW);
    // Nothing that it would take otherwise: neither indirect_desc nor in_order.
    assert_eq!(accepted(&backend), 1 << 15 | 1 << 30 | 1 << 32);
    assert!(child.end(Signal::SIGINT).success());
    assert!(backend.end());
}

#[test]
fn virtio_user_that_listens_is_found_again_and_finds_a_killed_backend_again() {
    let Some(sysroot) = sysroot() else { return };
    let mut backend = Backend::start_connecting(&["--port", "null"]);
    let log = backend.folder().join("testpmd");
    let more_frames = |backend: &Backend| {
        let frames = || backend.page().total(Direction::Tx, Counter::Frames);
        let before = frames();
        backend.until("frames flow", || frames() > before + A_FEW);
    };
    for start in 1..=2 {
        let options = ["--forward-mode=txonly"];
        let child = testpmd_with(&sysroot, &backend, ",server=1", 1, &options, &log);
        more_frames(&backend);
        backend.kill_while(|| {});
        backend.restart();
        more_frames(&backend);
        let page = backend.page();
        assert_eq!(page.header(Header::Connections), 2 * start);
        assert_eq!(page.header(Header::Refused), 0);
        assert!(child.end(Signal::SIGINT).success());
        backend.until("testpmd is gone", || backend.page().header(Header::Connected) == 0);
    }
    assert!(backend.end());
}
