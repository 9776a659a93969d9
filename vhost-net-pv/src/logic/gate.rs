//! What to do with each message of a front-end, before the `vhost` crate sees it.
//!
//! The crate's message handler closes the connection at messages that QEMU sends to a net device
//! as a matter of course: `SET_VRING_ENABLE` before `SET_FEATURES`, `SEND_RARP`, `NET_SET_MTU`,
//! `SET_STATUS`; and at `SET_LOG_FD`, which belongs to dirty logging. The gate answers those. It also is the one place that bounds what a front-end may
//! send: which requests, how long, with how many file descriptors, for which rings.
//!
//! Left out: everything the crate checks by itself (contents of memory tables, flags of addresses).

use flexvf_protocol::MacAddr;
use vhost::vhost_user::message::{FrontendReq, VhostUserProtocolFeatures};

/// Length of a message's head.
pub const HEAD_BYTES: usize = 12;
/// Longest payload: a memory table of [`MAX_FDS`] regions, rounded up.
pub const MAX_PAYLOAD: usize = 2048;
/// Most file descriptors that one message may carry: one a memory region.
pub const MAX_FDS: usize = 32;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const REPLY: u32 = 4;
const NEED_REPLY: u32 = 8;
/// Smallest MTU of IPv4 (RFC 791), largest of Ethernet's length field in Linux.
const MTU_RANGE: std::ops::RangeInclusive<u64> = 68..=65_535;

/// A message's head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// Which request; a [`FrontendReq`] if it is a known one.
    pub request: u32,
    /// Version and flags.
    pub flags: u32,
    /// Length of the payload.
    pub size: u32,
}

/// What to do with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The crate handles it.
    Pass,
    /// Switch a ring on or off.
    Enable {
        /// Index of the ring.
        ring: usize,
        /// On or off.
        on: bool,
    },
    /// Tell the network where the guest is.
    Announce(MacAddr),
    /// The guest was promised this MTU.
    Mtu(u16),
    /// Nothing to do; answered by an acknowledgement only.
    Noted,
    /// Answer with this number.
    Reply(u64),
}

/// Why a front-end is cut off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Wrong version, reply bit, or unknown flags.
    #[error("message flags {0:#x} are not a request of version 1")]
    Flags(u32),
    /// A request that was not offered, or that does not exist.
    #[error("request {0} is not supported")]
    Request(u32),
    /// The payload's length does not fit the request.
    #[error("request {request} has a payload of {size} bytes")]
    Size {
        /// The request.
        request: u32,
        /// Length found.
        size: u32,
    },
    /// Too many file descriptors.
    #[error("request {request} has {found} file descriptors; {allowed} are allowed")]
    Fds {
        /// The request.
        request: u32,
        /// Descriptors found.
        found: usize,
        /// Descriptors allowed.
        allowed: usize,
    },
    /// No such ring.
    #[error("request {request} is for ring {ring}, which does not exist")]
    Ring {
        /// The request.
        request: u32,
        /// The ring asked for.
        ring: u64,
    },
    /// A value that makes no sense.
    #[error("request {request} has the impossible value {value:#x}")]
    Value {
        /// The request.
        request: u32,
        /// The value.
        value: u64,
    },
}

/// The state of one connection's gate.
#[derive(Debug)]
pub struct Gate {
    rings: usize,
    reply_ack: bool,
    status: u64,
}

impl Head {
    /// Reads a head.
    pub const fn parse(bytes: &[u8; HEAD_BYTES]) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = *bytes;
        // The protocol uses the host's byte order: both ends are on one machine.
        Self {
            request: u32::from_ne_bytes([a, b, c, d]),
            flags: u32::from_ne_bytes([e, f, g, h]),
            size: u32::from_ne_bytes([i, j, k, l]),
        }
    }

    /// A whole reply to this message that carries one number.
    pub fn reply(self, value: u64) -> [u8; HEAD_BYTES + 8] {
        let mut bytes = [0; HEAD_BYTES + 8];
        bytes[..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&(VERSION | REPLY).to_ne_bytes());
        bytes[8..12].copy_from_slice(&8u32.to_ne_bytes());
        bytes[12..].copy_from_slice(&value.to_ne_bytes());
        bytes
    }
}

impl Gate {
    /// A gate for a new connection to a device with so many rings.
    pub const fn new(rings: usize) -> Self {
        Self { rings, reply_ack: false, status: 0 }
    }

    /// Judges a head before its payload is read.
    ///
    /// # Errors
    /// [`Refusal`] when the request is not one of ours or its payload's length cannot be right.
    pub fn check_head(&self, head: &Head) -> Result<(), Refusal> {
        if head.flags & VERSION_MASK != VERSION || head.flags & !(VERSION_MASK | NEED_REPLY) != 0 {
            return Err(Refusal::Flags(head.flags));
        }
        let rule = rule(head.request)?;
        if !rule.sizes.contains(&head.size) {
            return Err(Refusal::Size { request: head.request, size: head.size });
        }
        Ok(())
    }

    /// Decides about a whole message whose head was checked.
    ///
    /// # Errors
    /// [`Refusal`] when the front-end breaks the protocol.
    pub fn decide(&mut self, head: &Head, payload: &[u8], fds: usize) -> Result<Action, Refusal> {
        let rule = rule(head.request)?;
        if fds > rule.fds {
            return Err(Refusal::Fds { request: head.request, found: fds, allowed: rule.fds });
        }
        let first = first_word(payload);
        if let Some(ring) = rule.ring(first).filter(|ring| *ring >= self.rings as u64) {
            return Err(Refusal::Ring { request: head.request, ring });
        }
        self.act(head, first)
    }

    fn act(&mut self, head: &Head, first: u64) -> Result<Action, Refusal> {
        let impossible = Refusal::Value { request: head.request, value: first };
        Ok(match FrontendReq::try_from(head.request) {
            Ok(FrontendReq::SET_PROTOCOL_FEATURES) => {
                self.reply_ack = first & VhostUserProtocolFeatures::REPLY_ACK.bits() != 0;
                Action::Pass
            }
            Ok(FrontendReq::SET_VRING_ENABLE) => Action::Enable {
                ring: (first & 0xffff_ffff) as usize,
                on: match first >> 32 {
                    0 => false,
                    1 => true,
                    _ => return Err(impossible),
                },
            },
            Ok(FrontendReq::SEND_RARP) => {
                // The address comes as the low six bytes of the number.
                let [a, b, c, d, e, f, _, _] = first.to_ne_bytes();
                let mac = MacAddr::new([a, b, c, d, e, f]);
                if !mac.is_unicast() {
                    return Err(impossible);
                }
                Action::Announce(mac)
            }
            Ok(FrontendReq::NET_SET_MTU) => match u16::try_from(first) {
                Ok(mtu) if MTU_RANGE.contains(&first) => Action::Mtu(mtu),
                _ => return Err(impossible),
            },
            Ok(FrontendReq::SET_STATUS) => {
                self.status = first & 0xff;
                Action::Noted
            }
            // A descriptor to tell of new marks by, which no front-end needs: it looks by itself.
            Ok(FrontendReq::SET_LOG_FD) => Action::Noted,
            Ok(FrontendReq::GET_STATUS) => Action::Reply(self.status),
            _ => Action::Pass,
        })
    }

    /// The front-end waits for an acknowledgement of this message.
    pub const fn wants_ack(&self, head: &Head) -> bool {
        self.reply_ack && head.flags & NEED_REPLY != 0
    }
}

/// The bounds of one request.
struct Rule {
    sizes: std::ops::RangeInclusive<u32>,
    fds: usize,
    index: Index,
}

/// Where a payload names a ring.
enum Index {
    Nowhere,
    /// In a 32-bit number at the front.
    State,
    /// In the low byte of a 64-bit number that also says whether a descriptor comes along.
    Fd,
}

impl Rule {
    const fn new(size: u32, fds: usize, index: Index) -> Self {
        Self { sizes: size..=size, fds, index }
    }

    const fn ring(&self, first: u64) -> Option<u64> {
        match self.index {
            Index::Nowhere => None,
            Index::State => Some(first & 0xffff_ffff),
            Index::Fd => Some(first & 0xff),
        }
    }
}

fn rule(request: u32) -> Result<Rule, Refusal> {
    use FrontendReq as Req;
    let unsupported = Refusal::Request(request);
    Ok(match Req::try_from(request).map_err(|_| unsupported)? {
        Req::GET_FEATURES
        | Req::SET_OWNER
        | Req::RESET_OWNER
        | Req::GET_PROTOCOL_FEATURES
        | Req::GET_QUEUE_NUM
        | Req::RESET_DEVICE
        | Req::GET_MAX_MEM_SLOTS
        | Req::GET_STATUS => Rule::new(0, 0, Index::Nowhere),
        Req::SET_FEATURES
        | Req::SET_PROTOCOL_FEATURES
        | Req::SEND_RARP
        | Req::NET_SET_MTU
        | Req::SET_STATUS => Rule::new(8, 0, Index::Nowhere),
        Req::SET_VRING_NUM | Req::SET_VRING_BASE | Req::GET_VRING_BASE | Req::SET_VRING_ENABLE => {
            Rule::new(8, 0, Index::State)
        }
        Req::SET_VRING_ADDR => Rule::new(40, 0, Index::State),
        Req::SET_VRING_KICK | Req::SET_VRING_CALL | Req::SET_VRING_ERR => {
            Rule::new(8, 1, Index::Fd)
        }
        Req::SET_MEM_TABLE => {
            Rule { sizes: 8..=8 + 32 * MAX_FDS as u32, fds: MAX_FDS, index: Index::Nowhere }
        }
        Req::SET_LOG_BASE => Rule::new(16, 1, Index::Nowhere),
        Req::SET_LOG_FD => Rule { sizes: 0..=8, fds: 1, index: Index::Nowhere },
        // Some front-ends send a descriptor with a removal, too; it is closed unused.
        Req::ADD_MEM_REG | Req::REM_MEM_REG => Rule::new(40, 1, Index::Nowhere),
        _ => return Err(unsupported),
    })
}

fn first_word(payload: &[u8]) -> u64 {
    payload.first_chunk().map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn head(request: FrontendReq, size: u32) -> Head {
        Head { request: request.into(), flags: VERSION | NEED_REPLY, size }
    }

    fn decide(gate: &mut Gate, request: FrontendReq, value: u64) -> Result<Action, Refusal> {
        let head = head(request, 8);
        gate.check_head(&head)?;
        gate.decide(&head, &value.to_ne_bytes(), 0)
    }

    #[test]
    fn a_ring_is_enabled_before_features_are_set() {
        let mut gate = Gate::new(2);
        assert_eq!(
            decide(&mut gate, FrontendReq::SET_VRING_ENABLE, 1 << 32 | 1),
            Ok(Action::Enable { ring: 1, on: true })
        );
        assert_eq!(
            decide(&mut gate, FrontendReq::SET_VRING_ENABLE, 2 << 32),
            Err(Refusal::Value { request: 18, value: 2 << 32 })
        );
    }

    #[test]
    fn an_acknowledgement_is_sent_only_once_it_was_agreed_on() {
        let mut gate = Gate::new(2);
        let enable = head(FrontendReq::SET_VRING_ENABLE, 8);
        assert!(!gate.wants_ack(&enable));
        let reply_ack = VhostUserProtocolFeatures::REPLY_ACK.bits();
        decide(&mut gate, FrontendReq::SET_PROTOCOL_FEATURES, reply_ack).unwrap();
        assert!(gate.wants_ack(&enable));
        assert!(!gate.wants_ack(&Head { flags: 1, ..enable }));
    }

    #[test]
    fn status_is_remembered_for_the_connection() {
        let mut gate = Gate::new(2);
        assert_eq!(decide(&mut gate, FrontendReq::SET_STATUS, 0x0f), Ok(Action::Noted));
        let get = head(FrontendReq::GET_STATUS, 0);
        assert_eq!(gate.decide(&get, &[], 0), Ok(Action::Reply(0x0f)));
    }

    #[test]
    fn rarp_needs_an_address_that_a_guest_can_have() {
        let mut gate = Gate::new(2);
        let mac = u64::from_ne_bytes([0x52, 0x54, 0, 1, 2, 3, 0, 0]);
        assert_eq!(
            decide(&mut gate, FrontendReq::SEND_RARP, mac),
            Ok(Action::Announce(MacAddr::new([0x52, 0x54, 0, 1, 2, 3])))
        );
        assert!(decide(&mut gate, FrontendReq::SEND_RARP, 0).is_err());
    }

    #[test]
    fn what_was_not_offered_is_refused() {
        let mut gate = Gate::new(2);
        for request in [
            FrontendReq::POSTCOPY_ADVISE,
            FrontendReq::GET_INFLIGHT_FD,
            FrontendReq::SET_BACKEND_REQ_FD,
            FrontendReq::GPU_SET_SOCKET,
        ] {
            assert!(decide(&mut gate, request, 0).is_err(), "{request:?} passed");
        }
    }

    #[test]
    fn a_log_comes_with_one_descriptor_and_its_notifier_is_not_used() {
        let mut gate = Gate::new(2);
        let base = head(FrontendReq::SET_LOG_BASE, 16);
        assert_eq!(gate.check_head(&base), Ok(()));
        assert_eq!(gate.decide(&base, &[0; 16], 1), Ok(Action::Pass));
        assert!(gate.decide(&base, &[0; 16], 2).is_err());
        assert!(gate.check_head(&head(FrontendReq::SET_LOG_BASE, 8)).is_err());
        let notifier = head(FrontendReq::SET_LOG_FD, 0);
        assert_eq!(gate.check_head(&notifier), Ok(()));
        assert_eq!(gate.decide(&notifier, &[], 1), Ok(Action::Noted));
    }

    #[test]
    fn rings_that_do_not_exist_are_refused() {
        let mut gate = Gate::new(2);
        for request in [
            FrontendReq::SET_VRING_NUM,
            FrontendReq::GET_VRING_BASE,
            FrontendReq::SET_VRING_ENABLE,
            FrontendReq::SET_VRING_KICK,
        ] {
            let refusal = decide(&mut gate, request, 2);
            assert!(matches!(refusal, Err(Refusal::Ring { ring: 2, .. })));
        }
    }

    #[test]
    fn descriptors_beyond_the_allowed_are_refused() {
        let mut gate = Gate::new(2);
        let kick = head(FrontendReq::SET_VRING_KICK, 8);
        assert_eq!(gate.decide(&kick, &[0; 8], 1), Ok(Action::Pass));
        assert!(matches!(gate.decide(&kick, &[0; 8], 2), Err(Refusal::Fds { allowed: 1, .. })));
    }

    proptest! {
        #[test]
        fn no_message_panics_and_no_long_one_passes(
            bytes: [u8; HEAD_BYTES], payload: Vec<u8>, fds in 0usize..40
        ) {
            let mut gate = Gate::new(2);
            let head = Head::parse(&bytes);
            if gate.check_head(&head).is_ok() {
                prop_assert!(head.size as usize <= MAX_PAYLOAD);
            }
            let _ = gate.decide(&head, &payload, fds);
        }
    }
}
