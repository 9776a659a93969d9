//! What the backend decides: features, headers, rings, counting, gate. No I/O, no clock.

pub mod busy_poll;
pub mod chain;
pub mod counters;
pub mod cpu_list;
pub mod dirty_log;
pub mod feature_names;
pub mod features;
pub mod gate;
pub mod memory;
pub mod net_header;
pub mod rarp;
pub mod rates;
pub mod ring;
pub mod token_bucket;
pub mod tuning;

#[cfg(test)]
#[allow(dead_code, reason = "shared with the tests over a socket, which use the rest of it")]
pub(crate) mod testing;
