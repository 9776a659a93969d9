//! Why no in-flight record is needed: a backend that is killed in mid-flood loses nothing that it has
//! acknowledged, and gives every chain back exactly once.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::collections::VecDeque;
use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};

use common::testing::WRITE;
use common::{
    FrontEnd, IN_ORDER, LOG_ALL, RX_BUFFER, RX_BUFFERS, Raise, Shared, TX_BUFFERS,
    VIRTIO_NET_HEADER, connect,
};
use namespace::{in_namespace, ip};
use program::Backend;

mod common;
mod namespace;
mod program;

const RING_SIZE: u16 = 256;
/// Chains that the backend takes before it returns them.
const BATCH: usize = 64;
const KILLS: usize = 25;
/// Receive buffers that the guest keeps on offer.
const BUFFERS: u64 = 128;
/// An ethertype for experiments (IEEE 802).
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const PORT: u16 = 4321;
const DEADLINE: Duration = Duration::from_secs(20);

/// The guest: what it has sent and received.
struct Guest<'m> {
    front_end: FrontEnd<'m>,
    sending: VecDeque<u16>,
    offered: usize,
    acknowledged: usize,
    receiving: VecDeque<(u16, u64)>,
    buffers: u64,
    /// Sequence numbers of the frames received.
    received: Vec<u64>,
}

impl Guest<'_> {
    /// Keeps both rings full and looks at what came back.
    fn turn(&mut self) {
        while self.sending.len() < usize::from(RING_SIZE) {
            let slot = self.offered % usize::from(RING_SIZE);
            let address = TX_BUFFERS + 128 * slot as u64;
            self.front_end.tx.put(address, &[0; VIRTIO_NET_HEADER]);
            self.front_end.tx.put(address + VIRTIO_NET_HEADER as u64, &frame(self.offered));
            let length = VIRTIO_NET_HEADER + frame(0).len();
            self.sending.push_back(self.front_end.tx.offer(&[(address, length)], 0));
            self.offered += 1;
        }
        self.front_end.kick(1);
        while (self.receiving.len() as u64) < BUFFERS {
            let address = RX_BUFFERS + self.buffers % BUFFERS * RX_BUFFER;
            let head = self.front_end.rx.offer(&[(address, RX_BUFFER as usize)], WRITE);
            self.receiving.push_back((head, address));
            self.buffers += 1;
        }
        self.front_end.kick(0);
        self.look();
    }

    fn look(&mut self) {
        if self.front_end.accepted & IN_ORDER != 0 {
            self.acknowledged += self.front_end.tx.returned_in_order(&mut self.sending);
        } else {
            self.look_at_each();
        }
        while let Some((head, written)) = self.front_end.rx.returned_one() {
            let (expected, address) = self.receiving.pop_front().unwrap();
            assert_eq!(head, u32::from(expected), "not the next buffer");
            let bytes = self.front_end.rx.get(address, written as usize);
            self.received.extend(datagram(&bytes[VIRTIO_NET_HEADER..]));
        }
    }

    fn look_at_each(&mut self) {
        while let Some((head, _)) = self.front_end.tx.returned_one() {
            let expected = self.sending.pop_front();
            assert_eq!(Some(head), expected.map(u32::from), "not the next chain");
            self.acknowledged += 1;
        }
    }
}

/// A frame of the guest's with a sequence number.
fn frame(number: usize) -> [u8; 64] {
    let mut frame = [0; 64];
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2]);
    frame[12..14].copy_from_slice(&ETHERTYPE);
    frame[14..22].copy_from_slice(&number.to_ne_bytes());
    frame
}

/// The sequence number of a datagram of the host's.
fn datagram(frame: &[u8]) -> Option<u64> {
    let ours = frame.get(12..14)? == [8, 0] && frame.get(36..38)? == PORT.to_be_bytes();
    ours.then(|| u64::from_ne_bytes(frame[42..50].try_into().unwrap()))
}

/// Sees every frame in this namespace.
fn packet_socket() -> OwnedFd {
    let flags = SockFlag::SOCK_CLOEXEC;
    let packets =
        socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
    setsockopt(&packets, sockopt::RcvBufForce, &(64 << 20)).unwrap();
    setsockopt(&packets, sockopt::ReceiveTimeout, &TimeVal::milliseconds(50)).unwrap();
    packets
}

/// How often each of the guest's frames has arrived, once all of them have.
fn arrivals(packets: &OwnedFd, ended: &AtomicBool, total: impl Fn() -> usize) -> Vec<u8> {
    let mut counts: Vec<u8> = Vec::new();
    let mut bytes = [0; 2048];
    let mut deadline = Instant::now() + DEADLINE;
    loop {
        if let Ok(length) = recv(packets.as_raw_fd(), &mut bytes, MsgFlags::empty()) {
            if length >= 64 && bytes[12..14] == ETHERTYPE {
                let number = usize::from_ne_bytes(bytes[14..22].try_into().unwrap());
                counts.resize(counts.len().max(number + 1), 0);
                counts[number] += 1;
            }
        } else if !ended.load(Ordering::Acquire) {
            deadline = Instant::now() + DEADLINE;
        } else if counts.iter().filter(|count| **count > 0).count() == total()
            || Instant::now() > deadline
        {
            return counts;
        }
    }
}

#[test]
fn a_kill_in_mid_flood_loses_no_acknowledged_frame_and_repeats_a_batch_at_most() {
    kill_in_mid_flood(LOG_ALL | IN_ORDER);
}

#[test]
fn the_same_holds_where_one_entry_returns_many_chains() {
    kill_in_mid_flood(LOG_ALL);
}

fn kill_in_mid_flood(refused: u64) {
    in_namespace(move || {
        ip("tuntap add dev tap-kill mode tap vnet_hdr");
        ip("addr add 10.77.0.1/24 broadcast 10.77.0.255 dev tap-kill");
        ip("link set tap-kill up");
        let packets = packet_socket();
        let mut backend = Backend::start_with(&["--tap", "tap-kill"]);
        let shared = Shared::new();
        let stream = connect(&backend.socket());
        let mut front_end = FrontEnd::with_rings(stream, &shared, RING_SIZE);
        front_end.refused = refused;
        front_end.start();
        let mut guest = Guest {
            front_end,
            sending: VecDeque::new(),
            offered: 0,
            acknowledged: 0,
            receiving: VecDeque::new(),
            buffers: 0,
            received: Vec::new(),
        };
        let total = std::sync::atomic::AtomicUsize::new(0);
        let ended = AtomicBool::new(false);
        let mut killed_at = Vec::new();
        let counts = std::thread::scope(|scope| {
            let arrivals =
                scope.spawn(|| arrivals(&packets, &ended, || total.load(Ordering::Relaxed)));
            let _ended_also_by_panic = Raise(&ended);
            for kill in 0..=KILLS {
                flood(&mut guest, 700 + 31 * kill);
                if kill < KILLS {
                    // The flood goes on until the process is really gone.
                    backend.kill_while(|| guest.turn());
                    guest.look();
                    killed_at.push(guest.acknowledged);
                    backend.restart();
                    guest.front_end.reconnect(&backend.socket());
                }
            }
            finish(&mut guest);
            total.store(guest.acknowledged, Ordering::Relaxed);
            ended.store(true, Ordering::Release);
            arrivals.join().unwrap()
        });
        judge(&guest, &counts, &killed_at);
    });
}

/// Sends and receives until so many more frames were acknowledged.
fn flood(guest: &mut Guest<'_>, frames: usize) {
    let host = UdpSocket::bind("10.77.0.1:0").unwrap();
    host.set_broadcast(true).unwrap();
    let until = guest.acknowledged + frames;
    let deadline = Instant::now() + DEADLINE;
    while guest.acknowledged < until {
        assert!(Instant::now() < deadline, "the flood has stopped");
        let number = NEXT_DATAGRAM.fetch_add(1, Ordering::Relaxed);
        // Without a backend the interface has no carrier.
        let _ = host.send_to(&number.to_ne_bytes(), ("10.77.0.255", PORT));
        guest.turn();
    }
}

/// Numbers the host's datagrams.
static NEXT_DATAGRAM: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Waits for all chains that are still under way.
fn finish(guest: &mut Guest<'_>) {
    let deadline = Instant::now() + DEADLINE;
    while !guest.sending.is_empty() {
        assert!(Instant::now() < deadline, "chains did not come back");
        guest.look();
    }
}

fn judge(guest: &Guest<'_>, counts: &[u8], killed_at: &[usize]) {
    assert_eq!(guest.acknowledged, guest.offered);
    let lost = (0..guest.acknowledged).filter(|number| counts.get(*number).is_none_or(|n| *n == 0));
    assert_eq!(lost.collect::<Vec<_>>(), Vec::<usize>::new(), "acknowledged, but never sent");
    assert_eq!(counts.len(), guest.offered);
    let repeated: Vec<_> = (0..counts.len()).filter(|number| counts[*number] > 1).collect();
    for number in &repeated {
        assert_eq!(counts[*number], 2);
        let after_a_kill = |at: &&usize| (**at..**at + BATCH).contains(number);
        assert!(killed_at.iter().any(|at| after_a_kill(&at)), "frame {number} was sent twice");
    }
    assert!(guest.received.is_sorted_by(|a, b| a < b), "a frame came twice or out of order");
    assert!(guest.received.len() > KILLS, "hardly anything was received");
    println!(
        "{} frames sent, {} of them twice, over {KILLS} kills; {} received",
        guest.acknowledged,
        repeated.len(),
        guest.received.len()
    );
}
