//! Echo probes at a rate: what is sent and what comes back, by one thread's own clock.

use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, recv, sendto, socket,
};
use nix::sys::time::TimeSpec;

use crate::logic::echo::{Echoes, Tag, answered, request};

/// A socket for echoes to one guest.
#[derive(Debug)]
pub struct Echo {
    socket: OwnedFd,
    target: SockaddrIn,
    tag: Tag,
}

/// How many probes, and how large.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Burst {
    /// Requests a second.
    pub per_s: u32,
    /// Payload of each.
    pub bytes: usize,
    /// For how long.
    pub time: Duration,
}

/// After the last request: answers that are later count as lost.
const GRACE: Duration = Duration::from_millis(500);
/// Requests between two looks at what has come, when they are due at once.
const BATCH: u64 = 16;

impl Echo {
    /// Opens it; this takes CAP_NET_RAW.
    ///
    /// # Errors
    /// The kernel's.
    pub fn open(target: SocketAddrV4) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(AddressFamily::Inet, SockType::Raw, flags, SockProtocol::Icmp)?;
        Ok(Self { socket, target: target.into(), tag: Tag(fastrand::u64(..)) })
    }

    /// Sends a burst, evenly, and takes what comes back.
    ///
    /// # Errors
    /// A request cannot be sent for another reason than that a queue is full.
    pub fn burst(&mut self, burst: Burst) -> io::Result<Echoes> {
        // Answers to an earlier burst are another's.
        self.tag = Tag(self.tag.0.wrapping_add(1));
        let count = (f64::from(burst.per_s) * burst.time.as_secs_f64()) as u64;
        let due = |number: u64| Duration::from_secs_f64(number as f64 / f64::from(burst.per_s));
        let mut sent_at: Vec<Option<Instant>> = Vec::new();
        let mut echoes = Echoes { lasted_s: burst.time.as_secs_f64(), ..Echoes::default() };
        let began = Instant::now();
        while (sent_at.len() as u64) < count {
            let mut in_batch = 0;
            while began.elapsed() >= due(sent_at.len() as u64)
                && in_batch < BATCH
                && (sent_at.len() as u64) < count
            {
                let packet = request(self.tag, sent_at.len() as u64, burst.bytes);
                sent_at.push(self.send(&packet)?.then(Instant::now));
                in_batch += 1;
            }
            self.receive(&mut sent_at, &mut echoes)?;
            self.wait(due(sent_at.len() as u64).saturating_sub(began.elapsed()))?;
        }
        // A sender that did not keep up has sent for longer.
        echoes.lasted_s = echoes.lasted_s.max(began.elapsed().as_secs_f64());
        echoes.sent = count;
        let end = Instant::now() + GRACE;
        while echoes.round_trips_us.len() < sent_at.len() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            self.wait(left)?;
            self.receive(&mut sent_at, &mut echoes)?;
        }
        Ok(echoes)
    }

    /// Whether it went; a full queue loses it as a full queue of the path would.
    fn send(&self, packet: &[u8]) -> io::Result<bool> {
        use nix::errno::Errno::{EAGAIN, ENOBUFS};
        match sendto(self.socket.as_raw_fd(), packet, &self.target, MsgFlags::empty()) {
            Ok(_) => Ok(true),
            Err(EAGAIN | ENOBUFS) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn receive(&self, sent_at: &mut [Option<Instant>], echoes: &mut Echoes) -> io::Result<()> {
        use nix::errno::Errno::{EAGAIN, EINTR};
        let mut buffer = [0; 2048];
        loop {
            let length = match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(length) => length,
                Err(EAGAIN | EINTR) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let now = Instant::now();
            let number = answered(self.tag, buffer.get(..length).unwrap_or(&[]));
            let place = number.and_then(|it| sent_at.get_mut(usize::try_from(it).ok()?));
            // Each once: paths may bring an answer twice around a switch.
            if let Some(at) = place.and_then(Option::take) {
                echoes.round_trips_us.push((now - at).as_secs_f64() * 1e6);
            }
        }
    }

    fn wait(&self, time: Duration) -> io::Result<()> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        match ppoll(&mut fds, Some(TimeSpec::from_duration(time)), None) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    #[test]
    fn the_loopback_answers_each_probe_once() {
        let target = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0);
        let mut echo = match Echo::open(target) {
            Ok(echo) => echo,
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                println!("SKIPPED: echo probes need CAP_NET_RAW");
                return;
            }
            Err(error) => panic!("{error}"),
        };
        let burst = Burst { per_s: 1000, bytes: 100, time: Duration::from_millis(100) };
        for _ in 0..2 {
            let echoes = echo.burst(burst).unwrap();
            assert_eq!((echoes.sent, echoes.lost()), (100, 0.0), "{echoes:?}");
            assert!(echoes.one_way_us().unwrap() > 0.0);
        }
    }
}
