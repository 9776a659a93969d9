//! The daemon's file as it is written, and the checks that make a [`Config`] of it.

mod policy;
mod pool;
mod recorder;
mod tenant;

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::text::Text;
use super::vf::Requirable;
use super::{
    Config, ConfigError, Deadlines, MacOrder, Pool, RecorderConfig, Strategy, Tuning, VfioKind,
};
use crate::logic::settings::VfLink;

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
    recorder: recorder::RawRecorder,
    #[serde(default)]
    deadlines: RawDeadlines,
    #[serde(default)]
    tenant: BTreeMap<Spanned<String>, tenant::RawTenant>,
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
    pf: Option<Spanned<OneOrMore>>,
    vfs: Option<Spanned<Vec<Spanned<String>>>>,
    mac_order: Option<Spanned<MacOrder>>,
    vlan: Option<Spanned<u16>>,
    qos: Option<Spanned<u8>>,
    spoof_check: Option<Spanned<bool>>,
    trust: Option<Spanned<bool>>,
    link_state: Option<Spanned<VfLink>>,
    min_tx_rate_mbps: Option<Spanned<u32>>,
    max_tx_rate_mbps: Option<Spanned<u32>>,
    required: Option<Spanned<Vec<Requirable>>>,
    vfio: Option<Spanned<VfioKind>>,
    vfio_owner: Option<Spanned<String>>,
    max_pf_filters: Option<Spanned<usize>>,
    model: Option<Spanned<String>>,
    taps: Option<Spanned<Vec<Spanned<String>>>>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
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
    let state_file = of(raw.state_file.as_ref(), "/var/lib/flexvf/state.json")?;
    let pools = pools(path, &text, &raw.pool)?;
    Ok(Config {
        strategy: raw.strategy.unwrap_or(Strategy::Fair),
        tuning: policy::tuning(&text, &raw.policy, interval)?,
        interval,
        sample_interval,
        vms_dir: of(raw.vms_dir.as_ref(), "/run/flexvf/vms")?,
        recorder: recorder::recorder(&text, &raw.recorder, &state_file)?,
        state_file,
        control_socket: match &raw.control_socket {
            Some(path) => text.socket(path)?,
            None => default("/run/flexvf/control.sock"),
        },
        max_concurrent_switches: switches(&text, raw.max_concurrent_switches.as_ref())?,
        deadlines: deadlines(&text, &raw.deadlines)?,
        tenants: tenant::tenants(&text, &raw.tenant, &pools)?,
        pools,
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
    let mut taken = pool::Taken::default();
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
            Kind::Sriov => pool::sriov(text, pool, name, &mut taken)?,
            Kind::Emulated => pool::emulated(text, pool, name, &mut taken)?,
        };
        pools.push(Pool { name: name.to_owned(), kind });
    }
    Ok(pools)
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
const MAX_POOL_NAME: usize = 64;

#[cfg(test)]
mod tests;
