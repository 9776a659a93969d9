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
    /// The operator's word, given for more VMs than there are VFs.
    PinnedBeyond {
        /// From 1, by priority and name.
        place: usize,
        /// Of how many.
        of: usize,
        /// VFs.
        vfs: usize,
    },
    /// Its tenant is due a VF for it.
    TenantDue,
    /// Its tenant's VMs have all that they may have.
    TenantHasAll {
        /// VFs.
        max: usize,
    },
    /// What it would have is set aside for tenants.
    SetAside {
        /// VFs.
        vfs: usize,
    },
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
    /// By the packet time that a VF saves it, weighed by what a change of hands costs.
    Saves {
        /// From 1.
        place: usize,
        /// Of how many.
        of: usize,
        /// Its rate.
        pps: f64,
        /// What a VF is expected to save, µs a second.
        saves_us: f64,
        /// That as it was compared: raised for who has a VF, lowered for who would have to be given one.
        as_us: f64,
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
            Self::PinnedBeyond { place, of, vfs } => {
                write!(
                    f,
                    "pinned to a VF, as {of} VMs for {vfs} VF(s) are: place {place} by priority, then name"
                )
            }
            Self::TenantDue => f.write_str("its tenant is due a VF for it (min_vfs, reserved_vfs)"),
            Self::TenantHasAll { max } => {
                write!(
                    f,
                    "its tenant's VMs have, or are to have, the {max} VF(s) that they may (max_vfs)"
                )
            }
            Self::SetAside { vfs } => {
                write!(f, "{vfs} VF(s) are set aside for tenants (min_vfs, reserved_vfs)")
            }
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
            Self::Saves { place, of, pps, saves_us, as_us } => {
                write!(
                    f,
                    "rank {place} of {of} at {pps:.0} packets/s: a VF saves {saves_us:.0} µs a second, counted as {as_us:.0}"
                )
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

/// A VM by its index among those that are ranked, and why it stands where it does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Placed {
    pub(super) index: usize,
    pub(super) reason: Reason,
    /// What being served takes of what it is owed ([`super::Standing::owed`]).
    pub(super) charge: i64,
}

impl Placed {
    /// Being served costs it nothing.
    pub(super) const fn free(index: usize, reason: Reason) -> Self {
        Self { index, reason, charge: 0 }
    }
}

/// A pool's VMs in the order of a decision.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Ranking {
    /// Best first; VMs pinned to PV are left out.
    pub vms: Vec<Ranked>,
    /// So many of the first are to have a VF.
    pub winners: usize,
    /// So many of the last may not have one, not even one that is left over.
    pub barred: usize,
    /// VFs that are to stay free.
    pub kept: usize,
}

impl Ranking {
    /// Those who are to have a VF.
    pub fn chosen(&self) -> impl Iterator<Item = &VmName> {
        self.vms.iter().take(self.winners).map(|ranked| &ranked.vm)
    }
}
