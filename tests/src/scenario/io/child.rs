//! Programs that a scenario starts: each with a log, and none left behind.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

use crate::sys::tie_to_this_thread;

/// How long a program may take to end when asked; launch-vm waits 10 s for its own two.
const PATIENCE: Duration = Duration::from_secs(15);

/// A running program; it is ended when this is dropped.
#[derive(Debug)]
pub struct Child {
    name: String,
    log: PathBuf,
    process: std::process::Child,
}

impl Child {
    /// Starts `command`, what it says going to the end of `log`.
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = append_to(log)?;
        command.stdin(Stdio::null()).stdout(file.try_clone()?);
        Self::spawn(name, command.stderr(file), log)
    }

    /// The same, with stdin and stdout left to the caller.
    pub fn start_piped(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        Self::spawn(name, command.stderr(append_to(log)?), log)
    }

    /// The same, with stdin and stdout as the caller has set them up.
    pub fn start_connected(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        Self::spawn(name, command.stderr(append_to(log)?), log)
    }

    fn spawn(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        // Logs are read by people and by scenarios, not by a terminal.
        command.env("NO_COLOR", "1");
        let process = tie_to_this_thread(command).spawn();
        let program = command.get_program().to_string_lossy().into_owned();
        let process =
            process.with_context(|| format!("start {program}; is it built and in PATH?"))?;
        Ok(Self { name: name.to_owned(), log: log.to_owned(), process })
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Both pipes of [`Self::start_piped`], once.
    pub fn take_pipes(&mut self) -> Option<(ChildStdin, ChildStdout)> {
        Some((self.process.stdin.take()?, self.process.stdout.take()?))
    }

    /// Its stdin, if that is a pipe, once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.process.stdin.take()
    }

    /// Fails, with the last line of its log, if it has ended.
    pub fn check(&mut self) -> Result<()> {
        if let Some(status) = self.process.try_wait()? {
            let (name, log) = (&self.name, self.log.display());
            let last = last_line(&self.log);
            anyhow::bail!("{name} ended with {status}: {last} (log: {log})");
        }
        Ok(())
    }

    /// Waits for its own end, for `patience` at the most.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let end = Instant::now() + patience;
        loop {
            match self.process.try_wait() {
                Ok(Some(status)) => return Some(status),
                Ok(None) if Instant::now() < end => sleep(Duration::from_millis(50)),
                _ => return None,
            }
        }
    }

    /// SIGKILL, to this process alone.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().with_context(|| format!("kill {}", self.name))?;
        self.process.wait()?;
        Ok(())
    }

    /// Asks it to end, waits, insists.
    pub fn end(&mut self) -> Option<ExitStatus> {
        if let Ok(Some(status)) = self.process.try_wait() {
            return Some(status);
        }
        let pid = Pid::from_raw(self.pid().cast_signed());
        let _ = kill(pid, Signal::SIGTERM);
        let status = self.wait(PATIENCE);
        if status.is_none() {
            // The whole of its own process group: it had its chance to do this in order.
            let _ = killpg(pid, Signal::SIGKILL);
            let _ = self.process.wait();
        }
        status
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.end();
    }
}

/// The last line of a log that says anything.
pub fn last_line(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().rev().find(|line| !line.trim().is_empty());
    last.unwrap_or("it said nothing").to_owned()
}

fn append_to(log: &Path) -> Result<File> {
    let file = File::options().create(true).append(true).open(log);
    file.with_context(|| format!("open {}", log.display()))
}
