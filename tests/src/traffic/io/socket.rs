//! The one UDP socket that a side has, and how it waits on it.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use crate::traffic::logic::message::{Header, Kind, MAX_LEN};
use crate::traffic::logic::pacer::Pacer;

/// Two seconds of the largest streams, in the kernel's generous counting of a small packet.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// Datagrams taken between two looks at the clock for sending.
const RECEIVE_BATCH: usize = 64;

/// The shortest sleep, for a deadline that has just passed.
const MIN_SLEEP_US: u64 = 1_000;

/// The longest sleep, when nothing is due.
const MAX_SLEEP_US: u64 = 500_000;

/// A bound, non-blocking UDP socket.
#[derive(Debug)]
pub struct Socket(UdpSocket);

/// Numbers a stream and hands it to the kernel at its rate.
#[derive(Debug)]
pub struct Sender {
    kind: Kind,
    pacer: Pacer,
    sent: u64,
}

impl Socket {
    /// Binds to `address` with a large receive buffer.
    pub fn bind(address: SocketAddr) -> Result<Self> {
        let socket = UdpSocket::bind(address).with_context(|| format!("bind UDP {address}"))?;
        socket.set_nonblocking(true)?;
        // Root may go beyond the system's limit; without it the default has to do.
        if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
        }
        Ok(Self(socket))
    }

    /// Hands the datagrams that wait (a bounded number) to `take`.
    pub fn receive(&self, mut take: impl FnMut(&[u8], SocketAddr)) {
        let mut buffer = [0; MAX_LEN + 1];
        for _ in 0..RECEIVE_BATCH {
            match self.0.recv_from(&mut buffer) {
                Ok((len, from)) => take(buffer.get(..len).unwrap_or_default(), from),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                // An ICMP error of an earlier datagram: the stream's numbers will show it.
                Err(_) => {}
            }
        }
    }

    /// Whether the kernel took the datagram.
    pub fn send(&self, datagram: &[u8], to: SocketAddr) -> bool {
        self.0.send_to(datagram, to).is_ok()
    }

    /// Sleeps until a datagram comes, `also` can be read, or `until_us`; within bounds.
    pub fn wait(
        &self,
        also: Option<BorrowedFd<'_>>,
        now_us: u64,
        until_us: Option<u64>,
    ) -> Result<()> {
        let sleep_us = until_us.map_or(MAX_SLEEP_US, |until_us| until_us.saturating_sub(now_us));
        let sleep_ms = sleep_us.clamp(MIN_SLEEP_US, MAX_SLEEP_US).div_ceil(1000);
        let timeout = PollTimeout::try_from(sleep_ms).unwrap_or(PollTimeout::ZERO);
        let mut fds = vec![PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        fds.extend(also.map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::Error::EINTR) => Ok(()),
            Err(error) => Err(error).context("wait for datagrams"),
        }
    }
}

impl Sender {
    /// A silent stream.
    pub const fn new(kind: Kind) -> Self {
        Self { kind, pacer: Pacer::new(0, 0), sent: 0 }
    }

    /// From now on `pps` packets a second; numbers go on.
    pub fn set_rate(&mut self, pps: u32, now_us: u64) {
        if pps != self.pacer.pps() {
            self.pacer = Pacer::new(pps, now_us);
        }
    }

    /// Sends what is due; returns how many packets the kernel refused.
    pub fn send_due(&mut self, socket: &Socket, to: SocketAddr, run: u32, now_us: u64) -> u64 {
        let due = self.pacer.take_due(now_us);
        let mut refused = 0;
        for _ in 0..due {
            let header = Header { kind: self.kind, run, seq: self.sent };
            if socket.send(&header.encode(), to) {
                self.sent += 1;
            } else {
                refused += 1;
            }
        }
        refused
    }

    /// Packets that the kernel has taken.
    pub const fn sent(&self) -> u64 {
        self.sent
    }

    /// When the next one is due.
    pub fn next_due_us(&self) -> Option<u64> {
        self.pacer.next_due_us()
    }
}
