//! How long a packet is on its path: a queueing model, since no NIC of the paper's was at hand.
//!
//! A path is a queue with one server (M/M/1: packets come and are served at random), in which a packet stays
//! for 1 / (service rate - arrival rate) on average, exponentially distributed. What both paths have in common (the wire,
//! the guest's own stack) is left out, so ratios are larger than what an application sees.
//!
//! - PV: a core of the host forwards [`PV_CORE_PPS`]. All VMs on PV share the fewest cores that can carry everybody, evenly.
//! - VF: the NIC's link at 64-byte frames, shared by all VMs on VFs.

/// 64-byte frames a second from a guest through a TAP, one core: vhost-net-pv's own benchmark (`scripts/bench pv`,
/// table in `vhost-net-pv/README.md`).
pub const PV_CORE_PPS: f64 = 0.98e6;
/// 64-byte frames a second on 10 GbE: 84 bytes each on the wire (IEEE 802.3).
pub const LINK_PPS: f64 = 10e9 / (84.0 * 8.0);

/// The host's queues.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Paths {
    pv_free_pps: f64,
    vf_free_pps: f64,
}

/// Cores that forward for PV: the fewest that can carry `all_pps`.
pub fn pv_cores(all_pps: f64) -> f64 {
    (all_pps / PV_CORE_PPS).floor() + 1.0
}

impl Paths {
    /// With so much over each path, and so many cores for PV.
    pub fn new(pv_pps: f64, vf_pps: f64, cores: f64) -> Self {
        Self {
            pv_free_pps: (PV_CORE_PPS - pv_pps / cores).max(1.0),
            vf_free_pps: (LINK_PPS - vf_pps).max(1.0),
        }
    }

    /// The time within which `part` of the packets of a path are through, µs.
    pub fn within_us(self, on_vf: bool, part: f64) -> f64 {
        -(1.0 - part).ln() * self.mean_us(on_vf)
    }

    /// A packet's time on average, µs.
    pub fn mean_us(self, on_vf: bool) -> f64 {
        1e6 / if on_vf { self.vf_free_pps } else { self.pv_free_pps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_path_takes_its_service_time_and_a_full_one_for_ever() {
        let empty = Paths::new(0.0, 0.0, 7.0);
        assert!((empty.mean_us(false) - 1.02).abs() < 0.01);
        assert!((empty.mean_us(true) - 0.067).abs() < 0.001);
        let half = Paths::new(7.0 * PV_CORE_PPS / 2.0, LINK_PPS / 2.0, 7.0);
        assert!((half.mean_us(false) / empty.mean_us(false) - 2.0).abs() < 1e-9);
        assert!((half.mean_us(true) / empty.mean_us(true) - 2.0).abs() < 1e-9);
        // Half of exponentially distributed times are below ln 2 of their mean.
        assert!((half.within_us(true, 0.5) / half.mean_us(true) - 2f64.ln()).abs() < 1e-9);
    }
}
