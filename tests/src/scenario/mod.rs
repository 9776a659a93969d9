//! Scenarios: real guests, the real daemon, load that moves, and a verdict.
//!
//! `flexvf-scenario` runs on the testbed's host. [`stage`] holds what every scenario has running;
//! [`follow`] is the demo, [`crash`] kills the daemon and a QEMU at any time, [`matrix`] at each moment of
//! a switch, [`bad_input`] makes every mistake that an operator can; [`hostile`] has made-up VMs that misbehave;
//! [`explain`] looks at what operators are told, at a recording and at a dry run; [`debian`] is about a
//! guest as people have them, [`switches`] counts what planned switches cost a guest, and an unplanned
//! one; [`settings`] looks at what becomes of a VF, [`pv`] has no daemon and is about the PV path alone.
//! What a scenario sees goes to stdout as it happens, to `details.json` in the testbed's folder, and in
//! the promised form to the file of `--json`.

pub mod bad_input;
pub mod crash;
pub mod debian;
pub mod explain;
pub mod follow;
pub mod hostile;
pub mod io;
pub mod logic;
pub mod matrix;
pub mod pv;
pub mod settings;
pub mod stage;
pub mod switches;

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};

use io::host::Host;
use logic::result::Outcome;

/// FlexVF on real guests, from end to end; runs on the testbed's host (scripts/testbed)
#[derive(Debug, Clone, Parser)]
#[command(version)]
pub struct Options {
    /// What to play
    #[arg(long, value_enum, default_value_t = Scenario::Follow)]
    pub scenario: Scenario,
    /// How the daemon chooses
    #[arg(long, value_enum, default_value_t = Strategy::Activity)]
    pub strategy: Strategy,
    /// Guests, named vm1, vm2, ...
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=40))]
    pub guests: u8,
    /// VFs to use (default: all that the testbed has)
    #[arg(long)]
    pub vfs: Option<usize>,
    /// Seconds between two of the daemon's decisions
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(2..))]
    pub interval: u64,
    /// Moves of the load (activity), circles of turns (fair), kills of the daemon (crash), switches each
    /// way (switches)
    #[arg(long, default_value_t = 3)]
    pub rounds: usize,
    /// Probes a second to and from each guest, each way
    #[arg(long, default_value_t = 100)]
    pub probe_pps: u32,
    /// Load of the busiest guest, packets a second, both ways together (default: 400, with nested
    /// guests 200)
    #[arg(long)]
    pub load_pps: Option<u32>,
    /// Longest time for which a guest may hear nothing, milliseconds
    #[arg(long, default_value_t = 10_000)]
    pub max_gap_ms: u64,
    /// Memory of each guest, MiB
    #[arg(long, default_value_t = 256)]
    pub memory: u32,
    /// Seconds until all guests must answer
    #[arg(long, default_value_t = 300)]
    pub boot_timeout: u64,
    /// Connections to cut (pv)
    #[arg(long, default_value_t = 1000)]
    pub reconnects: u64,
    /// What guests boot instead of the testbed's own image (debian)
    #[arg(long)]
    pub guest_initrd: Option<PathBuf>,
    /// The guest has net_failover instead of bond and agent (switches)
    #[arg(long)]
    pub failover: bool,
    /// Bytes a second of the TCP transfer, each way (switches)
    #[arg(long, default_value_t = 200_000)]
    pub tcp_bytes_per_s: u64,
    /// Probes that planned switches may lose, each way, more than are lost without one (switches)
    #[arg(long, default_value_t = 0)]
    pub max_lost: u64,
    /// Queue pairs of the guest's NIC, and processors of the guest (pv)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub queues: u8,
    /// More options for vhost-net-pv, as in --pv-options '--io plain' (pv)
    #[arg(long, default_value = "", allow_hyphen_values = true)]
    pub pv_options: String,
    /// What to do to the guest, in this order (pv; default: everything)
    #[arg(long, value_enum, value_delimiter = ',')]
    pub steps: Vec<pv::Play>,
    /// Play one cell in so many only, and all of the rest (matrix)
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..))]
    pub every: u8,
    /// The script that starts a guest of the testbed
    #[arg(long, default_value = "scripts/testbed/guest")]
    pub guest_script: PathBuf,
    /// Write the result here
    #[arg(long)]
    pub json: Option<PathBuf>,
}

/// What can be played.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Load moves from guest to guest, and VFs with it
    Follow,
    /// The daemon is killed in the middle of switches, and a guest is
    Crash,
    /// The daemon or a QEMU is killed at each moment of a switch, and guests misbehave (fast-host)
    Matrix,
    /// Every mistake in configuration and registration, one line each
    BadInput,
    /// A VF's settings and node, set and put back, for a QEMU without privileges
    Settings,
    /// Made-up QEMUs and guests that send what they should not, among others that behave
    Hostile,
    /// What operators are told of decisions, a recording replayed, and a dry run
    Explain,
    /// A guest that goes to its VF and back again and again, under traffic that is counted
    Switches,
    /// A Debian guest with systemd, the agent from its package and a stock qemu-ga beside it
    Debian,
    /// The PV path alone: kills, reconnects, reboot, migration, counters
    Pv,
}

/// The daemon's strategies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Strategy {
    /// Equal turns
    Fair,
    /// The busiest first
    Activity,
}

impl Options {
    /// The busiest guest's load: a nested guest under emulation cannot do as much as a plain one.
    pub fn load_pps(&self, host: &Host) -> u32 {
        let default = if host.pool == "sriov" { 200 } else { 400 };
        self.load_pps.unwrap_or(default)
    }
}

impl Strategy {
    /// As the configuration writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fair => "fair",
            Self::Activity => "activity",
        }
    }
}

/// Plays a scenario and writes its result; whether it was good.
pub fn run(options: &Options) -> Result<bool> {
    let host = Host::from_environment(options.vfs)?;
    let played = match options.scenario {
        Scenario::Follow => follow::play(options, &host),
        Scenario::Crash => crash::play(options, &host),
        Scenario::Matrix => matrix::play(options, &host),
        Scenario::BadInput => bad_input::play(options, &host),
        Scenario::Settings => settings::play(options, &host),
        Scenario::Hostile => hostile::play(options, &host),
        Scenario::Explain => explain::play(options, &host),
        Scenario::Debian => debian::play(options, &host),
        Scenario::Switches => switches::play(options, &host),
        Scenario::Pv => return pv::run(options, &host),
    };
    // A run that broke off is a result too: whoever reads the file must not find an older one.
    let outcome = played.unwrap_or_else(|error| Outcome {
        strategy: options.strategy.name().into(),
        pool: host.pool.clone(),
        switches: Vec::new(),
        probes: Vec::new(),
        rates: Vec::new(),
        passed: false,
        failures: vec![format!("{error:#}")],
    });
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&outcome)? + "\n";
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    for failure in &outcome.failures {
        println!("FAILED: {failure}");
    }
    println!("{}", if outcome.passed { "passed" } else { "not passed" });
    Ok(outcome.passed)
}
