//! A guest migrates from one QEMU (of the testbed's sysroot) to another, each with a backend.
//!
//! The guest is QEMU's own network boot ROM: it asks for an address, again and again. Guests with an
//! operating system, and traffic to be counted, are the end-to-end runs' business.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Command, Stdio};

use flexvf_protocol::stats_page::{Counter, Direction, Header};
use serde_json::{Value, json};

use program::{Backend, Program, sysroot};

mod program;

/// QEMU on a backend, and its monitor.
struct Qemu {
    _program: Program,
    monitor: BufReader<UnixStream>,
}

impl Qemu {
    fn start(sysroot: &Path, backend: &Backend, arguments: &[&str]) -> Self {
        let path = backend.folder().join("monitor");
        let socket = backend.socket();
        let chardev = format!("socket,id=net0,path={},reconnect-ms=50", socket.display());
        let program = Command::new(sysroot.join("flexvf-bin/qemu-system-x86_64"))
            .args(["-nodefaults", "-display", "none", "-accel", "tcg"])
            .args(["-M", "q35,memory-backend=mem,graphics=off", "-m", "64"])
            .args(["-object", "memory-backend-memfd,id=mem,size=64M,share=on"])
            .args(["-chardev", &chardev, "-netdev", "vhost-user,id=net0,chardev=net0,queues=2"])
            .args(["-device", "virtio-net-pci,netdev=net0,mq=on,bootindex=1"])
            // When nobody has answered, the guest begins again.
            .args(["-boot", "reboot-timeout=0", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", path.display()))
            .args(arguments)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let program = Program(program);
        backend.until("QEMU listens", || UnixStream::connect(&path).is_ok());
        let monitor = BufReader::new(UnixStream::connect(&path).unwrap());
        let mut qemu = Self { _program: program, monitor };
        qemu.execute("qmp_capabilities", &json!({}));
        qemu
    }

    fn execute(&mut self, command: &str, arguments: &Value) -> Value {
        let message = json!({"execute": command, "arguments": arguments});
        writeln!(self.monitor.get_mut(), "{message}").unwrap();
        loop {
            let mut line = String::new();
            assert_ne!(self.monitor.read_line(&mut line).unwrap(), 0, "QEMU has ended");
            let mut answer: Value = serde_json::from_str(&line).unwrap();
            assert!(answer.get("error").is_none(), "{command}: {answer}");
            if let Some(result) = answer.get_mut("return") {
                return result.take();
            }
        }
    }

    fn begin_migration(&mut self, path: &Path) {
        let uri = format!("unix:{}", path.display());
        self.execute("migrate", &json!({ "uri": uri }));
    }

    /// Waits until the migration's state is such.
    fn wait_migration(&mut self, such: impl Fn(&Value) -> bool) {
        loop {
            let state = self.execute("query-migrate", &json!({}));
            if such(&state) {
                return;
            }
            assert!(!matches!(&state["status"], Value::String(s) if s == "failed"), "{state}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn wait_running(&mut self) {
        while self.execute("query-status", &json!({}))["status"] != "running" {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }

    fn wait_migrated(&mut self) {
        self.wait_migration(|state| state["status"] == "completed");
    }
}

fn count(backend: &Backend, direction: Direction, counter: Counter) -> u64 {
    backend.page().total(direction, counter)
}

#[test]
fn a_guest_migrates_and_is_announced_where_it_arrives() {
    let Some(sysroot) = sysroot() else { return };
    let backends = [Backend::start("loopback", 2), Backend::start("loopback", 2)];
    let mut source = Qemu::start(&sysroot, &backends[0], &[]);
    backends[0].until("the guest hears itself", || {
        count(&backends[0], Direction::Rx, Counter::Frames) > 0
    });
    let meeting = backends[1].folder().join("migration");
    let incoming = format!("unix:{}", meeting.display());
    let mut destination = Qemu::start(&sysroot, &backends[1], &["-incoming", &incoming]);
    source.begin_migration(&meeting);
    source.wait_migrated();
    // Announcements of a guest that does not announce itself come back from the port, too, but the
    // guest has not sent them.
    backends[1].until("it is announced", || {
        let heard = count(&backends[1], Direction::Rx, Counter::Frames);
        heard > count(&backends[1], Direction::Tx, Counter::Frames)
    });
    backends[1]
        .until("the guest sends on", || count(&backends[1], Direction::Tx, Counter::Frames) > 0);
    assert_eq!(destination.execute("query-status", &json!({}))["status"], "running");
    for backend in &backends {
        assert_eq!(backend.page().header(Header::Refused), 0);
        assert_eq!(backend.page().header(Header::Connections), 1);
    }
}

#[test]
fn a_backend_may_die_in_the_middle_of_a_migration() {
    let Some(sysroot) = sysroot() else { return };
    let mut backends = [Backend::start("loopback", 2), Backend::start("loopback", 2)];
    let mut source = Qemu::start(&sysroot, &backends[0], &[]);
    backends[0].until("the guest hears itself", || {
        count(&backends[0], Direction::Rx, Counter::Frames) > 0
    });
    let meeting = backends[1].folder().join("migration");
    let incoming = format!("unix:{}", meeting.display());
    let _destination = Qemu::start(&sysroot, &backends[1], &["-incoming", &incoming]);
    // Slow enough to be still under way when QEMU has connected again.
    let slow = json!({"max-bandwidth": 10_000, "downtime-limit": 0});
    source.execute("migrate-set-parameters", &slow);
    source.begin_migration(&meeting);
    // QEMU 10 gives itself up when a backend dies while it is being told of the log.
    source.wait_migration(|state| state["ram"]["dirty-sync-count"].as_u64() >= Some(1));
    backends[0].kill_while(|| {});
    backends[0].restart();
    // QEMU starts the device anew, with a log that it sends only after the rings.
    backends[0].until("QEMU is back", || backends[0].page().header(Header::Connections) == 2);
    let fast = json!({"max-bandwidth": 1 << 30, "downtime-limit": 300});
    source.execute("migrate-set-parameters", &fast);
    source.wait_migrated();
    backends[1]
        .until("the guest sends on", || count(&backends[1], Direction::Tx, Counter::Frames) > 0);
    for backend in &backends {
        assert_eq!(backend.page().header(Header::Refused), 0);
    }
}

#[test]
fn a_guest_stays_where_less_is_offered_and_goes_where_the_same_set_is_pinned() {
    let Some(sysroot) = sysroot() else { return };
    let start = |features| {
        let options = ["--port", "loopback", "--queues", "2", "--features", features];
        Backend::start_with(&options)
    };
    let here = start("csum");
    let mut source = Qemu::start(&sysroot, &here, &[]);
    here.until("the guest hears itself", || count(&here, Direction::Rx, Counter::Frames) > 0);
    // With it the source hears of a failure at the other end, and lets the guest go on.
    let return_path = json!({"capabilities": [{"capability": "return-path", "state": true}]});
    source.execute("migrate-set-capabilities", &return_path);
    // The boot ROM agrees to nothing else that could be missing.
    for (features, status) in [("csum,-version_1", "failed"), ("csum", "completed")] {
        let there = start(features);
        let meeting = there.folder().join("migration");
        let mut destination = Qemu::start(&sysroot, &there, &["-incoming", "defer"]);
        destination.execute("migrate-set-capabilities", &return_path);
        let uri = json!({ "uri": format!("unix:{}", meeting.display()) });
        destination.execute("migrate-incoming", &uri);
        source.begin_migration(&meeting);
        let over = || source.execute("query-migrate", &json!({}))["status"].take();
        let ended = std::iter::repeat_with(over)
            .find(|status| ["failed", "completed"].map(Value::from).contains(status));
        assert_eq!(ended.unwrap(), status, "to a host with {features}");
        let (lives, at) = match status {
            "failed" => (&mut source, &here),
            _ => (&mut destination, &there),
        };
        lives.wait_running();
        let before = count(at, Direction::Tx, Counter::Frames);
        at.until("the guest sends on", || count(at, Direction::Tx, Counter::Frames) > before);
        assert_eq!(at.page().header(Header::Refused), 0);
    }
}
