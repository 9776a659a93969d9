//! A `[[pool]]`, checked by itself and against the others.

use std::collections::BTreeMap;

use flexvf_protocol::PciAddress;
use toml::Spanned;

use super::{OneOrMore, RawPool};
use crate::config::text::Text;
use crate::config::vf::RawVf;
use crate::config::{
    ConfigError, EmulatedPool, NodeOwner, PoolKind, SriovPool, VfOptions, VfRange,
};

/// Which pool has what, by name.
#[derive(Default)]
pub(super) struct Taken {
    functions: Vec<(VfRange, String)>,
    taps: BTreeMap<String, String>,
    /// Whole PFs, and PFs of which single VFs are taken.
    pfs: BTreeMap<String, (bool, String)>,
}

pub(super) fn sriov(
    text: &Text,
    pool: &RawPool,
    name: &str,
    taken: &mut Taken,
) -> Result<PoolKind, ConfigError> {
    foreign(text, pool.model.as_ref(), "model", "emulated")?;
    foreign(text, pool.taps.as_ref(), "taps", "emulated")?;
    let pfs = pfs(text, pool, name, taken)?;
    let vfs = vfs(text, pool, name, taken)?;
    let trust = pool.trust.as_ref();
    if let Some(at) = trust.filter(|trust| !*trust.get_ref()) {
        let remedy = "leave it out: the guest's bond moves the shared MAC address to the VF";
        return Err(text.refuse(at, "mac_order \"own-mac-follow\" without trust", remedy));
    }
    let settings = RawVf {
        vlan: pool.vlan.as_ref(),
        qos: pool.qos.as_ref(),
        spoof_check: pool.spoof_check.as_ref().map(|check| *check.get_ref()),
        link_state: pool.link_state.as_ref().map(|state| *state.get_ref()),
        min_tx_rate_mbps: pool.min_tx_rate_mbps.as_ref(),
        max_tx_rate_mbps: pool.max_tx_rate_mbps.as_ref().map(|rate| *rate.get_ref()),
        required: pool.required.as_ref().map(Spanned::get_ref),
    };
    Ok(PoolKind::Sriov(SriovPool {
        pfs,
        vfs,
        mac_order: pool.mac_order.as_ref().map(|m| *m.get_ref()).unwrap_or_default(),
        settings: VfOptions::of(text, &settings)?,
        vfio_owner: node_owner(text, pool.vfio_owner.as_ref())?,
        vfio: pool.vfio.as_ref().map(|vfio| *vfio.get_ref()).unwrap_or_default(),
        max_pf_filters: pool.max_pf_filters.as_ref().map(|most| *most.get_ref()),
    }))
}

fn pfs(
    text: &Text,
    pool: &RawPool,
    name: &str,
    taken: &mut Taken,
) -> Result<Vec<String>, ConfigError> {
    let missing = |at: &Spanned<super::Kind>| {
        let remedy = "add pf = \"INTERFACE\", the PF's as `ip link` shows it";
        text.refuse(at, "a pool of VFs without their PF", remedy)
    };
    let Some(at) = &pool.pf else {
        return Err(missing(&pool.kind));
    };
    let listed = match at.get_ref() {
        OneOrMore::One(pf) => std::slice::from_ref(pf),
        OneOrMore::More(pfs) => pfs,
    };
    if listed.is_empty() {
        return Err(missing(&pool.kind));
    }
    let all = pool.vfs.is_none();
    let mut pfs = Vec::new();
    for pf in listed {
        let interface = text.interface(&Spanned::new(at.span(), pf.clone()))?;
        if let Some((other_has_all, other)) = taken.pfs.get(&interface)
            && (all || *other_has_all)
        {
            let what = format!("pool {other:?} takes VFs of {interface} too");
            return Err(text.refuse(at, what, "list the `vfs` of each of the two"));
        }
        taken.pfs.insert(interface.clone(), (all, name.to_owned()));
        pfs.push(interface);
    }
    Ok(pfs)
}

fn vfs(
    text: &Text,
    pool: &RawPool,
    name: &str,
    taken: &mut Taken,
) -> Result<Option<Vec<VfRange>>, ConfigError> {
    let Some(listed) = &pool.vfs else { return Ok(None) };
    if listed.get_ref().is_empty() {
        return Err(text.refuse(listed, "an empty list of VFs", "list some, or leave out `vfs`"));
    }
    let mut ranges = Vec::new();
    for entry in listed.get_ref() {
        let range = range(text, entry)?;
        let overlaps = |(other, _): &&(VfRange, String)| {
            other.first <= range.last && range.first <= other.last
        };
        if let Some((_, other)) = taken.functions.iter().find(overlaps) {
            let vf = entry.get_ref();
            let what = format!("VF {vf} is listed already, in pool {other:?}");
            return Err(text.refuse(entry, what, "list it once"));
        }
        taken.functions.push((range, name.to_owned()));
        ranges.push(range);
    }
    Ok(Some(ranges))
}

/// `ADDRESS`, or `FIRST-LAST`.
fn range(text: &Text, entry: &Spanned<String>) -> Result<VfRange, ConfigError> {
    let listed = entry.get_ref();
    let (first, last) = listed.split_once('-').unwrap_or((listed, listed));
    let address = |part: &str| {
        part.trim().parse::<PciAddress>().map_err(|error| {
            let error = error.to_string();
            let (what, remedy) = error.split_once("; ").unwrap_or((&error, "correct it"));
            text.refuse(entry, what, remedy)
        })
    };
    let range = VfRange { first: address(first)?, last: address(last)? };
    if range.first > range.last {
        let what = format!("{listed} is a range that ends before it begins");
        return Err(text.refuse(entry, what, "write FIRST-LAST"));
    }
    Ok(range)
}

fn node_owner(text: &Text, owner: Option<&Spanned<String>>) -> Result<NodeOwner, ConfigError> {
    let Some(owner) = owner else { return Ok(NodeOwner::default()) };
    let ids = |found: &str| {
        let (user, group) = found.split_once(':')?;
        Some(NodeOwner::Ids(user.parse().ok()?, group.parse().ok()?))
    };
    match owner.get_ref().as_str() {
        "qemu" => Ok(NodeOwner::Qemu),
        "keep" => Ok(NodeOwner::Keep),
        other => ids(other).ok_or_else(|| {
            let remedy = "give \"qemu\", \"keep\", or \"UID:GID\" in numbers";
            text.refuse(owner, format!("{other:?} is no owner of a node"), remedy)
        }),
    }
}

pub(super) fn emulated(
    text: &Text,
    pool: &RawPool,
    name: &str,
    taken: &mut Taken,
) -> Result<PoolKind, ConfigError> {
    foreign(text, pool.pf.as_ref(), "pf", "sriov")?;
    foreign(text, pool.vfs.as_ref(), "vfs", "sriov")?;
    foreign(text, pool.mac_order.as_ref(), "mac_order", "sriov")?;
    foreign(text, pool.vlan.as_ref(), "vlan", "sriov")?;
    foreign(text, pool.qos.as_ref(), "qos", "sriov")?;
    foreign(text, pool.spoof_check.as_ref(), "spoof_check", "sriov")?;
    foreign(text, pool.trust.as_ref(), "trust", "sriov")?;
    foreign(text, pool.link_state.as_ref(), "link_state", "sriov")?;
    foreign(text, pool.min_tx_rate_mbps.as_ref(), "min_tx_rate_mbps", "sriov")?;
    foreign(text, pool.max_tx_rate_mbps.as_ref(), "max_tx_rate_mbps", "sriov")?;
    foreign(text, pool.required.as_ref(), "required", "sriov")?;
    foreign(text, pool.vfio.as_ref(), "vfio", "sriov")?;
    foreign(text, pool.vfio_owner.as_ref(), "vfio_owner", "sriov")?;
    foreign(text, pool.max_pf_filters.as_ref(), "max_pf_filters", "sriov")?;
    let listed = pool.taps.as_ref().map_or(&[][..], |taps| taps.get_ref());
    if listed.is_empty() {
        let remedy = "add taps = [\"vf0\", …], existing TAPs on the guests' bridge";
        return Err(text.refuse(&pool.kind, "an emulated pool without TAPs", remedy));
    }
    let mut taps = Vec::new();
    for tap in listed {
        let interface = text.interface(tap)?;
        if let Some(other) = taken.taps.insert(interface.clone(), name.to_owned()) {
            let what = format!("TAP {interface} is listed already, in pool {other:?}");
            return Err(text.refuse(tap, what, "list it once"));
        }
        taps.push(interface);
    }
    let model = match &pool.model {
        None => "e1000e".to_owned(),
        Some(model) => {
            let allowed = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
            let found = model.get_ref();
            if found.is_empty() || found == "vfio-pci" || !found.chars().all(allowed) {
                let what = format!("{found:?} is no NIC model of QEMU's");
                return Err(text.refuse(model, what, "give one such as e1000e or igb"));
            }
            found.clone()
        }
    };
    Ok(PoolKind::Emulated(EmulatedPool { model, taps }))
}

/// Refuses a key that belongs to the other kind of pool.
fn foreign<T>(
    text: &Text,
    found: Option<&Spanned<T>>,
    key: &str,
    kind: &str,
) -> Result<(), ConfigError> {
    found.map_or(Ok(()), |at| {
        let what = format!("`{key}` belongs to pools of kind {kind:?}");
        Err(text.refuse(at, what, "remove it, or correct the pool's kind"))
    })
}
