//! What the program says of a start that cannot work, and of a front-end that is not there yet.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::process::{Command, Output, Stdio};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nix::unistd::{dup, mkfifo};
use vhost::vhost_user::message::FrontendReq;
use vhost_net_pv::io::netdev::Netdev;
use vhost_net_pv::io::port::{IoMethod, Port, Tap, TapOptions};

use common::{FrontEnd, Shared};
use namespace::{in_namespace, ip};
use program::{Backend, Program};

mod common;
mod namespace;
mod program;

const NOBODY: u32 = 65_534;

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vhost-net-pv")).args(arguments).output().unwrap()
}

fn complaint(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(!output.status.success(), "{arguments:?} succeeded");
    String::from_utf8(output.stderr).unwrap()
}

/// The same descriptor, which programs that are started inherit.
fn handed_on(fd: impl AsFd) -> OwnedFd {
    dup(fd).unwrap()
}

fn taps(name: &str, queues: usize) -> Vec<Tap> {
    Tap::open(&TapOptions { name: name.to_owned(), queues, io: IoMethod::Plain }).unwrap()
}

fn descriptor(tap: &Tap) -> BorrowedFd<'_> {
    tap.readiness().unwrap()
}

#[test]
fn a_front_end_that_nobody_could_ever_reach_is_told_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("no/socket");
    let said = complaint(&["--connect", missing.to_str().unwrap(), "--port", "null"]);
    assert!(said.contains("--connect") && said.contains("No such file"), "{said}");
    let long = folder.path().join("x".repeat(120));
    let said = complaint(&["--connect", long.to_str().unwrap(), "--port", "null"]);
    assert!(said.contains("name too long"), "{said}");
}

#[test]
fn a_front_end_that_is_not_there_yet_is_told_once_for_each_reason() {
    let backend = Backend::start_connecting(&["--port", "null"]);
    let told = || backend.log().matches("still trying").count();
    backend.until("its absence is told", || told() == 1);
    // There now, and nobody listens.
    drop(UnixListener::bind(backend.socket()).unwrap());
    backend.until("the next reason is told", || backend.log().contains("refused"));
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert_eq!(told(), 2, "{}", backend.log());
    fs::remove_file(backend.socket()).unwrap();
    let _front_end = UnixListener::bind(backend.socket()).unwrap();
    backend.until("it connects", || backend.log().contains("front-end connected"));
    assert!(backend.end());
}

#[test]
fn descriptors_that_are_no_front_ends_are_refused() {
    let file = handed_on(File::open("/dev/null").unwrap());
    let datagrams = handed_on(UnixDatagram::unbound().unwrap());
    let internet = handed_on(std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let unconnected =
        socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).unwrap();
    for fd in [&file, &datagrams, &internet, &unconnected] {
        let said = complaint(&["--fd", &fd.as_raw_fd().to_string(), "--port", "null"]);
        assert!(said.contains("not a stream socket"), "{said}");
    }
    for number in ["1", "999"] {
        let said = complaint(&["--fd", number, "--port", "null"]);
        assert!(said.contains(&format!("descriptor {number} was not passed")), "{said}");
    }
    let (end, _other) = UnixStream::pair().unwrap();
    let end = handed_on(end);
    let number = end.as_raw_fd().to_string();
    let said = complaint(&["--fd", &number, "--tap-fd", &number]);
    assert!(said.contains("given twice"), "{said}");
}

#[test]
fn descriptors_that_are_not_the_queues_of_one_tap_are_refused() {
    in_namespace(|| {
        let (one, other) = (taps("one", 1), taps("other", 1));
        let first = handed_on(descriptor(&one[0]));
        let again = handed_on(descriptor(&one[0]));
        let second = handed_on(descriptor(&other[0]));
        let told = |with: &OwnedFd| {
            let numbers = format!("{},{}", first.as_raw_fd(), with.as_raw_fd());
            complaint(&["--tap-fd", &numbers, "--socket", "/nonexistent/socket"])
        };
        assert!(told(&second).contains("two interfaces, one and other"), "{}", told(&second));
        assert!(told(&again).contains("one has one queue"), "{}", told(&again));
        assert!(told(&first).contains("given twice"), "{}", told(&first));
    });
}

#[test]
fn an_mtu_that_a_tap_given_as_descriptor_does_not_carry_is_refused() {
    in_namespace(|| {
        let tap = taps("given", 1).remove(0);
        Netdev::new().unwrap().up("given").unwrap();
        let given = handed_on(descriptor(&tap));
        let number = given.as_raw_fd().to_string();
        let backend = Backend::start_with(&["--tap-fd", &number]);
        let shared = Shared::new();
        let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
        front_end.negotiate();
        let mut promise = |mtu| front_end.ask(FrontendReq::NET_SET_MTU, &[mtu], &[]).unwrap();
        assert_eq!(promise(1500), 0);
        assert_eq!(promise(9000), 1);
        assert!(backend.log().contains("given has an MTU of 1500"), "{}", backend.log());
        ip("link set given mtu 9000");
        assert_eq!(promise(9000), 0);
        ip("link set given name elsewhere");
        assert_eq!(promise(9001), 0);
        assert!(backend.log().contains("not known"), "{}", backend.log());
        assert!(backend.end());
    });
}

#[test]
fn a_fifo_is_no_stats_page_and_nothing_waits_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fifo");
    mkfifo(&path, Mode::S_IRWXU).unwrap();
    let path = path.to_str().unwrap();
    assert!(complaint(&["stats", path]).contains("not a stats page"));
    let said = complaint(&["--socket", "/nonexistent/s", "--port", "null", "--stats", path]);
    assert!(said.contains(path), "{said}");
}

fn have_own_mounts() {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).unwrap();
}

#[test]
fn a_tap_with_queues_is_for_one_backend() {
    in_namespace(|| {
        have_own_mounts();
        // So that it shows the interfaces of this namespace.
        mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::empty(), None::<&str>).unwrap();
        ip("tuntap add many mode tap multi_queue");
        let first = Backend::start_with(&["--tap", "many"]);
        let said = complaint(&["--tap", "many", "--socket", "/nonexistent/socket"]);
        assert!(said.contains("another program holds it"), "{said}");
        assert!(first.end());
        assert!(Backend::start_with(&["--tap", "many", "--queues", "2"]).end());
    });
}

#[test]
fn a_tap_that_was_made_for_a_user_needs_no_privilege_once_it_is_up() {
    in_namespace(|| {
        ip(&format!("tuntap add own mode tap user {NOBODY}"));
        let folder = tempfile::tempdir().unwrap();
        // Open to all, as it is everywhere but in a few containers.
        have_own_mounts();
        let (device, open) = (folder.path().join("tun"), Mode::from_bits_truncate(0o666));
        mknod(&device, SFlag::S_IFCHR, open, makedev(10, 200)).unwrap();
        fs::set_permissions(&device, fs::Permissions::from_mode(0o666)).unwrap();
        mount(Some(&device), "/dev/net/tun", None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
        chown(folder.path(), Some(NOBODY), None).unwrap();
        // By descriptor, since the build's folder may be closed to others.
        let file = File::open(env!("CARGO_BIN_EXE_vhost-net-pv")).unwrap();
        let program = format!("/proc/self/fd/{}", file.as_raw_fd());
        let socket = folder.path().join("socket");
        let start = || {
            let mut command = Command::new(&program);
            command.args(["--tap", "own", "--socket"]).arg(&socket).uid(NOBODY).gid(NOBODY);
            command.stderr(Stdio::piped()).spawn().unwrap()
        };
        let output = start().wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("cannot set up own") && said.contains("done before"), "{said}");
        ip("link set own up");
        let started = Program(start());
        common::connect(&socket);
        assert!(started.end(Signal::SIGTERM).success());
    });
}

#[test]
fn a_tap_that_is_deleted_ends_the_program_with_an_error() {
    in_namespace(|| {
        let mut backend = Backend::start_with(&["--tap", "brief"]);
        ip("link del brief");
        assert_eq!(backend.exit_code(), Some(1));
        assert!(backend.log().contains("was deleted"), "{}", backend.log());
        assert!(!backend.socket().exists(), "the socket was left behind");
    });
}

#[test]
fn a_stats_page_that_is_cut_ends_nothing_and_is_told() {
    let backend = Backend::start("loopback", 1);
    let path = backend.folder().join("stats");
    File::options().write(true).open(&path).unwrap().set_len(0).unwrap();
    let shared = Shared::new();
    for _ in 0..2 {
        let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
        front_end.start();
        common::exchange(&mut front_end, 1);
    }
    backend.until("it is told", || backend.log().contains("stats page was cut"));
    assert!(backend.end());
}

#[test]
fn bridges_that_cannot_be_used_are_told_by_name() {
    in_namespace(|| {
        ip("link add br0 type bridge");
        ip("link add br1 type bridge");
        ip("tuntap add port mode tap");
        ip("link set port master br1");
        let told = |tap, bridge| complaint(&["--socket", "/x/s", "--tap", tap, "--bridge", bridge]);
        assert!(
            told("port", "br0").contains("port is a port of another"),
            "{}",
            told("port", "br0")
        );
        assert!(told("new", "lo").contains("lo is no bridge"), "{}", told("new", "lo"));
        assert!(told("new", "br7").contains("no interface br7"), "{}", told("new", "br7"));
    });
}
