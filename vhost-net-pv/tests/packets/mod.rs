//! Packets as a guest's driver leaves them to its device: checksum, or cutting, still to do.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use virtio_bindings::virtio_net as net;

/// Packets that a large frame is on the wire.
pub(crate) const SEGMENTS: usize = 5;
/// Payload of each.
const SEGMENT: usize = 1000;
const ETHERNET: usize = 14;
const TO: [u8; 6] = [0x52, 0x54, 0, 0, 0, 2];
const FROM: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];
const TCP: u8 = 6;
const UDP: u8 = 17;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;

/// What is left to do to a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Csum4,
    Csum6,
    Tso4,
    Tso6,
    /// One with ECN's CWR, which is for the first segment only.
    Ecn4,
    Uso4,
    Uso6,
}

impl Kind {
    pub(crate) const ALL: [Self; 7] =
        [Self::Csum4, Self::Csum6, Self::Tso4, Self::Tso6, Self::Ecn4, Self::Uso4, Self::Uso6];

    pub(crate) const fn is_uso(self) -> bool {
        matches!(self, Self::Uso4 | Self::Uso6)
    }

    const fn is_ipv6(self) -> bool {
        matches!(self, Self::Csum6 | Self::Tso6 | Self::Uso6)
    }

    const fn protocol(self) -> u8 {
        if self.is_uso() { UDP } else { TCP }
    }

    const fn gso(self) -> u32 {
        match self {
            Self::Csum4 | Self::Csum6 => net::VIRTIO_NET_HDR_GSO_NONE,
            Self::Tso4 => net::VIRTIO_NET_HDR_GSO_TCPV4,
            Self::Ecn4 => net::VIRTIO_NET_HDR_GSO_TCPV4 | net::VIRTIO_NET_HDR_GSO_ECN,
            Self::Tso6 => net::VIRTIO_NET_HDR_GSO_TCPV6,
            Self::Uso4 | Self::Uso6 => net::VIRTIO_NET_HDR_GSO_UDP_L4,
        }
    }

    /// Where the transport header begins.
    const fn transport(self) -> usize {
        ETHERNET + if self.is_ipv6() { 40 } else { 20 }
    }

    /// Its length, and where the checksum is in it.
    const fn transport_header(self) -> (usize, usize) {
        if self.is_uso() { (8, 6) } else { (20, 16) }
    }
}

/// A frame and what the guest says of it.
pub(crate) struct Packet {
    pub(crate) kind: Kind,
    pub(crate) header: [u8; 12],
    pub(crate) frame: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Packet {
    pub(crate) const fn segments(&self) -> usize {
        self.payload.len() / SEGMENT
    }
}

pub(crate) fn packet(kind: Kind) -> Packet {
    let large = kind.gso() != net::VIRTIO_NET_HDR_GSO_NONE;
    let segments = if large { SEGMENTS } else { 1 };
    let payload: Vec<u8> = (0..segments * SEGMENT).map(|at| (at % 251) as u8).collect();
    let (header_bytes, checksum_at) = kind.transport_header();
    let transport_bytes = header_bytes + payload.len();
    let mut frame = [TO, FROM].concat();
    frame.extend(if kind.is_ipv6() { [0x86, 0xdd] } else { [8, 0] });
    frame.extend(network_header(kind, transport_bytes as u16));
    frame.extend([3, 232, 7, 208]);
    let rest = match kind.protocol() {
        TCP => {
            let flags = if kind == Kind::Ecn4 { ACK | CWR } else { ACK };
            vec![0, 0, 0, 1, 0, 0, 0, 1, 5 << 4, flags, 1, 0, 0, 0, 0, 0]
        }
        _ => [(transport_bytes as u16).to_be_bytes(), [0, 0]].concat(),
    };
    frame.extend(rest);
    frame.extend(&payload);
    // The driver leaves the sum of what the device cannot know where the checksum goes.
    let sum = fold(pseudo_header(kind, &frame));
    let at = kind.transport() + checksum_at;
    frame[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let mut header = [0; 12];
    header[0] = net::VIRTIO_NET_HDR_F_NEEDS_CSUM as u8;
    header[1] = kind.gso() as u8;
    let numbers = [
        if large { kind.transport() + header_bytes } else { 0 },
        if large { SEGMENT } else { 0 },
        kind.transport(),
        checksum_at,
    ];
    for (place, number) in header[2..10].chunks_exact_mut(2).zip(numbers) {
        place.copy_from_slice(&(number as u16).to_le_bytes());
    }
    Packet { kind, header, frame, payload }
}

fn network_header(kind: Kind, bytes: u16) -> Vec<u8> {
    let protocol = kind.protocol();
    if kind.is_ipv6() {
        let mut header = [&[0x60, 0, 0, 0], &bytes.to_be_bytes()[..], &[protocol, 64]].concat();
        header.extend([[0xfd; 15].as_slice(), &[1], &[0xfd; 15], &[2]].concat());
        return header;
    }
    let length = (20 + bytes).to_be_bytes();
    let mut header = [&[0x45, 0], &length[..], &[0, 1, 0x40, 0, 64, protocol, 0, 0]].concat();
    header.extend([10, 77, 0, 1, 10, 77, 0, 2]);
    let checksum = !fold(sum(&header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    header
}

/// What a frame carries.
pub(crate) fn payload_of(kind: Kind, frame: &[u8]) -> &[u8] {
    &frame[kind.transport() + kind.transport_header().0..]
}

/// The checksum is right: nothing is left to do.
pub(crate) fn is_finished(kind: Kind, frame: &[u8]) -> bool {
    fold(pseudo_header(kind, frame) + sum(&frame[kind.transport()..])) == 0xffff
}

/// Addresses, protocol and length, which the checksum covers too (RFC 9293, 3.1; RFC 8200, 8.1).
fn pseudo_header(kind: Kind, frame: &[u8]) -> u64 {
    let addresses = if kind.is_ipv6() { 32 } else { 8 };
    let transport = kind.transport();
    let bytes = (frame.len() - transport) as u64;
    sum(&frame[transport - addresses..transport]) + u64::from(kind.protocol()) + bytes
}

fn sum(bytes: &[u8]) -> u64 {
    let words = bytes.chunks(2);
    words.map(|pair| u64::from(pair[0]) << 8 | u64::from(pair.get(1).copied().unwrap_or(0))).sum()
}

fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}
