//! Dirty logging over a real socket: a front-end that migrates its guest loses no page.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, RawFd};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use flexvf_protocol::stats_page::Header;
use nix::sys::memfd::{MFdFlags, memfd_create};
use tempfile::TempDir;
use vhost::vhost_user::message::FrontendReq;
use vhost_net_pv::io::port::{IoMethod, Port, Tap, TapOptions};
use vhost_net_pv::io::stats::StatsPage;
use vhost_net_pv::{Device, DeviceParts, FrontEnds, Stopper, Tuning};
use vm_memory::{Bytes, GuestAddress};

use common::log::{Log, PAGE, USED_LOGS};
use common::testing::WRITE;
use common::{FrontEnd, LOG_ALL, RX_BUFFER, RX_BUFFERS, Raise, Shared, exchange};
use namespace::{in_namespace, ip};
use program::Backend;

mod common;
mod namespace;
mod program;

/// Pages of both used rings, as logged.
fn used_rings() -> BTreeSet<u64> {
    USED_LOGS.iter().map(|address| address / PAGE).collect()
}

/// Everything of the backend's that is not answered by itself is over.
fn settle(front_end: &mut FrontEnd<'_>) {
    // The workers take a ring's interrupt descriptor only between two turns.
    for ring in 0..2 {
        front_end.set_call(ring);
    }
}

#[test]
fn pages_are_marked_while_logging_and_only_then() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    let log = Log::new();
    front_end.set_log(&log).unwrap();
    exchange(&mut front_end, 1);
    settle(&mut front_end);
    assert_eq!(log.take(), BTreeSet::new(), "marked before it was asked for");

    front_end.log_on(&log);
    log.take();
    // The second buffer of the second page, and all of the third.
    front_end.rx.offer(&[(RX_BUFFERS + PAGE + 2048, 2048), (RX_BUFFERS + 2 * PAGE, 4096)], WRITE);
    front_end.kick(0);
    front_end.send_frame(&[7; 3000]);
    front_end.wait_returned(0);
    settle(&mut front_end);
    let first = RX_BUFFERS / PAGE;
    let mut expected = used_rings();
    expected.extend([first + 1, first + 2]);
    assert_eq!(log.take(), expected);

    front_end.log_off();
    log.take();
    exchange(&mut front_end, 3);
    settle(&mut front_end);
    assert_eq!(log.take(), BTreeSet::new(), "marked after the end");
}

#[test]
fn rings_go_on_where_they_are_when_logging_is_switched() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    let logs = [Log::new(), Log::new()];
    for round in 0..60u8 {
        for seed in 0..4 {
            front_end.send_frame_in(usize::from(seed), &[round ^ seed; 100]);
        }
        // Switched with frames on their way, and with none that could be delivered.
        match round % 3 {
            0 => front_end.log_on(&logs[usize::from(round % 2)]),
            1 => front_end.log_off(),
            _ => {}
        }
        front_end.give_buffers_at(4 * u64::from(round), 4);
        for seed in 0..4 {
            let turn = 4 * u64::from(round) + u64::from(seed);
            assert_eq!(front_end.receive_frame_of(turn), [round ^ seed; 100]);
        }
    }
    let bases = [front_end.stop_ring(0), front_end.stop_ring(1)];
    assert_eq!(bases, [240, 240]);
}

/// A migration in progress: takes marks and copies pages.
struct Migration<'m> {
    log: Log,
    shared: &'m Shared,
    copy: Shared,
}

impl<'m> Migration<'m> {
    fn begin(front_end: &mut FrontEnd<'_>, shared: &'m Shared) -> Self {
        let log = Log::new();
        front_end.log_on(&log);
        Self { log, shared, copy: Shared::new() }
    }

    fn go_on(&self) {
        for page in self.log.take().range(..0x110) {
            let address = GuestAddress(page * PAGE);
            let mut bytes = [0; PAGE as usize];
            self.shared.memory.read_slice(&mut bytes, address).unwrap();
            self.copy.memory.write_slice(&bytes, address).unwrap();
        }
    }

    /// Goes on all the time while something else happens.
    fn meanwhile(&self, happens: impl FnOnce()) {
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    self.go_on();
                }
            });
            let _done_also_by_panic = Raise(&done);
            happens();
        });
    }

    /// As QEMU does it: the rings are stopped, then the last marks are taken.
    fn end(self, front_end: &mut FrontEnd<'_>) {
        front_end.stop_ring(0);
        front_end.stop_ring(1);
        self.go_on();
        let buffers = |side: &Shared| side.get(RX_BUFFERS, 64 * RX_BUFFER as usize);
        let memory = buffers(self.shared);
        assert!(memory.iter().any(|byte| *byte != 0));
        assert!(memory == buffers(&self.copy), "a page was written behind its mark");
    }
}

#[test]
fn a_copy_made_by_the_marks_equals_the_memory() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    let migration = Migration::begin(&mut front_end, &shared);
    migration.meanwhile(|| {
        let mut turn = 0;
        for round in 0..400u64 {
            let frames = 1 + round % 8;
            for seed in 0..frames {
                let frame = [(round * 8 + seed) as u8; 1500];
                front_end.send_frame_in(seed as usize, &frame);
            }
            front_end.give_buffers_at(turn, frames);
            for _ in 0..frames {
                front_end.wait_returned(0);
            }
            turn += frames;
        }
    });
    migration.end(&mut front_end);
}

/// A device on a TAP, in threads of this process.
struct TapDevice {
    socket: PathBuf,
    stopper: Stopper,
    thread: Option<JoinHandle<()>>,
    _folder: TempDir,
}

impl TapDevice {
    fn start(name: &str, io: IoMethod) -> Self {
        let taps = Tap::open(&TapOptions { name: name.to_owned(), queues: 1, io }).unwrap();
        let mut device = Device::new(DeviceParts {
            offloads: taps[0].supported_offloads(),
            ports: taps.into_iter().map(|tap| Box::new(tap) as Box<dyn Port>).collect(),
            features: u64::MAX,
            tuning: Tuning::default(),
            stats: StatsPage::private(1).unwrap(),
            set_mtu: Box::new(|_| Ok(())),
        })
        .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let front_ends = FrontEnds::listen(&socket).unwrap();
        let stopper = Stopper::new().unwrap();
        let stop = stopper.clone();
        let thread = std::thread::spawn(move || device.serve(front_ends, &stop).unwrap());
        Self { socket, stopper, thread: Some(thread), _folder: folder }
    }
}

impl Drop for TapDevice {
    fn drop(&mut self) {
        self.stopper.stop();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn the_kernel_writes_to_no_page_that_is_not_marked() {
    for (name, io) in [("tap-uring", IoMethod::Auto), ("tap-plain", IoMethod::Plain)] {
        in_namespace(move || {
            let device = TapDevice::start(name, io);
            ip(&format!("addr add 10.77.0.1/24 broadcast 10.77.0.255 dev {name}"));
            ip(&format!("link set {name} up"));
            let host = UdpSocket::bind("10.77.0.1:0").unwrap();
            host.set_broadcast(true).unwrap();
            let shared = Shared::new();
            let mut front_end = FrontEnd::connect(&device.socket, &shared);
            front_end.start();
            let migration = Migration::begin(&mut front_end, &shared);
            front_end.give_buffers_at(0, 48);
            migration.meanwhile(|| {
                for turn in 48..4000 {
                    // Several wait at once, so that they are read at once.
                    if turn % 8 == 0 {
                        for seed in 0..12u64 {
                            let frame = [(turn + seed) as u8; 1400];
                            host.send_to(&frame, "10.77.0.255:9").unwrap();
                        }
                    }
                    front_end.wait_returned(0);
                    front_end.give_buffers_at(turn, 1);
                }
            });
            migration.end(&mut front_end);
        });
    }
}

#[test]
fn a_log_that_is_cut_ends_the_connection_and_nothing_else() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    for round in 1..=5 {
        let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
        front_end.start();
        let log = Log::new();
        front_end.log_on(&log);
        is_served(&mut front_end);
        nix::unistd::ftruncate(&log.file, 0).unwrap();
        front_end.give_buffers(1);
        front_end.send_frame(&[1; 64]);
        assert!(front_end.reply().is_err(), "still served");
        drop(front_end);
        backend.until("it is refused", || backend.page().header(Header::Refused) == round);
    }
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    is_served(&mut front_end);
}

/// A frame gets through, behind those that an earlier guest has left in the network.
fn is_served(front_end: &mut FrontEnd<'_>) {
    let frame = [0x77; 77];
    front_end.send_frame(&frame);
    let arrived = (0..100).any(|_| {
        front_end.give_buffers(1);
        let (_, bytes) = front_end.wait_returned(0);
        front_end.rx.get(RX_BUFFERS, bytes as usize).ends_with(&frame)
    });
    assert!(arrived, "the frame was lost");
}

#[test]
fn a_region_added_while_logging_is_logged() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    let log = Log::new();
    front_end.log_on(&log);
    let added = 0x300 * PAGE;
    let file = memfd_create(c"more", MFdFlags::MFD_CLOEXEC).unwrap();
    nix::unistd::ftruncate(&file, 4 * PAGE.cast_signed()).unwrap();
    let region = [0, added, 4 * PAGE, 0x7e00_0000_0000, 0];
    let answer = front_end.ask(FrontendReq::ADD_MEM_REG, &region, &[file.as_raw_fd()]);
    assert_eq!(answer.unwrap(), 0);
    log.take();
    front_end.rx.offer(&[(added + PAGE, PAGE as usize)], WRITE);
    front_end.kick(0);
    front_end.send_frame(&[9; 500]);
    front_end.wait_returned(0);
    settle(&mut front_end);
    let mut expected = used_rings();
    expected.insert(0x301);
    assert_eq!(log.take(), expected);
}

#[test]
fn rings_wait_for_a_log_that_was_announced() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.negotiate();
    front_end.accepted |= LOG_ALL;
    front_end.tell(FrontendReq::SET_FEATURES, &[front_end.accepted], &[]);
    front_end.share_memory();
    let mut bases = [0, 0];
    for seed in 0..3 {
        // The guest's driver starts, in the middle of a migration.
        front_end.start_rings(bases);
        front_end.give_buffers(1);
        front_end.send_frame(&[seed; 64]);
        for _ in 0..20 {
            settle(&mut front_end);
        }
        assert_eq!(front_end.tx.returned(), [], "a ring ran without the log");
        let log = Log::new();
        front_end.set_log(&log).unwrap();
        assert_eq!(front_end.receive_frame_at(seed.into()), [seed; 64]);
        bases = [front_end.stop_ring(0), front_end.stop_ring(1)];
        front_end.tx.returned();
        let mut expected = used_rings();
        expected.insert(RX_BUFFERS / PAGE);
        assert_eq!(log.take(), expected);
    }
}

#[test]
fn a_bad_log_ends_the_connection_and_nothing_else() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let log = Log::new();
    let (pipe, _other_end) = nix::unistd::pipe().unwrap();
    let (good, pipe) = (log.file.as_raw_fd(), pipe.as_raw_fd());
    let bad: [(&str, [u64; 2], &[RawFd]); 8] = [
        ("no descriptor", [0x100, 0], &[]),
        ("two descriptors", [0x100, 0], &[good, good]),
        ("no memory", [0x100, 0], &[pipe]),
        ("empty", [0, 0], &[good]),
        ("longer than its file", [0x101, 0], &[good]),
        ("behind its file", [0x100, 4096], &[good]),
        ("not at a page", [0x10, 0x10], &[good]),
        ("an overflow", [u64::MAX, 2], &[good]),
    ];
    for (count, (what, words, fds)) in bad.iter().enumerate() {
        let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
        front_end.start();
        exchange(&mut front_end, count as u8);
        front_end.tell(FrontendReq::SET_LOG_BASE, words, fds);
        assert!(front_end.reply().is_err(), "{what}: was answered");
        drop(front_end);
        backend.until(what, || backend.page().header(Header::Refused) == count as u64 + 1);
    }
}

#[test]
fn logs_that_come_again_and_again_leave_nothing_behind() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    let notifier = Log::new();
    let mut open = 0;
    for round in 0..200 {
        front_end.log_on(&Log::new());
        front_end.tell(FrontendReq::SET_LOG_FD, &[], &[notifier.file.as_raw_fd()]);
        exchange(&mut front_end, round);
        if round == 10 {
            open = backend.open_files();
        }
    }
    assert_eq!(backend.open_files(), open);
    front_end.stop_ring(0);
    front_end.stop_ring(1);
    // The log that no ring uses any more; and each ring's kick and interrupt.
    backend.until("descriptors are closed", || backend.open_files() == open - 5);
}
