//! A fleet of made-up VMs, thousands in one process, that speak what real ones speak: QMP and the
//! agent's wire format over Unix sockets, stats pages as files.
//!
//! ```text
//!   daemon ◀── QMP socket ───▶ monitor ┐
//!   daemon ◀── agent socket ─▶ agent   ├─ machine, one a VM     one thread serves them all
//!   daemon ◀── stats page ──── pages   ┘
//! ```
//!
//! What is made up: guests and QEMU's devices. They answer as QEMU 10 does (the transcript in
//! `qmp-allocator/src/vmm/qemu`), after the times of [`logic::machine::Latencies`], which are exact to a millisecond.
//! Some may be told to misbehave ([`logic::manner::Manner`]). Left out: commands that the daemon
//! does not use, and a guest's packets (the pages' counters just grow).

pub mod daemon;
pub mod io;
pub mod logic;

pub use daemon::{Daemon, Settings};
pub use io::server::{Fleet, Plan};
