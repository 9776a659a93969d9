//! Starts the backend's program, and finds the programs of others that it is tried with.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

use flexvf_protocol::stats_page::Snapshot;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use vhost_net_pv::io::stats;

const DEADLINE: Duration = Duration::from_secs(60);

/// The testbed's folder with QEMU and DPDK, or `None` where skipping is allowed.
pub(crate) fn sysroot() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("FLEXVF_SYSROOT") {
        return Some(folder.into());
    }
    assert!(
        std::env::var_os("FLEXVF_ALLOW_SKIP").is_some_and(|value| value == "1"),
        "FLEXVF_SYSROOT is not set: run FLEXVF_SYSROOT=$(scripts/testbed/packages) cargo test, \
         or set FLEXVF_ALLOW_SKIP=1 to go without"
    );
    eprintln!("SKIPPED: FLEXVF_SYSROOT is not set");
    None
}

/// A backend in a process of its own.
pub(crate) struct Backend {
    child: Child,
    folder: TempDir,
    arguments: Vec<String>,
    log_level: &'static str,
}

impl Backend {
    pub(crate) fn start(port: &str, queues: u16) -> Self {
        Self::start_with(&["--port", port, "--queues", &queues.to_string()])
    }

    /// Starts it with options besides the socket and the stats page.
    pub(crate) fn start_with(options: &[&str]) -> Self {
        Self::start_as("--socket", "info", options)
    }

    /// The same, and its log has every message of the front-end.
    pub(crate) fn start_verbose(options: &[&str]) -> Self {
        Self::start_as("--socket", "debug", options)
    }

    /// Starts one that connects to a front-end, and has every message in its log.
    pub(crate) fn start_connecting(options: &[&str]) -> Self {
        Self::start_as("--connect", "debug", options)
    }

    fn start_as(role: &str, log_level: &'static str, options: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = |name| folder.path().join(name).to_str().unwrap().to_owned();
        let mut arguments = vec![role.to_owned(), path("socket"), "--stats".into(), path("stats")];
        arguments.extend(options.iter().map(|&argument| argument.to_owned()));
        let child = spawn(folder.path(), &arguments, log_level);
        let backend = Self { child, folder, arguments, log_level };
        backend.until("it is ready", || backend.log().contains(" ready"));
        backend
    }

    /// What it has said so far, since its last start.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap()
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ends it as a crash would, with something going on meanwhile.
    pub(crate) fn kill_while(&mut self, mut go_on: impl FnMut()) {
        self.child.kill().unwrap();
        while self.child.try_wait().unwrap().is_none() {
            go_on();
        }
    }

    /// Starts it again after it was killed.
    pub(crate) fn restart(&mut self) {
        self.child = spawn(self.folder.path(), &self.arguments, self.log_level);
        // The socket's file is there already, left by the one that was killed.
        self.until("it is ready again", || self.log().contains("ready"));
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn page(&self) -> Snapshot {
        stats::read(&self.folder.path().join("stats")).unwrap()
    }

    pub(crate) fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !holds() {
            assert!(Instant::now() < deadline, "never happened: {what}; log:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Its open descriptors.
    pub(crate) fn open_files(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().count()
    }

    /// Its mappings of memory.
    pub(crate) fn mappings(&self) -> usize {
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", self.child.id()));
        maps.unwrap().lines().count()
    }

    /// Its resident memory.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Waits until it has ended by itself.
    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }

    /// Asks it to end; true if it ended well.
    pub(crate) fn end(mut self) -> bool {
        interrupt(&self.child, Signal::SIGTERM);
        self.child.wait().unwrap().success()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Another program, which does not outlive the test.
pub(crate) struct Program(pub(crate) Child);

impl Program {
    /// Sends a signal and waits for the end.
    pub(crate) fn end(mut self, signal: Signal) -> ExitStatus {
        interrupt(&self.0, signal);
        self.0.wait().unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn spawn(folder: &Path, arguments: &[String], log_level: &str) -> Child {
    let log = File::create(folder.join("log")).unwrap();
    Command::new(env!("CARGO_BIN_EXE_vhost-net-pv"))
        .args(arguments)
        .env("RUST_LOG", log_level)
        .stderr(log)
        .spawn()
        .unwrap()
}

fn interrupt(child: &Child, signal: Signal) {
    let _ = kill(Pid::from_raw(child.id().cast_signed()), signal);
}
