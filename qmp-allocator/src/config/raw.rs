//! The daemon's file as it is written, and the checks that make a [`Config`] of it.

mod policy;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flexvf_protocol::PciAddress;
use serde::Deserialize;
use toml::Spanned;

use super::text::Text;
use super::{
    Config, ConfigError, Deadlines, EmulatedPool, MacOrder, Pool, PoolKind, SriovPool, Strategy,
    Tuning,
};

type Seconds = Option<Spanned<f64>>;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    strategy: Option<Strategy>,
    interval_s: Seconds,
    sample_interval_s: Seconds,
    vms_dir: Option<Spanned<PathBuf>>,
    state_file: Option<Spanned<PathBuf>>,
    control_socket: Option<Spanned<PathBuf>>,
    max_concurrent_switches: Option<Spanned<usize>>,
    #[serde(default)]
    policy: policy::RawPolicy,
    #[serde(default)]
    deadlines: RawDeadlines,
    #[serde(default)]
    pool: Vec<Spanned<RawPool>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawDeadlines {
    prepare_s: Seconds,
    plug_s: Seconds,
    join_s: Seconds,
    leave_s: Seconds,
    drain_s: Seconds,
    unplug_s: Seconds,
    unplug_repeat_s: Seconds,
    agent_s: Seconds,
    qmp_s: Seconds,
}

#[derive(Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "kebab-case")]
enum Kind {
    Sriov,
    Emulated,
}

/// Every key of every kind: a tagged enum would lose the lines.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPool {
    name: Option<Spanned<String>>,
    kind: Spanned<Kind>,
    pf: Option<Spanned<String>>,
    vfs: Option<Spanned<Vec<Spanned<PciAddress>>>>,
    mac_order: Option<Spanned<MacOrder>>,
    vlan: Option<Spanned<u16>>,
    spoof_check: Option<Spanned<bool>>,
    trust: Option<Spanned<bool>>,
    max_tx_rate_mbps: Option<Spanned<u32>>,
    model: Option<Spanned<String>>,
    taps: Option<Spanned<Vec<Spanned<String>>>>,
}

pub(super) fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = Text::read(path)?;
    let raw: Raw = text.parse()?;
    let interval = seconds(&text, raw.interval_s.as_ref(), 300.0, INTERVALS)?;
    let sample_interval = seconds(&text, raw.sample_interval_s.as_ref(), 10.0, INTERVALS)?;
    if sample_interval > interval {
        let what = format!("samples {sample_interval:?} apart, decisions {interval:?}");
        let remedy = "sample at least once in each interval";
        return Err(match raw.sample_interval_s.as_ref().or(raw.interval_s.as_ref()) {
            Some(at) => text.refuse(at, what, remedy),
            None => whole(path, what, remedy),
        });
    }
    let default = |path: &str| PathBuf::from(path);
    let of = |found: Option<&Spanned<PathBuf>>, other: &str| match found {
        Some(path) => text.path(path),
        None => Ok(default(other)),
    };
    Ok(Config {
        strategy: raw.strategy.unwrap_or(Strategy::Fair),
        tuning: policy::tuning(&text, &raw.policy, interval)?,
        interval,
        sample_interval,
        vms_dir: of(raw.vms_dir.as_ref(), "/run/flexvf/vms")?,
        state_file: of(raw.state_file.as_ref(), "/var/lib/flexvf/state.json")?,
        control_socket: match &raw.control_socket {
            Some(path) => text.socket(path)?,
            None => default("/run/flexvf/control.sock"),
        },
        max_concurrent_switches: switches(&text, raw.max_concurrent_switches.as_ref())?,
        deadlines: deadlines(&text, &raw.deadlines)?,
        pools: pools(path, &text, &raw.pool)?,
    })
}

fn whole(path: &Path, what: impl Into<String>, remedy: &str) -> ConfigError {
    ConfigError { file: path.into(), line: None, what: what.into(), remedy: remedy.into() }
}

fn seconds(
    text: &Text,
    found: Option<&Spanned<f64>>,
    default: f64,
    range: RangeInclusive<f64>,
) -> Result<Duration, ConfigError> {
    let value = found.map_or(default, |found| *found.get_ref());
    match (Duration::try_from_secs_f64(value), found) {
        (Ok(duration), _) if range.contains(&value) => Ok(duration),
        (_, Some(at)) => {
            let (least, most) = range.into_inner();
            let remedy = format!("give {least} to {most} seconds");
            Err(text.refuse(at, format!("{value} seconds"), remedy))
        }
        // A default is in its range; see the test.
        (_, None) => Ok(Duration::ZERO),
    }
}

fn switches(text: &Text, found: Option<&Spanned<usize>>) -> Result<usize, ConfigError> {
    match found {
        None => Ok(4),
        Some(count) if SWITCHES.contains(count.get_ref()) => Ok(*count.get_ref()),
        Some(count) => {
            let what = format!("{} concurrent switches", count.get_ref());
            let (least, most) = SWITCHES.into_inner();
            Err(text.refuse(count, what, format!("give {least} to {most}")))
        }
    }
}

fn deadlines(text: &Text, raw: &RawDeadlines) -> Result<Deadlines, ConfigError> {
    let step = |found: &Seconds, default| seconds(text, found.as_ref(), default, STEPS);
    Ok(Deadlines {
        prepare: step(&raw.prepare_s, 5.0)?,
        plug: step(&raw.plug_s, 30.0)?,
        join: step(&raw.join_s, 15.0)?,
        leave: step(&raw.leave_s, 5.0)?,
        drain: seconds(text, raw.drain_s.as_ref(), 0.2, DRAINS)?,
        unplug: step(&raw.unplug_s, 20.0)?,
        unplug_repeat: seconds(text, raw.unplug_repeat_s.as_ref(), 6.0, REPEATS)?,
        agent: step(&raw.agent_s, 2.0)?,
        qmp: step(&raw.qmp_s, 5.0)?,
    })
}

fn pools(path: &Path, text: &Text, raw: &[Spanned<RawPool>]) -> Result<Vec<Pool>, ConfigError> {
    if raw.is_empty() {
        let remedy = "add a [[pool]] with kind = \"sriov\" and pf, or kind = \"emulated\" and taps";
        return Err(whole(path, "no pool to take VFs from", remedy));
    }
    let mut taken = Taken::default();
    let mut pools = Vec::new();
    for raw in raw {
        let pool = raw.get_ref();
        let name = pool.name.as_ref().map_or("default", |name| name.get_ref());
        if name.is_empty() || name.len() > MAX_POOL_NAME || name.contains(char::is_control) {
            let what = format!("{name:?} is no pool's name");
            let remedy = format!("give 1 to {MAX_POOL_NAME} printable characters");
            return Err(text.refuse(raw, what, remedy));
        }
        if pools.iter().any(|pool: &Pool| pool.name == name) {
            let what = format!("a second pool named {name:?}");
            return Err(match &pool.name {
                Some(at) => text.refuse(at, what, "give each pool a name of its own"),
                None => text.refuse(raw, what, "give each pool a name of its own"),
            });
        }
        let kind = match pool.kind.get_ref() {
            Kind::Sriov => sriov(text, pool, name, &mut taken)?,
            Kind::Emulated => emulated(text, pool, name, &mut taken)?,
        };
        pools.push(Pool { name: name.to_owned(), kind });
    }
    Ok(pools)
}

/// Which pool has what, by name.
#[derive(Default)]
struct Taken {
    functions: BTreeMap<PciAddress, String>,
    taps: BTreeMap<String, String>,
    /// Whole PFs, and PFs of which single VFs are taken.
    pfs: BTreeMap<String, (bool, String)>,
}

fn sriov(
    text: &Text,
    pool: &RawPool,
    name: &str,
    taken: &mut Taken,
) -> Result<PoolKind, ConfigError> {
    foreign(text, pool.model.as_ref(), "model", "emulated")?;
    foreign(text, pool.taps.as_ref(), "taps", "emulated")?;
    let Some(pf) = &pool.pf else {
        let remedy = "add pf = \"INTERFACE\", the PF's as `ip link` shows it";
        return Err(text.refuse(&pool.kind, "a pool of VFs without their PF", remedy));
    };
    let interface = text.interface(pf)?;
    let all = pool.vfs.is_none();
    if let Some((other_has_all, other)) = taken.pfs.get(&interface)
        && (all || *other_has_all)
    {
        let what = format!("pool {other:?} takes VFs of {interface} too");
        return Err(text.refuse(pf, what, "list the `vfs` of each of the two"));
    }
    taken.pfs.insert(interface.clone(), (all, name.to_owned()));
    for vf in pool.vfs.iter().flat_map(|vfs| vfs.get_ref()) {
        let address = *vf.get_ref();
        if let Some(other) = taken.functions.insert(address, name.to_owned()) {
            let what = format!("VF {address} is listed already, in pool {other:?}");
            return Err(text.refuse(vf, what, "list it once"));
        }
    }
    let vfs = pool.vfs.as_ref().map(Spanned::get_ref);
    if let (Some(at), Some([])) = (&pool.vfs, vfs.map(Vec::as_slice)) {
        return Err(text.refuse(at, "an empty list of VFs", "list some, or leave out `vfs`"));
    }
    if let Some(vlan) = pool.vlan.as_ref().filter(|vlan| *vlan.get_ref() > MAX_VLAN) {
        let what = format!("VLAN {}", vlan.get_ref());
        return Err(text.refuse(vlan, what, format!("give 1 to {MAX_VLAN}, or 0 for none")));
    }
    let trust = pool.trust.as_ref();
    if let Some(at) = trust.filter(|trust| !*trust.get_ref()) {
        let remedy = "leave it out: the guest's bond moves the shared MAC address to the VF";
        return Err(text.refuse(at, "mac_order \"own-mac-follow\" without trust", remedy));
    }
    Ok(PoolKind::Sriov(SriovPool {
        pf: interface,
        vfs: vfs.map(|vfs| vfs.iter().map(|vf| *vf.get_ref()).collect()),
        mac_order: pool.mac_order.as_ref().map(|m| *m.get_ref()).unwrap_or_default(),
        vlan: pool.vlan.as_ref().map_or(0, |vlan| *vlan.get_ref()),
        spoof_check: pool.spoof_check.as_ref().map(|check| *check.get_ref()),
        trust: trust.is_none_or(|trust| *trust.get_ref()),
        max_tx_rate_mbps: pool.max_tx_rate_mbps.as_ref().map(|rate| *rate.get_ref()),
    }))
}

fn emulated(
    text: &Text,
    pool: &RawPool,
    name: &str,
    taken: &mut Taken,
) -> Result<PoolKind, ConfigError> {
    foreign(text, pool.pf.as_ref(), "pf", "sriov")?;
    foreign(text, pool.vfs.as_ref(), "vfs", "sriov")?;
    foreign(text, pool.mac_order.as_ref(), "mac_order", "sriov")?;
    foreign(text, pool.vlan.as_ref(), "vlan", "sriov")?;
    foreign(text, pool.spoof_check.as_ref(), "spoof_check", "sriov")?;
    foreign(text, pool.trust.as_ref(), "trust", "sriov")?;
    foreign(text, pool.max_tx_rate_mbps.as_ref(), "max_tx_rate_mbps", "sriov")?;
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

/// From ten a second, for tests, to one a month.
const INTERVALS: RangeInclusive<f64> = 0.1..=2_592_000.0;
/// Software-emulated guests take minutes.
const STEPS: RangeInclusive<f64> = 0.01..=3600.0;
/// Frames in flight need no longer.
const DRAINS: RangeInclusive<f64> = 0.0..=60.0;
/// A second press of the (PCIe native hot-plug) button within 5 s cancels the first.
const REPEATS: RangeInclusive<f64> = 5.1..=3600.0;
/// More VFs than a NIC has need not change hands at once.
const SWITCHES: RangeInclusive<usize> = 1..=1024;
/// 4095 is reserved by IEEE 802.1Q.
const MAX_VLAN: u16 = 4094;
const MAX_POOL_NAME: usize = 64;

#[cfg(test)]
mod tests;
