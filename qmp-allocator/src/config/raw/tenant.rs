//! `[tenant.NAME]`: what tenants are due, against what their pools have.

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, Pool, Text};
use crate::config::vm::weight;
use crate::logic::policy::tenant::{Tenant, TenantName, Tenants};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTenant {
    pool: Option<Spanned<String>>,
    weight: Option<Spanned<u32>>,
    min_vfs: Option<Spanned<usize>>,
    max_vfs: Option<Spanned<usize>>,
    reserved_vfs: Option<Spanned<usize>>,
}

pub(super) fn tenants(
    text: &Text,
    raw: &BTreeMap<Spanned<String>, RawTenant>,
    pools: &[Pool],
) -> Result<Tenants, ConfigError> {
    let mut tenants: Vec<Tenant> = Vec::new();
    for (name, raw) in raw {
        let tenant = tenant(text, name, raw, pools)?;
        let most = pools.iter().find(|pool| pool.name == tenant.pool).and_then(Pool::most_vfs);
        let others = tenants.iter().filter(|other| other.pool == tenant.pool);
        let all: usize = others.chain([&tenant]).map(due).fold(0, usize::saturating_add);
        if let Some(most) = most.filter(|most| all > *most) {
            let what = format!(
                "min_vfs and reserved_vfs of the tenants of pool {:?} come to {all} VFs with this one, and it has {most}",
                tenant.pool
            );
            let remedy = "lower them, or give the pool more VFs";
            let at = raw.reserved_vfs.as_ref().filter(|it| *it.get_ref() >= tenant.min_vfs);
            return Err(match at.or(raw.min_vfs.as_ref()) {
                Some(at) => text.refuse(at, what, remedy),
                None => text.refuse(name, what, remedy),
            });
        }
        tenants.push(tenant);
    }
    Ok(tenants.into())
}

/// VFs that are set aside for it at most.
fn due(tenant: &Tenant) -> usize {
    tenant.min_vfs.max(tenant.reserved_vfs)
}

fn tenant(
    text: &Text,
    name: &Spanned<String>,
    raw: &RawTenant,
    pools: &[Pool],
) -> Result<Tenant, ConfigError> {
    let refused = |error: &str| {
        let (what, remedy) = error.split_once("; ").unwrap_or((error, "correct it"));
        text.refuse(name, what, remedy)
    };
    let parsed: Result<TenantName, _> = name.get_ref().parse();
    let parsed = parsed.map_err(|error| refused(&error.to_string()))?;
    let pool = raw.pool.as_ref().map_or("default", |pool| pool.get_ref());
    if !pools.iter().any(|it| it.name == pool) {
        let names: Vec<&str> = pools.iter().map(|pool| pool.name.as_str()).collect();
        let what = format!("tenant {parsed}: no pool is named {pool:?}");
        let remedy = format!("set `pool` to the one that its VMs are of: {}", names.join(", "));
        return Err(match &raw.pool {
            Some(at) => text.refuse(at, what, remedy),
            None => text.refuse(name, what, remedy),
        });
    }
    let count = |found: &Option<Spanned<usize>>| found.as_ref().map(|it| *it.get_ref());
    let tenant = Tenant {
        name: parsed,
        pool: pool.to_owned(),
        weight: weight(text, raw.weight.as_ref())?,
        min_vfs: count(&raw.min_vfs).unwrap_or(0),
        max_vfs: count(&raw.max_vfs),
        reserved_vfs: count(&raw.reserved_vfs).unwrap_or(0),
    };
    if let Some(at) = raw.max_vfs.as_ref().filter(|at| *at.get_ref() < due(&tenant)) {
        let (most, least) = (at.get_ref(), due(&tenant));
        let what = format!("max_vfs {most} below the {least} of min_vfs and reserved_vfs");
        return Err(text.refuse(at, what, "give at least as many, or lower those"));
    }
    Ok(tenant)
}
