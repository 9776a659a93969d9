//! The features that a guest has agreed to, as its kernel shows them, against those that it should.

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_net as net;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// What a Linux guest agrees to when it is offered everything.
///
/// IN_ORDER is not among them: its driver does not know that one (up to 6.18). Nor is USO, which QEMU
/// 10 takes from no vhost-user back end. Should either come, it is welcome.
pub const EXPECTED: [(u32, &str); 16] = [
    (net::VIRTIO_NET_F_CSUM, "csum"),
    (net::VIRTIO_NET_F_GUEST_CSUM, "guest_csum"),
    (net::VIRTIO_NET_F_MTU, "mtu"),
    (net::VIRTIO_NET_F_GUEST_TSO4, "guest_tso4"),
    (net::VIRTIO_NET_F_GUEST_TSO6, "guest_tso6"),
    (net::VIRTIO_NET_F_GUEST_ECN, "guest_ecn"),
    (net::VIRTIO_NET_F_HOST_TSO4, "host_tso4"),
    (net::VIRTIO_NET_F_HOST_TSO6, "host_tso6"),
    (net::VIRTIO_NET_F_HOST_ECN, "host_ecn"),
    (net::VIRTIO_NET_F_MRG_RXBUF, "mrg_rxbuf"),
    (net::VIRTIO_NET_F_GUEST_ANNOUNCE, "guest_announce"),
    (net::VIRTIO_NET_F_MQ, "mq"),
    (VIRTIO_RING_F_INDIRECT_DESC, "indirect_desc"),
    (VIRTIO_RING_F_EVENT_IDX, "event_idx"),
    (VIRTIO_F_VERSION_1, "version_1"),
    (net::VIRTIO_NET_F_STANDBY, "standby"),
];

/// What is missing in `bits`, a device's `features` file: a digit a bit, the lowest first.
pub fn missing(bits: &str) -> Vec<&'static str> {
    let has = |bit: u32| bits.as_bytes().get(bit as usize) == Some(&b'1');
    EXPECTED.into_iter().filter(|(bit, _)| !has(*bit)).map(|(_, name)| name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_that_is_not_set_is_missing() {
        let all = "1".repeat(64);
        assert!(missing(&all).is_empty());
        let without = |bit: usize| all[..bit].to_owned() + "0" + &all[bit + 1..];
        assert_eq!(missing(&without(0)), ["csum"]);
        assert_eq!(missing(&without(62)), ["standby"]);
        assert!(missing(&without(35)).is_empty());
        assert_eq!(missing("").len(), EXPECTED.len());
    }
}
