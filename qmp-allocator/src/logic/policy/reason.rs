//! Why a VM stands where it does in a ranking.

use std::fmt;

use flexvf_protocol::VmName;
use serde::{Deserialize, Serialize};

/// A ranked VM, and why it stands where it does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ranked {
    /// Its name.
    pub vm: VmName,
    /// With the figures that decided.
    pub reason: Reason,
}

/// Why a VM stands where it does. Put into words only for who reads them: a ranking has thousands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// The operator's word.
    PinnedToVf,
    /// It is guaranteed a part of the rounds, and this one is needed for it.
    Guaranteed {
        /// Of them.
        percent: u8,
    },
    /// There is a VF for everyone of its priority, and lower ones come behind it.
    Priority {
        /// Its own.
        priority: u8,
    },
    /// Higher priorities leave nothing.
    Outranked {
        /// Its own.
        priority: u8,
    },
    /// There is a VF for everyone.
    AllHaveOne {
        /// VMs.
        vms: usize,
        /// VFs.
        vfs: usize,
    },
    /// By its packet rate.
    Rate {
        /// From 1.
        place: usize,
        /// Of how many.
        of: usize,
        /// None for a VM too new to have one.
        pps: Option<f64>,
    },
    /// In its turn, after so many rounds.
    Turn(usize),
    /// Chosen so short a time ago that it keeps its VF.
    MinHold {
        /// Rounds for which it still does, this one included.
        rounds: u32,
    },
    /// By its packet rate, weighed by what a change of hands costs.
    Worth {
        /// From 1.
        place: usize,
        /// Of how many.
        of: usize,
        /// None for a VM too new to have one.
        pps: Option<f64>,
        /// The rate as it was compared: raised for who has a VF, lowered for who would have to be given one.
        as_pps: f64,
    },
    /// Its wait would else grow longer than allowed.
    Waited {
        /// Rounds that it wanted a VF and had none.
        rounds: u32,
        /// Most of them that are allowed now.
        of: u32,
    },
    /// By what it is owed of its share.
    Share {
        /// VFs that are its due, on average.
        share: f64,
        /// Turns that it is behind; below 0, ahead.
        owed: f64,
    },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PinnedToVf => f.write_str("pinned to a VF"),
            Self::Guaranteed { percent } => {
                write!(f, "guaranteed {percent} % of the rounds, and this one is due")
            }
            Self::Priority { priority } => write!(f, "priority {priority} goes before others"),
            Self::Outranked { priority } => {
                write!(f, "priority {priority}: VMs of higher priorities have all VFs")
            }
            Self::AllHaveOne { vms, vfs } => write!(f, "{vms} VMs, {vfs} VFs: all have one"),
            Self::Rate { place, of, pps: Some(pps) } => {
                write!(f, "rank {place} of {of} at {pps:.0} packets/s")
            }
            Self::Rate { place, of, pps: None } => {
                write!(f, "rank {place} of {of}: not measured yet")
            }
            Self::Turn(0) => f.write_str("its turn"),
            Self::Turn(rounds) => write!(f, "its turn comes in {rounds} round(s)"),
            Self::MinHold { rounds } => write!(f, "keeps its VF for {rounds} more round(s)"),
            Self::Worth { place, of, pps: Some(pps), as_pps } => {
                write!(f, "rank {place} of {of} at {pps:.0} packets/s, counted as {as_pps:.0}")
            }
            Self::Worth { place, of, pps: None, .. } => {
                write!(f, "rank {place} of {of}: not measured yet")
            }
            Self::Waited { rounds, of } => {
                write!(f, "has waited {rounds} round(s), and {of} are allowed")
            }
            Self::Share { share, owed } => {
                write!(f, "its share is {share:.3} of a VF; it is owed {owed:.2} turns")
            }
        }
    }
}
