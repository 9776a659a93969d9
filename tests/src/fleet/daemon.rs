//! The real daemon, `flexvf run` in a process of its own, for a fleet.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::json;

use super::io::server::Fleet;
use crate::scenario::io::child::Child;
use crate::scenario::io::jsonline::QmpClient;

/// What the daemon is set to.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `fair` or `activity`.
    pub strategy: &'static str,
    /// Seconds between two decisions.
    pub interval_s: f64,
    /// Seconds between two samples.
    pub sample_s: f64,
    /// Switches at one time.
    pub switches: usize,
    /// Pause for frames in flight, seconds.
    pub drain_s: f64,
    /// Until a VF that its guest keeps is quarantined, seconds.
    pub unplug_s: f64,
    /// TAPs that stand for VFs.
    pub taps: Vec<String>,
}

/// A running daemon; it ends with this.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    vms_dir: PathBuf,
    control: PathBuf,
}

/// What is used of `query-status`.
#[derive(Debug, Deserialize)]
pub struct Status {
    /// Decisions made.
    pub round: u64,
    /// Until the next one, seconds.
    pub next_round_in_s: f64,
    /// All VMs.
    pub vms: Vec<VmStatus>,
    /// All pools.
    pub pools: Vec<PoolStatus>,
    /// The last switches, oldest first.
    pub switches: Vec<Switch>,
}

/// A pool.
#[derive(Debug, Deserialize)]
pub struct PoolStatus {
    /// Its VFs.
    pub vfs: Vec<VfStatus>,
}

/// A VF.
#[derive(Debug, Deserialize)]
pub struct VfStatus {
    /// Its name.
    pub vf: String,
    /// `free`, `held`, `moving`, `quarantined` or `resting`.
    pub state: String,
    /// Who has it.
    pub vm: Option<String>,
    /// Why it is not usable.
    pub reason: Option<String>,
}

/// A VM.
#[derive(Debug, Deserialize)]
pub struct VmStatus {
    /// Its name.
    pub vm: String,
    /// `pv`, `vf`, `switching` or `down`.
    pub path: String,
    /// `flexvf`, `stock` or `none`.
    pub agent: String,
    /// The last two samples' rate.
    pub rate_pps: Option<f64>,
    /// `host` or `guest`.
    pub trust: String,
    /// Its place, or why it cannot have a VF.
    pub reason: String,
}

/// A switch that has ended.
#[derive(Debug, Clone, Deserialize)]
pub struct Switch {
    /// Its number.
    pub n: u64,
    /// Whose.
    pub vm: String,
    /// `to_vf` or `to_pv`.
    pub direction: String,
    /// `done` or what else.
    pub outcome: String,
    /// How long it took.
    pub total_ms: f64,
}

impl Daemon {
    /// Starts it; no VM is registered yet.
    pub fn start(folder: &Path, log: &Path, settings: &Settings) -> Result<Self> {
        Self::start_with(folder, log, settings, &[])
    }

    /// The same with more arguments.
    pub fn start_with(
        folder: &Path,
        log: &Path,
        settings: &Settings,
        arguments: &[&str],
    ) -> Result<Self> {
        let vms_dir = folder.join("vms");
        fs::create_dir_all(&vms_dir).with_context(|| format!("make {}", vms_dir.display()))?;
        let (config, control) = (folder.join("flexvf.toml"), folder.join("control.sock"));
        let Settings { strategy, interval_s, sample_s, switches, drain_s, unplug_s, taps } =
            settings;
        let state_file = folder.join("state.json");
        let text = format!(
            "strategy = {strategy:?}\ninterval_s = {interval_s:?}\nsample_interval_s = {sample_s:?}\n\
             max_concurrent_switches = {switches}\nvms_dir = {vms_dir:?}\nstate_file = {state_file:?}\n\
             control_socket = {control:?}\n\n[deadlines]\ndrain_s = {drain_s:?}\nunplug_s = {unplug_s:?}\n\n\
             [[pool]]\nkind = \"emulated\"\nmodel = \"e1000e\"\ntaps = {taps:?}\n"
        );
        fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
        let mut command = Command::new("flexvf");
        let child =
            Child::start("flexvf", command.arg("run").args(arguments).arg("-c").arg(&config), log)?;
        let mut daemon = Self { child, vms_dir, control };
        daemon.until(PATIENCE, "flexvf answers", |_| true)?;
        Ok(daemon)
    }

    /// Registers all of a fleet at once, each with its PV NIC's TAP if there are any, and waits until
    /// the daemon knows them.
    pub fn register(&mut self, fleet: &Fleet, vms: usize, pv_taps: &[String]) -> Result<()> {
        for vm in 0..vms {
            let name = Fleet::name(vm);
            let text = fleet.registration(vm, pv_taps.get(vm).map(String::as_str));
            let file = |name: &str| self.vms_dir.join(name);
            // In one piece: the daemon reads what it sees.
            let (beside, file) = (file(&format!(".{name}")), file(&format!("{name}.toml")));
            fs::write(&beside, text).with_context(|| format!("write {}", beside.display()))?;
            fs::rename(&beside, &file).with_context(|| format!("make {}", file.display()))?;
        }
        let known = |status: &Status| {
            let known =
                status.vms.iter().filter(|vm| vm.agent == "flexvf" && vm.rate_pps.is_some());
            known.count() == vms
        };
        self.until(PATIENCE, "all VMs are known, with agent and rate", known)?;
        Ok(())
    }

    /// How things are.
    pub fn status(&mut self) -> Result<Status> {
        self.child.check()?;
        // Anew each time: a client gets an event for every switch.
        QmpClient::connect(&self.control)?.execute("query-status", &json!({}))
    }

    /// Waits until something is so, asking seldom enough not to disturb.
    pub fn until(
        &mut self,
        patience: Duration,
        what: &str,
        holds: impl Fn(&Status) -> bool,
    ) -> Result<Status> {
        let end = Instant::now() + patience;
        loop {
            self.child.check()?;
            match self.status() {
                Ok(status) if holds(&status) => return Ok(status),
                Err(error) if Instant::now() > end => return Err(error.context(what.to_owned())),
                _ if Instant::now() > end => {
                    bail!("never happened within {} s: {what}", patience.as_secs())
                }
                _ => sleep(POLL),
            }
        }
    }

    /// The switches that end within a time, each with the daemon's clock.
    pub fn switch_ends(&self, time: Duration) -> Result<Vec<(Duration, Switch)>> {
        #[derive(Deserialize)]
        struct Event {
            timestamp: Timestamp,
            data: Switch,
        }
        #[derive(Deserialize)]
        struct Timestamp {
            seconds: u64,
            microseconds: u64,
        }
        let end = Instant::now() + time;
        let mut client = QmpClient::connect(&self.control)?;
        let mut ends = Vec::new();
        while let Some(line) = client.line_until(end)? {
            let Event { timestamp: Timestamp { seconds, microseconds }, data } =
                serde_json::from_str(&line).with_context(|| format!("not an event: {line}"))?;
            let at = Duration::from_secs(seconds) + Duration::from_micros(microseconds);
            ends.push((at, data));
        }
        Ok(ends)
    }

    /// Processor time used so far by all of its threads.
    pub fn cpu_time(&self) -> Result<Duration> {
        let folder = format!("/proc/{}/task", self.child.pid());
        let mut time = Duration::ZERO;
        for thread in fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
            // Threads of file work come and go.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            let nanoseconds = text.split(' ').next().and_then(|text| text.parse().ok());
            time += Duration::from_nanos(nanoseconds.context("no schedstat in this kernel")?);
        }
        Ok(time)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }
}

const PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(200);
