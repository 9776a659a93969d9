//! Virtual functions: their names, and what is known of each.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use flexvf_protocol::{MacAddr, VmName};
use serde::Serialize;

/// A VF's name in its pool: a PCI address (`sriov`) or a TAP's name (`emulated`). Cheap to clone.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(into = "String")]
pub struct VfId(Arc<str>);

impl VfId {
    /// The VF with this PCI address or TAP.
    pub fn new(name: impl fmt::Display) -> Self {
        Self(name.to_string().into())
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The VF's own MAC address, which it carries until the bond gives it the guest's: locally
    /// administered, and the same for this VF on this host at each start. `host_seed` tells hosts
    /// on one network apart.
    pub fn own_mac(&self, host_seed: u64) -> MacAddr {
        // FNV-1a: stable over versions of this program, which std's hashers are not.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64 ^ host_seed;
        for byte in self.0.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        let [_, _, _, _, a, b, c, d] = (hash ^ (hash >> 32)).to_be_bytes();
        MacAddr::new([0x02, 0xf1, a, b, c, d])
    }
}

impl From<VfId> for String {
    fn from(vf: VfId) -> Self {
        vf.0.to_string()
    }
}

impl fmt::Display for VfId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl fmt::Debug for VfId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who has a VF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VfState {
    /// Nobody, as far as can be told.
    Free,
    /// This VM, or it is on its way there or back.
    With(VmName),
    /// QEMU may still hold it: it is given to nobody until QEMU says that it is gone.
    Quarantined(VmName),
    /// It failed lately, or somebody else uses it; tried again later.
    Resting {
        /// Since boot of the host.
        until: Duration,
        /// In words.
        reason: String,
    },
    /// Not in its pool any more.
    Missing,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_addresses_differ_by_vf_and_by_host_and_stay() {
        let (a, b) = (VfId::new("0000:01:10.0"), VfId::new("0000:01:10.2"));
        assert_ne!(a.own_mac(1), b.own_mac(1));
        assert_ne!(a.own_mac(1), a.own_mac(2));
        assert_eq!(a.own_mac(1), a.own_mac(1));
        assert!(a.own_mac(1).is_unicast());
    }
}
