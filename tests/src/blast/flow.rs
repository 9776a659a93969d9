//! The four loops that move data, and the window in which it counts.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::{Count, Window};

/// Sends zeros until the other side has had enough.
pub fn send_tcp(stream: &mut TcpStream) {
    let zeros = vec![0; CHUNK_BYTES];
    // Its end is the other side's closing, which is how it is told to end.
    while stream.write_all(&zeros).is_ok() {}
}

/// Sends zeros for a time.
pub fn send_tcp_for(stream: &mut TcpStream, time: Duration) -> Result<()> {
    let zeros = vec![0; CHUNK_BYTES];
    let end = Instant::now() + time;
    while Instant::now() < end {
        stream.write_all(&zeros).context("send TCP")?;
    }
    Ok(())
}

/// Counts what comes until the window, or the stream, is over.
pub fn receive_tcp(stream: &mut impl Read, window: Window) -> Result<Count> {
    let mut buffer = vec![0; CHUNK_BYTES];
    let mut meter = Meter::new(window);
    loop {
        match stream.read(&mut buffer).context("receive TCP")? {
            0 => return Ok(meter.count(Instant::now())),
            bytes => {
                if let Some(count) = meter.take(bytes, Instant::now()) {
                    return Ok(count);
                }
            }
        }
    }
}

/// Sends datagrams while `go_on` says so, at most `pps` a second.
pub fn send_udp(
    socket: &UdpSocket,
    bytes: usize,
    pps: Option<u64>,
    mut go_on: impl FnMut() -> bool,
) {
    let payload = vec![0; bytes];
    let (begin, mut sent) = (Instant::now(), 0);
    while go_on() {
        let due = pps.map(|pps| begin.elapsed().as_micros() as u64 * pps / 1_000_000);
        if due.is_some_and(|due| due < sent) {
            std::thread::sleep(PAUSE);
            continue;
        }
        for _ in 0..UDP_BURST {
            // A full queue is what this is about; the receiver counts.
            let _ = socket.send(&payload);
        }
        sent += UDP_BURST;
    }
}

/// Counts datagrams until the window is over; none at all is a window of nothing.
pub fn receive_udp(socket: &UdpSocket, window: Window) -> Result<Count> {
    socket.set_read_timeout(Some(SILENCE))?;
    let mut buffer = vec![0; LARGEST_DATAGRAM];
    let mut meter = Meter::new(window);
    loop {
        match socket.recv(&mut buffer) {
            Ok(bytes) => {
                if let Some(count) = meter.take(bytes, Instant::now()) {
                    return Ok(count);
                }
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Ok(meter.count(Instant::now()));
            }
            Err(error) => return Err(error).context("receive UDP"),
        }
    }
}

/// As much as a large send moves at once.
const CHUNK_BYTES: usize = 128 << 10;
const LARGEST_DATAGRAM: usize = 2048;
/// Datagrams between two looks at the clock.
const UDP_BURST: u64 = 32;
/// Between two bursts of a paced stream.
const PAUSE: Duration = Duration::from_micros(50);
/// A stream of datagrams that pauses for so long has ended.
const SILENCE: Duration = Duration::from_secs(3);

/// Counts within a window that begins with the first arrival.
struct Meter {
    window: Window,
    first: Option<Instant>,
    begin: Option<Instant>,
    bytes: u64,
    packets: u64,
}

impl Meter {
    const fn new(window: Window) -> Self {
        Self { window, first: None, begin: None, bytes: 0, packets: 0 }
    }

    /// An arrival; the count, if it was after the window.
    fn take(&mut self, bytes: usize, now: Instant) -> Option<Count> {
        let first = *self.first.get_or_insert(now);
        let since_ms = (now - first).as_millis() as u64;
        if since_ms < self.window.after_ms {
            return None;
        }
        // The window begins with an arrival that is not in it, and so does what follows each.
        let Some(begin) = self.begin else {
            self.begin = Some(now);
            return None;
        };
        self.bytes += bytes as u64;
        self.packets += 1;
        ((now - begin).as_millis() as u64 >= self.window.for_ms).then(|| self.count(now))
    }

    fn count(&self, now: Instant) -> Count {
        let us = self.begin.map_or(0, |begin| (now - begin).as_micros() as u64);
        Count { bytes: self.bytes, packets: self.packets, us }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_arrives_in_the_window_counts() {
        let mut meter = Meter::new(Window { after_ms: 100, for_ms: 50 });
        let begin = Instant::now();
        let mut take = |at_ms| meter.take(10, begin + Duration::from_millis(at_ms));
        assert_eq!([0, 99, 100, 110, 149].map(&mut take), [None; 5]);
        assert_eq!(take(150), Some(Count { bytes: 30, packets: 3, us: 50_000 }));
    }

    #[test]
    fn a_stream_that_ends_early_is_counted_for_as_long_as_it_lasted() {
        let window = Window { after_ms: 0, for_ms: 60_000 };
        let count = receive_tcp(&mut &[7; 300_000][..], window).unwrap();
        // The first read opens the window.
        assert_eq!(count.bytes, 300_000 - CHUNK_BYTES as u64);
    }
}
