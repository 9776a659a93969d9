//! A client of sockets that speak QMP: QEMU's own, and the daemon's control socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::poll::{PollFd, PollFlags, poll};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The longest wait for an answer: QEMU can be busy pinning memory, under emulation.
const PATIENCE: Duration = Duration::from_secs(30);

/// The longest line read.
const MAX_LINE: u64 = 10 << 20;

/// An open connection after the handshake.
#[derive(Debug)]
pub struct QmpClient {
    path: PathBuf,
    stream: BufReader<UnixStream>,
}

impl QmpClient {
    /// Connects and leaves the negotiation behind.
    pub fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path);
        let stream = stream.with_context(|| format!("connect to {}", path.display()))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let mut client = Self { path: path.to_owned(), stream: BufReader::new(stream) };
        client.read()?;
        client.execute::<Value>("qmp_capabilities", &json!({}))?;
        Ok(client)
    }

    /// Runs a command; events that come in between are dropped.
    pub fn execute<T: DeserializeOwned>(&mut self, command: &str, arguments: &Value) -> Result<T> {
        let request = json!({"execute": command, "arguments": arguments});
        let stream = self.stream.get_mut();
        writeln!(stream, "{request}")
            .with_context(|| format!("{}: {command}", self.path.display()))?;
        loop {
            let line = self.read()?;
            let answer: Answer<T> = serde_json::from_str(&line)
                .with_context(|| format!("{}: {command}", self.path.display()))?;
            if let Some(result) = answer.result {
                return Ok(result);
            }
            if let Some(error) = answer.error {
                bail!("{}: {command}: {error}", self.path.display());
            }
        }
    }

    /// Waits for an event of this name; its data.
    pub fn event(&mut self, name: &str) -> Result<Value> {
        loop {
            let line: Value = serde_json::from_str(&self.read()?)
                .with_context(|| format!("{}: {name}", self.path.display()))?;
            if line["event"] == name {
                return Ok(line["data"].clone());
            }
        }
    }

    /// The next line, an event's, if it begins before that moment.
    pub fn line_until(&mut self, end: Instant) -> Result<Option<String>> {
        let left = end.saturating_duration_since(Instant::now());
        if self.stream.buffer().is_empty() {
            let fd = PollFd::new(self.stream.get_ref().as_fd(), PollFlags::POLLIN);
            let left_ms = u16::try_from(left.as_millis()).unwrap_or(u16::MAX);
            if poll(&mut [fd], left_ms)? == 0 {
                return Ok(None);
            }
        }
        self.read().map(Some)
    }

    fn read(&mut self) -> Result<String> {
        let mut line = String::new();
        let mut bounded = (&mut self.stream).take(MAX_LINE);
        let len = bounded.read_line(&mut line);
        let len = len.with_context(|| format!("read from {}", self.path.display()))?;
        if len == 0 {
            bail!("{} was closed", self.path.display());
        }
        Ok(line)
    }
}

/// An answer; neither, if it is an event. Read straight from the text, which keeps maps in order.
#[derive(Deserialize)]
struct Answer<T> {
    #[serde(rename = "return", default = "Option::default")]
    result: Option<T>,
    error: Option<Value>,
}

/// A child in QEMU's object tree.
#[derive(Deserialize)]
struct Object {
    name: String,
    #[serde(rename = "type")]
    kind: String,
}

/// Ids of the devices that flexvf has plugged into a QEMU, by QEMU's own object tree.
pub fn plugged_devices(qmp: &Path) -> Result<Vec<String>> {
    let mut client = QmpClient::connect(qmp)?;
    let children: Vec<Object> =
        client.execute("qom-list", &json!({"path": "/machine/peripheral"}))?;
    let is_vf = |child: &Object| {
        child.name.starts_with("flexvf-") && !child.kind.contains("pcie-root-port")
    };
    let vfs = children.into_iter().filter(is_vf);
    Ok(vfs.map(|child| child.name).collect())
}
