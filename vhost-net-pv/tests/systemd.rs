//! The program under somebody who starts it with a socket: a service manager, and what that hears.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Parser;
use nix::sys::signal::Signal;
use vhost_net_pv::config::Cli;

use common::{FrontEnd, Shared};
use program::Program;

mod common;
mod program;

const DEADLINE: Duration = Duration::from_secs(10);

#[test]
fn a_passed_socket_is_served_and_the_manager_hears_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let manager = UnixDatagram::bind(folder.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(DEADLINE)).unwrap();
    let hears = |what: &str| {
        let mut bytes = [0; 100];
        let length = manager.recv(&mut bytes).unwrap();
        assert_eq!(String::from_utf8_lossy(&bytes[..length]), what);
    };
    // Only a process itself knows its id before it becomes another program.
    let child = Command::new("sh")
        .args(["-c", "LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" --port loopback 3<&0 </dev/null"])
        .arg(env!("CARGO_BIN_EXE_vhost-net-pv"))
        .env("NOTIFY_SOCKET", folder.path().join("notify"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .spawn()
        .unwrap();
    let program = Program(child);
    hears("READY=1\nSTATUS=no front-end");
    for _ in 0..2 {
        let shared = Shared::new();
        let mut front_end = FrontEnd::connect(&socket, &shared);
        front_end.start();
        front_end.give_buffers(1);
        front_end.send_frame(&[1; 60]);
        assert_eq!(front_end.receive_frame(), [1; 60]);
        hears("STATUS=front-end connected");
        drop(front_end);
        hears("STATUS=no front-end");
    }
    assert!(program.end(Signal::SIGTERM).success());
    hears("STOPPING=1");
    assert!(socket.exists(), "the manager's socket was removed");
}

/// Starts the program with an open descriptor.
fn start_with_descriptor(socket: OwnedFd) -> Program {
    let child = Command::new("sh")
        .args(["-c", "exec \"$0\" --fd 3 --port loopback 3<&0 </dev/null"])
        .arg(env!("CARGO_BIN_EXE_vhost-net-pv"))
        .stdin(Stdio::from(socket))
        .spawn()
        .unwrap();
    Program(child)
}

fn exchange(mut front_end: FrontEnd<'_>) {
    front_end.start();
    front_end.give_buffers(1);
    front_end.send_frame(&[1; 60]);
    assert_eq!(front_end.receive_frame(), [1; 60]);
}

#[test]
fn a_descriptor_is_served_whether_it_listens_or_is_connected() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let program = start_with_descriptor(UnixListener::bind(&socket).unwrap().into());
    for _ in 0..2 {
        exchange(FrontEnd::connect(&socket, &Shared::new()));
    }
    assert!(program.end(Signal::SIGTERM).success());

    let (ours, theirs) = UnixStream::pair().unwrap();
    let mut program = start_with_descriptor(theirs.into());
    exchange(FrontEnd::new(ours, &Shared::new()));
    // There is no other front-end to wait for.
    assert!(program.0.wait().unwrap().success());
}

#[test]
fn the_units_command_line_is_taken_with_the_options_that_it_advises() {
    let unit = include_str!("../systemd/vhost-net-pv@.service");
    let after = |what: &str| unit.lines().find_map(|line| line.split_once(what)).unwrap().1;
    let options = after("OPTIONS=");
    let line = after("ExecStart=").replace("$OPTIONS", options);
    let cli = Cli::try_parse_from(line.split_whitespace()).unwrap();
    assert_eq!(cli.serve.port.tap.as_deref(), Some("vm0"));
    assert_eq!(cli.serve.port.queues, 2);
    assert!(cli.serve.socket.is_none() && cli.serve.fd.is_none(), "the socket is systemd's");
}
