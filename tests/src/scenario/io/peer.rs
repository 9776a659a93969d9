//! `flexvf-traffic peer` in the remote peer's network namespace, and what else is asked there.

use std::io::{BufRead, BufReader, Write};
use std::net::Ipv4Addr;
use std::process::{ChildStdin, ChildStdout, Command};

use anyhow::{Context, Result, bail};
use flexvf_protocol::VmName;

use super::child::Child;
use super::host::Host;
use crate::traffic::io::peer::{Answer, Request, VmReport};

/// The running peer; it ends with this.
#[derive(Debug)]
pub struct Peer {
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    // After the pipes, whose end is the program's own sign to stop.
    child: Child,
}

impl Peer {
    /// Starts it for these guests.
    pub fn start(host: &Host, guests: &[(VmName, Ipv4Addr)]) -> Result<Self> {
        let mut command = in_namespace(host);
        command.args(["flexvf-traffic", "peer"]);
        for (vm, address) in guests {
            command.arg("--guest").arg(format!("{vm}={address}"));
        }
        let mut child = Child::start_piped("the peer", &mut command, &host.log("peer.log"))?;
        let (commands, answers) = child.take_pipes().context("the peer has no pipes")?;
        Ok(Self { commands, answers: BufReader::new(answers), child })
    }

    /// Ends it, so that another may take its place.
    pub fn end(&mut self) {
        self.child.end();
    }

    /// Sets a guest's rates.
    pub fn set(&mut self, vm: &VmName, probe_pps: u32, load_pps: u32) -> Result<()> {
        let request = Request::Set { vm: vm.clone(), probe_pps, load_pps };
        match self.ask(&request)? {
            Answer::Done => Ok(()),
            other => bail!("the peer answered {other:?}"),
        }
    }

    /// All accounts.
    pub fn report(&mut self) -> Result<Vec<VmReport>> {
        match self.ask(&Request::Report)? {
            Answer::Report(reports) => Ok(reports),
            other => bail!("the peer answered {other:?}"),
        }
    }

    /// Packets generated for `vm`, both ways, in a window.
    pub fn generated(&mut self, vm: &VmName, from_ms: u64, to_ms: u64) -> Result<Option<f64>> {
        let request = Request::Window { vm: vm.clone(), from_ms, to_ms };
        match self.ask(&request)? {
            Answer::Window(packets) => Ok(packets),
            other => bail!("the peer answered {other:?}"),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<Answer> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        let sent = self.commands.write_all(&line);
        let mut answer = String::new();
        if sent.is_err() || self.answers.read_line(&mut answer)? == 0 {
            self.child.check()?;
            bail!("the peer does not answer");
        }
        Ok(serde_json::from_str(&answer)?)
    }
}

/// The Ethernet address at which the remote peer knows a guest.
pub fn neighbour(host: &Host, address: Ipv4Addr) -> Result<Option<String>> {
    let mut command = Command::new("ip");
    command.args(["-n", &host.peer_ns, "neigh", "show", &address.to_string()]);
    let output = command.output().context("run ip neigh")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut words = text.split_whitespace();
    words.find(|word| *word == "lladdr");
    Ok(words.next().map(str::to_owned))
}

fn in_namespace(host: &Host) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", &host.peer_ns]);
    command
}
