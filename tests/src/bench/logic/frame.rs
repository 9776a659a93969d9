//! The frames of the floors: the same bytes that DPDK's generator sends, behind a virtio-net header.

/// The virtio-net header of a TAP, all zeros: nothing is left to the kernel to finish.
pub const HEADER_BYTES: usize = 12;

const ETHERNET: usize = 14;
const IP: usize = 20;
const UDP: usize = 8;

/// UDP payload that makes a frame of `frame_bytes`.
pub const fn udp_payload(frame_bytes: usize) -> usize {
    frame_bytes - ETHERNET - IP - UDP
}

/// A UDP packet to somebody else, of `frame_bytes` and a header before them.
pub fn with_header(frame_bytes: usize) -> Vec<u8> {
    let mut frame = vec![0; HEADER_BYTES];
    frame.extend([2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 1, 8, 0]);
    frame.extend(ip_header(frame_bytes - ETHERNET));
    let udp_bytes = (frame_bytes - ETHERNET - IP) as u16;
    for word in [9u16, 9, udp_bytes, 0] {
        frame.extend(word.to_be_bytes());
    }
    frame.resize(HEADER_BYTES + frame_bytes, 0);
    frame
}

/// From 198.18.0.1 to 198.18.0.2 (RFC 2544's addresses for benchmarks).
fn ip_header(bytes: usize) -> [u8; IP] {
    let mut header = [0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2];
    [header[2], header[3]] = (bytes as u16).to_be_bytes();
    [header[10], header[11]] = (!ones_sum(&header)).to_be_bytes();
    header
}

/// The sum of RFC 1071.
fn ones_sum(bytes: &[u8]) -> u16 {
    let words = bytes.as_chunks::<2>().0.iter();
    let mut sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_as_long_as_asked_and_its_headers_agree() {
        for bytes in [64, 1472] {
            let frame = with_header(bytes);
            assert_eq!(frame.len(), HEADER_BYTES + bytes);
            let ip = &frame[HEADER_BYTES + ETHERNET..];
            assert_eq!(ones_sum(&ip[..IP]), 0xffff);
            assert_eq!(usize::from(u16::from_be_bytes([ip[2], ip[3]])), bytes - ETHERNET);
            assert_eq!(udp_payload(bytes) + UDP, ip.len() - IP);
        }
    }
}
