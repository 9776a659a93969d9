//! DPDK's testpmd: as virtio-user, the front-end of the rings, and as net_vhost, a backend like ours.
//!
//! It is commanded through its prompt, so that it can stand still while somebody else is measured:
//! starting it anew takes seconds, within which a machine may change its speed. Its own clock
//! tells the rates. It believes to be on a terminal, since it keeps its words back from a file.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::thread::sleep;

use anyhow::{Context, Result};
use nix::pty::openpty;

use super::stage::{Stage, on_cpus, until};
use crate::bench::logic::texts::testpmd_rates;
use crate::scenario::io::child::Child;

/// What a testpmd does with frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Sends frames of so many bytes as fast as they are taken.
    Send(usize),
    /// Receives frames and drops them.
    Receive,
}

/// A running testpmd; it forwards nothing until told to.
#[derive(Debug)]
pub struct Testpmd {
    // Before the process: its end is the program's own sign to stop.
    commands: ChildStdin,
    child: Child,
    log: PathBuf,
}

impl Testpmd {
    /// A front-end with so many queue pairs for the backend that listens on `socket`.
    pub fn front_end(stage: &Stage, socket: &Path, mode: Mode, pairs: usize) -> Result<Self> {
        let path = socket.display();
        let device = format!("net_virtio_user0,path={path},queues={pairs},queue_size=256");
        Self::start(stage, "front-end", &device, mode, pairs, &stage.cores(pairs).front_end)
    }

    /// A backend with one queue pair that listens on `socket`.
    pub fn backend(stage: &Stage, socket: &Path, mode: Mode) -> Result<Self> {
        let device = format!("net_vhost0,iface={},queues=1", socket.display());
        let mut started = Self::start(stage, "vhost", &device, mode, 1, &stage.cores(1).backend)?;
        started.until("DPDK's vhost listens", |_| socket.exists())?;
        Ok(started)
    }

    fn start(
        stage: &Stage,
        role: &str,
        device: &str,
        mode: Mode,
        pairs: usize,
        cpus: &[usize],
    ) -> Result<Self> {
        let name = stage.new_name(role);
        let log = stage.out.join(format!("testpmd-{name}.log"));
        let mut command = Command::new("dpdk-testpmd");
        command
            .args(["--lcores", &lcores(cpus), "--no-huge", "-m", "256", "--no-pci"])
            .args(["--no-telemetry", "--file-prefix", &name])
            .arg(format!("--vdev={device}"))
            .args(["--", "-i", "--disable-link-check", "--total-num-mbufs=8192"])
            .args([format!("--rxq={pairs}"), format!("--txq={pairs}")])
            .arg(format!("--nb-cores={}", cpus.len()));
        match mode {
            Mode::Send(bytes) => {
                command.args(["--forward-mode=txonly", &format!("--txpkts={bytes}")])
            }
            Mode::Receive => command.arg("--forward-mode=rxonly"),
        };
        let terminal = terminal(&log)?;
        command.stdin(Stdio::piped()).stdout(terminal);
        let mut child = on_cpus(cpus, || Child::start_connected(&name, &mut command, &log))??;
        let commands = child.take_stdin().context("testpmd has no stdin")?;
        let mut started = Self { commands, child, log };
        started.until("testpmd is ready", |text| text.contains(PROMPT))?;
        Ok(started)
    }

    /// Starts forwarding.
    pub fn go(&mut self) -> Result<()> {
        self.command("start")
    }

    /// Stops forwarding, and waits until it stands still.
    pub fn halt(&mut self) -> Result<()> {
        let before = self.text()?.matches(HALTED).count();
        self.command("stop")?;
        self.until("testpmd stands still", |text| text.matches(HALTED).count() > before)
    }

    /// Packets a second, received and sent, over this stage's window after its warm-up.
    pub fn rates(&mut self, stage: &Stage) -> Result<(f64, f64)> {
        sleep(stage.pace.warm_up);
        self.report()?;
        sleep(stage.pace.window);
        let (received, sent) = self.report()?;
        Ok((received as f64, sent as f64))
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.child.check()
    }

    /// Packets a second since the last report.
    fn report(&mut self) -> Result<(u64, u64)> {
        let before = testpmd_rates(&self.text()?).len();
        self.command("show port stats all")?;
        let mut report = None;
        self.until("testpmd reports", |text| {
            report = testpmd_rates(text).into_iter().nth(before);
            report.is_some()
        })?;
        report.context("testpmd reported nothing")
    }

    fn command(&mut self, line: &str) -> Result<()> {
        self.child.check()?;
        writeln!(self.commands, "{line}").with_context(|| format!("tell testpmd to '{line}'"))
    }

    fn until(&mut self, what: &str, mut holds: impl FnMut(&str) -> bool) -> Result<()> {
        until(what, || {
            self.child.check()?;
            Ok(holds(&self.text()?))
        })
    }

    fn text(&self) -> Result<String> {
        let bytes = fs::read(&self.log).context("read testpmd's log")?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }
}

const PROMPT: &str = "testpmd>";
/// The last word of the command to stop.
const HALTED: &str = "Done.";

/// One forwarding thread a processor; the main thread, which sleeps, shares the first one's.
fn lcores(cpus: &[usize]) -> String {
    let first = cpus.first().copied().unwrap_or_default();
    let forwarding = cpus.iter().enumerate().map(|(index, cpu)| format!(",{}@{cpu}", index + 1));
    format!("0@{first}") + &forwarding.collect::<String>()
}

/// A terminal whose words go to the end of `log`, for as long as a program writes to it.
fn terminal(log: &Path) -> Result<Stdio> {
    let terminal = openpty(None, None).context("open a terminal")?;
    let file = File::options().create(true).append(true).open(log);
    let mut file = file.with_context(|| format!("open {}", log.display()))?;
    let mut words = File::from(terminal.master);
    // Its end is an error, once the program has closed its side.
    std::thread::spawn(move || std::io::copy(&mut words, &mut file));
    Ok(Stdio::from(terminal.slave))
}
