//! The host's side: gives a guest a job, does the other half, and returns what was counted.

use std::io::{BufRead, BufReader, Write};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use serde::de::DeserializeOwned;

use super::flow::{receive_tcp, receive_udp, send_tcp_for, send_udp};
use super::{Count, Job, Window};

/// TCP from the guest.
pub fn tcp_from(guest: SocketAddr, window: Window) -> Result<Count> {
    let mut stream = give(guest, &Job::TcpSend)?;
    receive_tcp(&mut stream, window)
}

/// TCP to the guest.
pub fn tcp_to(guest: SocketAddr, window: Window) -> Result<Count> {
    let mut stream = give(guest, &Job::TcpReceive { window })?;
    send_tcp_for(&mut stream, whole(window) + SLACK)?;
    stream.shutdown(Shutdown::Write)?;
    answer(&mut BufReader::new(stream))
}

/// Datagrams of `bytes` from the guest.
pub fn udp_from(guest: SocketAddr, bytes: u16, window: Window) -> Result<Count> {
    let socket = UdpSocket::bind("0.0.0.0:0").context("open a UDP socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES)
        .context("enlarge a receive buffer")?;
    let job = Job::UdpSend { port: socket.local_addr()?.port(), bytes };
    let _job = give(guest, &job)?;
    receive_udp(&socket, window)
}

/// Datagrams of `bytes` to the guest, `pps` of them a second.
pub fn udp_to(guest: SocketAddr, bytes: u16, pps: u64, window: Window) -> Result<Count> {
    let mut answers = BufReader::new(give(guest, &Job::UdpReceive { window })?);
    let port: u16 = answer(&mut answers)?;
    let socket = UdpSocket::bind("0.0.0.0:0").context("open a UDP socket")?;
    socket.connect((guest.ip(), port))?;
    let end = Instant::now() + whole(window) + SLACK;
    send_udp(&socket, bytes.into(), Some(pps), || Instant::now() < end);
    answer(&mut answers)
}

/// The guest takes jobs.
pub fn is_ready(guest: SocketAddr) -> bool {
    TcpStream::connect_timeout(&guest, Duration::from_millis(500)).is_ok()
}

/// What a sender goes on beyond the window: the guest's first arrival may come late.
const SLACK: Duration = Duration::from_millis(200);
/// An answer that takes longer will not come.
const PATIENCE: Duration = Duration::from_secs(30);
const RECEIVE_BUFFER_BYTES: usize = 8 << 20;

const fn whole(window: Window) -> Duration {
    Duration::from_millis(window.after_ms + window.for_ms)
}

fn give(guest: SocketAddr, job: &Job) -> Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&guest, PATIENCE);
    let mut stream = stream.with_context(|| format!("the guest at {guest} takes no jobs"))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    stream.write_all((serde_json::to_string(job)? + "\n").as_bytes())?;
    Ok(stream)
}

fn answer<T: DeserializeOwned>(answers: &mut impl BufRead) -> Result<T> {
    let mut line = String::new();
    answers.read_line(&mut line).context("no answer from the guest")?;
    serde_json::from_str(&line).with_context(|| format!("the guest answered '{}'", line.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::blast::serve::{listen, serve};

    /// All four jobs over loopback; what comes in is what the machine can do, so only that
    /// something comes is claimed.
    #[test]
    fn each_job_moves_data_and_the_receiver_counts_it() {
        let listener = listen(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
        let guest = listener.local_addr().unwrap();
        std::thread::spawn(move || serve(&listener));
        assert!(is_ready(guest));
        let window = Window { after_ms: 10, for_ms: 50 };
        let counts = [
            tcp_from(guest, window).unwrap(),
            tcp_to(guest, window).unwrap(),
            udp_from(guest, 22, window).unwrap(),
            udp_to(guest, 22, 100_000, window).unwrap(),
        ];
        for count in counts {
            assert!(count.packets > 0 && count.bytes > 0, "{counts:?}");
            assert!(count.us >= 50_000, "{counts:?}");
        }
    }
}
