//! How the NICs are: their links, their filters, and what they did not take. For `flexvf status`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flexvf_protocol::MacAddr;
use tracing::warn;

use super::Host;
use crate::config::SriovPool;
use crate::logic::settings::VfLink;
use crate::logic::status::{PfStatus, Problem};
use crate::logic::vf::VfId;

/// What was noticed last.
#[derive(Debug, Default)]
pub(super) struct Health(Mutex<Seen>);

#[derive(Debug, Default)]
struct Seen {
    /// By pool.
    pfs: BTreeMap<String, Vec<PfStatus>>,
    /// Guests' addresses that each PF has a filter for.
    filters: BTreeMap<String, BTreeSet<MacAddr>>,
    /// By what they are about, so that each is told once and can be taken back.
    notes: BTreeMap<String, Problem>,
}

impl Health {
    pub(super) fn filter_added(&self, pf: &str, mac: MacAddr) {
        self.seen().filters.entry(pf.to_owned()).or_default().insert(mac);
    }

    pub(super) fn filter_removed(&self, pf: &str, mac: MacAddr) {
        if let Some(macs) = self.seen().filters.get_mut(pf) {
            macs.remove(&mac);
        }
    }

    /// Tells once of something that an operator should know.
    pub(super) fn note(&self, key: &str, subject: &str, text: String) {
        let problem = Problem { subject: subject.to_owned(), text };
        let mut seen = self.seen();
        if seen.notes.get(key) != Some(&problem) {
            warn!("{}", problem.text);
            seen.notes.insert(key.to_owned(), problem);
        }
    }

    pub(super) fn clear(&self, key: &str) {
        self.seen().notes.remove(key);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // Each change is one insertion: in order whoever panicked.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Host {
    /// A pool's PFs as they were last looked at.
    pub(in crate::daemon) fn pfs(&self, pool: &str) -> Vec<PfStatus> {
        self.health.seen().pfs.get(pool).cloned().unwrap_or_default()
    }

    /// What the fastest of a pool's PFs carries; none where one of them does not say.
    pub(in crate::daemon) fn link_mbps(&self, pool: &str) -> Option<u64> {
        let seen = self.health.seen();
        let speeds = seen.pfs.get(pool)?.iter().map(|pf| pf.speed_mbps);
        speeds.collect::<Option<Vec<_>>>()?.into_iter().max()
    }

    /// What else an operator should know.
    pub(in crate::daemon) fn notes(&self) -> Vec<Problem> {
        self.health.seen().notes.values().cloned().collect()
    }

    /// The VFs of PFs that are in order. A VF whose PF has no link would be plugged for nothing; guests that
    /// have one already are not disturbed: their bonds know best.
    pub(super) async fn sriov_vfs(
        &self,
        pool: &str,
        sriov: &SriovPool,
    ) -> (Vec<VfId>, Option<String>) {
        let (functions, problems) = self.functions(sriov);
        let mut problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let mut pfs = Vec::new();
        for name in &sriov.pfs {
            let Ok(link) = self.netlink.link(name).await else { continue };
            let filters = self.health.seen().filters.get(name).map_or(0, BTreeSet::len);
            let pf = PfStatus {
                pf: name.clone(),
                driver: self.sysfs.pf(name).ok().and_then(|pf| pf.driver),
                up: link.up,
                carrier: link.carrier,
                speed_mbps: self.sysfs.speed_mbps(name),
                vfs: functions.iter().filter(|vf| vf.pf == *name).count(),
                filters,
                max_filters: sriov.max_pf_filters,
            };
            problems.extend(fault(&pf, sriov.settings.link_state));
            pfs.push(pf);
        }
        let in_order = |name: &String| {
            pfs.iter().any(|pf| pf.pf == *name && has_link(pf, sriov.settings.link_state))
        };
        let usable = functions.iter().filter(|vf| in_order(&vf.pf));
        let usable = usable.map(|vf| VfId::new(vf.address)).collect();
        self.health.seen().pfs.insert(pool.to_owned(), pfs);
        (usable, (!problems.is_empty()).then(|| problems.join("; ")))
    }
}

/// Whether VFs of this PF can reach anybody.
fn has_link(pf: &PfStatus, vf_link: Option<VfLink>) -> bool {
    pf.up && (pf.carrier || vf_link == Some(VfLink::Enable))
}

fn fault(pf: &PfStatus, vf_link: Option<VfLink>) -> Option<String> {
    let PfStatus { pf: name, filters, .. } = pf;
    if !pf.up {
        return Some(format!("PF {name} is down, and its VFs with it; `ip link set {name} up`"));
    }
    if !has_link(pf, vf_link) {
        return Some(format!(
            "PF {name} has no link: its VFs are given to nobody; look at its cable"
        ));
    }
    let most = pf.max_filters.filter(|most| *filters > *most)?;
    Some(format!(
        "PF {name} filters for {filters} guests on PV, and has room for {most}: most drivers make the NIC promiscuous then, which costs the host every frame on the wire; put fewer VMs on it"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pf() -> PfStatus {
        PfStatus {
            pf: "eth0".into(),
            driver: Some("igb".into()),
            up: true,
            carrier: true,
            speed_mbps: None,
            vfs: 7,
            filters: 3,
            max_filters: Some(3),
        }
    }

    #[test]
    fn a_pf_without_link_and_one_with_too_many_filters_are_told() {
        assert_eq!(fault(&pf(), None), None);
        let told = |pf: PfStatus| fault(&pf, None).unwrap();
        let down = told(PfStatus { up: false, carrier: false, ..pf() });
        assert_eq!(down, "PF eth0 is down, and its VFs with it; `ip link set eth0 up`");
        let dark = PfStatus { carrier: false, ..pf() };
        assert_eq!(
            told(dark.clone()),
            "PF eth0 has no link: its VFs are given to nobody; look at its cable"
        );
        // VFs whose link is always up reach each other without a cable.
        assert_eq!(fault(&dark, Some(VfLink::Enable)), None);
        assert!(
            told(PfStatus { filters: 4, ..pf() }).contains("4 guests on PV, and has room for 3")
        );
        assert_eq!(fault(&PfStatus { max_filters: None, filters: 9, ..pf() }, None), None);
    }

    #[test]
    fn filters_are_counted_once_each() {
        let health = Health::default();
        let mac = |last| MacAddr::new([2, 0, 0, 0, 0, last]);
        let count = || health.seen().filters.get("eth0").map_or(0, BTreeSet::len);
        for last in [1, 2, 2] {
            health.filter_added("eth0", mac(last));
        }
        assert_eq!(count(), 2);
        for _ in 0..2 {
            health.filter_removed("eth0", mac(1));
        }
        assert_eq!(count(), 1);
    }

    #[test]
    fn a_note_is_kept_once_and_taken_back() {
        let health = Health::default();
        for _ in 0..2 {
            health.note("pf0 LinkState", "pf0", "no".into());
        }
        assert_eq!(health.seen().notes.len(), 1);
        health.clear("pf0 LinkState");
        assert_eq!(health.seen().notes.len(), 0);
    }
}
