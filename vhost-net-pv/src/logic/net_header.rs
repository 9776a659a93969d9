//! The virtio-net header, and how many packets a frame is on the wire.
//!
//! A header is read out of guest memory once; what was read is what is counted and what goes to
//! the port, so a guest that changes it meanwhile fools only itself.

use virtio_bindings::virtio_net as net;

/// Length of the header with `num_buffers` (virtio 1.x, section 5.1.6).
pub const HEADER_BYTES: usize = 12;
/// The header as it travels.
pub type RawHeader = [u8; HEADER_BYTES];

/// Ethernet, IPv4 and TCP without options: the guess where a header says nothing better.
const USUAL_HEADERS: usize = 14 + 20 + 20;
const UDP_HEADER: usize = 8;

/// The fields that decide how a frame appears on the wire.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetHeader {
    /// `VIRTIO_NET_HDR_F_…`
    pub flags: u8,
    /// `VIRTIO_NET_HDR_GSO_…`
    pub gso_type: u8,
    /// A hint about the length of the headers; not to be trusted.
    pub hdr_len: u16,
    /// Payload bytes of each packet on the wire.
    pub gso_size: u16,
    /// Where the transport header starts, if a checksum is left to do.
    pub csum_start: u16,
}

/// The header before a frame that has come into so many of the guest's buffers, as two words.
#[inline]
pub const fn words(raw: &RawHeader, buffers: u16) -> (u64, u32) {
    let [a, b, c, d, e, f, g, h, i, j, ..] = *raw;
    let [k, l] = buffers.to_le_bytes();
    (u64::from_ne_bytes([a, b, c, d, e, f, g, h]), u32::from_ne_bytes([i, j, k, l]))
}

impl NetHeader {
    /// Reads a header.
    pub const fn parse(raw: &RawHeader) -> Self {
        Self {
            flags: raw[0],
            gso_type: raw[1],
            hdr_len: u16::from_le_bytes([raw[2], raw[3]]),
            gso_size: u16::from_le_bytes([raw[4], raw[5]]),
            csum_start: u16::from_le_bytes([raw[6], raw[7]]),
        }
    }

    /// Packets on the wire for a frame of `frame_bytes` (Ethernet header included).
    ///
    /// `byte_at` gives the frame's byte at an offset; it is asked for the TCP header's length only.
    pub fn wire_segments(
        &self,
        frame_bytes: usize,
        byte_at: impl FnOnce(usize) -> Option<u8>,
    ) -> u64 {
        if self.gso_size == 0 || u32::from(self.gso_type) == net::VIRTIO_NET_HDR_GSO_NONE {
            return 1;
        }
        let headers = self.header_length(byte_at);
        let payload = frame_bytes.saturating_sub(headers) as u64;
        payload.div_ceil(u64::from(self.gso_size)).max(1)
    }

    fn header_length(&self, byte_at: impl FnOnce(usize) -> Option<u8>) -> usize {
        if u32::from(self.flags) & net::VIRTIO_NET_HDR_F_NEEDS_CSUM == 0 {
            return match usize::from(self.hdr_len) {
                0 => USUAL_HEADERS,
                told => told,
            };
        }
        let transport = usize::from(self.csum_start);
        // Legacy UFO splits the datagram as IP fragments, so its UDP header is payload too.
        match u32::from(self.gso_type) & !net::VIRTIO_NET_HDR_GSO_ECN {
            net::VIRTIO_NET_HDR_GSO_UDP => transport,
            net::VIRTIO_NET_HDR_GSO_UDP_L4 => transport + UDP_HEADER,
            // The data offset, in words of four bytes, is the high half of the byte at 12.
            _ => transport + byte_at(transport + 12).map_or(20, |byte| usize::from(byte >> 4) * 4),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tcp(gso_size: u16) -> NetHeader {
        NetHeader { flags: 1, gso_type: 1, hdr_len: 9999, gso_size, csum_start: 34 }
    }

    #[test]
    fn a_frame_without_gso_is_one_packet() {
        let header = NetHeader::default();
        assert_eq!(header.wire_segments(60, |_| None), 1);
        assert_eq!(header.wire_segments(0, |_| None), 1);
    }

    #[test]
    fn a_64_kib_tso_frame_is_45_packets() {
        // 14 + 20 + 32 bytes of headers (timestamps), 1448 of payload each.
        let frame = 66 + 44 * 1448 + 1;
        let byte_at = |at| (at == 46).then_some(0x80);
        assert_eq!(tcp(1448).wire_segments(frame, byte_at), 45);
        assert_eq!(tcp(1448).wire_segments(frame - 1, byte_at), 44);
    }

    #[test]
    fn ecn_does_not_hide_the_kind_of_gso() {
        let header = NetHeader { gso_type: 5 | 128, ..tcp(1000) };
        assert_eq!(header.wire_segments(34 + 8 + 3000, |_| None), 3);
    }

    #[test]
    fn the_header_is_little_endian() {
        let raw = [1, 4, 0x42, 0, 0xa8, 5, 0x22, 0, 16, 0, 0, 0];
        let header = NetHeader::parse(&raw);
        assert_eq!((header.gso_size, header.csum_start), (1448, 34));
    }

    proptest! {
        #[test]
        fn segments_are_at_least_one_and_at_most_the_payload(
            raw: [u8; 12], frame in 0usize..70_000, doff: Option<u8>
        ) {
            let segments = NetHeader::parse(&raw).wire_segments(frame, |_| doff);
            prop_assert!(segments >= 1);
            prop_assert!(segments <= (frame as u64).max(1));
        }
    }
}
