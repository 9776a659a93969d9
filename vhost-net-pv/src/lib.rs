//! A vhost-user-net backend: a virtual machine's NIC, served by a process of its own.
//!
//! A front-end (QEMU, DPDK's virtio-user) shares the guest's memory over a Unix socket; frames go
//! between the guest's rings and a [`Port`], usually a TAP. Every ring is counted, in frames and in
//! packets as the wire sees them, in a page that other processes read.
//!
//! | part | what it does |
//! |---|---|
//! | [`logic`] | features, headers, ring walk, counting, gate: pure decisions |
//! | [`io::server`] | front-ends, one after the other |
//! | [`io::gate`] | control messages, bounded, before the `vhost` crate's parser |
//! | `io::backend` | what messages do to memory, rings and workers |
//! | `io::worker` | one queue pair's thread, with `io::tx` and `io::rx` |
//! | [`io::port`] | TAP, loopback, null |
//! | [`io::stats`] | the counters' file |
//! | [`io::sandbox`] | what a device that runs can give up |
//! | [`config`], [`report`], [`io::systemd`] | the program's: its options, what it prints, its manager |
//!
//! The library installs no logger, and no signal handler unless asked to ([`survive_cut_memory`]);
//! a program may run several devices. [`Device`] is where to start:
//!
//! ```no_run
//! use vhost_net_pv::io::port::{IoMethod, Port, Tap, TapOptions};
//! use vhost_net_pv::io::stats::StatsPage;
//! use vhost_net_pv::logic::features::DEFAULT_MASK;
//! use vhost_net_pv::{Device, DeviceParts, FrontEnds, Stopper, Tuning};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let taps = Tap::open(&TapOptions { name: "tap0".into(), queues: 1, io: IoMethod::Auto })?;
//! let offloads = taps[0].supported_offloads();
//! let ports = taps.into_iter().map(|tap| Box::new(tap) as Box<dyn Port>).collect();
//! let mut device = Device::new(DeviceParts {
//!     ports,
//!     offloads,
//!     features: DEFAULT_MASK,
//!     tuning: Tuning::default(),
//!     stats: StatsPage::private(1)?,
//!     set_mtu: Box::new(|_mtu| Ok(())),
//! })?;
//! let stopper = Stopper::new()?; // stopper.clone().stop() from elsewhere ends it
//! device.serve(FrontEnds::listen("/run/vm0/net.sock".as_ref())?, &stopper)?;
//! # Ok(())
//! # }
//! ```

pub mod config;
pub mod io;
pub mod logic;
pub mod report;

pub use io::port::Port;
pub use io::server::{Device, DeviceParts, FrontEnds, SocketError, Stopper};
pub use io::survive_cut_memory;
pub use logic::tuning::{Limit, Tuning};
