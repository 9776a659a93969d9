//! A shell in the guest that does not need its network: see `serve_shell` in testbed/guest-init.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A guest that boots under emulation answers after this at the latest.
const PATIENCE: Duration = Duration::from_secs(120);
/// Before the exit status of a command.
const STATUS: &str = "flexvf-status ";

/// The host's end of a guest's shell port.
#[derive(Debug)]
pub struct Shell(BufReader<UnixStream>);

impl Shell {
    /// Connects; commands wait in the socket until the guest is up.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path);
        let stream = stream.with_context(|| format!("connect to {}", path.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self(BufReader::new(stream)))
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
