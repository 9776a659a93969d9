//! Tenants: what each is due of a pool's VFs.
//!
//! Left out: how that is kept (`quota`) and shared out (`two_level`).

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use flexvf_protocol::VmName;
use serde::{Deserialize, Serialize};

/// A tenant's name, of the same letters as a VM's. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct TenantName(VmName);

/// Why a text is no tenant's name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a tenant's name; use 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter or digit"
)]
pub struct ParseTenantNameError(String);

/// What a tenant is due of the VFs of one pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name.
    pub name: TenantName,
    /// The pool that all of its VMs are of.
    pub pool: String,
    /// Its share against other tenants' and against VMs without one, from 1.
    pub weight: u32,
    /// VFs that its VMs have together at least, as far as they want them.
    pub min_vfs: usize,
    /// VFs that its VMs have together at most.
    pub max_vfs: Option<usize>,
    /// VFs that nobody else gets, wanted or not.
    pub reserved_vfs: usize,
}

/// By name. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Vec<Tenant>", from = "Vec<Tenant>")]
pub struct Tenants(Arc<[Tenant]>);

impl Tenants {
    /// Those of one pool.
    pub fn of_pool(&self, pool: &str) -> Self {
        self.0.iter().filter(|tenant| tenant.pool == pool).cloned().collect::<Vec<_>>().into()
    }

    /// All of them.
    pub fn all(&self) -> &[Tenant] {
        &self.0
    }

    /// The tenant of this name.
    pub fn get(&self, name: &TenantName) -> Option<&Tenant> {
        self.place(name).and_then(|place| self.0.get(place))
    }

    pub(super) fn place(&self, name: &TenantName) -> Option<usize> {
        self.0.binary_search_by(|tenant| tenant.name.cmp(name)).ok()
    }

    /// One of them is due more or less than others of its weight.
    pub(super) fn are_limited(&self) -> bool {
        self.0.iter().any(|it| it.min_vfs > 0 || it.max_vfs.is_some() || it.reserved_vfs > 0)
    }
}

impl Default for Tenants {
    fn default() -> Self {
        Vec::new().into()
    }
}

impl From<Vec<Tenant>> for Tenants {
    fn from(mut tenants: Vec<Tenant>) -> Self {
        tenants.sort_by(|a, b| a.name.cmp(&b.name));
        Self(tenants.into())
    }
}

impl From<Tenants> for Vec<Tenant> {
    fn from(tenants: Tenants) -> Self {
        tenants.0.to_vec()
    }
}

impl fmt::Display for TenantName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for TenantName {
    type Err = ParseTenantNameError;

    fn from_str(text: &str) -> Result<Self, ParseTenantNameError> {
        let shown = || ParseTenantNameError(text.chars().take(MAX_SHOWN).collect());
        text.parse().map(Self).map_err(|_| shown())
    }
}

impl From<TenantName> for String {
    fn from(name: TenantName) -> Self {
        name.0.into()
    }
}

impl TryFrom<String> for TenantName {
    type Error = ParseTenantNameError;

    fn try_from(text: String) -> Result<Self, ParseTenantNameError> {
        text.parse()
    }
}

/// Of a text that is no name.
const MAX_SHOWN: usize = 64;
