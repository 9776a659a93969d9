//! The running program's rights, as the kernel tells them, and what it still can do without.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeMap;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use flexvf_protocol::stats_page::{Counter, Direction, Snapshot};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sched::{CpuSet, sched_getaffinity};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, Uid, chown};
use vhost::vhost_user::message::FrontendReq;
use vhost_net_pv::io::netdev::Netdev;
use vhost_net_pv::io::port::{IoMethod, Port, Tap, TapOptions};
use vhost_net_pv::io::stats;

use common::{FrontEnd, Shared};
use namespace::in_namespace;
use program::{Backend, Program};

mod common;
mod namespace;
mod program;

const TAP: &str = "tap-test";
/// Anybody but root.
const NOBODY: u32 = 65_534;

/// The status of each thread of a process, by the threads' names.
fn threads(process: u32) -> BTreeMap<String, String> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).unwrap();
    tasks
        .map(|task| {
            let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
            (field(&status, "Name"), status)
        })
        .collect()
}

fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in:\n{status}")).trim().to_owned()
}

fn exchange(front_end: &mut FrontEnd<'_>) {
    front_end.give_buffers(1);
    front_end.send_frame(&[7; 100]);
    assert_eq!(front_end.receive_frame(), [7; 100]);
}

#[test]
fn no_thread_of_the_running_program_has_any_right_left() {
    let backend = Backend::start("loopback", 2);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    exchange(&mut front_end);
    let names = ["queue-0", "queue-1", "signals", "vhost-net-pv"];
    // A thread names itself as soon as it runs.
    backend.until("all threads run", || threads(backend.id()).into_keys().eq(names));
    for (thread, status) in &threads(backend.id()) {
        for (what, value) in [("Seccomp", "2"), ("NoNewPrivs", "1")] {
            assert_eq!(field(status, what), value, "{what} of {thread}");
        }
        let mut sets = vec!["CapInh", "CapPrm", "CapEff", "CapAmb"];
        // Without CAP_SETPCAP it stays, and does no harm.
        if Uid::effective().is_root() {
            sets.push("CapBnd");
        }
        for set in sets {
            assert_eq!(field(status, set), "0000000000000000", "{set} of {thread}");
        }
    }
    assert!(backend.end());
}

#[test]
fn the_sandbox_is_off_when_told_to_be_and_that_is_said() {
    let backend = Backend::start_with(&["--port", "null", "--sandbox", "off"]);
    for (thread, status) in threads(backend.id()) {
        assert_eq!(field(&status, "Seccomp"), "0", "{thread}");
    }
    assert!(backend.log().contains("sandbox off"), "{}", backend.log());
    assert!(backend.end());
}

#[test]
fn the_sandbox_says_in_one_line_what_it_is() {
    let backend = Backend::start("null", 1);
    let log = backend.log();
    let lines: Vec<_> = log.lines().filter(|line| line.contains("sandbox")).collect();
    assert_eq!(lines.len(), 1, "{log}");
    for word in ["no capabilities", "landlock", "system calls filtered"] {
        assert!(lines[0].contains(word), "{log}");
    }
    assert!(backend.end());
}

#[test]
fn each_queue_pair_stays_on_its_processor() {
    let allowed = sched_getaffinity(Pid::from_raw(0)).unwrap();
    let cpus: Vec<_> = (0..CpuSet::count()).filter(|cpu| allowed.is_set(*cpu).unwrap()).collect();
    // The last first, so that it is not what the kernel would have done.
    let wanted: Vec<_> = cpus.iter().rev().take(2).map(usize::to_string).collect();
    let queues = wanted.len().to_string();
    let options = ["--port", "null", "--queues", &queues, "--cpus", &wanted.join(",")];
    let backend = Backend::start_with(&options);
    let threads = threads(backend.id());
    for (pair, cpu) in wanted.iter().enumerate() {
        assert_eq!(&field(&threads[&format!("queue-{pair}")], "Cpus_allowed_list"), cpu);
    }
    assert!(backend.end());
}

/// Broadcasts that a front-end sends.
const FRAMES: u64 = 50;

fn send_broadcasts(front_end: &mut FrontEnd<'_>) {
    let mut frame = [0; 100];
    frame[..6].fill(0xff);
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    for _ in 0..FRAMES {
        front_end.send_frame(&frame);
        front_end.wait_returned(1);
    }
}

/// Frames that the kernel has had from the TAP.
fn taken_by_the_kernel() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = text.lines().find(|line| line.contains(TAP)).unwrap();
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

#[test]
fn an_unprivileged_user_needs_nothing_but_a_descriptor_of_the_tap() {
    in_namespace(|| {
        let options = TapOptions { name: TAP.to_owned(), queues: 1, io: IoMethod::Plain };
        let taps = Tap::open(&options).unwrap();
        Netdev::new().unwrap().up(TAP).unwrap();
        let tap = taps[0].readiness().unwrap();
        fcntl(tap.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).unwrap();

        let folder = tempfile::tempdir().unwrap();
        chown(folder.path(), Some(NOBODY.into()), Some(NOBODY.into())).unwrap();
        // By descriptor, since the build's folder may be closed to others.
        let file = std::fs::File::open(env!("CARGO_BIN_EXE_vhost-net-pv")).unwrap();
        let (socket, page) = (folder.path().join("socket"), folder.path().join("stats"));
        let child = Command::new(format!("/proc/self/fd/{}", file.as_raw_fd()))
            .args(["--tap-fd", &tap.as_raw_fd().to_string(), "--socket"])
            .arg(&socket)
            .arg("--stats")
            .arg(&page)
            .uid(NOBODY)
            .gid(NOBODY)
            .spawn()
            .unwrap();
        let program = Program(child);
        drop(taps);

        let shared = Shared::new();
        let mut front_end = FrontEnd::connect(&socket, &shared);
        front_end.start();
        send_broadcasts(&mut front_end);
        for (thread, status) in threads(program.0.id()) {
            assert!(field(&status, "Uid").starts_with("65534"), "{thread}");
            assert_eq!(field(&status, "Seccomp"), "2", "{thread}");
            assert_eq!(field(&status, "CapEff"), "0000000000000000", "{thread}");
        }
        let before_end = taken_by_the_kernel();
        assert!(program.end(Signal::SIGTERM).success());
        assert!(!socket.exists(), "the socket was left behind");
        let page = read_page(&page);
        assert_eq!(page.total(Direction::Tx, Counter::Frames), FRAMES);
        assert_eq!(before_end, FRAMES);
    });
}

fn read_page(path: &Path) -> Snapshot {
    stats::read(path).unwrap()
}

#[test]
fn a_larger_mtu_than_the_interfaces_is_refused_unless_asked_for_at_start() {
    in_namespace(|| {
        // Whether the program is started with an MTU of 9000, and whether guests are promised that.
        let cases: [(&[&str], u64); 3] = [
            (&["--tap", TAP], 1),
            (&["--tap", TAP, "--mtu", "9000"], 0),
            (&["--tap", TAP, "--sandbox", "off"], 0),
        ];
        for (options, refused) in cases {
            let backend = Backend::start_with(options);
            let shared = Shared::new();
            let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
            front_end.negotiate();
            let mut promise = |mtu| front_end.ask(FrontendReq::NET_SET_MTU, &[mtu], &[]).unwrap();
            assert_eq!(promise(1500), 0, "{options:?}");
            assert_eq!(promise(9000), refused, "{options:?}");
            let advice = backend.log().contains("start with --mtu 9000");
            assert_eq!(advice, refused == 1, "{options:?}: {}", backend.log());
            assert!(backend.end());
        }
    });
}
