//! Kills by the clock, on real VFs too: the daemon in the middle of switches, and the QEMU of a VM that
//! holds a VF. Each moment of a switch is the [matrix](super::matrix)'s.
//!
//! After each kill of the daemon a new one is started, and what it makes of it is held against the
//! word of each QEMU: no VF is lost, none is in two places, and the round that was broken off is
//! completed. A killed QEMU's VF serves another VM.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use super::follow::{begin, conclude, shift, vfs_are_where_flexvf_says, without};
use super::io::host::Host;
use super::logic::judge::{self, names};
use super::logic::plan::{busy_guests, expected_holders, loads};
use super::logic::result::Outcome;
use super::stage::Stage;
use super::{Options, Strategy};

/// How long after a switch was first seen the daemon is killed: another step each time.
const KILL_AFTER_MS: [u64; 6] = [0, 700, 1500, 300, 2500, 4000];
/// A killed daemon is missed for this long.
const PAUSE: Duration = Duration::from_secs(1);

/// Plays it; always with the activity strategy, under which it is known who should hold the VFs.
pub fn play(options: &Options, host: &Host) -> Result<Outcome> {
    let options = Options { strategy: Strategy::Activity, ..options.clone() };
    let mut stage = Stage::build(&options, host)?;
    let streams_ms = begin(&mut stage, &options)?;
    let interval_s = options.interval as f64;
    let mut failures = judge::shifts(&[shift(&mut stage, &options, 0, 2.0 * interval_s)?]);
    for (kill, &after_ms) in KILL_AFTER_MS.iter().cycle().take(options.rounds).enumerate() {
        failures.extend(kill_daemon(&mut stage, &options, kill + 1, after_ms)?);
    }
    failures.extend(stage.wrong_macs()?);
    failures.extend(kill_qemu(&mut stage, &options)?);
    conclude(stage, &options, streams_ms, failures)
}

fn kill_daemon(
    stage: &mut Stage,
    options: &Options,
    phase: usize,
    after_ms: u64,
) -> Result<Vec<String>> {
    let interval_s = options.interval as f64;
    stage.await_decision(2.0 * interval_s)?;
    let vms = stage.vms();
    let busy = busy_guests(vms.len(), stage.host.vfs.len());
    let loads = loads(&vms, busy, options.load_pps(&stage.host), phase);
    let expected = expected_holders(&loads);
    stage.set_loads(&loads)?;
    let began = stage.tick_until(2.0 * interval_s, |status| status.is_switching())?;
    if began.is_none() {
        return Ok(vec![format!("no switch began although {} became busiest", names(&expected))]);
    }
    sleep(Duration::from_millis(after_ms));
    stage.kill_daemon()?;
    let mut failures = Vec::new();
    let plugged = stage.plugged()?;
    stage.say(format!("killed flexvf in the middle of a switch; plugged: {plugged:?}"));
    sleep(PAUSE);
    stage.start_daemon()?;
    // A whole interval to learn the rates anew, then the switches.
    let limit_s = 3.0 * interval_s;
    let followed_s = stage.tick_until(limit_s, |status| status.holders() == expected)?;
    let who = names(&expected);
    match followed_s {
        Some(after_s) => {
            stage.say(format!("the VFs are with {who}, {after_s:.0} s after the new start"))
        }
        None => failures.push(format!(
            "kill {phase} of flexvf: {who} did not hold the VFs {limit_s:.0} s after its new start"
        )),
    }
    failures.extend(vfs_are_where_flexvf_says(stage)?);
    Ok(failures)
}

fn kill_qemu(stage: &mut Stage, options: &Options) -> Result<Vec<String>> {
    let interval_s = options.interval as f64;
    let holders = stage.watch.last().holders();
    let victim = holders.first().context("nobody holds a VF")?.clone();
    let heirs = without(&stage.vms(), &victim);
    let wanted = heirs.len().min(stage.host.vfs.len());
    let guest = stage.guest(&victim)?;
    guest.kill_qemu()?;
    guest.end();
    stage.guests.retain(|guest| guest.vm != victim);
    stage.say(format!("killed the QEMU of {victim}, which held a VF"));
    let limit_s = 3.0 * interval_s;
    let served = stage.tick_until(limit_s, |status| {
        let holders = status.holders();
        holders.len() == wanted && !holders.contains(&victim)
    })?;
    let who = names(&heirs);
    let mut failures = Vec::new();
    match served {
        Some(after_s) => stage.say(format!("{wanted} VFs serve {who} {after_s:.0} s later")),
        None => failures.push(format!(
            "{victim}'s QEMU was killed, and its VF served none of {who} within {limit_s:.0} s"
        )),
    }
    failures.extend(vfs_are_where_flexvf_says(stage)?);
    Ok(failures)
}
