//! The remote peer's side: streams to and from every guest, commanded by JSON lines.
//!
//! stdin: [`Request`] lines; stdout: one [`Answer`] line each. The end of stdin ends the program, so
//! it never outlives whoever started it.

use std::collections::BTreeMap;
use std::io::{Read, Write, stdin, stdout};
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::str::FromStr;

use anyhow::{Context, Result};
use flexvf_protocol::VmName;
use flexvf_protocol::frame::{Frame, LineSplitter};
use serde::{Deserialize, Serialize};

use super::socket::{Sender, Socket};
use crate::sys::monotonic_us;
use crate::traffic::DEFAULT_PORT;
use crate::traffic::logic::history::{History, RESOLUTION_MS};
use crate::traffic::logic::message::{
    GuestReport, HOLES_PER_REPORT, Header, Kind, Want, decode_control, encode_control,
};
use crate::traffic::logic::tracker::{Counts, Loss, Tracker};

/// A guest by name and where it serves.
#[derive(Debug, Clone)]
pub struct GuestAddress {
    /// The VM's name.
    pub vm: VmName,
    /// Where `flexvf-traffic serve` listens.
    pub address: SocketAddr,
}

/// A line on stdin.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// New rates for one guest; `load_pps` is each way. Answered by [`Answer::Done`].
    Set {
        /// Which guest.
        vm: VmName,
        /// Probes a second, each way.
        probe_pps: u32,
        /// Load packets a second, each way.
        load_pps: u32,
    },
    /// Everything counted so far: [`Answer::Report`].
    Report,
    /// Packets generated for one guest, both ways, between two moments of this machine's
    /// CLOCK_MONOTONIC: [`Answer::Window`].
    Window {
        /// Which guest.
        vm: VmName,
        /// Beginning.
        from_ms: u64,
        /// End.
        to_ms: u64,
    },
}

/// A line on stdout.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answer {
    /// Taken; the guest hears of it in a moment ([`VmReport::confirmed`]).
    Done,
    /// One entry a guest.
    Report(Vec<VmReport>),
    /// Packets, or nothing if the window was not (yet) watched.
    Window(Option<f64>),
    /// The request was not understood.
    Error(String),
}

/// The account of one guest's streams.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VmReport {
    /// Which guest.
    pub vm: VmName,
    /// The guest has taken the newest rates.
    pub confirmed: bool,
    /// Time since the guest's last answer; nothing if it never answered.
    pub silent_ms: Option<u64>,
    /// Probes from the peer to the guest.
    pub to_guest: StreamReport,
    /// Probes from the guest to the peer.
    pub from_guest: StreamReport,
    /// Load packets handed to the kernel, to the guest and by the guest.
    pub load_sent: (u64, u64),
    /// Load packets that arrived, in the guest and from it.
    pub load_received: (u64, u64),
    /// Packets that a kernel refused to send; they are in no other count.
    pub send_errors: u64,
}

/// One stream of probes.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StreamReport {
    /// Handed to the kernel by the sender.
    pub sent: u64,
    /// The receiver's account.
    pub counts: Counts,
    /// What is missing, with times of this machine's CLOCK_MONOTONIC.
    pub losses: Vec<Loss>,
}

/// Answers commands and moves packets until stdin ends.
pub fn serve_commands(bind: SocketAddr, guests: &[GuestAddress]) -> Result<()> {
    let socket = Socket::bind(bind)?;
    let now_us = monotonic_us();
    // Microseconds cut to 32 bits differ between any two runs of a testbed.
    let run = now_us as u32;
    let mut guests: Vec<_> = guests.iter().map(|guest| Guest::new(guest, run)).collect();
    let mut commands = LineSplitter::new(MAX_COMMAND);
    loop {
        let now_us = monotonic_us();
        socket.receive(|datagram, from| {
            if let Some(guest) = guests.iter_mut().find(|guest| guest.address == from) {
                guest.take(datagram, now_us);
            }
        });
        for guest in &mut guests {
            guest.tick(&socket, now_us);
        }
        let next_us = guests.iter().map(Guest::next_due_us).min();
        socket.wait(Some(stdin().as_fd()), now_us, next_us)?;
        if stdin_waits()? && !answer_commands(&mut commands, &mut guests)? {
            return Ok(());
        }
    }
}

/// Longest command line: a report's request is 20 bytes.
const MAX_COMMAND: usize = 4096;
/// How often a guest is asked for its report.
const REPORT_EVERY_US: u64 = 2_000_000;
/// How often, while it has not confirmed what is wanted.
const REPEAT_EVERY_US: u64 = 300_000;

fn stdin_waits() -> Result<bool> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let stdin = stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::ZERO) {
        Ok(ready) => Ok(ready > 0),
        Err(nix::Error::EINTR) => Ok(false),
        Err(error) => Err(error).context("look at stdin"),
    }
}

fn answer_commands(commands: &mut LineSplitter, guests: &mut [Guest]) -> Result<bool> {
    let mut buffer = [0; MAX_COMMAND];
    let len = stdin().read(&mut buffer).context("read stdin")?;
    commands.push(buffer.get(..len).unwrap_or_default());
    while let Some(frame) = commands.next_frame() {
        let answer = match frame {
            Frame::Line(line) => match serde_json::from_slice(&line) {
                Ok(request) => answer(&request, guests, monotonic_us()),
                Err(error) => Answer::Error(error.to_string()),
            },
            Frame::TooLong | Frame::Reset => Answer::Error("line too long".into()),
        };
        let mut line = serde_json::to_vec(&answer)?;
        line.push(b'\n');
        stdout().write_all(&line)?;
        stdout().flush()?;
    }
    Ok(len > 0)
}

fn answer(request: &Request, guests: &mut [Guest], now_us: u64) -> Answer {
    let answer = match request {
        Request::Report => {
            let reports = guests.iter().map(|guest| guest.report(now_us));
            return Answer::Report(reports.collect());
        }
        Request::Set { vm, probe_pps, load_pps } => find(guests, vm).map(|guest| {
            guest.set_rates(*probe_pps, *load_pps, now_us);
            Answer::Done
        }),
        Request::Window { vm, from_ms, to_ms } => {
            find(guests, vm).map(|guest| Answer::Window(guest.generated.between(*from_ms, *to_ms)))
        }
    };
    answer.unwrap_or_else(|| Answer::Error("no such guest".into()))
}

fn find<'a>(guests: &'a mut [Guest], vm: &VmName) -> Option<&'a mut Guest> {
    guests.iter_mut().find(|guest| guest.vm == *vm)
}

/// What the peer holds of one guest.
#[derive(Debug)]
struct Guest {
    vm: VmName,
    address: SocketAddr,
    run: u32,
    want: Want,
    ask_at_us: u64,
    heard_us: Option<u64>,
    report: GuestReport,
    /// Losses by the hole they were reported for, already on this machine's clock.
    losses: BTreeMap<usize, Vec<Loss>>,
    clock_offset_ms: i64,
    probe_out: Sender,
    load_out: Sender,
    send_errors: u64,
    /// Control datagrams, which the guest's NIC carries like any other.
    control: u64,
    probe_in: Tracker,
    load_in: Tracker,
    generated: History,
}

impl Guest {
    fn new(guest: &GuestAddress, run: u32) -> Self {
        Self {
            vm: guest.vm.clone(),
            address: guest.address,
            run,
            want: Want::default(),
            ask_at_us: 0,
            heard_us: None,
            report: GuestReport::default(),
            losses: BTreeMap::new(),
            clock_offset_ms: 0,
            probe_out: Sender::new(Kind::Probe),
            load_out: Sender::new(Kind::Load),
            send_errors: 0,
            control: 0,
            probe_in: Tracker::default(),
            load_in: Tracker::default(),
            generated: History::default(),
        }
    }

    fn set_rates(&mut self, probe_pps: u32, load_pps: u32, now_us: u64) {
        self.want.revision += 1;
        self.want.probe_pps = probe_pps;
        self.want.load_pps = load_pps;
        self.probe_out.set_rate(probe_pps, now_us);
        self.load_out.set_rate(load_pps, now_us);
        self.ask_at_us = now_us;
    }

    fn take(&mut self, datagram: &[u8], now_us: u64) {
        match Header::decode(datagram) {
            Some((header, _)) if header.run != self.run => {}
            Some((header, payload)) => match header.kind {
                Kind::Probe => self.probe_in.take(header.seq, now_us),
                Kind::Load => self.load_in.take(header.seq, now_us),
                Kind::Control => {
                    if let Some(report) = decode_control(payload) {
                        self.take_report(report, now_us);
                    }
                }
            },
            None => {}
        }
    }

    fn take_report(&mut self, report: GuestReport, now_us: u64) {
        self.heard_us = Some(now_us);
        self.control += 1;
        self.clock_offset_ms = (now_us / 1000) as i64 - report.now_ms as i64;
        let here = |loss: &Loss| Loss {
            noticed_ms: shifted(loss.noticed_ms, self.clock_offset_ms),
            ..*loss
        };
        let losses = report.losses.iter().map(here).collect();
        self.losses.insert(report.holes_from, losses);
        let next_window = report.holes_from + HOLES_PER_REPORT;
        self.want.holes_from = if next_window < report.holes { next_window } else { 0 };
        self.report = report;
    }

    fn tick(&mut self, socket: &Socket, now_us: u64) {
        for stream in [&mut self.probe_out, &mut self.load_out] {
            self.send_errors += stream.send_due(socket, self.address, self.run, now_us);
        }
        if now_us >= self.ask_at_us {
            let datagram = encode_control(self.run, &self.want);
            self.control += u64::from(socket.send(&datagram, self.address));
            let pause_us = if self.confirmed() { REPORT_EVERY_US } else { REPEAT_EVERY_US };
            self.ask_at_us = now_us + pause_us;
        }
        self.generated.note(now_us / 1000, self.generated_so_far());
    }

    /// What the guest has sent is known from the numbers that arrive, at this machine's time.
    fn generated_so_far(&self) -> u64 {
        let from_guest = self.probe_in.counts().next + self.load_in.counts().next;
        self.probe_out.sent() + self.load_out.sent() + from_guest + self.control
    }

    fn confirmed(&self) -> bool {
        self.heard_us.is_some() && self.report.revision == self.want.revision
    }

    fn next_due_us(&self) -> u64 {
        let streams = [&self.probe_out, &self.load_out];
        let dues = streams.iter().filter_map(|stream| stream.next_due_us());
        let note_us = monotonic_us() + RESOLUTION_MS * 1000;
        dues.fold(self.ask_at_us.min(note_us), u64::min)
    }

    fn report(&self, now_us: u64) -> VmReport {
        let mut probe_to_guest = self.report.probe;
        probe_to_guest.longest_gap_end_ms =
            shifted(probe_to_guest.longest_gap_end_ms, self.clock_offset_ms);
        VmReport {
            vm: self.vm.clone(),
            confirmed: self.confirmed(),
            silent_ms: self.heard_us.map(|heard_us| (now_us - heard_us) / 1000),
            to_guest: StreamReport {
                sent: self.probe_out.sent(),
                counts: probe_to_guest,
                losses: self.losses.values().flatten().copied().collect(),
            },
            from_guest: StreamReport {
                sent: self.report.probe_sent,
                counts: self.probe_in.counts(),
                losses: self.probe_in.losses(0, usize::MAX),
            },
            load_sent: (self.load_out.sent(), self.report.load_sent),
            load_received: (self.report.load.received, self.load_in.counts().received),
            send_errors: self.send_errors + self.report.send_errors,
        }
    }
}

fn shifted(ms: u64, offset_ms: i64) -> u64 {
    ms.saturating_add_signed(offset_ms)
}

impl FromStr for GuestAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (vm, address) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not NAME=ADDRESS[:PORT]"))?;
        let with_port = || {
            let address = address.parse().ok()?;
            Some(SocketAddr::new(address, DEFAULT_PORT))
        };
        Ok(Self {
            vm: vm.parse().map_err(|error| format!("{error}"))?,
            address: with_port()
                .or_else(|| address.parse().ok())
                .ok_or_else(|| format!("{address:?} is not an address with or without port"))?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest() -> Guest {
        Guest::new(&"vm1=10.77.0.11".parse().unwrap(), 7)
    }

    #[test]
    fn a_guest_is_named_with_or_without_port() {
        let address = |text: &str| text.parse::<GuestAddress>().map(|guest| guest.address);
        assert_eq!(address("a=10.0.0.1"), Ok("10.0.0.1:7700".parse().unwrap()));
        assert_eq!(address("a=10.0.0.1:9"), Ok("10.0.0.1:9".parse().unwrap()));
        assert!(address("10.0.0.1").is_err());
        assert!(address("a=b").is_err());
    }

    #[test]
    fn what_the_guest_sent_counts_even_when_it_was_lost() {
        let mut guest = guest();
        for seq in [0, 1, 9] {
            let header = Header { kind: Kind::Load, run: 7, seq };
            guest.take(&header.encode(), 1000);
        }
        assert_eq!(guest.generated_so_far(), 10);
    }

    #[test]
    fn a_straggler_of_another_run_is_not_counted() {
        let mut guest = guest();
        let header = Header { kind: Kind::Probe, run: 8, seq: 0 };
        guest.take(&header.encode(), 1000);
        assert_eq!(guest.probe_in.counts().received, 0);
    }

    #[test]
    fn times_of_the_guest_are_told_on_our_clock() {
        let mut guest = guest();
        let report = GuestReport {
            now_ms: 500,
            holes: 1,
            losses: vec![Loss { first: 3, lost: 1, noticed_ms: 400 }],
            ..GuestReport::default()
        };
        guest.take_report(report, 10_000_000);
        assert_eq!(guest.report(10_000_000).to_guest.losses[0].noticed_ms, 9_900);
    }
}
