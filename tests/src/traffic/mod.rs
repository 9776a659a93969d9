//! Packet streams with exact accounts, small enough for a guest under software emulation.
//!
//! ```text
//!   scenario ──stdin/stdout, JSON lines──▶ peer ◀──one UDP socket a side──▶ serve (in each guest)
//! ```
//!
//! Every datagram carries a stream, a run and a number; the receiver alone takes times. Control is a
//! datagram on the same socket: the peer states the whole of what it wants, again and again until
//! the guest has confirmed it, so nothing has to be reconnected when a guest changes its path.
//! Left out on purpose: throughput (this counts packets, it does not load a link) and TCP; for these
//! there is [`crate::blast`].

pub mod io;
pub mod logic;

use std::net::SocketAddr;

use clap::Subcommand;

use crate::blast;
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
}

/// Runs one side until it is told to stop (`peer`: end of stdin) or fails.
pub fn run(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Serve { bind } => io::serve::serve(bind),
        Command::Peer { bind, guests } => io::peer::serve_commands(bind, &guests),
        Command::Blast { bind } => blast::serve::serve(&blast::serve::listen(bind)?),
    }
}
