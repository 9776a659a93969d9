//! UDP for the wire's sake: datagrams of a size, also as one large frame that something else has to
//! cut (UDP_SEGMENT). Nobody answers; whoever asked counts frames elsewhere.

use std::iter::{repeat_with, zip};
use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Datagrams {
    /// Buffers.
    pub count: u64,
    /// Length of a buffer.
    pub bytes: usize,
    /// Length of the datagrams that a buffer is cut into; 0: left whole.
    pub segment: u16,
    /// Buffers a second.
    pub per_s: u32,
    /// Sockets that take turns: as many flows, which queues are chosen by.
    pub sockets: usize,
}

/// Sends all of it.
pub fn send(to: SocketAddr, what: Datagrams) -> Result<()> {
    let Datagrams { count, bytes, segment, per_s, sockets } = what;
    let sockets: Vec<_> =
        repeat_with(|| socket(segment)).take(sockets.max(1)).collect::<Result<_>>()?;
    let buffer = vec![0x5a; bytes];
    let began = Instant::now();
    for (number, socket) in zip(0..count, sockets.iter().cycle()) {
        let due = Duration::from_micros(number * 1_000_000 / u64::from(per_s.max(1)));
        sleep(due.saturating_sub(began.elapsed()));
        let sent = socket.send_to(&buffer, to);
        sent.with_context(|| format!("send {bytes} bytes to {to}"))?;
    }
    Ok(())
}

fn socket(segment: u16) -> Result<UdpSocket> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("bind UDP")?;
    if segment > 0 {
        let segment = i32::from(segment);
        setsockopt(&socket, sockopt::UdpGsoSegment, &segment).context("set UDP_SEGMENT")?;
    }
    Ok(socket)
}
