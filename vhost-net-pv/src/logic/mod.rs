//! What the backend decides: features, headers, rings, counting, gate. No I/O, no clock.

pub mod counters;
pub mod features;
pub mod gate;
pub mod memory;
pub mod net_header;
pub mod rarp;
pub mod ring;

#[cfg(test)]
pub(crate) mod testing;
