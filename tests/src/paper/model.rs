//! How long a packet is on its path: a queueing model, since no NIC of the paper's was at hand.
//!
//! A path is a queue with one server (M/M/1: packets come and are served at random), in which a packet stays
//! for 1 / (service rate - arrival rate) on average, exponentially distributed. What both paths have in common (the wire,
//! the guest's own stack) is left out, so ratios are larger than what an application sees.
//!
//! - PV: a core of the host forwards [`PV_CORE_PPS`]. All VMs on PV share the fewest cores that can carry everybody, evenly.
//! - VF: the NIC's link at 64-byte frames, shared by all VMs on VFs.

pub use qmp_allocator::logic::gain::{LINK_PPS, PV_CORE_PPS};

/// Frames a second to a guest, as [`PV_CORE_PPS`] from it: 64 bytes, one core, the same benchmark.
pub const PV_TO_GUEST_PPS: f64 = 1.25e6;
/// Full frames of 1538 bytes on the wire of 10 GbE.
pub const FULL_FRAMES_PPS: f64 = 10e9 / (1538.0 * 8.0);
/// TCP acknowledges every second frame (RFC 5681).
const ACKS: f64 = 0.5;
/// Payload of a full frame, bits: 1500 bytes less the headers of IPv4 and TCP with timestamps.
const PAYLOAD_BITS: f64 = 1448.0 * 8.0;

/// The direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toward {
    /// The VM sends.
    Wire,
    /// The VM receives.
    Guest,
}

impl Toward {
    /// Both, in the order of results.
    pub const ALL: [Self; 2] = [Self::Wire, Self::Guest];

    /// What a frame of data and its part of an acknowledgement take a core.
    const fn frame_s(self) -> f64 {
        match self {
            Self::Wire => 1.0 / PV_CORE_PPS + ACKS / PV_TO_GUEST_PPS,
            Self::Guest => 1.0 / PV_TO_GUEST_PPS + ACKS / PV_CORE_PPS,
        }
    }
}

/// Payload that one more VM, whose transfer takes all that it gets, moves a second, Gbit: bounded by what the others
/// leave of the link, and on PV by what they leave of its cores, of which it uses one at the most.
///
/// Others' packets are of 64 bytes, half of them each way.
pub fn transfer_gbit(
    on_vf: bool,
    toward: Toward,
    others_pps: f64,
    others_pv_pps: f64,
    cores: f64,
) -> f64 {
    let link_left = (1.0 - others_pps / 2.0 / LINK_PPS).max(0.0) * FULL_FRAMES_PPS;
    let frame_s = toward.frame_s();
    let core_left = (cores - others_pv_pps / PV_CORE_PPS).clamp(0.0, 1.0);
    let pps = if on_vf { link_left } else { link_left.min(core_left / frame_s) };
    pps * PAYLOAD_BITS / 1e9
}

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

/// The time of one of such a transfer's packets on its path on average, µs, as of [`Paths`]; a core serves packets of both
/// directions, each in its time.
pub fn transfer_us(
    on_vf: bool,
    toward: Toward,
    others_pps: f64,
    others_pv_pps: f64,
    cores: f64,
) -> f64 {
    let own = FULL_FRAMES_PPS;
    if on_vf {
        // Of its own direction: what it brings is the rest of the link.
        let free = LINK_PPS - others_pps / 2.0;
        return 1e6 / free.max(1.0);
    }
    let others_s = f64::midpoint(1.0 / PV_CORE_PPS, 1.0 / PV_TO_GUEST_PPS);
    let own_s = toward.frame_s() / (1.0 + ACKS);
    let all = others_pv_pps + own;
    let serves_pps = all / (others_pv_pps * others_s + own * own_s);
    1e6 / (serves_pps - all / cores).max(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transfer_is_bounded_by_its_link_and_on_pv_by_its_core() {
        let alone = |on_vf, toward| transfer_gbit(on_vf, toward, 0.0, 0.0, 1.0);
        let link = FULL_FRAMES_PPS * PAYLOAD_BITS / 1e9;
        assert!((alone(true, Toward::Wire) - link).abs() < 1e-9 && (9.4..9.5).contains(&link));
        // A data frame and half an acknowledgement take a core 1.42 µs from the guest, 1.31 µs to it.
        assert!((alone(false, Toward::Wire) - 8.15).abs() < 0.01);
        assert!((alone(false, Toward::Guest) - 8.84).abs() < 0.01);
        let beside = |pv_pps| transfer_gbit(false, Toward::Wire, 0.98e6, pv_pps, 2.0);
        assert!(beside(1.47e6) < beside(0.49e6) && beside(2e6) == 0.0);
        let waits = |on_vf, pv_pps| transfer_us(on_vf, Toward::Wire, 2e6, pv_pps, 3.0);
        assert!(waits(false, 2e6) > waits(false, 1e6) && waits(false, 1e6) > waits(true, 1e6));
        assert!(transfer_us(false, Toward::Guest, 2e6, 1e6, 3.0) < waits(false, 1e6));
        let full = transfer_gbit(true, Toward::Guest, 2.0 * LINK_PPS, 0.0, 1.0);
        assert_eq!(full, 0.0);
    }

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
