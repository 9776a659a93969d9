//! What the PV scenario has running: one guest, and two places in the bridge that it can be at.

use std::fmt::Write;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::io::backend::{Backend, Nic};
use super::io::command::run;
use super::io::machine::{GUEST, Guest, Machine, NIC, Start};
use super::io::streams::{Streams, Target};
use super::logic::result::{Limits, Step, Transfer};
use crate::scenario::Options;
use crate::scenario::io::guests::identity;
use crate::scenario::io::host::Host;
use crate::scenario::io::shell::Shell;
use crate::scenario::stage::now_ms;
use crate::sys::stop_requested;

/// Traffic before something happens to it, and after.
const CALM: Duration = Duration::from_secs(2);
/// What the guest may take to be reached, which covers a boot under emulation.
pub const PATIENCE: Duration = Duration::from_secs(120);
/// What it may take after something that it lives through.
const REACHED: Duration = Duration::from_secs(40);
/// TCP beside the probes: enough that something is always under way.
const TCP_BYTES_PER_S: u64 = 400_000;
/// Between two looks at something that is about to change.
const POLL: Duration = Duration::from_millis(5);

/// See the module's text. What is declared first ends first.
#[derive(Debug)]
pub struct Stage {
    /// The machine that all runs on.
    pub host: Host,
    /// The guest, as the peer knows it.
    pub target: Target,
    /// Where the guest is.
    pub here: Side,
    /// Where it is not.
    pub there: Side,
    began_ms: u64,
}

/// A place in the bridge.
#[derive(Debug)]
pub struct Side {
    /// Its name, of which its files' names are made.
    pub name: &'static str,
    /// TAP and files.
    pub nic: Nic,
    guest: Guest,
    machine: Option<Machine>,
    backend: Option<Backend>,
}

impl Stage {
    /// Starts backend and guest, and waits until it is up.
    pub fn build(options: &Options, host: &Host) -> Result<Self> {
        let (_, address) = identity(1)?;
        let target = Target {
            vm: "pv1".parse()?,
            address,
            probe_pps: options.probe_pps,
            tcp_bytes_per_s: TCP_BYTES_PER_S,
            tcp_rest_ms: 0,
        };
        let [here, there] =
            ["a", "b"].map(|name| Side::new(name, Nic::new(host, options, name), GUEST));
        let mut stage = Self { host: host.clone(), target, here, there, began_ms: now_ms() };
        stage.here.start_backend()?;
        stage.here.start_machine(host, Start::Boot)?;
        let up_s = stage.guest_uptime_s()?;
        stage.say(&format!("the guest is up after {up_s} s, accelerator {}", host.accel));
        Ok(stage)
    }

    /// Prints a line with the time since the beginning.
    pub fn say(&self, text: &str) {
        println!("[{:6.1} s] {text}", (now_ms() - self.began_ms) as f64 / 1000.0);
    }

    /// Has `event` happen under traffic; the account of what that went through.
    pub fn measure(
        &mut self,
        name: &str,
        limits: Limits,
        event: impl FnOnce(&mut Self) -> Result<String>,
    ) -> Result<Step> {
        let mut streams = Streams::start(&self.host, &self.target, PATIENCE)?;
        sleep(CALM);
        let before = self.here.backend()?.resources()?;
        let dropped = self.here.nic.tap_counter("tx_dropped")?;
        let did = event(self).with_context(|| name.to_owned())?;
        let reached = streams.until_reached(REACHED);
        if reached.is_err() {
            self.keep_evidence();
        }
        let reached = reached.with_context(|| format!("{name}: {did}"))?;
        sleep(CALM);
        let account = streams.end(PATIENCE).with_context(|| format!("{name}: {did}"))?;
        let after = self.here.backend()?.resources()?;
        // Of another TAP after a migration, or one that was made again.
        let tap_dropped = self.here.nic.tap_counter("tx_dropped")?.saturating_sub(dropped);
        self.check()?;
        self.say(&format!("{name}: {did}"));
        let no_transfer = || Transfer::new(Err("there was none".into()));
        Ok(Step {
            name: name.to_owned(),
            did,
            reached_after_ms: reached.as_millis() as u64,
            to_guest: account.to_guest,
            from_guest: account.from_guest,
            refused: account.refused,
            tap_dropped,
            tcp: account.tcp.unwrap_or_else(no_transfer),
            before,
            after,
            limits,
            one_queue: self.here.nic.queues == 1,
        })
    }

    /// Writes down what guest, QEMU and bridge say of the NIC, for whoever looks for the reason.
    fn keep_evidence(&mut self) {
        let mut text = String::new();
        let mut add = |head: &str, said: Result<String>| {
            let said = said.unwrap_or_else(|error| format!("{error:#}"));
            let _ = writeln!(text, "== {head}\n{said}");
        };
        for line in ["ip -s link show eth0", "cat /proc/interrupts", "dmesg | tail -n 20"] {
            let said = self.here.shell().and_then(|shell| shell.run(line));
            add(line, said);
        }
        let device = "/machine/peripheral/pv/virtio-backend";
        for (command, arguments) in [
            ("x-query-virtio-status", json!({"path": device})),
            ("x-query-virtio-queue-status", json!({"path": device, "queue": 0})),
            ("x-query-virtio-queue-status", json!({"path": device, "queue": 1})),
            ("query-chardev", json!({})),
        ] {
            let said = self.here.machine().and_then(|qemu| qemu.execute(command, &arguments));
            add(command, said.map(|value| value.to_string()));
        }
        add("the page", self.here.nic.page().map(|page| format!("{page:?}")));
        for line in ["ip -s link", "bridge fdb show"] {
            add(line, run(line));
        }
        let _ = std::fs::write(self.host.log("evidence.txt"), text);
    }

    /// Seconds since the guest has started; waits for its boot.
    pub fn guest_uptime_s(&mut self) -> Result<f64> {
        let uptime = self.here.shell()?.run("cat /proc/uptime")?;
        let seconds = uptime.split_whitespace().next().and_then(|word| word.parse().ok());
        seconds.with_context(|| format!("the guest's uptime is {uptime:?}"))
    }

    /// Fails if anything has ended that should run.
    pub fn check(&mut self) -> Result<()> {
        if stop_requested() {
            bail!("stopped by a signal");
        }
        for side in [&mut self.here, &mut self.there] {
            side.machine.as_mut().map_or(Ok(()), Machine::check)?;
            side.backend.as_mut().map_or(Ok(()), Backend::check)?;
        }
        Ok(())
    }

    /// Waits until `holds`.
    pub fn until(&mut self, what: &str, holds: impl Fn(&mut Self) -> Result<bool>) -> Result<()> {
        let end_ms = now_ms() + PATIENCE.as_millis() as u64;
        while !holds(self)? {
            self.check()?;
            if now_ms() > end_ms {
                bail!("not within {} s: {what}", PATIENCE.as_secs());
            }
            sleep(POLL);
        }
        Ok(())
    }
}

impl Side {
    /// A place where nothing runs yet.
    pub const fn new(name: &'static str, nic: Nic, guest: Guest) -> Self {
        Self { name, nic, guest, machine: None, backend: None }
    }

    /// Starts the backend where QEMU looks for it.
    pub fn start_backend(&mut self) -> Result<()> {
        let socket = self.nic.socket.clone();
        self.start_backend_at(&socket)
    }

    /// Starts it somewhere else.
    pub fn start_backend_at(&mut self, socket: &std::path::Path) -> Result<()> {
        self.backend = Some(Backend::start(&self.nic, socket)?);
        Ok(())
    }

    /// Starts a QEMU.
    pub fn start_machine(&mut self, host: &Host, how: Start) -> Result<()> {
        self.machine = Some(Machine::start(host, self.name, &self.nic, &self.guest, how)?);
        Ok(())
    }

    /// SIGKILL to the backend.
    pub fn kill_backend(&mut self) -> Result<()> {
        self.backend.take().context("no backend runs")?.kill()
    }

    /// SIGTERM to the backend, which has to end in order.
    pub fn end_backend(&mut self) -> Result<()> {
        self.backend.take().context("no backend runs")?.end()
    }

    /// Ends QEMU, guest and all.
    pub fn quit_machine(&mut self) -> Result<()> {
        self.machine.take().context("no QEMU runs")?.quit()
    }

    /// The backend.
    pub fn backend(&self) -> Result<&Backend> {
        self.backend.as_ref().context("no backend runs")
    }

    /// The guest's QEMU.
    pub fn machine(&mut self) -> Result<&mut Machine> {
        self.machine.as_mut().context("no QEMU runs")
    }

    /// The guest's shell.
    pub fn shell(&mut self) -> Result<&mut Shell> {
        self.machine()?.shell()
    }

    /// The guest's NIC gets or loses its link.
    pub fn set_link(&mut self, up: bool) -> Result<Value> {
        self.machine()?.execute("set_link", &json!({"name": NIC, "up": up}))
    }
}
