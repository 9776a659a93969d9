//! What an operator is told of decisions, by the real daemon over a [`fleet`](crate::fleet): a plan, an explanation, a
//! recording that is replayed; and a dry run, which must leave every VF where it is.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::Options;
use super::io::host::Host;
use super::logic::result::Outcome;
use crate::fleet::daemon::Status;
use crate::fleet::logic::machine::Latencies;
use crate::fleet::{Daemon, Fleet, Plan, Settings};

const VMS: usize = 12;
const VFS: usize = 4;
const INTERVAL_S: f64 = 2.0;
/// Intervals that a replay has something to compare over.
const ROUNDS: u64 = 6;

/// Plays it.
pub fn play(options: &Options, host: &Host) -> Result<Outcome> {
    if host.pool != "emulated" || host.vfs.len() < VFS {
        bail!("this scenario needs scripts/testbed/fast-host --vfs {VFS}");
    }
    let latencies = Latencies {
        plug: Duration::from_millis(20),
        link: Duration::from_millis(20),
        unplug: Duration::from_millis(20),
    };
    let vms = Plan { vms: VMS, latencies, without_page: None };
    let fleet = Fleet::start(&host.run.join("fleet"), vms)?;
    let settings = Settings {
        strategy: "fair",
        interval_s: INTERVAL_S,
        sample_s: 0.5,
        switches: VFS,
        drain_s: 0.01,
        unplug_s: 20.0,
        taps: host.vfs.iter().take(VFS).cloned().collect(),
    };
    let folder = host.run.join("daemon");
    let mut daemon = Daemon::start(&folder, &host.log("flexvf.log"), &settings)?;
    daemon.register(&fleet, VMS, &[])?;
    let patience = Duration::from_secs_f64(INTERVAL_S * 3.0 * ROUNDS as f64);
    let decided = |status: &Status| status.round > ROUNDS && on_vf(status).len() == VFS;
    let status = daemon.until(patience, "some rounds were decided", decided)?;
    let mut failures = Vec::new();
    let mut note = |what: &str, told: Result<()>| match told {
        Ok(()) => println!("{what}: as it should be"),
        Err(error) => failures.push(format!("{what}: {error:#}")),
    };
    let control = folder.join("control.sock");
    note("plan", plan(&control));
    for vm in &status.vms {
        note(&format!("explain {}", vm.vm), explain(&control, &vm.vm));
    }
    drop(daemon);
    note("replay", replay(&folder.join("state.recording")));
    note("dry run", dry_run(&folder, host, &settings, &fleet));
    Ok(Outcome {
        strategy: options.strategy.name().into(),
        pool: host.pool.clone(),
        switches: Vec::new(),
        probes: Vec::new(),
        rates: Vec::new(),
        passed: failures.is_empty(),
        failures,
    })
}

/// With fair turns and three VMs a VF each decision changes all.
fn plan(control: &Path) -> Result<()> {
    let plan = flexvf(&["plan", "--json", "-s", &control.to_string_lossy()])?;
    let pool = &plan["pools"][0];
    let count = |key: &str| pool[key].as_array().map_or(0, Vec::len);
    ensure!(pool["vfs"] == VFS && pool["ranked"] == VMS, "{plan}");
    ensure!(count("get") == VFS && count("lose") == VFS, "{plan}");
    let text = text(&["plan", "-s", &control.to_string_lossy()])?;
    ensure!(text.contains("its turn"), "{text}");
    Ok(())
}

fn explain(control: &Path, vm: &str) -> Result<()> {
    let told = flexvf(&["explain", vm, "--json", "-s", &control.to_string_lossy()])?;
    let turn = told["outlook"]["turning_round"].as_u64();
    ensure!(told["vm"] == vm && told["last"]["of"] == VMS && told["now"]["of"] == VMS, "{told}");
    // In three rounds everybody has had a turn and lost it.
    ensure!(turn.is_some_and(|turn| (1..=3).contains(&turn)), "{told}");
    ensure!(told["outlook"]["turning_pps"].is_null(), "no rate changes a turn: {told}");
    let text = text(&["explain", vm, "-s", &control.to_string_lossy()])?;
    ensure!(text.contains("If it were decided now") && text.contains("in round"), "{text}");
    Ok(())
}

fn replay(recording: &Path) -> Result<()> {
    let told = flexvf(&["replay", &recording.to_string_lossy(), "--json", "--switch-s", "0"])?;
    let run = &told[0];
    ensure!(run["vms"] == VMS && run["vfs"] == VFS, "{told}");
    ensure!(run["intervals"].as_u64() >= Some(ROUNDS - 2), "{told}");
    let row = |name: &str| {
        let rows = run["policies"].as_array().into_iter().flatten();
        rows.into_iter().find(|row| row["policy"] == name).with_context(|| format!("no row {name}"))
    };
    let gain = |name: &str| row(name)?["gain"].as_f64().context("no gain");
    println!("replayed: as decided {:.2}, activity {:.2}", gain("as decided")?, gain("activity")?);
    // The fleet's rates stay, and so do the busiest.
    ensure!(gain("activity")? > gain("as decided")?, "{told}");
    let switches = row("as decided")?["switches"].as_u64();
    ensure!(switches >= Some(VFS as u64 * (ROUNDS - 2)), "{told}");
    Ok(())
}

fn dry_run(folder: &Path, host: &Host, settings: &Settings, fleet: &Fleet) -> Result<()> {
    let state = folder.join("state.json");
    let before = fs::read(&state).context("read the state")?;
    let log = host.log("dry-run.log");
    let mut daemon = Daemon::start_with(folder, &log, settings, &["--dry-run"])?;
    daemon.register(fleet, VMS, &[])?;
    let patience = Duration::from_secs_f64(INTERVAL_S * 3.0 * ROUNDS as f64);
    let first = daemon.until(patience, "VFs are found", |status| on_vf(status).len() == VFS)?;
    let (found, round) = (on_vf(&first), first.round);
    let last = daemon.until(patience, "rounds go on", |status| status.round >= round + 3)?;
    ensure!(on_vf(&last) == found, "VFs have moved from {found:?} to {:?}", on_vf(&last));
    ensure!(last.switches.is_empty(), "{:?}", last.switches);
    drop(daemon);
    ensure!(fs::read(&state)? == before, "the state file was written");
    let told = fs::read_to_string(&log).context("read the log")?;
    ensure!(told.contains("would get a VF") && told.contains("would lose its VF"), "{told}");
    Ok(())
}

fn on_vf(status: &Status) -> Vec<String> {
    let vms = status.vms.iter().filter(|vm| vm.path == "vf");
    vms.map(|vm| vm.vm.clone()).collect()
}

fn flexvf(arguments: &[&str]) -> Result<Value> {
    let text = text(arguments)?;
    serde_json::from_str(&text).with_context(|| format!("flexvf {arguments:?}: no JSON: {text}"))
}

fn text(arguments: &[&str]) -> Result<String> {
    let output = Command::new("flexvf").args(arguments).output().context("run flexvf")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "flexvf {arguments:?}: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
