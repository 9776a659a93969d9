//! A shell in the guest that does not need its network: see `serve_shell` in testbed/guest-init.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// A guest that boots under emulation answers after this at the latest.
const PATIENCE: Duration = Duration::from_secs(120);
/// A line that comes while the guest opens its port anew is lost; it is sent again after this.
const GREETING: Duration = Duration::from_secs(5);
/// Before the exit status of a command.
const STATUS: &str = "flexvf-status ";

/// The host's end of a guest's shell port.
#[derive(Debug)]
pub struct Shell(BufReader<UnixStream>);

impl Shell {
    /// Connects, and waits until the guest's shell listens.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path);
        let stream = stream.with_context(|| format!("connect to {}", path.display()))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut shell = Self(BufReader::new(stream));
        shell.greet()?;
        shell.0.get_ref().set_read_timeout(Some(PATIENCE))?;
        Ok(shell)
    }

    /// Greets until the last greeting is answered; those before it are answered before it, or lost.
    fn greet(&mut self) -> Result<()> {
        self.0.get_ref().set_read_timeout(Some(GREETING))?;
        let begin = Instant::now();
        for number in 0.. {
            let hello = format!("flexvf-hello {number}");
            self.send(&format!("echo {hello}"))?;
            let mut line = String::new();
            let heard = loop {
                line.clear();
                match self.0.read_line(&mut line) {
                    Ok(0) => bail!("the guest's shell port was closed"),
                    Ok(_) if line.trim_end() == hello => break true,
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break false,
                    Err(error) => return Err(error).context("hear the guest's shell"),
                }
            };
            if heard {
                self.0.read_line(&mut line).context("hear the guest's shell")?;
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "no shell in the guest after {PATIENCE:?}");
        }
        Ok(())
    }

    /// Runs a line; what it printed. It fails when the line does.
    pub fn run(&mut self, line: &str) -> Result<String> {
        self.send(line)?;
        let mut printed = String::new();
        loop {
            let mut answer = String::new();
            let read = self.0.read_line(&mut answer);
            if read.with_context(|| format!("the guest does not answer to '{line}'"))? == 0 {
                bail!("the guest's shell port was closed at '{line}'");
            }
            match answer.strip_prefix(STATUS).map(str::trim) {
                Some("0") => return Ok(printed),
                Some(status) => bail!("in the guest, '{line}' ended with {status}: {printed}"),
                None => printed.push_str(&answer),
            }
        }
    }

    /// Sends a line that the guest does not survive.
    pub fn send(&mut self, line: &str) -> Result<()> {
        writeln!(self.0.get_mut(), "{line}").with_context(|| format!("send '{line}' to the guest"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(answer: &str) -> Result<String> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer.as_bytes()).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        Shell(BufReader::new(ours)).run("a line")
    }

    #[test]
    fn a_command_that_fails_in_the_guest_fails_here() {
        assert_eq!(guest("one\ntwo\nflexvf-status 0\n").unwrap(), "one\ntwo\n");
        let error = guest("no such file\nflexvf-status 1\n").unwrap_err().to_string();
        assert!(error.contains("no such file"), "{error}");
    }

    #[test]
    fn a_guest_that_goes_away_is_no_answer() {
        assert!(guest("half").is_err());
    }
}
