//! The frame that tells switches where a guest now lives.

use flexvf_protocol::MacAddr;

/// Shortest Ethernet frame without FCS.
const FRAME_BYTES: usize = 60;

/// A reverse ARP request from `mac`, as QEMU sends it after a migration (RFC 903).
pub fn announcement(mac: MacAddr) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    let mac = mac.octets();
    frame[..6].copy_from_slice(&[0xff; 6]);
    frame[6..12].copy_from_slice(&mac);
    // EtherType RARP; hardware Ethernet, protocol IPv4, their lengths, "request reverse".
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announcement_is_a_broadcast_from_the_guest() {
        let frame = announcement(MacAddr::new([0x52, 0x54, 0, 1, 2, 3]));
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], [0x52, 0x54, 0, 1, 2, 3]);
        assert_eq!(frame[12..14], [0x80, 0x35]);
    }
}
