//! A Linux guest's streams through our backend, against QEMU's own virtio-net on a TAP of the same
//! kind. Offloads are as both offer them.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, bail};

use crate::bench::drive::{Experiment, Side};
use crate::bench::io::guest::Guest;
use crate::bench::io::stage::Stage;
use crate::bench::logic::frame::udp_payload;
use crate::bench::logic::pairs::Better;
use crate::bench::logic::row::Row;
use crate::blast::{Window, ask};

/// One boot for all streams of a run.
pub struct Guests<'s> {
    stage: &'s Stage,
}

impl<'s> Guests<'s> {
    /// On this stage.
    pub const fn new(stage: &'s Stage) -> Self {
        Self { stage }
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
        vec![row(TCP_TX, "Mbit/s"), row(TCP_RX, "Mbit/s"), row(UDP_TX, "kpps"), row(UDP_RX, "kpps")]
    }

    fn run(&mut self, side: Side, rows: &[Row]) -> Result<Vec<f64>> {
        let window = Window {
            after_ms: millis(self.stage.pace.guest_warm_up),
            for_ms: millis(self.stage.pace.guest_window),
        };
        let bytes = udp_payload(64) as u16;
        let guest = Guest::boot(self.stage, side)?;
        let measure = |row: &Row| {
            Ok(match row.name {
                TCP_TX => ask::tcp_from(guest.jobs, window)?.mbit_per_s(),
                TCP_RX => ask::tcp_to(guest.jobs, window)?.mbit_per_s(),
                UDP_TX => ask::udp_from(guest.jobs, bytes, window)?.packets_per_s() / 1e3,
                UDP_RX => best_rate_to(guest.jobs, bytes, window)? / 1e3,
                other => bail!("no such row: {other}"),
            })
        };
        rows.iter().map(measure).collect()
    }
}

const TCP_TX: &str = "guest-tcp-tx";
const TCP_RX: &str = "guest-tcp-rx";
const UDP_TX: &str = "guest-udp-tx";
const UDP_RX: &str = "guest-udp-rx";

/// The most datagrams a second that the guest can be made to take.
///
/// A guest that is flooded spends its time on dropping, so more is offered only as long as more arrives.
fn best_rate_to(guest: SocketAddr, bytes: u16, window: Window) -> Result<f64> {
    let window = Window { for_ms: window.for_ms / 2, ..window };
    let (mut offered_pps, mut best) = (FIRST_OFFER_PPS, 0.0f64);
    loop {
        let rate = ask::udp_to(guest, bytes, offered_pps, window)?.packets_per_s();
        best = best.max(rate);
        // Half of what was offered is lost: twice as much makes it worse.
        if rate < offered_pps as f64 / 2.0 {
            return Ok(best);
        }
        offered_pps = offered_pps * 3 / 2;
    }
}

/// Any guest takes that much.
const FIRST_OFFER_PPS: u64 = 8_000;

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
