//! Names of features, and sets of them as people write them: `all,-guest_uso4`, `0x130000000`.
//!
//! A set that is written out is pinned: it means the same on every host, so a host that cannot
//! offer all of it says so at start, and not in the middle of a migration.

use std::str::FromStr;

use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_RING_PACKED, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net as net;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};

use super::features::{BACKEND_ONLY, DEFAULT_MASK, VIRTIO_F_ANY_LAYOUT};

/// A feature that has a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Feature {
    /// Its bit.
    pub bit: u32,
    /// The specification's name without prefix, in lower case.
    pub name: &'static str,
    prefix: &'static str,
    /// One of these is needed for it (virtio 1.x, section 5.1.3.1).
    needs: &'static [u32],
}

/// All that have names, in the order of their bits.
pub const FEATURES: [Feature; 24] = [
    net(net::VIRTIO_NET_F_CSUM, "csum", &[]),
    net(net::VIRTIO_NET_F_GUEST_CSUM, "guest_csum", &[]),
    net(net::VIRTIO_NET_F_MTU, "mtu", &[]),
    net(net::VIRTIO_NET_F_GUEST_TSO4, "guest_tso4", GUEST_CSUM),
    net(net::VIRTIO_NET_F_GUEST_TSO6, "guest_tso6", GUEST_CSUM),
    net(net::VIRTIO_NET_F_GUEST_ECN, "guest_ecn", GUEST_TSO),
    net(net::VIRTIO_NET_F_HOST_TSO4, "host_tso4", CSUM),
    net(net::VIRTIO_NET_F_HOST_TSO6, "host_tso6", CSUM),
    net(net::VIRTIO_NET_F_HOST_ECN, "host_ecn", HOST_TSO),
    net(net::VIRTIO_NET_F_MRG_RXBUF, "mrg_rxbuf", &[]),
    net(net::VIRTIO_NET_F_GUEST_ANNOUNCE, "guest_announce", &[]),
    net(net::VIRTIO_NET_F_MQ, "mq", &[]),
    other(VHOST_F_LOG_ALL, "log_all", "VHOST_F_"),
    other(VIRTIO_F_ANY_LAYOUT, "any_layout", "VIRTIO_F_"),
    other(VIRTIO_RING_F_INDIRECT_DESC, "indirect_desc", "VIRTIO_RING_F_"),
    other(VIRTIO_RING_F_EVENT_IDX, "event_idx", "VIRTIO_RING_F_"),
    other(PROTOCOL_FEATURES, "protocol_features", "VHOST_USER_F_"),
    other(VIRTIO_F_VERSION_1, "version_1", "VIRTIO_F_"),
    other(VIRTIO_F_RING_PACKED, "ring_packed", "VIRTIO_F_"),
    other(VIRTIO_F_IN_ORDER, "in_order", "VIRTIO_F_"),
    net(net::VIRTIO_NET_F_GUEST_USO4, "guest_uso4", GUEST_CSUM),
    net(net::VIRTIO_NET_F_GUEST_USO6, "guest_uso6", GUEST_CSUM),
    net(net::VIRTIO_NET_F_HOST_USO, "host_uso", CSUM),
    net(net::VIRTIO_NET_F_STANDBY, "standby", &[]),
];

const PROTOCOL_FEATURES: u32 = 30;
const VHOST_F_LOG_ALL: u32 = 26;
const CSUM: &[u32] = &[net::VIRTIO_NET_F_CSUM];
const GUEST_CSUM: &[u32] = &[net::VIRTIO_NET_F_GUEST_CSUM];
const HOST_TSO: &[u32] = &[net::VIRTIO_NET_F_HOST_TSO4, net::VIRTIO_NET_F_HOST_TSO6];
const GUEST_TSO: &[u32] = &[net::VIRTIO_NET_F_GUEST_TSO4, net::VIRTIO_NET_F_GUEST_TSO6];

const fn net(bit: u32, name: &'static str, needs: &'static [u32]) -> Feature {
    Feature { bit, name, prefix: "VIRTIO_NET_F_", needs }
}

const fn other(bit: u32, name: &'static str, prefix: &'static str) -> Feature {
    Feature { bit, name, prefix, needs: &[] }
}

impl Feature {
    /// The feature is in this mask.
    pub const fn is_in(&self, mask: u64) -> bool {
        mask & (1 << self.bit) != 0
    }

    /// The constant of the specification, of Linux and of DPDK.
    pub fn constant(&self) -> String {
        format!("{}{}", self.prefix, self.name.to_uppercase())
    }

    /// What switches it in QEMU 10: a property of `virtio-net-pci`; nothing for what has none.
    pub const fn qemu(&self) -> Option<&'static str> {
        match self.bit {
            net::VIRTIO_NET_F_MTU => Some("host_mtu=BYTES"),
            net::VIRTIO_NET_F_STANDBY => Some("failover=on"),
            VIRTIO_F_RING_PACKED => Some("packed"),
            VIRTIO_F_VERSION_1 => Some("disable-modern=off"),
            PROTOCOL_FEATURES | VHOST_F_LOG_ALL => None,
            _ => Some(self.name),
        }
    }

    /// What switches it in DPDK's virtio-user; nothing for what it always takes.
    pub const fn virtio_user(&self) -> Option<&'static str> {
        match self.bit {
            net::VIRTIO_NET_F_MRG_RXBUF => Some("mrg_rxbuf=0|1"),
            net::VIRTIO_NET_F_MQ => Some("queues=N"),
            VIRTIO_F_IN_ORDER => Some("in_order=0|1"),
            VIRTIO_F_RING_PACKED => Some("packed_vq=0|1"),
            _ => None,
        }
    }
}

/// A set of features as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeatureSet(Vec<Item>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Item {
    All,
    Add(u32),
    Remove(u32),
    Mask(u64),
}

/// Why a set of features cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    /// No such name.
    #[error("there is no feature {0:?}; there are: all, {names}", names = names(u64::MAX))]
    Unknown(String),
    /// Nothing was named.
    #[error("name at least one feature, or a mask such as 0x130000000")]
    Empty,
    /// This host cannot offer what was asked for.
    #[error(
        "this host cannot offer {names} on this port: name what every host of yours can offer \
         (vhost-net-pv features tells)",
        names = names(*.0)
    )]
    NotOffered(u64),
    /// A feature without what it builds on.
    #[error("{feature} needs {needed}: name that, too, or leave {feature} out")]
    Needs {
        /// The feature asked for.
        feature: &'static str,
        /// What it needs.
        needed: String,
    },
}

impl FromStr for FeatureSet {
    type Err = FeatureError;

    fn from_str(text: &str) -> Result<Self, FeatureError> {
        text.split(',').map(item).collect::<Result<_, _>>().map(Self)
    }
}

fn item(word: &str) -> Result<Item, FeatureError> {
    let word = word.trim();
    if word.is_empty() {
        return Err(FeatureError::Empty);
    }
    if let Some(digits) = word.strip_prefix("0x") {
        let unknown = |_| FeatureError::Unknown(word.to_owned());
        return u64::from_str_radix(digits, 16).map(Item::Mask).map_err(unknown);
    }
    let bit = |name: &str| {
        // QEMU and the specification differ in hyphens only.
        let name = name.replace('-', "_").to_lowercase();
        let known = FEATURES.iter().find(|feature| feature.name == name);
        known.map(|feature| feature.bit).ok_or(FeatureError::Unknown(name))
    };
    match word.strip_prefix('-') {
        Some(name) => bit(name).map(Item::Remove),
        None if word == "all" => Ok(Item::All),
        None => bit(word).map(Item::Add),
    }
}

impl FeatureSet {
    /// The mask that the set is, where so much is `offered`.
    ///
    /// A set that begins by removing something begins with all. A set of names has VERSION_1 unless
    /// that is removed. What guests do not see is in every set.
    ///
    /// # Errors
    /// [`FeatureError`] when something of it is not offered, or needs what is not in it.
    pub fn resolve(&self, offered: u64) -> Result<u64, FeatureError> {
        let all = offered & DEFAULT_MASK;
        let mut mask = match self.0.first() {
            Some(Item::Remove(_)) => all,
            Some(Item::Mask(_)) => 0,
            _ => 1 << VIRTIO_F_VERSION_1,
        };
        mask |= offered & BACKEND_ONLY;
        for item in &self.0 {
            match item {
                Item::All => mask |= all,
                Item::Add(bit) => mask |= 1 << bit,
                Item::Remove(bit) => mask &= !(1 << bit),
                Item::Mask(bits) => mask |= bits,
            }
        }
        match mask & !offered {
            0 => check_needs(mask),
            missing => Err(FeatureError::NotOffered(missing)),
        }
    }
}

fn check_needs(mask: u64) -> Result<u64, FeatureError> {
    for feature in FEATURES.iter().filter(|feature| feature.is_in(mask)) {
        let needed = feature.needs.iter().fold(0, |sum, bit| sum | 1u64 << bit);
        if needed != 0 && mask & needed == 0 {
            let needed = names(needed).replace(", ", " or ");
            return Err(FeatureError::Needs { feature: feature.name, needed });
        }
    }
    Ok(mask)
}

/// The names of a mask's features; bits without a name by their number.
pub fn names(mask: u64) -> String {
    let mut names: Vec<String> = Vec::new();
    let mut rest = mask;
    for feature in FEATURES.iter().filter(|feature| feature.is_in(mask)) {
        names.push(feature.name.to_owned());
        rest &= !(1 << feature.bit);
    }
    // All bits are a way to ask for all names.
    if mask != u64::MAX {
        names.extend((0..64).filter(|bit| rest & 1 << bit != 0).map(|bit| format!("bit {bit}")));
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::features::{Offloads, offered};
    use proptest::prelude::*;

    fn resolve(set: &str, offered: u64) -> Result<u64, String> {
        let set: FeatureSet = set.parse().map_err(|error: FeatureError| error.to_string())?;
        set.resolve(offered).map_err(|error| error.to_string())
    }

    fn all_here() -> u64 {
        offered(2, Offloads::ALL)
    }

    #[test]
    fn standby_is_there_only_when_it_is_named() {
        let standby = 1 << net::VIRTIO_NET_F_STANDBY;
        assert_eq!(resolve("all", all_here()).unwrap() & standby, 0);
        assert_ne!(resolve("all,standby", all_here()).unwrap() & standby, 0);
        assert_eq!(resolve("all", all_here()).unwrap(), all_here() & DEFAULT_MASK);
    }

    #[test]
    fn names_are_added_and_removed_in_their_order() {
        let base = 1 << VIRTIO_F_VERSION_1 | 1 << PROTOCOL_FEATURES;
        let here = all_here() & !(1 << VHOST_F_LOG_ALL);
        assert_eq!(resolve("mrg_rxbuf,csum", here).unwrap(), base | 1 << 15 | 1);
        assert_eq!(resolve("mrg-rxbuf, CSUM", here).unwrap(), base | 1 << 15 | 1);
        assert_eq!(resolve("mrg_rxbuf,-mrg_rxbuf", here).unwrap(), base);
        assert_eq!(resolve("0x8000", here).unwrap(), 1 << 15 | 1 << PROTOCOL_FEATURES);
        let without = resolve("-event_idx", here).unwrap();
        assert_eq!(without, here & DEFAULT_MASK & !(1 << VIRTIO_RING_F_EVENT_IDX));
    }

    #[test]
    fn what_a_host_cannot_offer_is_an_error_and_not_left_out() {
        let here = offered(1, Offloads { uso: false, ..Offloads::ALL });
        let error = resolve("all,guest_uso4,mq", here).unwrap_err();
        assert_eq!(
            error,
            "this host cannot offer mq, guest_uso4 on this port: name what every host of yours can \
             offer (vhost-net-pv features tells)"
        );
        assert!(resolve("0x20", here).unwrap_err().contains("bit 5"));
        assert!(resolve("all,-guest_uso4", here).is_ok());
    }

    #[test]
    fn an_offload_needs_its_checksum() {
        let error = resolve("-csum", all_here()).unwrap_err();
        assert_eq!(error, "host_tso4 needs csum: name that, too, or leave host_tso4 out");
        let error = resolve("guest_ecn", all_here()).unwrap_err();
        assert!(error.contains("guest_tso4 or guest_tso6"), "{error}");
        assert!(resolve("csum,host_tso6,host_ecn", all_here()).is_ok());
    }

    #[test]
    fn nonsense_is_refused_with_the_names_that_there_are() {
        let error = resolve("tso", all_here()).unwrap_err();
        assert!(error.starts_with("there is no feature \"tso\"; there are: all, csum"), "{error}");
        for empty in ["", ",", "csum,,mq"] {
            assert!(resolve(empty, all_here()).unwrap_err().contains("at least one"), "{empty:?}");
        }
        assert!(resolve("0x", all_here()).is_err());
        assert!(resolve("0xfffffffffffffffff", all_here()).is_err());
    }

    #[test]
    fn every_feature_that_is_offered_has_a_name() {
        assert!(!names(all_here()).contains("bit "), "{}", names(all_here()));
        assert!(FEATURES.is_sorted_by_key(|feature| feature.bit));
    }

    proptest! {
        #[test]
        fn what_is_resolved_is_offered_and_its_names_mean_the_same_again(
            picked: u64, offloads: [bool; 5], pairs in 1usize..17
        ) {
            let [csum, tso4, tso6, ecn, uso] = offloads;
            let here = offered(pairs, Offloads { csum, tso4, tso6, ecn, uso });
            let Ok(mask) = resolve(&format!("{:#x}", picked & here), here) else { return Ok(()) };
            prop_assert_eq!(mask & !here, 0);
            let again = format!("csum,-csum,-version_1,{}", names(mask).replace(' ', ""));
            prop_assert_eq!(resolve(&again, here).unwrap(), mask | here & BACKEND_ONLY);
        }
    }
}
