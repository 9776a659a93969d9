//! Frames that a guest leaves unfinished, on their way to another guest: over two backends, two TAPs
//! and the kernel's bridge, which finishes what the receiver has not agreed to take.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use flexvf_protocol::stats_page::{Counter, Direction};
use vhost::vhost_user::message::FrontendReq;
use virtio_bindings::virtio_net as net;

use common::{FrontEnd, Shared, TX_BUFFERS, VIRTIO_NET_HEADER};
use namespace::{in_namespace, ip};
use packets::{Kind, Packet, SEGMENTS, is_finished, packet, payload_of};
use program::Backend;

mod common;
mod namespace;
mod packets;
mod program;

const NEEDS_CSUM: u8 = net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
const GUEST_OFFLOADS: [u32; 6] = [
    net::VIRTIO_NET_F_GUEST_CSUM,
    net::VIRTIO_NET_F_GUEST_TSO4,
    net::VIRTIO_NET_F_GUEST_TSO6,
    net::VIRTIO_NET_F_GUEST_ECN,
    net::VIRTIO_NET_F_GUEST_USO4,
    net::VIRTIO_NET_F_GUEST_USO6,
];
const BUFFERS: u64 = 60;

/// A frame as it came, with its header.
type Received = ([u8; VIRTIO_NET_HEADER], Vec<u8>);

/// The guest that receives.
struct Receiver<'m> {
    front_end: FrontEnd<'m>,
    features: u64,
    turn: u64,
}

impl<'m> Receiver<'m> {
    fn connect(backend: &Backend, shared: &'m Shared) -> Self {
        let mut front_end = FrontEnd::connect(&backend.socket(), shared);
        let features = front_end.start() & !front_end.refused;
        Self { front_end, features, turn: 0 }
    }

    /// Its driver starts again without these features, as one that is bound anew does.
    fn restart_without(&mut self, refused: &[u32]) {
        for ring in 0..2 {
            self.front_end.stop_ring(ring);
        }
        let refused = refused.iter().fold(0, |sum, bit| sum | 1u64 << bit);
        let accepted = [self.features & !refused];
        assert_eq!(self.front_end.ask(FrontendReq::SET_FEATURES, &accepted, &[]).unwrap(), 0);
        self.front_end.rx.restart();
        self.front_end.tx.restart();
        self.front_end.start_rings([0, 0]);
        self.turn = 0;
        self.front_end.give_buffers_at(0, BUFFERS);
    }

    /// One chain; a buffer is given for it.
    fn chain(&mut self) -> Vec<u8> {
        let bytes = self.front_end.receive_chain_of(self.turn);
        self.front_end.give_buffers_at(self.turn + BUFFERS, 1);
        self.turn += 1;
        bytes
    }

    fn frame(&mut self) -> Received {
        let mut bytes = self.chain();
        let header: [u8; VIRTIO_NET_HEADER] = bytes[..VIRTIO_NET_HEADER].try_into().unwrap();
        for _ in 1..u16::from_le_bytes([header[10], header[11]]) {
            bytes.extend(self.chain());
        }
        (header, bytes.split_off(VIRTIO_NET_HEADER))
    }

    /// The frames that a packet of ours has become.
    fn frames_of(&mut self, sent: &Packet) -> Vec<Received> {
        let (mut frames, mut payload) = (Vec::new(), Vec::<u8>::new());
        while payload.len() < sent.payload.len() {
            let (header, frame) = self.frame();
            // Hosts and bridges have something to say, too.
            if frame[..14] == sent.frame[..14] {
                payload.extend(payload_of(sent.kind, &frame));
                frames.push((header, frame));
            }
        }
        assert!(payload == sent.payload, "{:?}: the payload has changed", sent.kind);
        frames
    }
}

fn send(front_end: &mut FrontEnd<'_>, packet: &Packet) {
    front_end.tx.put(TX_BUFFERS, &packet.header);
    front_end.tx.put(TX_BUFFERS + VIRTIO_NET_HEADER as u64, &packet.frame);
    front_end.tx.offer(&[(TX_BUFFERS, VIRTIO_NET_HEADER + packet.frame.len())], 0);
    front_end.kick(1);
    front_end.wait_returned(1);
}

/// The features that are needed to receive such a frame as one.
const fn needed(kind: Kind) -> &'static [u32] {
    match kind {
        // All others need this one.
        Kind::Csum4 | Kind::Csum6 => &GUEST_OFFLOADS,
        Kind::Tso4 => &[net::VIRTIO_NET_F_GUEST_TSO4],
        Kind::Tso6 => &[net::VIRTIO_NET_F_GUEST_TSO6],
        Kind::Ecn4 => &[net::VIRTIO_NET_F_GUEST_ECN],
        // The kernel knows both or none.
        Kind::Uso4 => &[net::VIRTIO_NET_F_GUEST_USO4],
        Kind::Uso6 => &[net::VIRTIO_NET_F_GUEST_USO6],
    }
}

#[test]
fn a_guest_gets_whole_what_it_takes_and_the_rest_cut_and_finished() {
    in_namespace(|| {
        ip("link add br-test type bridge mcast_snooping 0");
        ip("link set br-test addrgenmode none up");
        let start = |tap| Backend::start_with(&["--tap", tap, "--bridge", "br-test"]);
        let (from, to) = (start("tap-from"), start("tap-to"));
        let memories = [Shared::new(), Shared::new()];
        let mut sender = FrontEnd::connect(&from.socket(), &memories[0]);
        let offered = sender.start();
        let mut receiver = Receiver::connect(&to, &memories[1]);
        let uso = offered & 1 << net::VIRTIO_NET_F_HOST_USO != 0;
        let kinds = Kind::ALL.into_iter().filter(|kind| uso || !kind.is_uso());
        let mut segments = 0;
        for kind in kinds {
            let sent = packet(kind);
            segments += sent.segments() as u64;

            receiver.restart_without(&[]);
            send(&mut sender, &sent);
            let whole = receiver.frames_of(&sent);
            assert_eq!(whole.len(), 1, "{kind:?} was cut for a guest that takes it");
            let (header, frame) = &whole[0];
            assert_eq!(header[0], NEEDS_CSUM, "{kind:?}");
            assert_eq!(header[1], sent.header[1], "{kind:?}: another kind of large frame");
            assert_eq!(header[4..6], sent.header[4..6], "{kind:?}: another size of segments");
            assert_eq!(*frame, sent.frame, "{kind:?}");

            receiver.restart_without(needed(kind));
            send(&mut sender, &sent);
            let cut = receiver.frames_of(&sent);
            assert_eq!(cut.len(), sent.segments(), "{kind:?} for a guest that does not take it");
            assert!(cut.iter().all(|(header, _)| header[1] == 0), "{kind:?}");

            receiver.restart_without(&GUEST_OFFLOADS);
            send(&mut sender, &sent);
            for (header, frame) in receiver.frames_of(&sent) {
                assert_eq!(header[..10], [0; 10], "{kind:?} for a guest that takes nothing");
                assert!(is_finished(kind, &frame), "{kind:?}: a checksum is wrong");
            }
        }
        assert!(segments >= 3 * SEGMENTS as u64, "nothing large was sent");
        let page = from.page();
        let counted = page.total(Direction::Tx, Counter::Segments);
        assert_eq!(counted, 3 * segments, "segments of the sender");
        assert_eq!(page.total(Direction::Tx, Counter::DropPort), 0);
        assert!(from.end() && to.end());
    });
}
