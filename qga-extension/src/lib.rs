//! FlexVF's agent in the guest.
//!
//! It answers one host over a virtio-serial port, in qemu-ga's wire format, and does three things:
//! it says what the guest's paths look like, it counts them, and it moves the guest's bond from the
//! paravirtual NIC to a virtual function and back. It opens no file for the host, runs no program,
//! and has nothing to do between two requests: no timer, no polling.
//!
//! ```text
//!   port ──▶ frame ──▶ request ──▶ intent ─┐
//!                                          ├─▶ plan (steps and their undo) ──▶ netlink
//!   netlink ──▶ links ──▶ view ────────────┘                                     │
//!   port ◀── answer ◀────────────────────────── view again ◀────────────────────┘
//! ```
//!
//! Everything in [`logic`] is a function of what it is given. [`io`] holds the outside: the port, the
//! kernel's links, `/proc`. [`agent`] is the one place that waits.
//!
//! The agent keeps nothing that the kernel knows. What it alone knows is the largest epoch of the
//! host's and the packets of VFs that are gone; both begin anew when it restarts, which it tells.
//! Between two looks it remembers which links to count, until the kernel tells of a change.

#![forbid(unsafe_code)]

pub mod agent;
pub mod config;
pub mod io;
pub mod logic;

#[cfg(any(test, fuzzing))]
pub mod model;
