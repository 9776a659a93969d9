//! What policies remember from round to round.
//!
//! A few small counts a VM, of the VMs that were ranked lately: a guest that is away for a moment does
//! not shed what it owes, and one that never comes back is forgotten.

use flexvf_protocol::VmName;
use serde::{Deserialize, Serialize};

use super::Candidate;
use super::tenant::{TenantName, Tenants};

/// Of one pool.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    /// Where the fair strategy stands.
    pub last_served: Option<VmName>,
    /// Of VMs that were ranked in the last rounds, as far as there is anything to remember.
    /// By name: a list is made and copied in a fraction of a map's time.
    pub standings: Vec<(VmName, Standing)>,
    /// What tenants are behind their shares, as [`Standing::owed`]; none of whom it is 0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tenants: Vec<(TenantName, i64)>,
}

/// Of one VM.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Standing {
    /// Rounds in a row that it was served.
    #[serde(skip_serializing_if = "is_default")]
    pub held: u32,
    /// Rounds in a row that it wanted a VF and was not served.
    #[serde(skip_serializing_if = "is_default")]
    pub missed: u32,
    /// What it is behind its share; below 0, ahead. Billionths of a turn: whole numbers come back from the
    /// state file as they were.
    #[serde(skip_serializing_if = "is_default")]
    pub owed: i64,
    /// What it is behind its guarantee; below 0, ahead. Billionths of a turn.
    #[serde(skip_serializing_if = "is_default")]
    pub due: i64,
    /// Rounds in a row that it could not be ranked.
    #[serde(skip_serializing_if = "is_default")]
    pub away: u32,
}

/// A VM that reboots is back by then; the file and the memory stay as small as the pool.
const FORGOTTEN_AFTER: u32 = 4;

impl Memory {
    /// The standings of these VMs, who are in the order of their names.
    pub(super) fn recall(&self, open: &[&Candidate]) -> Vec<Standing> {
        let mut known = self.standings.iter().peekable();
        let recalled = open.iter().map(|candidate| {
            while known.next_if(|(vm, _)| *vm < candidate.vm).is_some() {}
            let found = known.next_if(|(vm, _)| *vm == candidate.vm);
            found.map(|(_, standing)| *standing).unwrap_or_default()
        });
        recalled.collect()
    }

    /// What these tenants are behind their shares, in their order.
    pub(super) fn recall_tenants(&self, tenants: &Tenants) -> Vec<i64> {
        let owed = |name: &TenantName| self.tenants.iter().find(|(tenant, _)| tenant == name);
        let all = tenants.all().iter();
        all.map(|tenant| owed(&tenant.name).map_or(0, |(_, owed)| *owed)).collect()
    }

    /// What they are behind now.
    pub(super) fn settle_tenants(&mut self, tenants: &Tenants, owed: impl Iterator<Item = i64>) {
        let known = tenants.all().iter().zip(owed).filter(|(_, owed)| *owed != 0);
        self.tenants = known.map(|(tenant, owed)| (tenant.name.clone(), owed)).collect();
    }

    /// Ends a round in which `served` of `open` were chosen.
    pub(super) fn settle(
        &mut self,
        open: &[&Candidate],
        standings: Vec<Standing>,
        served: &[bool],
        wants: impl Fn(&Candidate) -> bool,
    ) {
        let ended = open.iter().zip(standings).zip(served);
        let ended = ended.map(|((candidate, mut standing), served)| {
            if *served {
                (standing.held, standing.missed) = (standing.held.saturating_add(1), 0);
            } else {
                let missed = if wants(candidate) { standing.missed.saturating_add(1) } else { 0 };
                (standing.held, standing.missed) = (0, missed);
            }
            standing.away = 0;
            (candidate.vm.clone(), standing)
        });
        let mut seen: Vec<_> = ended.filter(|(_, standing)| !is_default(standing)).collect();
        let names = open.iter().map(|candidate| &candidate.vm);
        let mut names = names.peekable();
        let away = std::mem::take(&mut self.standings).into_iter().filter_map(|(vm, standing)| {
            while names.next_if(|name| **name < vm).is_some() {}
            let is_here = names.peek().is_some_and(|name| **name == vm);
            let standing = Standing { held: 0, away: standing.away.saturating_add(1), ..standing };
            (!is_here && standing.away <= FORGOTTEN_AFTER).then_some((vm, standing))
        });
        seen.extend(away);
        // Two runs in order, which the sort merges.
        seen.sort_by(|(a, _), (b, _)| a.cmp(b));
        self.standings = seen;
    }
}

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}
