//! A real TAP in a network namespace of the test's own: counters agree with the kernel's.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use flexvf_protocol::stats_page::{Counter, Direction, Snapshot};
use vhost_net_pv::io::netdev::Netdev;
use vhost_net_pv::io::port::{IoMethod, Port, Tap, TapOptions};
use vhost_net_pv::io::stats::{self, StatsPage};
use vhost_net_pv::{Device, DeviceParts, FrontEnds, Stopper, Tuning};

use common::{FrontEnd, Shared, TX_BUFFERS};
use namespace::{in_namespace, ip};

mod common;
mod namespace;

const TAP: &str = "tap-test";
const DEADLINE: Duration = Duration::from_secs(10);

/// Packets and bytes that the kernel has had from (first) and given to (second) the TAP.
fn kernel_counters() -> [(u64, u64); 2] {
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    let line = text.lines().find(|line| line.contains(TAP)).unwrap();
    let (_, numbers) = line.split_once(':').unwrap();
    let numbers: Vec<u64> =
        numbers.split_whitespace().map(|number| number.parse().unwrap()).collect();
    [(numbers[1], numbers[0]), (numbers[9], numbers[8])]
}

fn until(path: &std::path::Path, what: &str, holds: impl Fn(&Snapshot) -> bool) -> Snapshot {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let page = stats::read(path).unwrap();
        if holds(&page) {
            return page;
        }
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::yield_now();
    }
}

#[test]
fn counters_agree_with_the_kernels_and_the_tap_goes_with_its_maker() {
    in_namespace(|| {
        let folder = tempfile::tempdir().unwrap();
        let page_path = folder.path().join("stats");
        let taps = Tap::open(&TapOptions { name: TAP.to_owned(), queues: 1, io: IoMethod::Uring })
            .unwrap();
        ip("link add br-test type bridge");
        let netdev = Netdev::new().unwrap();
        netdev.join_bridge(TAP, "br-test").unwrap();
        // Neighbour discovery would send frames that nobody asked for.
        std::fs::write("/proc/thread-self/net/../../sys/net/ipv6/conf/all/disable_ipv6", "1").ok();
        ip("link set br-test addrgenmode none");
        ip(&format!("link set {TAP} addrgenmode none"));
        ip("addr add 10.77.0.1/24 broadcast 10.77.0.255 dev br-test");
        netdev.up(TAP).unwrap();
        netdev.up("br-test").unwrap();

        let offloads = taps[0].supported_offloads();
        assert!(offloads.csum && offloads.tso4 && offloads.tso6);
        let ports = taps.into_iter().map(|tap| Box::new(tap) as Box<dyn Port>).collect();
        let mut device = Device::new(DeviceParts {
            ports,
            offloads,
            features: u64::MAX,
            tuning: Tuning::default(),
            stats: StatsPage::open(&page_path, 1).unwrap(),
            set_mtu: Box::new(|_| Ok(())),
        })
        .unwrap();
        let stopper = Stopper::new().unwrap();
        let socket = folder.path().join("socket");
        let front_ends = FrontEnds::listen(&socket).unwrap();
        let stop = stopper.clone();
        let thread = std::thread::spawn(move || {
            device.serve(front_ends, &stop).unwrap();
        });

        let shared = Shared::new();
        let mut front_end = FrontEnd::connect(&socket, &shared);
        front_end.start();
        exchange(&mut front_end, &page_path);

        drop(front_end);
        stopper.stop();
        thread.join().unwrap();
        assert!(!Netdev::exists(TAP), "the TAP is still there");
    });
}

fn exchange(front_end: &mut FrontEnd<'_>, page_path: &std::path::Path) {
    let [from_before, to_before] = kernel_counters();
    let start = stats::read(page_path).unwrap();
    let at_start = |direction, counter| start.total(direction, counter);

    let mut frame = [0; 1000];
    frame[..6].copy_from_slice(&[0xff; 6]);
    frame[6..14].copy_from_slice(&[2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    for _ in 0..100 {
        front_end.send_frame(&frame);
        front_end.wait_returned(1);
    }
    // Small and large ones in one batch.
    front_end.tx.put(TX_BUFFERS, &[0; 12]);
    front_end.tx.put(TX_BUFFERS + 12, &frame);
    for bytes in [60, 1000].repeat(25) {
        front_end.tx.offer(&[(TX_BUFFERS, 12 + bytes)], 0);
    }
    front_end.kick(1);
    (0..50).for_each(|_| assert_eq!(front_end.wait_returned(1).1, 0));
    // A checksum to be filled in far behind the frame's end: the kernel refuses it.
    let header = [1, 0, 0, 0, 0, 0, 0xff, 0x7f, 16, 0, 0, 0];
    front_end.tx.put(TX_BUFFERS, &header);
    front_end.tx.offer(&[(TX_BUFFERS, 112)], 0);
    front_end.kick(1);
    front_end.wait_returned(1);

    front_end.give_buffers(40);
    let socket = UdpSocket::bind("10.77.0.1:0").unwrap();
    socket.set_broadcast(true).unwrap();
    for _ in 0..30 {
        socket.send_to(&[7; 500], "10.77.0.255:9").unwrap();
    }
    let page = until(page_path, "all frames are counted", |page| {
        page.total(Direction::Rx, Counter::Broadcast) - at_start(Direction::Rx, Counter::Broadcast)
            >= 30
            && page.total(Direction::Tx, Counter::DropPort) == 1
    });
    let [from, to] = kernel_counters();
    let frames = |direction| {
        (
            page.total(direction, Counter::Frames) - at_start(direction, Counter::Frames),
            page.total(direction, Counter::Bytes) - at_start(direction, Counter::Bytes),
        )
    };
    let tx = frames(Direction::Tx);
    assert_eq!(tx, (150, 126_500));
    assert_eq!(tx, (from.0 - from_before.0, from.1 - from_before.1));
    let rx = frames(Direction::Rx);
    assert_eq!(rx, (to.0 - to_before.0, to.1 - to_before.1));
}
