//! What every scenario has running: guests, the daemon, the peer; and the eye on all of them.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flexvf_protocol::VmName;
use serde_json::json;

use super::Options;
use super::io::child::Child;
use super::io::guests::{Guest, Launch, identity};
use super::io::host::Host;
use super::io::jsonline::QmpClient;
use super::io::peer::{Peer, neighbour};
use super::logic::judge::names;
use super::logic::plan::GuestLoad;
use super::logic::result::Outcome;
use super::logic::status::Status;
use super::logic::watch::Watch;
use crate::sys::{monotonic_us, stop_requested};
use crate::traffic::io::peer::VmReport;

/// Between two looks at the daemon.
const POLL: Duration = Duration::from_millis(500);
/// How long the daemon may take until its control socket answers.
const DAEMON_START: Duration = Duration::from_secs(30);
/// How long guests may take to hear that all streams end; one of them may just be stalled.
const CONFIRM: Duration = Duration::from_secs(30);
/// After the last packet was sent: stragglers arrive, and guests report once more.
const SETTLE: Duration = Duration::from_secs(6);

/// See the module's text. What is declared first ends first.
#[derive(Debug)]
pub struct Stage {
    /// The machine.
    pub host: Host,
    /// What the daemon was seen to do.
    pub watch: Watch,
    /// Everything printed so far.
    pub log: Vec<String>,
    began_ms: u64,
    probe_pps: u32,
    config: PathBuf,
    client: Option<QmpClient>,
    daemon: Option<Child>,
    /// The guests that run.
    pub guests: Vec<Guest>,
    /// The remote peer.
    pub peer: Peer,
    loads: BTreeMap<VmName, u32>,
    launch: Launch,
}

impl Stage {
    /// What a scenario ends with that neither counts packets nor compares rates.
    pub fn outcome(&self, options: &Options, failures: Vec<String>) -> Outcome {
        Outcome {
            strategy: options.strategy.name().into(),
            pool: self.host.pool.clone(),
            switches: self.watch.switches().map(Into::into).collect(),
            probes: Vec::new(),
            rates: Vec::new(),
            passed: failures.is_empty(),
            failures,
        }
    }

    /// Starts guests and peer and waits until every guest answers; no daemon, no streams.
    pub fn build(options: &Options, host: &Host) -> Result<Self> {
        let config = host.daemon_config(options.strategy.name(), options.interval);
        Self::build_with(options, host, &config, |_| Vec::new())
    }

    /// The same, with a configuration of the daemon, and with more options for a guest's QEMU by its
    /// number.
    pub fn build_with(
        options: &Options,
        host: &Host,
        daemon_config: &str,
        qemu_options: impl Fn(u8) -> Vec<String>,
    ) -> Result<Self> {
        let identities = (1..=options.guests).map(identity);
        let identities = identities.collect::<Result<Vec<_>>>()?;
        let config = host.log("flexvf.toml");
        std::fs::write(&config, daemon_config)?;
        let mut stage = Self {
            host: host.clone(),
            watch: Watch::default(),
            log: Vec::new(),
            began_ms: now_ms(),
            probe_pps: options.probe_pps,
            config,
            client: None,
            daemon: None,
            guests: Vec::new(),
            peer: Peer::start(host, &identities)?,
            loads: BTreeMap::new(),
            launch: Launch {
                script: options.guest_script.clone(),
                memory_mib: options.memory,
                append: String::new(),
                failover: options.failover,
                initrd: options.guest_initrd.clone(),
            },
        };
        host.save_lspci("host-lspci-before.txt")?;
        stage.say(format!(
            "{} pool, {} guests, VFs {}, accelerator {}",
            host.pool,
            options.guests,
            host.vfs.join(" "),
            host.accel
        ));
        for number in 1..=options.guests {
            stage.start_guest(number, &qemu_options(number), "")?;
        }
        stage.await_guests(Duration::from_secs(options.boot_timeout))?;
        Ok(stage)
    }

    /// The operator's word, under another name first: the daemon must never read half a file.
    pub fn pin(&mut self, vm: &VmName, path: &str) -> Result<()> {
        self.rewrite(vm, |line| match line.starts_with("pin ") {
            true => None,
            false if line.starts_with("mac ") => Some(format!("{line}\npin = \"{path}\"")),
            false => Some(line.to_owned()),
        })
    }

    /// Changes the lines of a VM's registration, or takes them out.
    pub fn rewrite(&mut self, vm: &VmName, change: impl Fn(&str) -> Option<String>) -> Result<()> {
        let text = self.guest(vm)?.registration();
        let text = text.with_context(|| format!("{vm} is not registered"))?;
        let lines = text.lines().filter_map(change);
        let text = lines.fold(String::new(), |text, line| text + &line + "\n");
        let folder = self.host.vms_dir();
        let new = folder.join(format!(".{vm}.new"));
        std::fs::write(&new, text)?;
        Ok(std::fs::rename(&new, folder.join(format!("{vm}.toml")))?)
    }

    /// The guests' names.
    pub fn vms(&self) -> Vec<VmName> {
        self.guests.iter().map(|guest| guest.vm.clone()).collect()
    }

    /// A guest by its name.
    pub fn guest(&mut self, vm: &VmName) -> Result<&mut Guest> {
        let guest = self.guests.iter_mut().find(|guest| guest.vm == *vm);
        guest.with_context(|| format!("there is no guest {vm}"))
    }

    /// Prints a line with the time since the beginning, and keeps it.
    pub fn say(&mut self, text: impl AsRef<str>) {
        let seconds = (now_ms() - self.began_ms) as f64 / 1000.0;
        let line = format!("[{seconds:6.1} s] {}", text.as_ref());
        println!("{line}");
        self.log.push(line);
    }

    /// Starts the `number`th guest, with more options for its QEMU and its kernel.
    pub fn start_guest(&mut self, number: u8, qemu: &[String], append: &str) -> Result<()> {
        let launch = Launch { append: append.into(), ..self.launch.clone() };
        self.guests.push(Guest::start(&self.host, &launch, number, qemu)?);
        Ok(())
    }

    /// What the next daemon is to be told.
    pub fn configure(&self, daemon_config: &str) -> Result<()> {
        Ok(std::fs::write(&self.config, daemon_config)?)
    }

    /// The daemon's process.
    pub fn daemon_pid(&self) -> Result<u32> {
        Ok(self.daemon.as_ref().context("no daemon runs")?.pid())
    }

    /// Starts the daemon and waits until it answers.
    pub fn start_daemon(&mut self) -> Result<()> {
        let mut command = Command::new("flexvf");
        command.args(["run", "--config"]).arg(&self.config);
        let log = self.host.log("flexvf.log");
        self.client = None;
        self.daemon = Some(Child::start("flexvf", &mut command, &log)?);
        let end_ms = now_ms() + DAEMON_START.as_millis() as u64;
        loop {
            self.check()?;
            match self.query() {
                Ok(_) => return Ok(()),
                Err(error) if now_ms() > end_ms => return Err(error),
                Err(_) => sleep(POLL),
            }
        }
    }

    /// SIGKILL to the daemon.
    pub fn kill_daemon(&mut self) -> Result<()> {
        let mut daemon = self.daemon.take().context("no daemon runs")?;
        daemon.kill()?;
        self.client = None;
        self.watch.daemon_killed(now_ms());
        Ok(())
    }

    /// Asks the daemon to end, and says what came of it.
    pub fn end_daemon(&mut self) -> Vec<String> {
        self.client = None;
        match self.daemon.take().map(|mut daemon| daemon.end()) {
            None => Vec::new(),
            Some(Some(status)) if status.success() => Vec::new(),
            Some(Some(status)) => vec![format!("flexvf ended with {status} when asked to end")],
            Some(None) => vec!["flexvf did not end when asked to".into()],
        }
    }

    /// Sets every guest's load; probes run from here on.
    pub fn set_loads(&mut self, loads: &[GuestLoad]) -> Result<()> {
        for load in loads {
            self.peer.set(&load.vm, self.probe_pps, load.load_pps)?;
            self.loads.insert(load.vm.clone(), load.load_pps);
        }
        let rates = loads.iter().map(|load| {
            let pps = 2 * (self.probe_pps + load.load_pps);
            format!("{} {pps}", load.vm)
        });
        let rates = rates.collect::<Vec<_>>().join(", ");
        self.say(format!("load, packets/s both ways: {rates}"));
        Ok(())
    }

    /// Waits a moment, looks at the daemon, and prints what is new.
    pub fn tick(&mut self) -> Result<()> {
        sleep(POLL);
        self.check()?;
        let status = self.query()?;
        for line in self.watch.take(status, now_ms()) {
            self.say(line);
        }
        Ok(())
    }

    /// Ticks until `done`, for `limit_s` at most; how long it took.
    pub fn tick_until(
        &mut self,
        limit_s: f64,
        done: impl Fn(&Status) -> bool,
    ) -> Result<Option<f64>> {
        let began_ms = now_ms();
        loop {
            self.tick()?;
            let seconds = (now_ms() - began_ms) as f64 / 1000.0;
            if done(self.watch.last()) {
                return Ok(Some(seconds));
            }
            if seconds > limit_s {
                return Ok(None);
            }
        }
    }

    /// Ticks until the daemon decides again, for `limit_s` at most.
    pub fn await_decision(&mut self, limit_s: f64) -> Result<()> {
        let round = self.watch.last().round;
        if self.tick_until(limit_s, |status| status.round > round)?.is_none() {
            bail!("flexvf made no decision in {limit_s:.0} s");
        }
        Ok(())
    }

    /// Where FlexVF's devices are, by each QEMU's own account.
    pub fn plugged(&self) -> Result<Vec<(VmName, String)>> {
        let mut plugged = Vec::new();
        for guest in &self.guests {
            let devices = guest.plugged()?;
            plugged.extend(devices.into_iter().map(|device| (guest.vm.clone(), device)));
        }
        Ok(plugged)
    }

    /// Every guest is known to the peer by the MAC address that it was registered with.
    pub fn wrong_macs(&self) -> Result<Vec<String>> {
        let mut wrong = Vec::new();
        for guest in &self.guests {
            let mac = guest.mac()?;
            let known = neighbour(&self.host, guest.address)?;
            if known.as_deref() != Some(&mac.to_string()) {
                let known = known.as_deref().unwrap_or("nothing");
                wrong.push(format!(
                    "{}: the peer knows {} by {known}, it should be {mac}",
                    guest.vm, guest.address
                ));
            }
        }
        Ok(wrong)
    }

    /// Ends all streams and waits for the last reports; complains about guests that gave none.
    pub fn end_streams(&mut self) -> Result<(Vec<VmReport>, Vec<String>)> {
        for vm in self.vms() {
            self.peer.set(&vm, 0, 0)?;
        }
        let end_ms = now_ms() + CONFIRM.as_millis() as u64;
        let runs = |report: &VmReport, vms: &[VmName]| vms.contains(&report.vm);
        let vms = self.vms();
        while now_ms() < end_ms {
            self.check()?;
            let reports = self.peer.report()?;
            if reports.iter().all(|it| it.confirmed || !runs(it, &vms)) {
                break;
            }
            sleep(POLL);
        }
        sleep(SETTLE);
        let mut reports = self.peer.report()?;
        reports.retain(|report| runs(report, &vms));
        let lost = reports.iter().filter(|report| !report.confirmed);
        let lost = lost.map(|it| format!("{}: the guest is not reached at the end", it.vm));
        let lost = lost.collect();
        Ok((reports, lost))
    }

    fn await_guests(&mut self, limit: Duration) -> Result<()> {
        let end_ms = now_ms() + limit.as_millis() as u64;
        let mut waiting = self.vms();
        while !waiting.is_empty() {
            self.check()?;
            for report in self.peer.report()? {
                if report.silent_ms.is_some() && waiting.contains(&report.vm) {
                    waiting.retain(|vm| *vm != report.vm);
                    self.say(format!("{} answers", report.vm));
                }
            }
            if now_ms() > end_ms {
                let (who, out) = (names(&waiting), self.host.out.display());
                bail!("{who} did not answer within {} s; see their logs in {out}", limit.as_secs());
            }
            sleep(POLL);
        }
        // Tells `sriov-host --up-within` that its emulation has not hung.
        Ok(std::fs::write(self.host.out.join("up"), "")?)
    }

    fn check(&mut self) -> Result<()> {
        if stop_requested() {
            bail!("stopped by a signal");
        }
        for guest in &mut self.guests {
            guest.check()?;
        }
        self.daemon.as_mut().map_or(Ok(()), Child::check)
    }

    fn query(&mut self) -> Result<Status> {
        let mut client = match self.client.take() {
            Some(client) => client,
            None => QmpClient::connect(&self.host.control_socket())?,
        };
        let status = client.execute("query-status", &json!({}))?;
        self.client = Some(client);
        Ok(status)
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.end_daemon();
        // All at once: each takes seconds.
        std::thread::scope(|scope| {
            for guest in &mut self.guests {
                scope.spawn(|| guest.end());
            }
        });
    }
}

/// CLOCK_MONOTONIC, milliseconds: the daemon's clock too.
pub fn now_ms() -> u64 {
    monotonic_us() / 1000
}
