//! What the program says of a start that cannot work, and of a front-end that is not there yet.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::{Command, Output};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;
use nix::unistd::{dup, mkfifo};
use vhost::vhost_user::message::FrontendReq;
use vhost_net_pv::io::netdev::Netdev;
use vhost_net_pv::io::port::{IoMethod, Port, Tap, TapOptions};

use common::{FrontEnd, Shared};
use namespace::{in_namespace, ip};
use program::Backend;

mod common;
mod namespace;
mod program;

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
    std::fs::remove_file(backend.socket()).unwrap();
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
