//! A VF's settings, and a QEMU without privileges: what the daemon sets, reads back and puts back, by
//! the words of `ip link` and of the file system, not by its own.
//!
//! One guest, whose QEMU runs as nobody and may lock next to no memory; one VF, which the testbed has
//! set to values of its own. The daemon has to say why the guest gets no VF, give it one once the limit
//! is raised, and put everything back as it was found, although it was killed in between.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::Options;
use super::io::host::Host;
use super::logic::result::Outcome;
use super::stage::Stage;

/// What the VF is set to before the daemon is started, in the words of `ip link set PF vf 0`.
const FOUND: [&[&str]; 5] = [
    &["mac", "02:aa:00:00:00:01"],
    &["vlan", "5", "qos", "2"],
    &["spoofchk", "off"],
    &["trust", "off"],
    &["max_tx_rate", "50"],
];

/// The pool's settings. This NIC's driver has neither a link state nor a least rate for VFs.
const SETTINGS: &str = "vlan = 7
qos = 3
spoof_check = true
max_tx_rate_mbps = 800
min_tx_rate_mbps = 10
link_state = \"enable\"
vfio = \"iommufd\"
";

/// What `ip link` has to say of the VF with these settings.
const SET: [&str; 5] =
    ["vlan 7, qos 3", "max_tx_rate 800Mbps", "spoof checking on", "link-state auto", "trust on"];

/// nobody, on every Linux.
const USER: u32 = 65534;

/// Longest waits, seconds: emulation is slow.
const TOLD_WITHIN_S: f64 = 60.0;
const SWITCHED_WITHIN_S: f64 = 180.0;

/// Plays it.
pub fn play(options: &Options, host: &Host) -> Result<Outcome> {
    if host.pool != "sriov" {
        bail!("this scenario needs scripts/testbed/sriov-host: it is about a NIC's VFs");
    }
    let options = Options { guests: 1, ..options.clone() };
    let mut host = host.clone();
    host.vfs.truncate(1);
    let host = &host;
    for setting in FOUND {
        let mut ip = Command::new("ip");
        ip.args(["link", "set", &host.pf, "vf", "0"]).args(setting);
        ensure!(ip.status()?.success(), "cannot set {} of VF 0", setting.join(" "));
    }
    let found = vf_line(host)?;
    let config = host.daemon_config(options.strategy.name(), options.interval) + SETTINGS;
    let unprivileged = |_| ["-run-with".to_owned(), format!("user={USER}:{USER}")].to_vec();
    let mut stage = Stage::build_with(&options, host, &config, unprivileged)?;
    stage.say(format!("the VF as found: {found}"));
    let mut failures = limited(&mut stage, host)?;
    failures.extend(with_a_vf(&mut stage, host)?);
    failures.extend(put_back(&mut stage, host, &found)?);
    failures.extend(stage.end_daemon());
    Ok(stage.outcome(&options, failures))
}

/// The daemon says that QEMU may not lock enough memory, and leaves it at that.
fn limited(stage: &mut Stage, host: &Host) -> Result<Vec<String>> {
    let qemu = stage.guest(&"vm1".parse()?)?.qemu()?.as_raw();
    let limit = format!("--memlock={0}:{0}", 8 << 20);
    prlimit(qemu, &limit)?;
    stage.start_daemon()?;
    let told = stage.tick_until(TOLD_WITHIN_S, |status| {
        status.complaints().iter().any(|line| line.contains("may lock 8 MiB of memory"))
    })?;
    let mut failures = Vec::new();
    match told {
        Some(_) => stage.say("the daemon tells of the limit of locked memory"),
        None => failures.push("nobody told that QEMU may not lock its guest's memory".to_owned()),
    }
    if vf_line(host)?.contains("vlan 7") {
        failures.push("a VF was prepared for a QEMU that cannot have one".to_owned());
    }
    prlimit(qemu, "--memlock=unlimited:unlimited")?;
    Ok(failures)
}

fn with_a_vf(stage: &mut Stage, host: &Host) -> Result<Vec<String>> {
    if !comes_to(stage, "vf")? {
        return Ok(vec!["vm1 got no VF after its limit was raised".to_owned()]);
    }
    let mut failures = Vec::new();
    let set = vf_line(host)?;
    stage.say(format!("the VF as set: {set}"));
    failures.extend(
        SET.iter().filter(|word| !set.contains(*word)).map(|word| format!("VF 0 lacks {word:?}")),
    );
    let node = group_node(host)?;
    match owner(&node)? {
        (USER, USER) => stage.say(format!("{} is QEMU's, which is nobody's", node.display())),
        other => failures.push(format!("{} belongs to {other:?}", node.display())),
    }
    let told = stage.watch.last().complaints();
    for setting in ["link state enable", "least send rate 10 Mbit/s"] {
        let words = format!("driver igb of {} does not take {setting}", host.pf);
        match told.iter().find(|line| line.contains(&words)) {
            Some(line) => stage.say(line),
            None => failures.push(format!("no line says that {words}")),
        }
    }
    failures.extend(iommufd(stage, &told));
    if !record(host).exists() {
        failures.push("what the VF was like is not written down".to_owned());
    }
    stage.kill_daemon()?;
    stage.say("killed flexvf while vm1 has a VF");
    stage.start_daemon()?;
    if !comes_to(stage, "vf")? {
        failures.push("vm1 has lost its VF to the daemon's death".to_owned());
    }
    Ok(failures)
}

/// The pool asks for iommufd. A kernel without it serves by the group, and the daemon says so.
fn iommufd(stage: &mut Stage, told: &[String]) -> Option<String> {
    if Path::new("/dev/iommu").exists() && Path::new("/dev/vfio/devices").exists() {
        stage.say("this kernel has iommufd: the VF was handed over by its own node");
        return None;
    }
    stage.say("NOT PROVEN HERE: handing a VF over by iommufd; this kernel has none");
    let said = told.iter().any(|line| line.contains("this kernel has no iommufd"));
    (!said).then(|| "nobody told that this kernel has no iommufd".to_owned())
}

fn put_back(stage: &mut Stage, host: &Host, found: &str) -> Result<Vec<String>> {
    let file = host.vms_dir().join("vm1.toml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, format!("{text}pin = \"pv\"\n"))?;
    if !comes_to(stage, "pv")? {
        return Ok(vec!["vm1 did not give up its VF".to_owned()]);
    }
    let mut failures = Vec::new();
    let now = vf_line(host)?;
    stage.say(format!("the VF after its return: {now}"));
    if now != found {
        failures.push(format!("VF 0 was found as {found:?} and is left as {now:?}"));
    }
    let node = group_node(host)?;
    if owner(&node)? != (0, 0) {
        failures.push(format!("{} is not root's again", node.display()));
    }
    if record(host).exists() {
        failures.push("the record of the VF was not removed".to_owned());
    }
    Ok(failures)
}

fn comes_to(stage: &mut Stage, path: &str) -> Result<bool> {
    let came = stage.tick_until(SWITCHED_WITHIN_S, |status| {
        let there = status.vms.iter().any(|vm| vm.vm.as_str() == "vm1" && vm.path == path);
        there && !status.vfs().any(|vf| vf.state == "moving")
    })?;
    Ok(came.is_some())
}

/// What `ip link` says of the PF's first VF.
fn vf_line(host: &Host) -> Result<String> {
    let output = Command::new("ip").args(["link", "show", &host.pf]).output();
    let output = output.context("run ip")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().map(str::trim).find(|line| line.starts_with("vf 0 "));
    Ok(line.context("ip link shows no VF 0")?.to_owned())
}

fn group_node(host: &Host) -> Result<PathBuf> {
    let vf = host.vfs.first().context("no VF")?;
    let group = Path::new("/sys/bus/pci/devices").join(vf).join("iommu_group");
    let group = std::fs::read_link(&group).with_context(|| format!("{}", group.display()))?;
    Ok(Path::new("/dev/vfio").join(group.file_name().context("a group without number")?))
}

fn owner(node: &Path) -> Result<(u32, u32)> {
    let metadata = std::fs::metadata(node).with_context(|| format!("{}", node.display()))?;
    Ok((metadata.uid(), metadata.gid()))
}

/// Where the daemon notes what the VF was like.
fn record(host: &Host) -> PathBuf {
    host.run.join("state.vfs").join(format!("{}.json", host.vfs.join("")))
}

fn prlimit(pid: i32, limit: &str) -> Result<()> {
    let mut prlimit = Command::new("prlimit");
    prlimit.args(["--pid", &pid.to_string(), limit]);
    ensure!(prlimit.status().context("run prlimit")?.success(), "prlimit {limit} failed");
    Ok(())
}
