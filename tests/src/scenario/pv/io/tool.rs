//! `flexvf-traffic` beside the guest: started in a network namespace, ended by the end of its stdin,
//! its last line being a result.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{ChildStdin, ChildStdout, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;

use crate::scenario::io::child::{Child, last_line};
use crate::scenario::io::host::Host;

/// After its result was printed.
const END: Duration = Duration::from_secs(10);

/// For those that end by themselves.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running tool.
#[derive(Debug)]
pub struct Tool {
    // The end of it is the program's sign to stop.
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    child: Child,
    log: PathBuf,
}

impl Tool {
    /// Starts it in a namespace, with its words in one line.
    pub fn start(host: &Host, namespace: &str, line: &str) -> Result<Self> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", namespace, "flexvf-traffic"]);
        command.args(line.split_whitespace());
        let log = host.log("tools.log");
        let mut child = Child::start_piped("flexvf-traffic", &mut command, &log)?;
        let (stdin, stdout) = child.take_pipes().context("the tool has no pipes")?;
        Ok(Self { stdin, stdout: BufReader::new(stdout), child, log })
    }

    /// Waits for a line.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.stdout.read_line(&mut line)? == 0 {
            bail!("flexvf-traffic ended without a result: {}", last_line(&self.log));
        }
        Ok(line.trim().to_owned())
    }

    /// Waits for its own end; it prints no result.
    pub fn wait(mut self) -> Result<()> {
        match self.child.wait(PATIENCE) {
            Some(status) if status.success() => Ok(()),
            _ => bail!("{}", last_line(&self.log)),
        }
    }

    /// Has it stop; its result.
    pub fn end<T: DeserializeOwned>(self) -> Result<T> {
        let Self { stdin, mut stdout, mut child, log } = self;
        drop(stdin);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        if child.wait(END).is_none_or(|status| !status.success()) || line.is_empty() {
            bail!("{}", last_line(&log));
        }
        Ok(serde_json::from_str(&line)?)
    }
}
