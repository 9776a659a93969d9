//! `vhost-net-pv` as a process of its own: started, killed, and looked at from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flexvf_protocol::stats_page::Snapshot;

use crate::scenario::Options;
use crate::scenario::io::child::Child;
use crate::scenario::io::host::Host;
use crate::scenario::pv::logic::result::Resources;

/// How long it may take to listen; it is 20 ms on an idle machine.
const START: Duration = Duration::from_secs(20);

/// A place in the bridge, and the files of whoever serves it.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The TAP, which the backend makes.
    pub tap: String,
    /// The bridge that it joins.
    pub bridge: String,
    /// Where QEMU finds the backend.
    pub socket: PathBuf,
    /// The counters' file.
    pub stats: PathBuf,
    /// Queue pairs.
    pub queues: u8,
    options: Vec<String>,
    log: PathBuf,
    log_level: Option<&'static str>,
}

/// A running backend; it ends with this.
#[derive(Debug)]
pub struct Backend(Child);

impl Nic {
    /// The NIC of that name.
    pub fn new(host: &Host, options: &Options, name: &str) -> Self {
        Self {
            tap: format!("fv-{name}"),
            bridge: host.bridge.clone(),
            socket: host.run.join(format!("{name}.sock")),
            stats: host.run.join(format!("{name}.stats")),
            queues: options.queues,
            options: options.pv_options.split_whitespace().map(str::to_owned).collect(),
            log: host.log(&format!("{name}-pv.log")),
            log_level: None,
        }
    }

    /// The same with so many queue pairs, and a backend with more options that logs every message.
    pub fn with(mut self, queues: u8, options: &str) -> Self {
        self.queues = queues;
        self.log_level = Some("debug");
        self.options.extend(options.split_whitespace().map(str::to_owned));
        self
    }

    /// The counters as they are now.
    pub fn page(&self) -> Result<Snapshot> {
        let context = || format!("read {}", self.stats.display());
        let bytes = fs::read(&self.stats).with_context(context)?;
        Snapshot::parse(&bytes).with_context(context)
    }

    /// What its backends have said so far.
    pub fn backend_log(&self) -> Result<String> {
        fs::read_to_string(&self.log).with_context(|| format!("read {}", self.log.display()))
    }

    /// A counter of the TAP: `rx_packets`, `tx_bytes`, ...
    pub fn tap_counter(&self, name: &str) -> Result<u64> {
        interface_counter(&self.tap, name)
    }
}

impl Backend {
    /// Starts it and waits until it listens at `socket`.
    pub fn start(nic: &Nic, socket: &Path) -> Result<Self> {
        // One that was killed has left its socket behind, whose presence must say nothing.
        match fs::remove_file(socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("remove {}", socket.display()));
            }
            _ => {}
        }
        let mut command = Command::new("vhost-net-pv");
        command.arg("--socket").arg(socket).args(["--tap", &nic.tap, "--bridge", &nic.bridge]);
        command.arg("--stats").arg(&nic.stats).args(["--queues", &nic.queues.to_string()]);
        command.args(&nic.options);
        command.envs(nic.log_level.map(|level| ("RUST_LOG", level)));
        let mut backend = Self(Child::start("vhost-net-pv", &mut command, &nic.log)?);
        let end = Instant::now() + START;
        while !socket.exists() {
            backend.0.check()?;
            if Instant::now() > end {
                bail!("vhost-net-pv does not listen after {} s", START.as_secs());
            }
            sleep(Duration::from_millis(2));
        }
        Ok(backend)
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.0.check()
    }

    /// SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.0.kill()
    }

    /// SIGTERM; fails unless it ends in order.
    pub fn end(mut self) -> Result<()> {
        match self.0.end() {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("vhost-net-pv ended with {status} when asked to end"),
            None => bail!("vhost-net-pv did not end when asked to"),
        }
    }

    /// What it has taken so far.
    pub fn resources(&self) -> Result<Resources> {
        resources(self.0.pid())
    }
}

/// What a process has taken so far.
pub fn resources(pid: u32) -> Result<Resources> {
    let folder = PathBuf::from(format!("/proc/{pid}"));
    let fds = fs::read_dir(folder.join("fd")).with_context(|| format!("look at process {pid}"))?;
    let status = fs::read_to_string(folder.join("status"))?;
    let kib =
        |field| kib_in(&status, field).with_context(|| format!("process {pid} has no {field}"));
    Ok(Resources { fds: fds.count(), own_kib: kib("RssAnon:")?, rss_kib: kib("VmRSS:")? })
}

/// A counter of an interface of this namespace.
pub fn interface_counter(interface: &str, name: &str) -> Result<u64> {
    let file = format!("/sys/class/net/{interface}/statistics/{name}");
    let text = fs::read_to_string(&file).with_context(|| format!("read {file}"))?;
    text.trim().parse().with_context(|| format!("{file} is no number"))
}

fn kib_in(status: &str, field: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(field))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_by_its_name() {
        let status = "VmRSS:\t    5120 kB\nRssAnon:\t     300 kB\nRssShmem:\t 9 kB\n";
        assert_eq!(kib_in(status, "VmRSS:"), Some(5120));
        assert_eq!(kib_in(status, "RssAnon:"), Some(300));
        assert_eq!(kib_in(status, "VmSwap:"), None);
    }

    #[test]
    fn a_process_that_holds_descriptors_is_seen_to() {
        let before = resources(std::process::id()).unwrap();
        let files: Vec<_> = (0..50).map(|_| fs::File::open("/dev/null").unwrap()).collect();
        let after = resources(std::process::id()).unwrap();
        // Other tests of this program open and close theirs meanwhile.
        assert!(after.fds > before.fds + 25, "{before:?} {after:?}");
        drop(files);
    }
}
