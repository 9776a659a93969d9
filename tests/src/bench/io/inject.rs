//! Frames for the host's side of a TAP, made as cheaply as the kernel can.
//!
//! One `send` of a UDP socket with `UDP_SEGMENT` makes up to 64 frames: the stack is passed once and
//! cuts the datagram up right before the TAP. No more frames are under way than a TAP's queue
//! holds, so none is lost, and the share of turns in which the injector had to wait for the
//! reader tells who of the two was the bottleneck.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};

use super::tap::{QUEUE_FRAMES, Tap};
use crate::bench::logic::frame::udp_payload;

/// Sends frames of one length to a TAP's neighbour.
#[derive(Debug)]
pub struct Injector {
    socket: UdpSocket,
    datagrams: Vec<u8>,
    frames: u64,
}

/// How an injector fared.
#[derive(Debug, Clone, Copy, Default)]
pub struct Injected {
    turns: u64,
    waits: u64,
}

impl Injected {
    /// Says so when the reader waited for the injector, and not the other way round: what was
    /// measured is then the injector.
    pub fn warn_if_it_was_the_bottleneck(self) {
        let percent = (100 * self.waits).checked_div(self.turns).unwrap_or_default();
        if percent < LEAST_WAITS_PERCENT {
            eprintln!("bench: WARNING: the injector was the bottleneck, not the reader");
        }
    }
}

impl Injector {
    /// For frames of so many bytes, Ethernet header included, into this TAP.
    pub fn new(tap: &Tap, frame_bytes: usize) -> Result<Self> {
        let payload = udp_payload(frame_bytes);
        let frames = MAX_SEGMENTS.min(MAX_DATAGRAM / payload);
        let socket = UdpSocket::bind("0.0.0.0:0").context("open a UDP socket")?;
        let address = (tap.guest(), DISCARD_PORT);
        socket.connect(address).with_context(|| format!("no way to {}", tap.guest()))?;
        let segment = i32::try_from(payload)?;
        setsockopt(&socket, sockopt::UdpGsoSegment, &segment)
            .context("this kernel has no UDP_SEGMENT (4.18)")?;
        Ok(Self { socket, datagrams: vec![0; frames * payload], frames: frames as u64 })
    }

    /// Sends as many frames as one call can, at least half of 64.
    pub fn burst(&self) -> Result<()> {
        self.socket.send(&self.datagrams).context("send to the TAP")?;
        Ok(())
    }

    /// Keeps a TAP filled until told to stop; `received` says how many frames were read so far.
    pub fn feed(
        &self,
        stop: &AtomicBool,
        mut received: impl FnMut() -> Result<u64>,
    ) -> Result<Injected> {
        let mut injected = Injected::default();
        let (mut sent, mut moved) = (received()?, Instant::now());
        let mut before = sent;
        while !stop.load(Ordering::Relaxed) {
            let read = received()?;
            injected.turns += 1;
            if sent.saturating_sub(read) + self.frames <= QUEUE_FRAMES {
                self.burst()?;
                sent += self.frames;
                continue;
            }
            injected.waits += 1;
            if read != before {
                (before, moved) = (read, Instant::now());
            } else if moved.elapsed() > STANDSTILL {
                // Frames were lost, which must not end it all: they are taken off the account.
                (sent, moved) = (read, Instant::now());
            }
            // Looking all the time would take the reader's cache line away from it.
            (0..SPINS_BETWEEN_LOOKS).for_each(|_| std::hint::spin_loop());
        }
        Ok(injected)
    }
}

/// What the kernel cuts one datagram into at the most.
const MAX_SEGMENTS: usize = 64;
/// Largest UDP payload over IPv4.
const MAX_DATAGRAM: usize = 65_507;
const DISCARD_PORT: u16 = 9;
/// Of an injector that is fast enough; one that is not waits never.
const LEAST_WAITS_PERCENT: u64 = 10;
/// Some microseconds; a reader takes more for one call's frames.
const SPINS_BETWEEN_LOOKS: u32 = 100;
/// No reader takes so long for the frames of one queue.
const STANDSTILL: Duration = Duration::from_millis(200);
