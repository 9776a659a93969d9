//! Every mistake that an operator can make, at once: each is told in one line that names the file,
//! line or object, and the daemon goes on with the rest.
//!
//! Two guests: vm1 is in order and has to get a VF in spite of all. In vm2 a device of the testbed's
//! own takes the only root port and the first VF. Around them stand registrations that cannot work.

use std::fs;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};

use super::Options;
use super::io::host::Host;
use super::logic::result::Outcome;
use super::stage::Stage;

/// A VF of the pool, the first one, that another program has.
const STRAY_TAP: &str = "stray0";

/// A mistake, and what the line about it has to contain: of each group one, in any case.
struct Mistake {
    name: &'static str,
    groups: Vec<Vec<String>>,
}

/// Plays it.
pub fn play(options: &Options, host: &Host) -> Result<Outcome> {
    if host.pool != "emulated" {
        bail!(
            "this scenario needs scripts/testbed/fast-host: it occupies a TAP that stands for a VF"
        );
    }
    let options = Options { guests: 2, ..options.clone() };
    let mut host = host.clone();
    host.vfs.insert(0, STRAY_TAP.into());
    let host = &host;
    let mut failures = refused_configurations(&options, host)?;
    let broken_pool =
        format!("\n[[pool]]\nname = \"broken\"\nkind = \"sriov\"\npf = \"{}\"\n", host.pf);
    let config = host.daemon_config(options.strategy.name(), options.interval) + &broken_pool;
    let stray = |number| match number {
        2 => vec![
            "-netdev".into(),
            format!("tap,id=stray,ifname={STRAY_TAP},script=no,downscript=no"),
            "-device".into(),
            "e1000e,netdev=stray,bus=flexvf-port-0".into(),
        ],
        _ => Vec::new(),
    };
    let mut stage = Stage::build_with(&options, host, &config, stray)?;
    // As any other VM's TAP would be.
    let mut ip = Command::new("ip");
    ip.args(["link", "set", STRAY_TAP, "up", "master", &host.bridge]);
    ensure!(ip.status()?.success(), "cannot set {STRAY_TAP} up");
    let mac = stage.guest(&"vm1".parse()?)?.mac()?.to_string();
    write_registrations(host, &mac)?;
    stage.start_daemon()?;
    failures.extend(look_for(&mut stage, &options, mistakes(host, &mac))?);
    let limit_s = 4.0 * options.interval as f64;
    let served = stage
        .tick_until(limit_s, |status| status.holders().iter().any(|vm| vm.as_str() == "vm1"))?;
    match served {
        Some(_) => stage.say("vm1, which is in order, has a VF"),
        None => failures.push("vm1 is in order and got no VF".into()),
    }
    failures.extend(stage.end_daemon());
    Ok(stage.outcome(&options, failures))
}

/// A configuration with an unknown key: neither command takes it, and both say where it is.
fn refused_configurations(options: &Options, host: &Host) -> Result<Vec<String>> {
    let file = host.log("unknown-key.toml");
    let text = host.daemon_config(options.strategy.name(), options.interval);
    fs::write(&file, text.replacen("interval_s", "intervall_s", 1))?;
    // It is the second line of what `Host::daemon_config` writes.
    let place = format!("{}:2", file.display());
    let mut failures = Vec::new();
    for command in ["check-config", "run"] {
        let mut flexvf = Command::new("flexvf");
        let output = flexvf.arg(command).arg("--config").arg(&file).output();
        let output = output.context("run flexvf")?;
        let line = only_line(&output);
        match line {
            Some(line) if line.contains(&place) && line.contains("intervall_s") => {
                println!("flexvf {command}, unknown key: {line}");
            }
            _ => failures.push(format!(
                "flexvf {command} with an unknown key: expected failure and one line with {place} and intervall_s, got {} and {:?}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            )),
        }
    }
    Ok(failures)
}

/// The one line of a command that failed; none if it did not fail or said more.
fn only_line(output: &Output) -> Option<String> {
    let text = String::from_utf8_lossy(&output.stderr);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let line = lines.next().filter(|_| !output.status.success())?.to_owned();
    lines.next().is_none().then_some(line)
}

fn write_registrations(host: &Host, mac_of_vm1: &str) -> Result<()> {
    let good = fs::read_to_string(host.vms_dir().join("vm1.toml"))?;
    let write = |name: &str, text: String| fs::write(host.vms_dir().join(name), text);
    let alone = |name: &str, mac: &str| {
        let folder = |name: &str| host.run.join(name).display().to_string();
        good.replace(&folder("vm1"), &folder(name)).replace(mac_of_vm1, mac)
    };
    let typo = alone("typo", "52:54:00:00:00:71") + "wieght = 3\n";
    write("typo.toml", typo)?;
    write("ghost.toml", alone("ghost", "52:54:00:00:00:72"))?;
    // Files are read in the alphabet's order, and the first to claim an address has it.
    write("vm9.toml", alone("twin", mac_of_vm1))?;
    Ok(())
}

fn mistakes(host: &Host, mac: &str) -> Vec<Mistake> {
    let mistake = |name, groups: &[&[&str]]| Mistake {
        name,
        groups: groups
            .iter()
            .map(|group| group.iter().map(|text| text.to_lowercase()).collect())
            .collect(),
    };
    vec![
        mistake("unknown key in a VM file", &[&["typo.toml"], &["wieght"]]),
        mistake("missing socket", &[&["ghost/qmp.sock"]]),
        // The testbed's uplink is a veth: what it lacks first is a PCI device.
        mistake("PF without SR-IOV", &[&[&host.pf], &["SR-IOV", "no PCI device"]]),
        mistake("VF in use", &[&[STRAY_TAP], &["in use"]]),
        mistake("root port occupied", &[&["vm2"], &["flexvf-port-0"]]),
        mistake("two VMs with one MAC", &[&["vm9"], &[mac]]),
    ]
}

/// Looks into the daemon's status and log until every mistake was told.
fn look_for(
    stage: &mut Stage,
    options: &Options,
    mut mistakes: Vec<Mistake>,
) -> Result<Vec<String>> {
    let log = stage.host.log("flexvf.log");
    for _ in 0..(8 * options.interval) {
        stage.tick()?;
        let logged = fs::read_to_string(&log).unwrap_or_default();
        let mut lines = stage.watch.last().complaints();
        lines.extend(logged.lines().map(str::to_owned));
        let mut told = Vec::new();
        mistakes.retain(|mistake| match lines.iter().find(|line| mistake.is_told_by(line)) {
            Some(line) => {
                told.push(format!("{}: {line}", mistake.name));
                false
            }
            None => true,
        });
        told.iter().for_each(|line| stage.say(line));
        if mistakes.is_empty() {
            break;
        }
    }
    let missed = mistakes.iter().map(|mistake| {
        let wanted: Vec<_> = mistake.groups.iter().map(|group| group.join(" or ")).collect();
        format!("{}: no line names {}", mistake.name, wanted.join(" and "))
    });
    Ok(missed.collect())
}

impl Mistake {
    fn is_told_by(&self, line: &str) -> bool {
        let line = line.to_lowercase();
        let one_line = !line.contains('\n');
        let holds = |group: &Vec<String>| group.iter().any(|text| line.contains(text));
        one_line && self.groups.iter().all(holds)
    }
}
