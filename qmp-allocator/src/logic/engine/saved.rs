//! What cannot be observed after a restart: the last decision, and where the turns stand.
//!
//! Losing it costs no VF and no VM: the first decision is made an interval later instead.

use std::collections::BTreeMap;
use std::time::Duration;

use flexvf_protocol::VmName;
use serde::{Deserialize, Serialize};

use super::{Desired, Engine, Pool};
use crate::logic::policy::{Memory, Ranked};

/// The state file's content.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Saved {
    /// Rounds decided so far.
    pub round: u64,
    /// When the last one was, milliseconds since the host's boot.
    pub decided_at_ms: Option<u64>,
    /// How many rounds each VM has ended on a VF.
    pub turns: BTreeMap<VmName, u64>,
    /// By pool.
    pub pools: BTreeMap<String, SavedPool>,
}

/// A pool's last decision.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SavedPool {
    /// What the strategy remembers.
    #[serde(flatten)]
    pub memory: Memory,
    /// Best first.
    pub ranking: Vec<Ranked>,
    /// How many of them were to have a VF.
    pub winners: usize,
    /// How many of the last were to have none.
    #[serde(skip_serializing_if = "is_zero")]
    pub barred: usize,
    /// VFs that were to stay free.
    #[serde(skip_serializing_if = "is_zero")]
    pub kept: usize,
}

/// The file itself.
#[derive(Debug, Serialize, Deserialize)]
struct OnDisk<S> {
    /// Times in it count from this boot of the host.
    boot_id: String,
    saved: S,
}

impl Saved {
    /// The state file's text, written in this boot of the host.
    pub fn encode(&self, boot_id: &str) -> String {
        let content = OnDisk { boot_id: boot_id.to_owned(), saved: self };
        // Maps with names for keys, numbers and texts always have a JSON form.
        serde_json::to_string_pretty(&content).unwrap_or_default()
    }

    /// What a state file says that is read in this boot of the host.
    ///
    /// # Errors
    /// The text is none, or was torn.
    pub fn decode(text: &str, boot_id: &str) -> Result<Self, serde_json::Error> {
        let OnDisk::<Self> { boot_id: written, mut saved } = serde_json::from_str(text)?;
        if written != boot_id {
            saved.decided_at_ms = None;
        }
        Ok(saved)
    }

    /// The interval that was running goes on, if the host has not booted since.
    pub(super) fn next_round(&self, now: Duration, interval: Duration) -> Duration {
        let decided = self.decided_at_ms.map(Duration::from_millis).filter(|at| *at <= now);
        decided.map_or(now + interval, |at| (at + interval).max(now))
    }

    pub(super) fn pool(&self, name: &str) -> Pool {
        let saved = self.pools.get(name).cloned().unwrap_or_default();
        let SavedPool { memory, ranking, winners, barred, kept } = saved;
        let desired = Desired { ranking, winners, barred, kept };
        let places = desired.ranking.iter().enumerate();
        let places_before = places.map(|(place, ranked)| (ranked.vm.clone(), place)).collect();
        Pool { desired, memory, places_before, ..Pool::default() }
    }
}

impl Engine {
    /// What to write down now.
    pub(super) fn saved(&self, now: Duration) -> Saved {
        let pool = |(name, pool): (&String, &Pool)| {
            let Desired { ranking, winners, barred, kept } = pool.desired.clone();
            let memory = pool.memory.clone();
            (name.clone(), SavedPool { memory, ranking, winners, barred, kept })
        };
        Saved {
            round: self.round,
            decided_at_ms: u64::try_from(now.as_millis()).ok(),
            turns: self.vms.iter().map(|(name, vm)| (name.clone(), vm.turns)).collect(),
            pools: self.pools.iter().map(pool).collect(),
        }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_zero(count: &usize) -> bool {
    *count == 0
}
