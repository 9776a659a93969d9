//! The suite of qmp-allocator: the real daemon, as `flexvf run`, against a fleet of made-up VMs.
//!
//! Most rows are compared with a bound, which is no measurement; those of whole rounds with another
//! run of the daemon. VFs are the pool kind `emulated`: each is a TAP, with the netlink requests that
//! this takes and without the PF's. Left out: what QEMU, guests and a NIC take, which is made up and
//! stated in [`switches`].

pub mod decide;
pub mod standing;
pub mod switches;

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::drive::Experiment;
use super::io::stage::{Stage, variable};
use super::logic::pairs::Better;
use super::logic::row::Row;
use crate::fleet::{Daemon, Fleet, Plan, Settings};

/// VMs of a host.
pub const VMS: usize = 1000;
/// VFs of a 10 GbE port.
pub const VFS: usize = 63;

/// All experiments, in the table's order.
pub fn experiments(stage: &Stage) -> Vec<Box<dyn Experiment + '_>> {
    let mut all: Vec<Box<dyn Experiment + '_>> = vec![Box::new(decide::Decide::default())];
    all.extend(standing::experiments(stage));
    all.extend(switches::experiments(stage));
    all
}

const fn bounded(name: &'static str, unit: &'static str, peer_name: &'static str) -> Row {
    Row { name, unit, peer_name, better: Better::Lower, wanted: 1.0 }
}

/// A fleet, its daemon, and their folder.
struct World {
    /// Ends before the fleet does.
    daemon: Daemon,
    fleet: Fleet,
    folder: PathBuf,
    /// VMs that answer nothing any more.
    silent: Vec<usize>,
}

impl World {
    /// Ready: every VM is known, and has been sampled.
    fn build(stage: &Stage, plan: Plan, settings: &Settings) -> Result<Self> {
        raise_descriptor_limit()?;
        let folder = stage.run.join(stage.new_name("fleet"));
        let fleet = Fleet::start(&folder.join("vms-of-it"), plan)?;
        let log = stage.out.join(format!("{}.log", stage.new_name("flexvf")));
        let mut daemon = Daemon::start(&folder, &log, settings)?;
        daemon.register(&fleet, plan.vms, &pv_taps(plan.vms)?)?;
        Ok(Self { daemon, fleet, folder, silent: Vec::new() })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// The testbed's TAPs that stand for VFs.
fn vf_taps(count: usize) -> Result<Vec<String>> {
    let taps = variable("FLEXVF_VF_TAPS")?;
    let taps: Vec<String> = taps.split_whitespace().take(count).map(str::to_owned).collect();
    if taps.len() < count {
        bail!(
            "{} TAPs in FLEXVF_VF_TAPS, {count} are needed; run this by scripts/bench",
            taps.len()
        );
    }
    Ok(taps)
}

/// TAPs of the PV paths, in a bridge of their own: one has at most 1,023 ports. They stay until the
/// testbed ends.
fn pv_taps(count: usize) -> Result<Vec<String>> {
    const BRIDGE: &str = "brpv";
    let exists = |name: &str| PathBuf::from(format!("/sys/class/net/{name}")).exists();
    let names: Vec<String> = (0..count).map(|number| format!("pv{number}")).collect();
    let mut lines = String::new();
    if !exists(BRIDGE) {
        lines += &format!("link add {BRIDGE} type bridge stp_state 0 mcast_snooping 0\n");
    }
    for name in names.iter().filter(|name| !exists(name)) {
        lines += &format!("tuntap add dev {name} mode tap\nlink set {name} up master {BRIDGE}\n");
    }
    let mut ip = Command::new("ip").args(["-batch", "-"]).stdin(Stdio::piped()).spawn()?;
    ip.stdin.take().context("no stdin")?.write_all(lines.as_bytes())?;
    if !ip.wait()?.success() {
        bail!("cannot make the TAPs of {count} PV NICs");
    }
    Ok(names)
}

/// Two listeners and two connections a VM.
fn raise_descriptor_limit() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")
}
