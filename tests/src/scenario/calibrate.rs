//! `flexvf calibrate` as an operator uses it: one guest, one VF, echoes from the remote peer; the curve is then a
//! daemon's configuration.
//!
//! What it measures is the testbed's, and so of emulated NICs and processors: figure 5 of `scripts/paper`.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use flexvf_protocol::VmName;
use qmp_allocator::config::{Config, GainFile};
use qmp_allocator::logic::gain::Gain;

use super::Options;
use super::io::guests::identity;
use super::io::host::Host;
use super::logic::result::Outcome;
use super::stage::Stage;

/// The daemon decides nothing by itself meanwhile.
const INTERVAL_S: u64 = 3600;
/// For one switch, under emulation.
const SWITCH_S: f64 = 120.0;
/// What an emulated guest can answer, and what a guest in an emulated host can.
const RATES: &str = "100,400,1600,4800,9600";
const NESTED_RATES: &str = "25,50,100,200,400";
const SIZES: &str = "64,512,1400";
/// At each rate and size.
const SECONDS: &str = "2";
/// What is left in [`Host::out`] for the report.
pub const CURVE: &str = "gain.toml";

/// Plays it.
pub fn play(options: &Options, host: &Host) -> Result<Outcome> {
    let options = Options { guests: 1, ..options.clone() };
    let [_] = host.vfs.as_slice() else {
        bail!("this scenario needs one VF: give --vfs 1");
    };
    let config = host.daemon_config("activity", INTERVAL_S);
    let mut stage = Stage::build_with(&options, host, &config, |_| Vec::new())?;
    let (vm, address) = identity(1)?;
    stage.start_daemon()?;
    let answers = |status: &super::logic::status::Status| {
        status.vms.iter().any(|it| it.vm == vm && it.agent == "flexvf")
    };
    ensure!(stage.tick_until(SWITCH_S, answers)?.is_some(), "the daemon does not hear the agent");
    let registered = registration(&mut stage, &vm)?;
    let curve = host.log(CURVE);
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", &host.peer_ns, "flexvf", "calibrate", vm.as_str(), "--target"])
        .arg(address.to_string())
        .arg("--config")
        .arg(host.log("flexvf.toml"))
        .args(["--rates", rates(host), "--bytes", SIZES, "--seconds", SECONDS])
        .args(["--rounds", &options.rounds.to_string()])
        .arg("--out")
        .arg(&curve);
    stage.say("flexvf calibrate begins");
    let output = command.stderr(Stdio::inherit()).output().context("run flexvf calibrate")?;
    stage.say(format!("it ended with {}", output.status));
    println!("{}", String::from_utf8_lossy(&output.stdout));
    ensure!(output.status.success(), "flexvf calibrate ended with {}", output.status);
    stage.tick()?;
    let mut failures = judge(host, &config, &curve)?;
    if registration(&mut stage, &vm)? != registered {
        failures.push("the registration is not as it was".into());
    }
    let wanted = 2 * options.rounds - 1;
    let done = stage.watch.switches().filter(|it| it.switch.outcome == "done").count();
    if done < wanted {
        failures.push(format!("{done} switches were seen to work, {wanted} are the least"));
    }
    failures.extend(stage.end_daemon());
    Ok(stage.outcome(&options, failures))
}

fn rates(host: &Host) -> &'static str {
    if host.pool == "sriov" { NESTED_RATES } else { RATES }
}

fn registration(stage: &mut Stage, vm: &VmName) -> Result<String> {
    stage.guest(vm)?.registration().with_context(|| format!("{vm} is not registered"))
}

/// The curve has all cells, and a daemon would take it.
fn judge(host: &Host, config: &str, curve: &std::path::Path) -> Result<Vec<String>> {
    let mut failures = Vec::new();
    let GainFile { calibration, .. } = GainFile::load(curve)?;
    let cells = rates(host).split(',').count() * SIZES.split(',').count();
    // The highest rates may be more than emulation can do.
    if calibration.points.len() < cells / 2 {
        failures.push(format!("{} of {cells} cells were measured", calibration.points.len()));
    }
    for point in &calibration.points {
        if point.pv_us <= 0.0 || point.vf_us <= 0.0 {
            failures.push(format!("no time was measured: {point:?}"));
        }
    }
    let file = host.log("flexvf-gain.toml");
    let policy = format!("[policy]\nswitch_cost_s = 2\ngain_file = {curve:?}\n\n[[pool]]");
    std::fs::write(&file, config.replacen("[[pool]]", &policy, 1))?;
    match Config::load(&file)?.tuning.gain {
        Gain::Measured(_) => {}
        other => failures.push(format!("the configuration goes by {other:?}")),
    }
    Ok(failures)
}
