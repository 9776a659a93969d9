//! A TCP transfer both ways at once, whose bytes are compared by checksum at the end.
//!
//! The guest's `serve` accepts; [`transfer`] connects, sends until it is told to stop, and says what
//! came through. Only an unbroken connection over which every byte came in order counts as intact:
//! nothing is retried here, that is TCP's business.

use std::io::{Read, Write, stdin};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{Builder, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::traffic::logic::stream::{
    Digest, HELLO_LEN, Hello, MAX_BLOCK, Outcome, Pattern, TOTALS_LEN, Totals, Way,
};

/// Longest time without a byte; TCP's own pauses between two attempts reach 30 s in an outage of
/// that length, and no scenario has a longer one.
const PATIENCE: Duration = Duration::from_secs(60);
/// Transfers that a guest serves at once.
const MAX_TRANSFERS: usize = 4;
/// Between two rests of a reader.
const AWAKE: Duration = Duration::from_millis(30);
/// A paced stream is sent in this many pieces a second.
const BLOCKS_PER_S: u64 = 50;

/// Serves transfers on `bind` from now on, in threads of its own; returns where exactly.
pub fn serve(bind: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind(bind).with_context(|| format!("bind TCP {bind}"))?;
    let address = listener.local_addr()?;
    let running = Arc::new(AtomicUsize::new(0));
    let accept = move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else {
                // Such as too many open files: it passes, and a busy loop would not help it.
                sleep(Duration::from_millis(100));
                continue;
            };
            if running.fetch_add(1, Ordering::Relaxed) >= MAX_TRANSFERS {
                running.fetch_sub(1, Ordering::Relaxed);
                continue;
            }
            let running = Arc::clone(&running);
            let _ = Builder::new().name("transfer".into()).spawn(move || {
                if let Err(error) = serve_one(&stream) {
                    println!("flexvf-traffic: transfer broken: {error:#}");
                }
                running.fetch_sub(1, Ordering::Relaxed);
            });
        }
    };
    Builder::new().name("accept".into()).spawn(accept)?;
    Ok(address)
}

/// Transfers to and from `to` until stdin ends, or until `limit` bytes were sent.
pub fn transfer(
    to: SocketAddr,
    bytes_per_s: u64,
    rest_ms: u64,
    limit: Option<u64>,
) -> Result<Outcome> {
    let stream = TcpStream::connect_timeout(&to, PATIENCE).with_context(|| format!("TCP {to}"))?;
    set_up(&stream)?;
    // Any two transfers of a testbed differ by their local ports.
    let hello = Hello { seed: u64::from(stream.local_addr()?.port()) << 32, bytes_per_s, rest_ms };
    (&stream).write_all(&hello.encode())?;
    let ends = |sent: Digest, pause: Duration| {
        limit.is_some_and(|limit| sent.bytes >= limit) || (limit.is_none() && stdin_ends(pause))
    };
    let (sent, (received, theirs)) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| read_blocks(&stream, Duration::ZERO));
        let sent = write_blocks(&stream, hello, true, ends).context("send");
        if let Ok(sent) = sent {
            write_end(&stream, Totals { sent, received: Digest::default() })?;
        } else {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let read = reader.join().map_err(|_| anyhow!("the reader panicked"))?;
        Ok::<_, anyhow::Error>((sent?, read.context("receive")?))
    })?;
    Ok(Outcome::new(Way { sent, received: theirs.received }, Way { sent: theirs.sent, received }))
}

/// The guest's side: sends until the client has ended, then tells both digests.
fn serve_one(stream: &TcpStream) -> Result<()> {
    set_up(stream)?;
    let mut hello = [0; HELLO_LEN];
    let mut reading = stream;
    reading.read_exact(&mut hello)?;
    let hello = Hello::decode(&hello).context("not a transfer")?;
    let ended = AtomicBool::new(false);
    let ends = |_sent, pause| {
        sleep(pause);
        ended.load(Ordering::Relaxed)
    };
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| write_blocks(stream, hello, false, ends));
        let read = read_blocks(stream, Duration::from_millis(hello.rest_ms));
        ended.store(true, Ordering::Relaxed);
        if read.is_err() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let sent = writer.join().map_err(|_| anyhow!("the writer panicked"))?;
        let ((received, _), sent) = (read.context("receive")?, sent.context("send")?);
        write_end(stream, Totals { sent, received })
    })
}

fn set_up(stream: &TcpStream) -> Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream.set_write_timeout(Some(PATIENCE))?)
}

/// Sends blocks until `ends`, which is given the pause before the next one; what was sent.
fn write_blocks(
    mut stream: &TcpStream,
    hello: Hello,
    from_client: bool,
    ends: impl Fn(Digest, Duration) -> bool,
) -> Result<Digest> {
    let mut pattern = Pattern::new(hello.seed, from_client);
    let block_bytes = match hello.bytes_per_s / BLOCKS_PER_S {
        0 if hello.bytes_per_s == 0 => MAX_BLOCK,
        bytes => usize::try_from(bytes)?.clamp(1, MAX_BLOCK),
    };
    let mut block = u32::try_from(block_bytes)?.to_be_bytes().to_vec();
    block.resize(4 + block_bytes, 0);
    let (mut sent, began) = (Digest::default(), Instant::now());
    while !ends(sent, pause(hello.bytes_per_s, sent.bytes, began.elapsed())) {
        let content = block.get_mut(4..).unwrap_or_default();
        pattern.fill(content);
        sent.take(content);
        stream.write_all(&block)?;
    }
    Ok(sent)
}

/// Until `sent` bytes are due; what an outage has held up is made up for at once.
fn pause(bytes_per_s: u64, sent: u64, elapsed: Duration) -> Duration {
    let due_us = sent.saturating_mul(1_000_000).checked_div(bytes_per_s).unwrap_or_default();
    Duration::from_micros(due_us).saturating_sub(elapsed)
}

fn write_end(mut stream: &TcpStream, totals: Totals) -> Result<()> {
    stream.write_all(&0u32.to_be_bytes()).context("send the end")?;
    stream.write_all(&totals.encode()).context("send the totals")
}

/// Takes blocks to their end: what was received, and what the other side says.
///
/// Rests now and then, during which the kernel keeps what comes.
fn read_blocks(mut stream: &TcpStream, rest: Duration) -> Result<(Digest, Totals)> {
    let mut received = Digest::default();
    let mut block = vec![0; MAX_BLOCK];
    let mut rested = Instant::now();
    loop {
        if rested.elapsed() > AWAKE {
            sleep(rest);
            rested = Instant::now();
        }
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let length = u32::from_be_bytes(length) as usize;
        ensure!(length <= MAX_BLOCK, "a block of {length} bytes: the stream is out of step");
        if length == 0 {
            let mut totals = [0; TOTALS_LEN];
            stream.read_exact(&mut totals)?;
            return Ok((received, Totals::decode(&totals)));
        }
        let content = block.get_mut(..length).unwrap_or_default();
        stream.read_exact(content)?;
        received.take(content);
    }
}

/// Waits for `pause`, or for the end of stdin; whether that came.
fn stdin_ends(pause: Duration) -> bool {
    let stdin = stdin();
    let mut fds = [PollFd::new(stdin.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX);
    poll(&mut fds, timeout).is_ok_and(|ready| ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_over_loopback_is_intact_and_counts_both_ways() {
        let bind = serve("127.0.0.1:0".parse().unwrap()).unwrap();
        let outcome = transfer(bind, 0, 0, Some(3 << 20)).unwrap();
        assert!(outcome.intact, "{outcome:?}");
        assert!(outcome.to_guest.sent.bytes >= 3 << 20);
        assert!(outcome.from_guest.received.bytes > 0);
    }

    #[test]
    fn a_guest_that_rests_receives_everything_later() {
        let bind = serve("127.0.0.1:0".parse().unwrap()).unwrap();
        let outcome = transfer(bind, 4 << 20, 200, Some(2 << 20)).unwrap();
        assert!(outcome.intact, "{outcome:?}");
        assert!(outcome.to_guest.received.bytes >= 2 << 20);
    }

    #[test]
    fn a_connection_cut_in_between_is_an_error_and_not_a_result() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = listener.local_addr().unwrap();
        let other = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut some = [0; 5000];
            stream.read_exact(&mut some).unwrap();
        });
        assert!(transfer(to, 0, 0, Some(8 << 20)).is_err());
        other.join().unwrap();
    }

    #[test]
    fn a_byte_that_changed_on_its_way_is_noticed() {
        let bind = serve("127.0.0.1:0".parse().unwrap()).unwrap();
        let proxy = TcpListener::bind("127.0.0.1:0").unwrap();
        let to = proxy.local_addr().unwrap();
        let forger = std::thread::spawn(move || {
            let (mut client, _) = proxy.accept().unwrap();
            let mut guest = TcpStream::connect(bind).unwrap();
            let (mut back, mut answers) = (client.try_clone().unwrap(), guest.try_clone().unwrap());
            let copy = std::thread::spawn(move || {
                let _ = std::io::copy(&mut answers, &mut back);
                let _ = back.shutdown(Shutdown::Both);
            });
            let mut start = [0; 1000];
            client.read_exact(&mut start).unwrap();
            start[999] ^= 1;
            guest.write_all(&start).unwrap();
            let _ = std::io::copy(&mut client, &mut guest);
            copy.join().unwrap();
        });
        let outcome = transfer(to, 0, 0, Some(1 << 20)).unwrap();
        assert!(!outcome.intact);
        assert_eq!(outcome.to_guest.sent.bytes, outcome.to_guest.received.bytes);
        assert_ne!(outcome.to_guest.sent.checksum, outcome.to_guest.received.checksum);
        assert_eq!(outcome.from_guest.sent, outcome.from_guest.received);
        forger.join().unwrap();
    }

    #[test]
    fn a_paced_stream_waits_for_what_it_has_sent() {
        let ms = Duration::from_millis;
        assert_eq!(pause(1000, 500, ms(200)), ms(300));
        assert_eq!(pause(1000, 500, ms(900)), Duration::ZERO);
        assert_eq!(pause(0, 500, ms(0)), Duration::ZERO);
    }
}
