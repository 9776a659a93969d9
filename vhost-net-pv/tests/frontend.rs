//! The backend against a front-end over a real socket, with a port that gives frames back.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flexvf_protocol::stats_page::{Counter, Direction, Header, Snapshot};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vhost::vhost_user::message::FrontendReq;
use vhost_net_pv::io::port::{Loopback, Port};
use vhost_net_pv::io::stats::{self, StatsPage};
use vhost_net_pv::logic::features::Offloads;
use vhost_net_pv::{Device, DeviceParts, FrontEnds, Stopper, Tuning};
use virtio_bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;

use common::testing::NEXT;
use common::{FrontEnd, Shared, TX_BUFFERS};

mod common;

/// What the backend does shows in the page within this, or a test fails.
const DEADLINE: Duration = Duration::from_secs(10);

/// A backend in a thread of this process.
struct Backend {
    folder: TempDir,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
}

impl Backend {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let stopper = Stopper::new().unwrap();
        let ports: Vec<Box<dyn Port>> = vec![Box::new(Loopback::new().unwrap())];
        let mut device = Device::new(DeviceParts {
            ports,
            offloads: Offloads::ALL,
            features: u64::MAX,
            tuning: Tuning::default(),
            stats: StatsPage::open(&folder.path().join("stats"), 1).unwrap(),
            set_mtu: Box::new(|mtu| match mtu {
                0..=9000 => Ok(()),
                _ => Err(std::io::ErrorKind::InvalidInput.into()),
            }),
        })
        .unwrap();
        let front_ends = FrontEnds::listen(&folder.path().join("socket")).unwrap();
        let stop = stopper.clone();
        let thread = std::thread::spawn(move || device.serve(front_ends, &stop).unwrap());
        Self { folder, stopper, thread: Some(thread) }
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    fn page(&self) -> Snapshot {
        stats::read(&self.folder.path().join("stats")).unwrap()
    }

    /// Waits until something shows in the page.
    fn until(&self, what: &str, shows: impl Fn(&Snapshot) -> bool) -> Snapshot {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let page = self.page();
            if shows(&page) {
                return page;
            }
            assert!(Instant::now() < deadline, "never happened: {what}");
            std::thread::yield_now();
        }
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn tx(page: &Snapshot, counter: Counter) -> u64 {
    page.total(Direction::Tx, counter)
}

fn rx(page: &Snapshot, counter: Counter) -> u64 {
    page.total(Direction::Rx, counter)
}

fn exchange(front_end: &mut FrontEnd<'_>, seed: u8) {
    front_end.give_buffers(1);
    let frame: Vec<u8> = (0..100).map(|at| at ^ seed).collect();
    front_end.send_frame(&frame);
    assert_eq!(front_end.receive_frame(), frame);
}

#[test]
fn a_front_end_that_behaves_like_qemu_gets_frames_through() {
    let backend = Backend::start();
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    front_end.give_buffers(8);
    for seed in 0..8 {
        let frame: Vec<u8> = (0..200).map(|at| at ^ seed).collect();
        front_end.send_frame(&frame);
        assert_eq!(front_end.receive_frame(), frame);
    }
    let page = backend.until("frames are counted", |page| rx(page, Counter::Frames) == 8);
    assert_eq!(tx(&page, Counter::Frames), 8);
    assert_eq!(tx(&page, Counter::Bytes), 8 * 200);
    assert_eq!(tx(&page, Counter::Segments), 8);
    assert_eq!(tx(&page, Counter::Size255), 8);
    assert_eq!(rx(&page, Counter::Bytes), 8 * 200);
    assert!(tx(&page, Counter::Kicks) >= 1);
    assert_eq!(page.header(Header::Connected), 1);
    drop(front_end);
    backend.until("the front-end is gone", |page| page.header(Header::Connected) == 0);
}

#[test]
fn a_malformed_chain_is_counted_and_the_next_frame_passes() {
    let backend = Backend::start();
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    front_end.tx.descriptor(40, TX_BUFFERS, 64, NEXT, 40);
    front_end.tx.offer_head(40);
    front_end.tx.offer_head(9999);
    front_end.kick(1);
    assert_eq!(front_end.wait_returned(1), (40, 0));
    assert_eq!(front_end.wait_returned(1), (9999, 0));
    exchange(&mut front_end, 1);
    let page = backend.until("frames are counted", |page| tx(page, Counter::Frames) == 1);
    assert_eq!(tx(&page, Counter::DropMalformed), 2);
}

#[test]
fn front_ends_come_and_go() {
    let backend = Backend::start();
    let shared = Shared::new();
    let mut open_files = 0;
    for round in 0..60u8 {
        let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
        match round % 4 {
            // Gone in the middle of a message, and before saying anything.
            1 => drop(front_end.send(FrontendReq::SET_FEATURES.into(), 0, &[1, 2], &[])),
            2 => {}
            _ => {
                front_end.start();
                exchange(&mut front_end, round);
            }
        }
        drop(front_end);
        backend.until("the front-end is gone", |page| {
            page.header(Header::Connected) == 0
                && page.header(Header::Connections) == u64::from(round) + 1
        });
        if round == 7 {
            open_files = count_open_files();
        }
    }
    // Other tests of this process open files, too, but not without end.
    assert!(count_open_files() < open_files + 60, "descriptors leak");
}

fn count_open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn a_breach_of_the_protocol_ends_the_connection_and_nothing_else() {
    let backend = Backend::start();
    let shared = Shared::new();
    let file = std::fs::File::open("/dev/null").unwrap();
    let plain = tempfile::tempfile().unwrap();
    let null = file.as_raw_fd();
    type Breach<'a> = (&'a str, u32, u32, Vec<u8>, Vec<i32>);
    let breaches: [Breach<'_>; 9] = [
        ("no such request", 4711, 0, vec![], vec![]),
        ("not offered", FrontendReq::POSTCOPY_ADVISE.into(), 0, vec![], vec![]),
        ("a reply", FrontendReq::GET_FEATURES.into(), 4, vec![], vec![]),
        ("wrong size", FrontendReq::SET_FEATURES.into(), 0, vec![0; 9], vec![]),
        ("far too long", FrontendReq::SET_MEM_TABLE.into(), 0, vec![0; 4000], vec![]),
        ("descriptors", FrontendReq::SET_FEATURES.into(), 0, vec![0; 8], vec![null; 3]),
        (
            "no such ring",
            FrontendReq::SET_VRING_NUM.into(),
            0,
            vec![9, 0, 0, 0, 64, 0, 0, 0],
            vec![],
        ),
        (
            "odd ring size",
            FrontendReq::SET_VRING_NUM.into(),
            0,
            vec![0, 0, 0, 0, 63, 0, 0, 0],
            vec![],
        ),
        (
            "a kick that cannot be waited for",
            FrontendReq::SET_VRING_KICK.into(),
            0,
            vec![0; 8],
            vec![plain.as_raw_fd()],
        ),
    ];
    for (count, (what, request, flags, payload, fds)) in breaches.iter().enumerate() {
        let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
        front_end.negotiate();
        front_end.send(*request, *flags, payload, fds).unwrap();
        assert!(front_end.reply().is_err(), "{what}: was answered");
        backend.until(what, |page| page.header(Header::Refused) == count as u64 + 1);
    }
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    exchange(&mut front_end, 1);
}

#[test]
fn qemus_special_messages_are_answered() {
    let backend = Backend::start();
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.negotiate();
    let ok = |answer: std::io::Result<u64>| assert_eq!(answer.unwrap(), 0);
    ok(front_end.ask(FrontendReq::NET_SET_MTU, &[9000], &[]));
    assert_eq!(
        front_end.ask(FrontendReq::NET_SET_MTU, &[9001], &[]).unwrap(),
        1,
        "an MTU that the port cannot have was promised"
    );
    ok(front_end.ask(FrontendReq::SET_STATUS, &[0x0f], &[]));
    assert_eq!(front_end.get(FrontendReq::GET_STATUS), 0x0f);
    front_end.share_memory();
    front_end.start_rings([0, 0]);
    let mac = u64::from_ne_bytes([0x52, 0x54, 0, 1, 2, 3, 0, 0]);
    front_end.give_buffers(1);
    ok(front_end.ask(FrontendReq::SEND_RARP, &[mac], &[]));
    // The port gives frames back once the worker looks at it.
    front_end.kick(0);
    let frame = front_end.receive_frame();
    assert_eq!(frame[..6], [0xff; 6]);
    assert_eq!(frame[6..12], [0x52, 0x54, 0, 1, 2, 3]);
}

#[test]
fn a_ring_goes_on_where_it_was_stopped() {
    let backend = Backend::start();
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    for seed in 0..3 {
        front_end.give_buffers(1);
        front_end.send_frame(&[seed; 64]);
        assert_eq!(front_end.receive_frame_at(seed.into()), [seed; 64]);
    }
    let bases = [front_end.stop_ring(0), front_end.stop_ring(1)];
    assert_eq!(bases, [3, 3]);
    front_end.send_frame(&[9; 64]);
    front_end.start_rings(bases);
    front_end.give_buffers(1);
    assert_eq!(front_end.receive_frame_at(3), [9; 64]);
}

#[test]
fn a_front_end_that_looked_too_early_gets_no_chain_back_twice() {
    let backend = Backend::start();
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    for seed in 0..3 {
        front_end.give_buffers(1);
        front_end.send_frame(&[seed; 64]);
        assert_eq!(front_end.receive_frame_at(seed.into()), [seed; 64]);
    }
    assert_eq!([front_end.stop_ring(0), front_end.stop_ring(1)], [3, 3]);
    front_end.start_rings([1, 2]);
    front_end.give_buffers(1);
    front_end.send_frame(&[9; 64]);
    assert_eq!(front_end.receive_frame_at(3), [9; 64]);
    assert_eq!([front_end.stop_ring(0), front_end.stop_ring(1)], [4, 4]);
}

#[test]
fn a_guest_that_may_have_missed_an_interrupt_gets_one_when_its_rings_start() {
    let backend = Backend::start();
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    let features = front_end.negotiate();
    assert_ne!(features & 1 << VIRTIO_RING_F_EVENT_IDX, 0);
    front_end.share_memory();
    for _kill in 0..2 {
        front_end.start_rings([0, 0]);
        // Asked last, and answered when all before is in force.
        front_end.get(FrontendReq::GET_FEATURES);
        // No chain has moved, so nothing else can be the reason; QEMU sends the descriptor last.
        for call in &front_end.calls {
            assert!(call.read().is_ok(), "a guest would wait for ever");
        }
        let bases = [front_end.stop_ring(0), front_end.stop_ring(1)];
        assert_eq!(bases, [0, 0]);
    }
}

#[test]
fn memory_may_come_as_one_table() {
    let backend = Backend::start();
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.negotiate();
    front_end.share_memory_as_table();
    front_end.start_rings([0, 0]);
    exchange(&mut front_end, 3);
}

#[test]
fn memory_cut_under_one_device_ends_no_connection_of_another_one() {
    vhost_net_pv::survive_cut_memory().unwrap();
    let backends = [Backend::start(), Backend::start()];
    let shared = [Shared::new(), Shared::new()];
    let [mut bad, mut good] =
        [0, 1].map(|at: usize| FrontEnd::connect(&backends[at].socket(), &shared[at]));
    bad.start();
    good.start();
    shared[0].cut(0);
    bad.kick(1);
    assert!(bad.reply().is_err(), "still served");
    exchange(&mut good, 1);
}

/// The program itself.
struct Program(Child);

impl Program {
    fn start(folder: &Path, role: &str, path: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_vhost-net-pv"))
            .args([role.as_ref(), path.as_os_str()])
            .args(["--port", "loopback", "--stats"])
            .arg(folder.join("stats"))
            .spawn()
            .unwrap();
        Self(child)
    }

    fn end(mut self) {
        let pid = Pid::from_raw(self.0.id().cast_signed());
        kill(pid, Signal::SIGTERM).unwrap();
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_program_ends_cleanly_at_sigterm_while_a_front_end_is_connected() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let program = Program::start(folder.path(), "--socket", &socket);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&socket, &shared);
    front_end.start();
    exchange(&mut front_end, 1);
    program.end();
    assert!(!socket.exists(), "the socket was left behind");
    let page = stats::read(&folder.path().join("stats")).unwrap();
    assert_eq!(page.header(Header::Pid), 0);
    assert_eq!(page.header(Header::Connected), 0);
    assert_eq!(tx(&page, Counter::Frames), 1);
}

#[test]
fn the_program_connects_to_a_front_end_again_and_again() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let program = Program::start(folder.path(), "--connect", &socket);
    let shared = Shared::new();
    for seed in 0..3 {
        let (stream, _) = listener.accept().unwrap();
        let mut front_end = FrontEnd::new(stream, &shared);
        front_end.start();
        exchange(&mut front_end, seed);
    }
    program.end();
}
