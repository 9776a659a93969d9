//! Which virtio and vhost-user features are offered, and what the accepted ones mean here.
//!
//! Left out on purpose: the control queue and everything that travels on it (QEMU serves it
//! itself), the packed ring.

use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net as net;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

/// Layout of descriptors is free (virtio 1.0, section 6.3); virtio-bindings calls it differently
/// in different versions.
pub(super) const VIRTIO_F_ANY_LAYOUT: u32 = 27;

/// All but STANDBY. QEMU passes that one to the guest by itself when it is told to make a failover
/// pair; a front-end that hands on everything would make one unasked.
pub const DEFAULT_MASK: u64 = !(1 << net::VIRTIO_NET_F_STANDBY);

/// Features between backend and front-end, which guests never see: a front-end without the first
/// cannot run rings, without the second it refuses to migrate.
pub const BACKEND_ONLY: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | LOG_ALL;
/// The front-end wants writes to guest memory marked in its log (`VHOST_F_LOG_ALL`).
pub const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();

/// What frames a port may hand to the guest unfinished: checksum or segmentation left to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Offloads {
    /// Checksums may be missing.
    pub csum: bool,
    /// TCP over IPv4 frames of up to 64 KiB.
    pub tso4: bool,
    /// TCP over IPv6 frames of up to 64 KiB.
    pub tso6: bool,
    /// Large TCP frames may carry ECN's CWR.
    pub ecn: bool,
    /// Large UDP frames, IPv4 and IPv6 (the kernel knows both or none).
    pub uso: bool,
}

impl Offloads {
    /// Everything.
    pub const ALL: Self = Self { csum: true, tso4: true, tso6: true, ecn: true, uso: true };

    /// Frames may be larger than the MTU.
    pub const fn large_frames(self) -> bool {
        self.tso4 || self.tso6 || self.uso
    }
}

/// The protocol features offered.
///
/// Not INFLIGHT_SHMFD. It is a record of chains that were taken but not returned, kept by the
/// front-end for the time after a backend's crash. Here guest memory holds all of it: chains are
/// returned in the order in which they were taken, and only once their frames have gone out, so
/// those under way are the ones from the used index on. QEMU starts a ring there when the backend
/// that died cannot tell its position. What a SIGKILL in mid-flood costs is therefore known, and
/// `tests/restart.rs` holds us to it: every chain is returned exactly once; no frame whose chain was
/// returned is lost; frames of the batch under way may go out twice, which networks are used to;
/// frames for the guest that were taken from the port and not yet returned are lost, as in any NIC
/// that is reset. The record could save no more than the last two.
///
/// Not PAGEFAULT (postcopy): the front-end would get a descriptor by which it can write to memory of
/// this process that it was never given; `ARCHITECTURE.md` has the whole of it.
pub fn protocol_features() -> VhostUserProtocolFeatures {
    VhostUserProtocolFeatures::MQ
        | VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::RARP
        | VhostUserProtocolFeatures::MTU
        | VhostUserProtocolFeatures::CONFIGURE_MEM_SLOTS
        | VhostUserProtocolFeatures::RESET_DEVICE
        | VhostUserProtocolFeatures::STATUS
        | VhostUserProtocolFeatures::LOG_SHMFD
}

/// The virtio features offered for so many queue pairs on a port with these offloads.
pub fn offered(queue_pairs: usize, port: Offloads) -> u64 {
    let mut bits = BACKEND_ONLY;
    let mut offer = |condition: bool, features: &[u32]| {
        if condition {
            bits |= features.iter().fold(0, |sum, bit| sum | 1u64 << bit);
        }
    };
    offer(
        true,
        &[
            VIRTIO_F_VERSION_1,
            VIRTIO_F_IN_ORDER,
            VIRTIO_F_ANY_LAYOUT,
            VIRTIO_RING_F_INDIRECT_DESC,
            VIRTIO_RING_F_EVENT_IDX,
            net::VIRTIO_NET_F_MRG_RXBUF,
            net::VIRTIO_NET_F_GUEST_ANNOUNCE,
            net::VIRTIO_NET_F_MTU,
            net::VIRTIO_NET_F_CSUM,
            net::VIRTIO_NET_F_HOST_TSO4,
            net::VIRTIO_NET_F_HOST_TSO6,
            net::VIRTIO_NET_F_HOST_ECN,
            net::VIRTIO_NET_F_STANDBY,
        ],
    );
    offer(queue_pairs > 1, &[net::VIRTIO_NET_F_MQ]);
    offer(port.csum, &[net::VIRTIO_NET_F_GUEST_CSUM]);
    offer(port.tso4, &[net::VIRTIO_NET_F_GUEST_TSO4]);
    offer(port.tso6, &[net::VIRTIO_NET_F_GUEST_TSO6]);
    offer(port.ecn, &[net::VIRTIO_NET_F_GUEST_ECN]);
    // A kernel that hands out large UDP frames also takes them.
    offer(
        port.uso,
        &[net::VIRTIO_NET_F_GUEST_USO4, net::VIRTIO_NET_F_GUEST_USO6, net::VIRTIO_NET_F_HOST_USO],
    );
    bits
}

/// What the accepted features mean for the data path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// Bytes of the virtio-net header in the guest's buffers: 12, or 10 for old drivers.
    pub header_bytes: usize,
    /// A frame to the guest may span several chains.
    pub mergeable: bool,
    /// Kicks and interrupts are asked for by index.
    pub event_idx: bool,
    /// Chains are returned in the order in which they were offered, which saves entries.
    pub in_order: bool,
    /// What the guest takes unfinished.
    pub offloads: Offloads,
}

impl Negotiated {
    /// Reads the accepted feature bits.
    pub const fn new(accepted: u64) -> Self {
        const fn has(accepted: u64, bit: u32) -> bool {
            accepted & (1 << bit) != 0
        }
        let mergeable = has(accepted, net::VIRTIO_NET_F_MRG_RXBUF);
        // Virtio 1.x, section 5.1.6.1: num_buffers is there with VERSION_1 in any case.
        let long = mergeable || has(accepted, VIRTIO_F_VERSION_1);
        Self {
            header_bytes: if long { 12 } else { 10 },
            mergeable,
            event_idx: has(accepted, VIRTIO_RING_F_EVENT_IDX),
            in_order: has(accepted, VIRTIO_F_IN_ORDER),
            offloads: Offloads {
                csum: has(accepted, net::VIRTIO_NET_F_GUEST_CSUM),
                tso4: has(accepted, net::VIRTIO_NET_F_GUEST_TSO4),
                tso6: has(accepted, net::VIRTIO_NET_F_GUEST_TSO6),
                ecn: has(accepted, net::VIRTIO_NET_F_GUEST_ECN),
                uso: has(accepted, net::VIRTIO_NET_F_GUEST_USO4)
                    && has(accepted, net::VIRTIO_NET_F_GUEST_USO6),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use virtio_bindings::virtio_config::{VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET};

    #[test]
    fn what_the_port_cannot_do_is_not_offered() {
        let none = offered(1, Offloads::default());
        for bit in [
            net::VIRTIO_NET_F_GUEST_CSUM,
            net::VIRTIO_NET_F_GUEST_TSO4,
            net::VIRTIO_NET_F_GUEST_USO4,
            net::VIRTIO_NET_F_MQ,
        ] {
            assert_eq!(none & (1 << bit), 0, "feature {bit} was offered");
        }
        assert_ne!(offered(2, Offloads::ALL) & (1 << net::VIRTIO_NET_F_MQ), 0);
    }

    #[test]
    fn what_no_ring_of_ours_can_do_is_never_offered() {
        let all = offered(16, Offloads::ALL);
        for bit in [VIRTIO_F_RING_PACKED, VIRTIO_F_RING_RESET] {
            assert_eq!(all & (1 << bit), 0, "feature {bit} was offered");
        }
    }

    #[test]
    fn accepting_all_that_is_offered_turns_every_offload_on() {
        let negotiated = Negotiated::new(offered(2, Offloads::ALL));
        assert_eq!(negotiated.offloads, Offloads::ALL);
        assert_eq!(negotiated.header_bytes, 12);
        assert!(negotiated.mergeable && negotiated.event_idx);
    }

    #[test]
    fn an_old_driver_has_the_short_header() {
        assert_eq!(Negotiated::new(0).header_bytes, 10);
        let mergeable = 1 << net::VIRTIO_NET_F_MRG_RXBUF;
        assert_eq!(Negotiated::new(mergeable).header_bytes, 12);
    }
}
