//! UDP for the wire's sake: datagrams of a size, also as one large frame that something else has to
//! cut (UDP_SEGMENT). Nobody answers; whoever asked counts frames elsewhere.

use std::net::{SocketAddr, UdpSocket};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

/// Sends `count` buffers of `bytes`, `per_s` a second, each cut into datagrams of `segment` bytes (0:
/// left whole).
pub fn send(to: SocketAddr, count: u64, bytes: usize, segment: u16, per_s: u32) -> Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("bind UDP")?;
    if segment > 0 {
        let segment = i32::from(segment);
        setsockopt(&socket, sockopt::UdpGsoSegment, &segment).context("set UDP_SEGMENT")?;
    }
    let buffer = vec![0x5a; bytes];
    let began = Instant::now();
    for number in 0..count {
        let due = Duration::from_micros(number * 1_000_000 / u64::from(per_s.max(1)));
        sleep(due.saturating_sub(began.elapsed()));
        let sent = socket.send_to(&buffer, to);
        sent.with_context(|| format!("send {bytes} bytes to {to}"))?;
    }
    Ok(())
}
