//! A client of the control socket, as small as QMP allows.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use serde_json::{Value, json};

/// A daemon answers at once or is stuck.
const DEADLINE: Duration = Duration::from_secs(10);

pub(super) struct Client {
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects and negotiates.
    pub(super) fn connect(socket: &Path) -> anyhow::Result<Self> {
        let hint = || format!("control socket {}: is `flexvf run` running?", socket.display());
        let stream = UnixStream::connect(socket).with_context(hint)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        let mut client = Self { reader: BufReader::new(stream) };
        let greeting = client.line()?;
        if greeting.get("QMP").is_none() {
            bail!("control socket {}: not a flexvf daemon", socket.display());
        }
        client.ask("qmp_capabilities", &json!({}))?;
        Ok(client)
    }

    /// One command and its answer; events in between are passed over.
    pub(super) fn ask(&mut self, command: &str, arguments: &Value) -> anyhow::Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        writeln!(self.reader.get_mut(), "{request}").context("the daemon has hung up")?;
        loop {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!(
                    "{command}: {}",
                    error.get("desc").and_then(Value::as_str).unwrap_or("refused")
                );
            }
        }
    }

    fn line(&mut self) -> anyhow::Result<Value> {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        if read.context("the daemon does not answer")? == 0 {
            bail!("the daemon has hung up");
        }
        serde_json::from_str(&line).context("the daemon's answer is not JSON")
    }
}
