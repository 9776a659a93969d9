//! The guest's side: one job after the other.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};

use anyhow::{Context, Result};
use serde::Serialize;

use super::Job;
use super::flow::{receive_tcp, receive_udp, send_tcp, send_udp};

/// Listens for jobs.
pub fn listen(bind: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(bind).with_context(|| format!("listen on TCP {bind}"))
}

/// Serves until the process is ended.
pub fn serve(listener: &TcpListener) -> Result<()> {
    println!("flexvf-traffic: jobs on TCP {}", listener.local_addr()?);
    loop {
        let (stream, from) = listener.accept().context("accept a job")?;
        if let Err(error) = obey(stream, from) {
            println!("flexvf-traffic: job of {from}: {error:#}");
        }
    }
}

fn obey(mut stream: TcpStream, from: SocketAddr) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    (&mut reader).take(LONGEST_JOB).read_line(&mut line)?;
    if line.is_empty() {
        // Somebody wanted to know whether this listens.
        return Ok(());
    }
    match serde_json::from_str(&line).context("not a job")? {
        Job::TcpSend => send_tcp(&mut stream),
        Job::TcpReceive { window } => {
            let count = receive_tcp(&mut reader, window)?;
            // Closing before the sender has ended would take the answer with it.
            std::io::copy(&mut reader, &mut std::io::sink())?;
            answer(&mut stream, &count)?;
        }
        Job::UdpSend { port, bytes } => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect((from.ip(), port))?;
            stream.set_nonblocking(true)?;
            send_udp(&socket, bytes.into(), None, || is_open(&stream));
        }
        Job::UdpReceive { window } => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            answer(&mut stream, &socket.local_addr()?.port())?;
            answer(&mut stream, &receive_udp(&socket, window)?)?;
        }
    }
    Ok(())
}

/// A job's line has 80 bytes.
const LONGEST_JOB: u64 = 1000;

fn answer(stream: &mut TcpStream, value: &impl Serialize) -> Result<()> {
    stream.write_all((serde_json::to_string(value)? + "\n").as_bytes()).context("answer")
}

/// The other side, which says nothing more, has not closed the connection.
fn is_open(stream: &TcpStream) -> bool {
    !matches!(stream.peek(&mut [0]), Ok(0))
}
