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
        let chardev = format!("socket,id=net0,path={}", backend.socket().display());
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

    fn migrate_to(&mut self, path: &Path) {
        let uri = format!("unix:{}", path.display());
        self.execute("migrate", &json!({ "uri": uri }));
        loop {
            let state = self.execute("query-migrate", &json!({}));
            match state["status"].as_str().unwrap() {
                "completed" => return,
                "failed" | "cancelled" => panic!("migration: {state}"),
                _ => std::thread::sleep(std::time::Duration::from_millis(20)),
            }
        }
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
    source.migrate_to(&meeting);
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
