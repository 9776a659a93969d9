//! The outside world: sockets, descriptors, threads, interfaces, the stats file.

mod backend;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod gate;
mod lane;
mod log_map;
pub mod netdev;
mod order;
pub mod port;
mod regions;
mod ring_state;
mod rx;
pub mod sandbox;
pub mod server;
mod session;
pub mod stats;
mod sys;
pub mod systemd;
mod tx;
mod worker;

pub use sys::{inherited, survive_cut_memory};
