//! Our backend's program, started as anyone would.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::stage::{Stage, on_cpus, until};
use crate::scenario::io::child::Child;

/// Where a backend's frames go.
#[derive(Debug, Clone, Copy)]
pub enum Port<'t> {
    /// Nowhere.
    Null,
    /// Nowhere, and 64-byte frames come without end.
    Source,
    /// To the interface of this name, which it makes if there is none.
    Tap(&'t str),
}

/// A running backend.
#[derive(Debug)]
pub struct Backend {
    child: Child,
    socket: PathBuf,
}

impl Backend {
    /// Starts one on the processors for backends, and waits until it listens.
    pub fn start(stage: &Stage, port: Port<'_>, pairs: usize) -> Result<Self> {
        let cpus = stage.cores(pairs).backend;
        on_cpus(&cpus, || Self::spawn(stage, port, pairs, &[]))??.listening()
    }

    /// The same with one queue pair, and it polls.
    pub fn start_polling(stage: &Stage, port: Port<'_>) -> Result<Self> {
        let cpus = stage.cores(1).backend;
        on_cpus(&cpus, || Self::spawn(stage, port, 1, POLLS))??.listening()
    }

    /// The same on any processor, for guests, which have none of their own.
    pub fn start_unpinned(stage: &Stage, port: Port<'_>, options: &[&str]) -> Result<Self> {
        Self::spawn(stage, port, 1, options)?.listening()
    }

    /// Starts one and returns it with the time until its socket accepted a connection.
    pub fn start_timed(stage: &Stage, port: Port<'_>) -> Result<(Self, Duration)> {
        let begin = Instant::now();
        let mut backend = Self::spawn(stage, port, 1, &[])?;
        loop {
            if UnixStream::connect(&backend.socket).is_ok() {
                return Ok((backend, begin.elapsed()));
            }
            if begin.elapsed() > LONGEST_START {
                bail!("vhost-net-pv does not listen after {} s", LONGEST_START.as_secs());
            }
            backend.child.check()?;
            // Shorter than what is to be seen, and long enough to leave the processor to it.
            std::thread::sleep(Duration::from_micros(100));
        }
    }

    fn listening(mut self) -> Result<Self> {
        until("vhost-net-pv listens", || {
            self.child.check()?;
            Ok(self.socket.exists())
        })?;
        Ok(self)
    }

    fn spawn(stage: &Stage, port: Port<'_>, pairs: usize, options: &[&str]) -> Result<Self> {
        let name = stage.new_name("pv");
        let socket = stage.run.join(format!("{name}.sock"));
        let mut command = Command::new("vhost-net-pv");
        command.arg("--socket").arg(&socket).args(["--queues", &pairs.to_string()]);
        match port {
            Port::Null => command.args(["--port", "null"]),
            Port::Source => command.args(["--port", "source"]),
            Port::Tap(name) => command.args(["--tap", name]),
        };
        let method_is_given = stage.backend_options.iter().any(|option| option.starts_with("--io"));
        if matches!(port, Port::Tap(_)) && !method_is_given {
            // Its default where there is io_uring; without, it is not to be measured unnoticed.
            command.args(["--io", "uring"]);
        }
        let named = |option: &str| option.split('=').next().unwrap_or_default().to_owned();
        let given: Vec<_> = stage.backend_options.iter().map(|option| named(option)).collect();
        command.args(options.iter().filter(|option| !given.contains(&named(option))));
        command.args(&stage.backend_options);
        let log = stage.out.join("vhost-net-pv.log");
        Ok(Self { child: Child::start(&name, &mut command, &log)?, socket })
    }

    /// Where it listens.
    pub const fn socket(&self) -> &PathBuf {
        &self.socket
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.child.check()
    }
}

/// Makes it look for work for a while before it sleeps.
pub const POLLS: &[&str] = &["--poll-us=100"];
/// Far more than any start takes.
const LONGEST_START: Duration = Duration::from_secs(10);
