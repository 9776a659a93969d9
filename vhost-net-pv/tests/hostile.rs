//! Front-ends that mean harm, against the program itself: it refuses them and serves the next one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use flexvf_protocol::stats_page::Header;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vhost::vhost_user::message::FrontendReq;

use common::log::Log;
use common::testing::BASE;
use common::{FrontEnd, MEMORY, RX_BUFFERS, Shared, USER_ADDRESS};
use program::Backend;

mod common;
mod program;

/// Rounds before what is to stay flat is measured first: by then every lazy allocation was made.
const WARM_UP: u32 = 100;
const NEED_REPLY: u32 = 8;

fn exchange(front_end: &mut FrontEnd<'_>, seed: u8) {
    front_end.give_buffers(1);
    let frame: Vec<u8> = (0..100).map(|at| at ^ seed).collect();
    front_end.send_frame(&frame);
    assert_eq!(front_end.receive_frame(), frame);
}

/// An honest front-end is served, after all.
fn serves(backend: &Backend) {
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    let frame = [0x77; 77];
    front_end.send_frame(&frame);
    // What an earlier guest had sent is still in the network.
    let arrived = (0..1000).any(|_| {
        front_end.give_buffers(1);
        let (_, bytes) = front_end.wait_returned(0);
        front_end.rx.get(RX_BUFFERS, bytes as usize).ends_with(&frame)
    });
    assert!(arrived, "the frame was lost");
}

fn gone(backend: &Backend) {
    backend.until("the front-end is gone", || backend.page().header(Header::Connected) == 0);
}

fn refused(backend: &Backend) -> u64 {
    backend.page().header(Header::Refused)
}

/// What a process could leak.
#[derive(Debug, PartialEq)]
struct Held {
    files: usize,
    mappings: usize,
}

/// What it holds for none of the front-ends that came so far, the last of which it may only now see.
fn held(backend: &Backend) -> Held {
    serves(backend);
    gone(backend);
    Held { files: backend.open_files(), mappings: backend.mappings() }
}

/// Does something many times over and finds nothing held in the end that was not held before.
fn stays_flat(backend: &Backend, rounds: u32, mut round: impl FnMut(u32)) {
    (0..WARM_UP).for_each(&mut round);
    let (held_before, kib_before) = (held(backend), backend.resident_kib());
    (0..rounds).for_each(&mut round);
    assert_eq!(held(backend), held_before);
    let grown_kib = backend.resident_kib().saturating_sub(kib_before);
    // One page a round would be 4,000 KiB.
    assert!(grown_kib < 512, "grew by {grown_kib} KiB in {rounds} rounds");
}

#[test]
fn memory_cut_before_the_rings_run_ends_that_connection_only() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.negotiate();
    front_end.share_memory();
    shared.cut(0);
    // Hung up on somewhere in the middle of it.
    let _ = front_end.try_start_rings([0, 0]);
    assert!(front_end.reply().is_err(), "still served");
    backend.until("it is refused", || refused(&backend) == 1);
    serves(&backend);
    assert!(backend.end());
}

#[test]
fn memory_cut_amid_traffic_ends_that_connection_only() {
    let backend = Backend::start("loopback", 1);
    let mut before = None;
    for round in 0..60u64 {
        let shared = Shared::new();
        let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
        front_end.start();
        front_end.give_buffers(32);
        for _ in 0..32 {
            front_end.send_frame(&[round as u8; 1400]);
        }
        // From an instant's to a whole batch's time later; the frames' buffers, or everything.
        for _ in 0..(round % 10) * 20 {
            std::thread::yield_now();
        }
        shared.cut([0x2_0000, 0x8_0000, 0][round as usize % 3]);
        front_end.kick(0);
        front_end.kick(1);
        shared.cut(0);
        front_end.kick(1);
        assert!(front_end.reply().is_err(), "round {round}: still served");
        drop(front_end);
        backend.until("it is refused", || refused(&backend) == round + 1);
        before.get_or_insert_with(|| held(&backend));
    }
    assert_eq!(Some(held(&backend)), before);
    serves(&backend);
    assert!(backend.end());
}

#[test]
fn a_dirty_log_cut_in_a_migration_ends_that_connection_only() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    let log = Log::new();
    front_end.log_on(&log);
    exchange(&mut front_end, 1);
    nix::unistd::ftruncate(&log.file, 0).unwrap();
    front_end.send_frame(&[2; 60]);
    assert!(front_end.reply().is_err(), "still served");
    backend.until("it is refused", || refused(&backend) == 1);
    serves(&backend);
    assert!(backend.end());
}

#[test]
fn a_thousand_reconnects_leave_nothing_behind() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    stays_flat(&backend, 1000, |round| {
        let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
        front_end.start();
        exchange(&mut front_end, round as u8);
    });
    assert_eq!(refused(&backend), 0);
    assert!(backend.end());
}

#[test]
fn a_thousand_connections_aborted_in_mid_message_leave_nothing_behind() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let event = nix::sys::eventfd::EventFd::new().unwrap();
    let files = [shared.descriptor(), event.as_raw_fd(), shared.descriptor(), event.as_raw_fd()];
    stays_flat(&backend, 1000, |round| {
        let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
        if round % 2 == 0 {
            front_end.negotiate();
            front_end.share_memory();
        }
        let fds = &files[..round as usize % 5];
        match round % 7 {
            // Less than a head, heads without what they announce, and too much of everything.
            0 => send_raw(&front_end.stream, &[5, 0, 0, 0, 1, 0], fds),
            1 => send_head(&front_end.stream, FrontendReq::SET_MEM_TABLE, 8 + 4 * 32, fds),
            2 => send_head(&front_end.stream, FrontendReq::ADD_MEM_REG, 40, fds),
            3 => send_head(&front_end.stream, FrontendReq::SET_VRING_CALL, 8, fds),
            4 => send_head(&front_end.stream, FrontendReq::SET_FEATURES, u32::MAX, fds),
            5 => send_raw(&front_end.stream, &[0; 12], &[files[0]; 32]),
            _ => send_raw(&front_end.stream, &[0; 12], &[files[0]; 200]),
        }
    });
    serves(&backend);
    assert!(backend.end());
}

fn send_head(stream: &UnixStream, request: FrontendReq, size: u32, fds: &[RawFd]) {
    send_raw(stream, &head(request, size), fds);
}

fn head(request: FrontendReq, size: u32) -> Vec<u8> {
    [u32::from(request), 1 | NEED_REPLY, size].iter().flat_map(|word| word.to_ne_bytes()).collect()
}

fn send_raw(stream: &UnixStream, bytes: &[u8], fds: &[RawFd]) {
    use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[_] = if fds.is_empty() { &[] } else { &rights };
    let vectors = [io::IoSlice::new(bytes)];
    sendmsg::<()>(stream.as_raw_fd(), &vectors, control, MsgFlags::MSG_NOSIGNAL, None).unwrap();
}

#[test]
fn ten_thousand_changes_of_memory_under_running_rings_leave_nothing_behind() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let file = shared.descriptor();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    // Far away from the memory that the rings are in.
    let spare = [0, 1 << 40, MEMORY, 1 << 45, 0];
    let change = |front_end: &mut FrontEnd<'_>, round: u32| {
        let (request, words) = match round % 3 {
            0 => (FrontendReq::ADD_MEM_REG, &spare[..]),
            1 => (FrontendReq::REM_MEM_REG, &spare[..]),
            _ => (FrontendReq::SET_MEM_TABLE, &[1, BASE, MEMORY, USER_ADDRESS, 0][..]),
        };
        assert_eq!(front_end.ask(request, words, &[file]).unwrap(), 0, "{request:?}");
    };
    (0..99).for_each(|round| change(&mut front_end, round));
    let before = (backend.open_files(), backend.mappings(), backend.resident_kib());
    (0..9_999).for_each(|round| change(&mut front_end, round));
    let after = (backend.open_files(), backend.mappings(), backend.resident_kib());
    assert_eq!((after.0, after.1), (before.0, before.1));
    assert!(after.2 < before.2 + 512, "grew from {} to {} KiB", before.2, after.2);
    exchange(&mut front_end, 3);
    assert_eq!(refused(&backend), 0);
}

#[test]
fn memory_that_cannot_be_is_refused() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let memory = shared.descriptor();
    let null = File::open("/dev/null").unwrap();
    let (pipe, _pipe_end) = nix::unistd::pipe().unwrap();
    let read_only = File::open("/proc/self/exe").unwrap();
    let top = u64::MAX - MEMORY + 1;
    type Region = [u64; 4];
    const GOOD: Region = [BASE, MEMORY, USER_ADDRESS, 0];
    let tables: &[(&str, Vec<Region>, RawFd)] = &[
        ("of no bytes", vec![[BASE, 0, USER_ADDRESS, 0]], memory),
        ("a wrapping guest address", vec![[top, MEMORY, USER_ADDRESS, 0]], memory),
        ("a wrapping user address", vec![[BASE, MEMORY, top, 0]], memory),
        ("a wrapping offset", vec![[BASE, MEMORY, USER_ADDRESS, top]], memory),
        ("a misaligned offset", vec![[BASE, 4096, USER_ADDRESS, 17]], memory),
        ("beyond the file", vec![[BASE, MEMORY, USER_ADDRESS, 4096]], memory),
        ("everything there is", vec![[0, u64::MAX, 0, 0]], memory),
        ("overlapping", vec![GOOD, [BASE + 4096, 4096, 1 << 20, 0]], memory),
        ("twice the same", vec![GOOD, GOOD], memory),
        ("of a device without memory", vec![GOOD], null.as_raw_fd()),
        ("of a pipe", vec![GOOD], pipe.as_raw_fd()),
        ("that cannot be written", vec![[BASE, 4096, USER_ADDRESS, 0]], read_only.as_raw_fd()),
    ];
    for (count, (what, regions, file)) in tables.iter().enumerate() {
        let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
        front_end.negotiate();
        let mut words = vec![regions.len() as u64];
        words.extend(regions.iter().flatten());
        let files = vec![*file; regions.len()];
        let taken = front_end.ask(FrontendReq::SET_MEM_TABLE, &words, &files);
        assert!(!matches!(taken, Ok(0)), "{what}: taken");
        assert!(front_end.reply().is_err(), "{what}: still served");
        backend.until(what, || refused(&backend) == count as u64 + 1);
    }
    serves(&backend);
    assert!(backend.end());
}

#[test]
fn rings_take_no_descriptors_but_eventfds() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let (pipe, pipe_end) = nix::unistd::pipe().unwrap();
    let (socket, _socket_end) = UnixStream::pair().unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let files: [(&str, &dyn AsRawFd); 5] = [
        ("a pipe", &pipe),
        ("a pipe's other end", &pipe_end),
        ("a socket", &socket),
        ("a device", &null),
        ("memory", &shared.descriptor()),
    ];
    let mut count = 0;
    for (what, file) in files {
        for request in [FrontendReq::SET_VRING_KICK, FrontendReq::SET_VRING_CALL] {
            let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
            front_end.start();
            let taken = front_end.ask(request, &[0], &[file.as_raw_fd()]);
            assert!(!matches!(taken, Ok(0)), "{what} was taken for {request:?}");
            count += 1;
            backend.until(what, || refused(&backend) == count);
        }
    }
    serves(&backend);
    assert!(backend.end());
}

#[test]
fn an_interrupt_that_waits_for_its_reader_does_not_hold_the_program_up() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    let call = front_end.calls[1].as_fd().try_clone_to_owned().unwrap();
    make_writers_wait(&call);
    front_end.send_frame(&[1; 60]);
    // Returned just before the interrupt that nobody takes.
    front_end.wait_returned(1);
    assert_eq!(front_end.stop_ring(1), 1);
    make_writers_wait(&call);
    drop(front_end);
    gone(&backend);
    serves(&backend);
    assert!(backend.end());
}

/// Does to an eventfd what only an enemy would: no write to it returns before somebody reads it.
fn make_writers_wait(event: &OwnedFd) {
    let flags = OFlag::from_bits_retain(fcntl(event, FcntlArg::F_GETFL).unwrap());
    fcntl(event, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK)).unwrap();
    let _ = nix::unistd::read(event, &mut [0; 8]);
    nix::unistd::write(event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
    fcntl(event, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK)).unwrap();
}

#[test]
fn a_message_that_trickles_in_is_cut_off_as_one_that_stops() {
    const LONGEST: Duration = Duration::from_secs(20);
    let backend = Backend::start("loopback", 1);
    let began = Instant::now();
    let mut stream = UnixStream::connect(backend.socket()).unwrap();
    stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    send_head(&stream, FrontendReq::SET_MEM_TABLE, 8 + 32 * 32, &[]);
    // Each byte comes long before a reader would lose its patience with the next one.
    let ended = loop {
        use std::io::Write;
        if stream.write_all(&[0]).is_err() {
            break true;
        }
        match stream.read(&mut [0]) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            _ => break true,
        }
        if began.elapsed() > LONGEST {
            break false;
        }
    };
    assert!(ended, "still waited for after {LONGEST:?}");
    backend.until("it is refused", || refused(&backend) == 1);
    serves(&backend);
    assert!(backend.end());
}

#[test]
fn replies_that_nobody_reads_end_the_connection_and_hold_nothing_up() {
    let backend = Backend::start("null", 1);
    let deaf = || {
        let stream = common::connect(&backend.socket());
        stream.set_nonblocking(true).unwrap();
        let question = head(FrontendReq::GET_FEATURES, 0);
        let mut taken = Instant::now();
        while taken.elapsed() < Duration::from_millis(300) {
            match io::Write::write(&mut &stream, &question) {
                Ok(_) => taken = Instant::now(),
                Err(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
        stream
    };
    let began = Instant::now();
    let first = deaf();
    backend.until("it is refused", || refused(&backend) == 1);
    assert!(began.elapsed() > Duration::from_secs(4), "after {:?}", began.elapsed());
    assert!(backend.log().contains("took no reply"), "{}", backend.log());
    drop(first);
    let _second = deaf();
    backend.until("its questions stay", || backend.page().header(Header::Connected) == 1);
    std::thread::sleep(Duration::from_millis(200));
    let began = Instant::now();
    assert!(backend.end());
    assert!(began.elapsed() < Duration::from_secs(2), "the end took {:?}", began.elapsed());
}
