//! The traffic of one step: probes both ways and a TCP transfer, and the account of both.

use std::net::Ipv4Addr;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flexvf_protocol::VmName;

use super::tool::Tool;
use crate::scenario::io::host::Host;
use crate::scenario::io::peer::Peer;
use crate::scenario::pv::logic::result::{Probes, Transfer};
use crate::traffic::DEFAULT_PORT;
use crate::traffic::io::peer::{StreamReport, VmReport};
use crate::traffic::logic::stream;

/// Between two looks at the peer's account.
const POLL: Duration = Duration::from_millis(50);
/// What is late arrives within this.
const STRAGGLERS: Duration = Duration::from_millis(500);

/// The guest, as the peer knows it.
#[derive(Debug, Clone)]
pub struct Target {
    /// Its name.
    pub vm: VmName,
    /// Its address.
    pub address: Ipv4Addr,
    /// Probes a second, each way.
    pub probe_pps: u32,
    /// Bytes a second of the TCP transfer, each way.
    pub tcp_bytes_per_s: u64,
    /// How long the guest leaves what came by TCP unread, again and again.
    pub tcp_rest_ms: u64,
}

/// Running streams.
#[derive(Debug)]
pub struct Streams {
    target: Target,
    peer: Peer,
    transfer: Option<Tool>,
}

/// The account of a step's traffic.
#[derive(Debug)]
pub struct Account {
    /// Probes to the guest.
    pub to_guest: Probes,
    /// Probes from the guest.
    pub from_guest: Probes,
    /// Packets that a kernel refused to send; they are in no other count.
    pub refused: u64,
    /// The TCP transfer, if there was one.
    pub tcp: Option<Transfer>,
}

impl Streams {
    /// Waits until the guest answers, then has probes run both ways.
    pub fn probes(host: &Host, target: &Target, patience: Duration) -> Result<Self> {
        let peer = Peer::start(host, &[(target.vm.clone(), target.address)])?;
        let mut streams = Self { target: target.clone(), peer, transfer: None };
        streams.until("the guest answers", patience, |report| report.silent_ms.is_some())?;
        streams.set(target.probe_pps)?;
        streams.until_confirmed("the guest sends probes", patience)?;
        Ok(streams)
    }

    /// The same, with a TCP transfer.
    pub fn start(host: &Host, target: &Target, patience: Duration) -> Result<Self> {
        let mut streams = Self::probes(host, target, patience)?;
        let Target { address, tcp_bytes_per_s, tcp_rest_ms, .. } = target;
        let line = format!(
            "tcp --to {address}:{DEFAULT_PORT} --bytes-per-s {tcp_bytes_per_s} --rest-ms {tcp_rest_ms}"
        );
        streams.transfer = Some(Tool::start(host, &host.peer_ns, &line)?);
        Ok(streams)
    }

    /// Waits until a question and its answer have passed; how long that took.
    pub fn until_reached(&mut self, patience: Duration) -> Result<Duration> {
        let began = Instant::now();
        self.set(self.target.probe_pps)?;
        self.until_confirmed("the guest is reached again", patience)?;
        Ok(began.elapsed())
    }

    /// Ends the transfer, then the probes.
    pub fn end(mut self, patience: Duration) -> Result<Account> {
        let tcp = self.transfer.take().map(|transfer| {
            let ended = transfer.end::<stream::Outcome>();
            Transfer::new(ended.map_err(|error| format!("{error:#}")))
        });
        self.set(0)?;
        self.until_confirmed("the guest ends its probes", patience)?;
        sleep(STRAGGLERS);
        // Its answer to another question has counted what came until then.
        self.set(0)?;
        self.until_confirmed("the guest gives its account", patience)?;
        let report = self.report()?;
        Ok(Account {
            to_guest: probes(&report.to_guest),
            from_guest: probes(&report.from_guest),
            refused: report.send_errors,
            tcp,
        })
    }

    fn set(&mut self, probe_pps: u32) -> Result<()> {
        self.peer.set(&self.target.vm, probe_pps, 0)
    }

    fn until_confirmed(&mut self, what: &str, patience: Duration) -> Result<()> {
        self.until(what, patience, |report| report.confirmed)
    }

    fn until(
        &mut self,
        what: &str,
        patience: Duration,
        holds: impl Fn(&VmReport) -> bool,
    ) -> Result<()> {
        let end = Instant::now() + patience;
        while !holds(&self.report()?) {
            if Instant::now() > end || crate::sys::stop_requested() {
                bail!("not within {} s: {what}", patience.as_secs());
            }
            sleep(POLL);
        }
        Ok(())
    }

    fn report(&mut self) -> Result<VmReport> {
        let mut reports = self.peer.report()?;
        reports.pop().context("the peer has no account of the guest")
    }
}

fn probes(stream: &StreamReport) -> Probes {
    let counts = &stream.counts;
    Probes {
        sent: stream.sent,
        lost: stream.sent.saturating_sub(counts.received),
        duplicated: counts.duplicated,
        reordered: counts.reordered,
        longest_gap_ms: counts.longest_gap_ms,
    }
}
