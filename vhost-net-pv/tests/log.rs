//! Dirty logging over a real socket: a front-end that migrates its guest loses no page.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

use flexvf_protocol::stats_page::Header;
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::FrontendReq;
use vm_memory::{Bytes, GuestAddress};

use common::log::{Log, PAGE, USED_LOGS};
use common::testing::WRITE;
use common::{FrontEnd, LOG_ALL, RX_BUFFER, RX_BUFFERS, Shared, exchange};
use program::Backend;

mod common;
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

/// What a migration does: takes marks and copies pages, while frames arrive.
#[test]
fn a_copy_made_by_the_marks_equals_the_memory() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    let log = Log::new();
    front_end.log_on(&log);
    let copy = Shared::new();
    let done = AtomicBool::new(false);
    let migrate = || {
        for page in log.take().range(..0x110) {
            let address = GuestAddress(page * PAGE);
            let mut bytes = [0; PAGE as usize];
            shared.memory.read_slice(&mut bytes, address).unwrap();
            copy.memory.write_slice(&bytes, address).unwrap();
        }
    };
    let buffers = || [&shared, &copy].map(|side| side.get(RX_BUFFERS, 64 * RX_BUFFER as usize));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                migrate();
            }
        });
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
        done.store(true, Ordering::Relaxed);
    });
    // As at the end of a migration: the rings are stopped, then the last marks are taken.
    front_end.stop_ring(0);
    front_end.stop_ring(1);
    migrate();
    let [memory, copied] = buffers();
    assert!(memory.iter().any(|byte| *byte != 0));
    assert!(memory == copied, "a page was written behind its mark");
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
