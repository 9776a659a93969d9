//! Packet streams with exact accounts, small enough for a guest under software emulation.
//!
//! ```text
//!   scenario ──stdin/stdout, JSON lines──▶ peer ◀──one UDP socket a side──▶ serve (in each guest)
//! ```
//!
//! Every datagram carries a stream, a run and a number; the receiver alone takes times. Control is a
//! datagram on the same socket: the peer states the whole of what it wants, again and again until
//! the guest has confirmed it, so nothing has to be reconnected when a guest changes its path.
//! Beside that: a TCP transfer whose bytes are compared by checksum, UDP in large buffers, and a
//! count of the frames in a namespace. Left out on purpose: throughput, for which there is
//! [`crate::blast`].

pub mod io;
pub mod logic;

use std::net::SocketAddr;

use clap::Subcommand;
use serde::Serialize;

use crate::blast;
use io::datagrams::Datagrams;
use io::peer::GuestAddress;

/// The port that a guest serves on.
pub const DEFAULT_PORT: u16 = 7700;

/// What `flexvf-traffic` can be.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// In a guest: sends and counts what the peer asks for
    Serve {
        /// Address to serve on
        #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT)))]
        bind: SocketAddr,
    },
    /// Beside the bridge: streams to and from every guest, commanded by JSON lines on stdin
    Peer {
        /// Address to send from
        #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], DEFAULT_PORT)))]
        bind: SocketAddr,
        /// A guest, NAME=ADDRESS or NAME=ADDRESS:PORT; one option each
        #[arg(long = "guest", required = true)]
        guests: Vec<GuestAddress>,
    },
    /// In a benchmark's guest: as much TCP and UDP as goes, whatever the host asks for
    Blast {
        /// Address to take jobs on
        #[arg(long, default_value_t = SocketAddr::from(([0, 0, 0, 0], blast::PORT)))]
        bind: SocketAddr,
    },
    /// A TCP transfer to and from a guest that serves, until stdin ends; prints what came through
    Tcp {
        /// Where the guest serves
        #[arg(long)]
        to: SocketAddr,
        /// Bytes a second, each way; 0: as fast as it goes
        #[arg(long, default_value_t = 0)]
        bytes_per_s: u64,
        /// The guest leaves what came unread for so many milliseconds, again and again
        #[arg(long, default_value_t = 0)]
        rest_ms: u64,
        /// End after so many bytes instead
        #[arg(long)]
        bytes: Option<u64>,
    },
    /// UDP to somewhere, also in buffers that something else has to cut
    Datagrams {
        /// Where to
        #[arg(long)]
        to: SocketAddr,
        /// How many buffers
        #[arg(long)]
        count: u64,
        /// Length of a buffer
        #[arg(long)]
        bytes: usize,
        /// Length of the datagrams that a buffer is cut into (UDP_SEGMENT); 0: not cut
        #[arg(long, default_value_t = 0)]
        segment: u16,
        /// Buffers a second
        #[arg(long, default_value_t = 100)]
        per_s: u32,
        /// Sockets that take turns, each a flow of its own
        #[arg(long, default_value_t = 1)]
        sockets: usize,
    },
    /// Counts the frames of this network namespace by their source, until stdin ends
    Capture,
}

/// Runs one side until it is told to stop (all but `serve`: end of stdin), is done, or fails.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve { bind } => io::serve::serve(bind),
        Command::Peer { bind, guests } => io::peer::serve_commands(bind, &guests),
        Command::Blast { bind } => blast::serve::serve(&blast::serve::listen(bind)?),
        Command::Tcp { to, bytes_per_s, rest_ms, bytes } => {
            print(&io::tcp::transfer(to, bytes_per_s, rest_ms, bytes)?)
        }
        Command::Datagrams { to, count, bytes, segment, per_s, sockets } => {
            io::datagrams::send(to, Datagrams { count, bytes, segment, per_s, sockets })
        }
        Command::Capture => print(&io::capture::capture(|| println!("ready"))?),
    }
}

fn print(result: &impl Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(result)?);
    Ok(())
}
