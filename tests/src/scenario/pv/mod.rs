//! The PV path alone: one guest on `vhost-net-pv`, and everything that a backend, a guest and an
//! operator do to it, under traffic. No daemon, no VF, no bond.
//!
//! ```text
//!   peer ── bridge ── TAP ── vhost-net-pv ── QEMU ── guest       (migration: a second row)
//! ```
//!
//! During each step probes run both ways, and a TCP transfer whose bytes are compared by checksum. A
//! step is good when the transfer is intact, the guest is reached again within the step's limit, and
//! the backend has no more descriptors and memory than before. Losses are told; where nothing
//! interrupts the guest there must be none. Counters are compared: see [`counting`].
//! A second guest is offered every feature: see [`features`].

pub mod counting;
pub mod features;
pub mod io;
pub mod logic;
pub mod migration;
pub mod stage;
pub mod steps;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::Options;
use super::io::host::Host;
use logic::result::{self, Outcome};
use stage::Stage;

/// What can happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Play {
    /// Nothing
    Calm,
    /// Counters are compared
    Counters,
    /// Another guest is offered everything
    Features,
    /// The backend is killed, once and often
    Kill,
    /// The guest's driver is unbound and bound
    Rebind,
    /// QEMU announces the guest
    Announce,
    /// The link goes down and up
    Link,
    /// The connection is cut many times
    Reconnects,
    /// The guest reboots
    Reboot,
    /// The guest migrates there and back
    Migrate,
}

/// Plays the steps and writes the result; whether all were good.
pub fn run(options: &Options, host: &Host) -> Result<bool> {
    ensure!(host.pool == "emulated", "this scenario is for scripts/testbed/fast-host");
    let mut outcome =
        Outcome { accel: host.accel.clone(), probe_pps: options.probe_pps, ..Outcome::default() };
    // What broke off is a result too, with all steps until then.
    if let Err(error) = play(options, host, &mut outcome) {
        outcome.failures.push(format!("{error:#}"));
    }
    outcome.passed = outcome.failures.is_empty();
    if let Some(file) = &options.json {
        let text = serde_json::to_string_pretty(&outcome)? + "\n";
        std::fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
    }
    println!("\n{}", result::table(&outcome.steps));
    if let Some(ledger) = &outcome.counters {
        println!("{}\n", ledger.table());
    }
    for failure in &outcome.failures {
        println!("FAILED: {failure}");
    }
    println!("{}", if outcome.passed { "passed" } else { "not passed" });
    Ok(outcome.passed)
}

fn play(options: &Options, host: &Host, outcome: &mut Outcome) -> Result<()> {
    let mut stage = Stage::build(options, host)?;
    outcome.tcp_bytes_per_s = stage.target.tcp_bytes_per_s;
    let all = Play::value_variants();
    let plays = if options.steps.is_empty() { all } else { &options.steps };
    for what in plays {
        let mut steps = Vec::new();
        match what {
            Play::Calm => steps.push(steps::calm(&mut stage)?),
            Play::Counters => {
                let ledger = counting::count(&mut stage)?;
                outcome.failures.extend(ledger.failures());
                outcome.counters = Some(ledger);
            }
            Play::Features => outcome.failures.extend(features::play(&stage, options)?),
            Play::Kill => {
                steps.push(steps::kill(&mut stage)?);
                steps.push(steps::kills(&mut stage)?);
            }
            Play::Rebind => steps.push(steps::rebind(&mut stage)?),
            Play::Announce => {
                steps.push(steps::announce(&mut stage)?);
                outcome.failures.extend(steps::announcement_is_heard(&mut stage)?);
            }
            Play::Link => steps.push(steps::link(&mut stage)?),
            Play::Reconnects => steps.extend(steps::reconnects(&mut stage, options.reconnects)?),
            Play::Reboot => steps.push(steps::reboot(&mut stage)?),
            Play::Migrate => {
                for name in ["there", "back"] {
                    steps.push(migration::migrate(&mut stage, name)?);
                    let tap = stage.here.nic.tap.clone();
                    outcome.failures.extend(steps::where_the_bridge_sends(&stage, &tap)?);
                }
            }
        }
        outcome.failures.extend(steps.iter().flat_map(result::Step::failures));
        outcome.steps.extend(steps);
    }
    Ok(())
}
