//! `[policy]`: what a strategy is set to beyond the paper.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;
use toml::Spanned;

use super::super::GainFile;
use super::{ConfigError, Seconds, Text, Tuning, seconds};
use crate::logic::gain::Gain;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPolicy {
    margin_percent: Option<Spanned<u32>>,
    min_hold_s: Seconds,
    switch_cost_s: Seconds,
    max_wait_s: Seconds,
    wants_pps: Option<Spanned<u32>>,
    rate_time_constant_s: Seconds,
    gain: Option<Spanned<Model>>,
    gain_file: Option<Spanned<PathBuf>>,
    pin_s_per_gib: Seconds,
}

/// Models that need no file.
#[derive(Deserialize, Clone, Copy)]
#[serde(rename_all = "kebab-case")]
enum Model {
    Packets,
    Queue,
}

pub(super) fn tuning(
    text: &Text,
    raw: &RawPolicy,
    interval: Duration,
) -> Result<Tuning, ConfigError> {
    let time = |found: &Seconds| seconds(text, found.as_ref(), 0.0, TIMES);
    let default = Tuning::default();
    let max_wait = match &raw.max_wait_s {
        None => default.max_wait.max(interval),
        found => time(found)?,
    };
    if let Some(at) = raw.max_wait_s.as_ref().filter(|_| max_wait < interval) {
        let what = format!("a wait of {max_wait:?}, decisions {interval:?} apart");
        return Err(text.refuse(at, what, "give at least interval_s"));
    }
    if let Some(at) = raw.margin_percent.as_ref().filter(|it| *it.get_ref() > MAX_MARGIN) {
        let what = format!("a margin of {} %", at.get_ref());
        return Err(text.refuse(at, what, format!("give 0 to {MAX_MARGIN}")));
    }
    Ok(Tuning {
        margin_percent: raw.margin_percent.as_ref().map_or(0, |it| *it.get_ref()),
        min_hold: time(&raw.min_hold_s)?,
        switch_cost: time(&raw.switch_cost_s)?,
        max_wait,
        rate_time_constant: time(&raw.rate_time_constant_s)?,
        wants_pps: raw.wants_pps.as_ref().map_or(default.wants_pps, |it| *it.get_ref()),
        gain: gain(text, raw)?,
        pin_per_gib: match &raw.pin_s_per_gib {
            None => default.pin_per_gib,
            found => seconds(text, found.as_ref(), 0.0, PIN_TIMES)?,
        },
    })
}

fn gain(text: &Text, raw: &RawPolicy) -> Result<Gain, ConfigError> {
    match (&raw.gain, &raw.gain_file) {
        (Some(named), Some(_)) => {
            Err(text.refuse(named, "gain and gain_file", "give one of the two"))
        }
        (None, None) => Ok(Gain::Packets),
        (Some(named), None) => Ok(match named.get_ref() {
            Model::Packets => Gain::Packets,
            Model::Queue => Gain::Queue,
        }),
        (None, Some(file)) => Ok(Gain::Measured(GainFile::load(&text.path(file)?)?.curve)),
    }
}

const PIN_TIMES: RangeInclusive<f64> = 0.0..=60.0;
/// As the longest interval.
const TIMES: RangeInclusive<f64> = 0.0..=2_592_000.0;
/// Eleven times the rate: beyond it, `min_hold_s` says it better.
const MAX_MARGIN: u32 = 1000;
