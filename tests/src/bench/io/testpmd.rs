//! DPDK's testpmd: as virtio-user, the front-end of the rings, and as net_vhost, a backend like ours.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

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

/// A running testpmd.
#[derive(Debug)]
pub struct Testpmd {
    child: Child,
    log: PathBuf,
}

impl Testpmd {
    /// A front-end with so many queue pairs for the backend that listens on `socket`.
    pub fn front_end(stage: &Stage, socket: &Path, mode: Mode, pairs: usize) -> Result<Self> {
        let device =
            format!("net_virtio_user0,path={},queues={pairs},queue_size=256", socket.display());
        Self::start(stage, "front-end", &device, mode, pairs, &stage.cores(pairs).front_end)
    }

    /// A backend with one queue pair that listens on `socket`.
    pub fn backend(stage: &Stage, socket: &Path, mode: Mode) -> Result<Self> {
        let device = format!("net_vhost0,iface={},queues=1", socket.display());
        let mut started = Self::start(stage, "vhost", &device, mode, 1, &stage.cores(1).backend)?;
        until("DPDK's vhost listens", || {
            started.child.check()?;
            Ok(socket.exists())
        })?;
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
            .args(["--", "--auto-start", "--stats-period=1", "--disable-link-check"])
            .args(["--total-num-mbufs=8192", &format!("--nb-cores={}", cpus.len())])
            .args([format!("--rxq={pairs}"), format!("--txq={pairs}")]);
        match mode {
            Mode::Send(bytes) => {
                command.args(["--forward-mode=txonly", &format!("--txpkts={bytes}")])
            }
            Mode::Receive => command.arg("--forward-mode=rxonly"),
        };
        let child = on_cpus(cpus, || Child::start(&name, &mut command, &log))??;
        Ok(Self { child, log })
    }

    /// Packets a second, received and sent, by its own reports.
    pub fn rates(&mut self, stage: &Stage) -> Result<(f64, f64)> {
        let flows = |rates: &(u64, u64)| rates.0 + rates.1 > 0;
        let mut seen = Vec::new();
        until("testpmd reports traffic", || {
            self.child.check()?;
            let text = fs::read(&self.log).context("read testpmd's log")?;
            let rates = testpmd_rates(&String::from_utf8_lossy(&text));
            seen = rates.into_iter().skip_while(|rates| !flows(rates)).skip(SETTLING).collect();
            Ok(seen.len() >= stage.pace.reports)
        })?;
        let seen = seen.get(..stage.pace.reports).unwrap_or_default();
        if !seen.iter().all(flows) {
            bail!("traffic came to a stop (log: {})", self.log.display());
        }
        let mean = |of: fn(&(u64, u64)) -> u64| {
            seen.iter().map(of).sum::<u64>() as f64 / seen.len() as f64
        };
        Ok((mean(|rates| rates.0), mean(|rates| rates.1)))
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.child.check()
    }
}

/// Reports with traffic that are passed over: the first one's second had a beginning in it.
const SETTLING: usize = 2;

/// One forwarding thread a processor; the main thread, which sleeps, shares the first one's.
fn lcores(cpus: &[usize]) -> String {
    let first = cpus.first().copied().unwrap_or_default();
    let mut text = format!("0@{first}");
    for (index, cpu) in cpus.iter().enumerate() {
        text.push_str(&format!(",{}@{cpu}", index + 1));
    }
    text
}
