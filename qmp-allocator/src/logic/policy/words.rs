//! What an operator says of a VM. Wherever decisions are made, recorded or replayed, it goes along whole.

use serde::{Deserialize, Serialize};

use super::tenant::TenantName;

/// Always on one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pin {
    /// Before all others.
    Vf,
    /// Never a VF.
    Pv,
}

/// All of it; by default nothing is said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Words {
    /// Goes before any policy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
    /// Its share against the others', from 1.
    #[serde(skip_serializing_if = "is_one")]
    pub weight: u32,
    /// Higher ones go before lower ones.
    #[serde(skip_serializing_if = "is_zero")]
    pub priority: u8,
    /// A VF in at least so many of the rounds in which it wants one, percent; 0 for no guarantee.
    #[serde(skip_serializing_if = "is_zero")]
    pub min_percent: u8,
    /// Whose it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantName>,
}

impl Default for Words {
    fn default() -> Self {
        Self { pin: None, weight: 1, priority: 0, min_percent: 0, tenant: None }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_one(weight: &u32) -> bool {
    *weight == 1
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
const fn is_zero(word: &u8) -> bool {
    *word == 0
}
