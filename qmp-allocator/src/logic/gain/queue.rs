//! A model without a measurement: each path is a queue with one server (M/M/1).
//!
//! A packet stays for 1 / (service rate - arrival rate) on average, so that PV's part grows with the rate and the
//! boost with it. What both paths have in common (the wire, the guest's own stack) is the same on both, and falls out.

use super::Model;

/// 64-byte frames a second from a guest through a TAP, one core: vhost-net-pv's own benchmark (`scripts/bench pv`,
/// table in `vhost-net-pv/README.md`).
pub const PV_CORE_PPS: f64 = 0.98e6;
/// 64-byte frames a second on 10 GbE: 84 bytes each on the wire (IEEE 802.3).
pub const LINK_PPS: f64 = 10e9 / (84.0 * 8.0);

/// A core of the host for PV, a 10 GbE link for the VF.
#[derive(Debug, Clone, Copy)]
pub struct Queue;

/// Nearer to its service rate than this a queue's length says nothing any more.
const MAX_LOAD: f64 = 0.95;

impl Model for Queue {
    fn gain(&self, pps: f64) -> f64 {
        let pps = pps.max(0.0);
        let wait_us = |serves_pps: f64| 1e6 / (serves_pps - pps.min(MAX_LOAD * PV_CORE_PPS));
        pps * (wait_us(PV_CORE_PPS) - wait_us(LINK_PPS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boost_of_a_packet_grows_with_the_rate() {
        let saved = |pps: f64| Queue.gain(pps) / pps;
        assert!((saved(1.0) - (1.0204 - 0.0672)).abs() < 1e-3);
        assert!((saved(PV_CORE_PPS / 2.0) - (2.0408 - 0.0695)).abs() < 1e-3);
        assert!(saved(500e3) > saved(50e3) && saved(2e6) == saved(1e6));
    }
}
