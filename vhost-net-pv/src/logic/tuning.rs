//! How a device's queues are served, where there is a choice.

use std::num::NonZeroU64;
use std::time::Duration;

/// Choices for all queues of a device. The default is event-driven, unlimited and unpinned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tuning {
    /// Longest time that a queue pair's thread looks for work before it sleeps; zero: it sleeps
    /// at once.
    pub poll: Duration,
    /// Limit of each queue towards the guest.
    pub rx_limit: Limit,
    /// Limit of each queue from the guest.
    pub tx_limit: Limit,
    /// Processors of the queue pairs' threads, in the order of the pairs, and again from the
    /// first if there are more pairs; empty: wherever the kernel puts them.
    pub cpus: Vec<usize>,
}

/// The most that a queue may carry; `None`: as much as goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    /// Packets per second, as they appear on the wire.
    pub packets: Option<NonZeroU64>,
    /// Bits of frames per second, Ethernet header included, preamble and FCS not.
    pub bits: Option<NonZeroU64>,
}
