//! Tenants that may have no more than so many VFs: what they have, one by one.

use std::collections::BTreeMap;

use super::Holder;
use crate::logic::policy::tenant::TenantName;

/// A tenant's bound.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cap {
    /// Its name.
    pub tenant: TenantName,
    /// VFs.
    pub max: usize,
}

/// VFs that such tenants have, those on their way and in quarantine included.
pub(super) struct Had<'a>(BTreeMap<&'a TenantName, usize>);

impl<'a> Had<'a> {
    pub(super) fn of(holders: impl Iterator<Item = &'a Holder>) -> Self {
        let mut had = BTreeMap::new();
        for cap in holders.filter_map(|holder| holder.cap.as_ref()) {
            *had.entry(&cap.tenant).or_default() += 1;
        }
        Self(had)
    }

    /// Whether one more is allowed; it counts then.
    pub(super) fn one_more(&mut self, cap: Option<&'a Cap>) -> bool {
        let Some(cap) = cap else { return true };
        let had = self.0.entry(&cap.tenant).or_default();
        let is_allowed = *had < cap.max;
        *had += usize::from(is_allowed);
        is_allowed
    }
}
