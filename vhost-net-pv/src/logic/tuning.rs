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

impl Tuning {
    /// The processor of a queue pair's thread, if it shall stay on one.
    pub fn cpu(&self, pair: usize) -> Option<usize> {
        self.cpus.get(pair.checked_rem(self.cpus.len())?).copied()
    }
}

/// The most that a queue may carry; `None`: as much as goes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limit {
    /// Packets per second, as they appear on the wire.
    pub packets: Option<NonZeroU64>,
    /// Bits of frames per second, Ethernet header included, preamble and FCS not.
    pub bits: Option<NonZeroU64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_used_again_from_the_first() {
        let cpus = |cpus: &[usize]| {
            let tuning = Tuning { cpus: cpus.to_vec(), ..Tuning::default() };
            [0, 1, 2].map(|pair| tuning.cpu(pair))
        };
        assert_eq!(cpus(&[4, 6]), [Some(4), Some(6), Some(4)]);
        assert_eq!(cpus(&[]), [None; 3]);
    }
}
