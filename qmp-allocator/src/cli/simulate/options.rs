//! What strategies are compared, and what they are set to: of `flexvf simulate` and `flexvf replay`.

use std::path::Path;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};

use super::table::Row;
use crate::config::{ConfigError, GainFile};
use crate::logic::gain::Gain;
use crate::logic::policy::tenant::Tenants;
use crate::logic::policy::{Rules, Strategy, Tuning};
use crate::logic::simulate::Demand;
use crate::logic::simulate::play::{Host, play};

#[derive(Debug, clap::Args)]
pub(in crate::cli) struct Options {
    /// Only this strategy; may be given several times [default: all of them]
    #[arg(long, value_parser = strategies(), value_name = "NAME")]
    strategy: Vec<Strategy>,
    /// How long a VF that changes hands carries nothing
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(0..=3_600))]
    switch_s: u64,
    /// margin_percent where there is hysteresis
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=1_000))]
    margin_percent: u32,
    /// min_hold_s where there is hysteresis
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u64).range(0..=2_592_000))]
    min_hold_s: u64,
    /// gain where there is hysteresis: packets, queue, or a file of `flexvf calibrate`
    #[arg(long, default_value = "packets", value_parser = gain, value_name = "NAME|FILE")]
    gain: Gain,
    /// max_wait_s of hybrid
    #[arg(long, default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(1..=2_592_000))]
    max_wait_s: u64,
    /// From this rate on a VM wants a VF
    #[arg(long, default_value_t = 1)]
    wants_pps: u32,
    /// rate_time_constant_s
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u64).range(0..=2_592_000))]
    pub(in crate::cli) rate_time_constant_s: u64,
}

impl Options {
    /// How each strategy does.
    pub(in crate::cli) fn rows(&self, demand: &Demand, interval: Duration) -> Vec<Row> {
        let host = self.host();
        let row = |(policy, rules): (&'static str, Rules)| Row {
            policy,
            outcome: play(&Rules { tenants: demand.tenants.clone(), ..rules }, demand, &host),
        };
        self.policies(interval).map(row).collect()
    }

    pub(in crate::cli) fn host(&self) -> Host {
        Host { switch_s: self.switch_s as f64, wants_pps: f64::from(self.wants_pps) }
    }

    fn policies(&self, interval: Duration) -> impl Iterator<Item = (&'static str, Rules)> {
        let plain = Tuning {
            max_wait: Duration::from_secs(self.max_wait_s),
            wants_pps: self.wants_pps,
            ..Tuning::default()
        };
        let steady = Tuning {
            margin_percent: self.margin_percent,
            min_hold: Duration::from_secs(self.min_hold_s),
            switch_cost: Duration::from_secs(self.switch_s),
            gain: self.gain,
            ..plain
        };
        let rules = move |strategy, tuning| Rules {
            strategy,
            tuning,
            interval,
            tenants: Tenants::default(),
        };
        let all = [
            ("fair", rules(Strategy::Fair, plain)),
            ("activity", rules(Strategy::Activity, plain)),
            ("activity, hysteresis", rules(Strategy::Activity, steady)),
            ("weighted", rules(Strategy::Weighted, plain)),
            ("hybrid", rules(Strategy::Hybrid, plain)),
            ("hybrid, hysteresis", rules(Strategy::Hybrid, steady)),
        ];
        let wanted = |strategy| self.strategy.is_empty() || self.strategy.contains(&strategy);
        all.into_iter().filter(move |(_, rules)| wanted(rules.strategy))
    }
}

fn gain(name: &str) -> Result<Gain, ConfigError> {
    match name {
        "packets" => Ok(Gain::Packets),
        "queue" => Ok(Gain::Queue),
        file => Ok(Gain::Measured(GainFile::load(Path::new(file))?.curve)),
    }
}

fn strategies() -> impl TypedValueParser<Value = Strategy> {
    PossibleValuesParser::new(Strategy::ALL.map(Strategy::name)).try_map(|name| {
        Strategy::ALL.into_iter().find(|strategy| strategy.name() == name).ok_or("no such strategy")
    })
}
