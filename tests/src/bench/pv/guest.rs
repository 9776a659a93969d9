//! A Linux guest's streams through our backend, against QEMU's own virtio-net on a TAP of the same
//! kind. Offloads are as both offer them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};

use super::SHORT_RUNS;
use crate::bench::drive::{Experiment, Side};
use crate::bench::io::backend::POLLS;
use crate::bench::io::guest::Guest;
use crate::bench::io::stage::Stage;
use crate::bench::logic::frame::udp_payload;
use crate::bench::logic::offer::{Next, Search};
use crate::bench::logic::pairs::Better;
use crate::bench::logic::row::Row;
use crate::blast::{Window, ask};

/// All streams, each side's in one boot.
pub struct Guests<'s> {
    stage: &'s Stage,
    /// Our backend polls: then only what kicks are dear for is measured.
    polls: bool,
    ours: Option<Ready>,
    peer: Option<Ready>,
}

/// A guest, and how many datagrams a second it is offered.
struct Ready {
    guest: Guest,
    offered_pps: Option<u64>,
}

impl<'s> Guests<'s> {
    /// On this stage, with a backend of ours that waits for kicks, or one that polls.
    pub const fn new(stage: &'s Stage, polls: bool) -> Self {
        Self { stage, polls, ours: None, peer: None }
    }
}

impl Experiment for Guests<'_> {
    fn rows(&self) -> Vec<Row> {
        let row = |name, unit| Row {
            name,
            unit,
            peer_name: "QEMU virtio-net on a TAP",
            better: Better::Higher,
            wanted: 1.0,
        };
        if self.polls {
            return vec![row(UDP_TX_POLL, "kpps"), row(UDP_RX_POLL, "kpps")];
        }
        vec![row(TCP_TX, "Mbit/s"), row(TCP_RX, "Mbit/s"), row(UDP_TX, "kpps"), row(UDP_RX, "kpps")]
    }

    fn pairs(&self, asked: usize) -> usize {
        asked * SHORT_RUNS
    }

    fn run(&mut self, side: Side, rows: &[Row]) -> Result<Vec<f64>> {
        let stage = self.stage;
        let options = if self.polls { POLLS } else { &[] };
        let ready = match side {
            Side::Ours => &mut self.ours,
            Side::Peer => &mut self.peer,
        };
        let ready = match ready {
            Some(ready) => ready,
            empty => {
                empty.insert(Ready { guest: Guest::boot(stage, side, options)?, offered_pps: None })
            }
        };
        let window = Window {
            after_ms: millis(stage.pace.guest_warm_up),
            for_ms: millis(stage.pace.guest_window),
        };
        rows.iter().map(|row| ready.measure(row, window)).collect()
    }
}

impl Ready {
    fn measure(&mut self, row: &Row, window: Window) -> Result<f64> {
        let guest = self.guest.jobs;
        Ok(match row.name {
            TCP_TX => ask::tcp_from(guest, window)?.mbit_per_s(),
            TCP_RX => ask::tcp_to(guest, window)?.mbit_per_s(),
            UDP_TX | UDP_TX_POLL => ask::udp_from(guest, UDP_BYTES, window)?.packets_per_s() / 1e3,
            UDP_RX | UDP_RX_POLL => {
                let offered_pps = match self.offered_pps {
                    Some(offered_pps) => offered_pps,
                    None => *self.offered_pps.insert(best_offer(guest, window)?),
                };
                ask::udp_to(guest, UDP_BYTES, offered_pps, window)?.packets_per_s() / 1e3
            }
            other => bail!("no such row: {other}"),
        })
    }
}

const TCP_TX: &str = "guest-tcp-tx";
const TCP_RX: &str = "guest-tcp-rx";
const UDP_TX: &str = "guest-udp-tx";
const UDP_RX: &str = "guest-udp-rx";
const UDP_TX_POLL: &str = "guest-udp-tx-poll";
const UDP_RX_POLL: &str = "guest-udp-rx-poll";

const UDP_BYTES: u16 = udp_payload(64) as u16;

/// How many datagrams a second a guest is to be offered for the most of them to arrive.
fn best_offer(guest: SocketAddr, window: Window) -> Result<u64> {
    let mut search = Search::from(FIRST_OFFER_PPS);
    let mut offered_pps = FIRST_OFFER_PPS;
    loop {
        let rate = ask::udp_to(guest, UDP_BYTES, offered_pps, window)?.packets_per_s();
        match search.arrived(rate) {
            Next::Offer(pps) => offered_pps = pps,
            Next::Best(pps) => return Ok(pps),
        }
    }
}

/// Any guest takes that much.
const FIRST_OFFER_PPS: u64 = 8_000;

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
