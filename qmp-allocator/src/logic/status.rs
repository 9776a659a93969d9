//! What `flexvf status` shows: the engine's view of everything, in the words of its users.

use std::path::PathBuf;
use std::time::Duration;

use flexvf_protocol::VmName;
use serde::Serialize;

use super::engine::{Engine, SwitchEnd};
use super::rate::{Rate, Trust};
use super::switch::Phase;
use super::vf::VfId;

/// The whole of it. Field names are an interface: only additions are allowed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Status {
    /// Name of the strategy.
    pub strategy: &'static str,
    /// Between two decisions, seconds.
    pub interval_s: f64,
    /// Decisions made so far.
    pub round: u64,
    /// Until the next decision, seconds.
    pub next_round_in_s: f64,
    /// By name.
    pub pools: Vec<PoolStatus>,
    /// By name.
    pub vms: Vec<VmStatus>,
    /// Nothing is done, only decided and told. Filled in by the daemon.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub dry_run: bool,
    /// How the flight recorder is, if there is one. Filled in by the daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recorder: Option<RecorderStatus>,
    /// The last switches, oldest first.
    pub switches: Vec<SwitchEnd>,
    /// Registration files that could not be used: path and reason. Filled in by the daemon.
    pub problems: Vec<Problem>,
}

/// Something that needs an operator's hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Problem {
    /// File, pool or VM.
    pub subject: String,
    /// What is wrong, and what to do.
    pub text: String,
}

/// How the flight recorder is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct RecorderStatus {
    /// The file that is being written.
    pub file: Option<PathBuf>,
    /// Of all files together.
    pub bytes: u64,
    /// Entries written since the daemon began.
    pub entries: u64,
    /// Entries that could not be written, or for which the disk was too slow.
    pub lost: u64,
    /// Why the last ones were not written, until some are again.
    pub problem: Option<String>,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PoolStatus {
    /// Its name.
    pub name: String,
    /// `sriov` or `emulated`. Filled in by the daemon.
    pub kind: &'static str,
    /// Its PFs. Filled in by the daemon.
    pub pfs: Vec<PfStatus>,
    /// By name.
    pub vfs: Vec<VfStatus>,
    /// What is wrong with the pool as a whole.
    pub problem: Option<String>,
}

/// A PF of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PfStatus {
    /// Its interface.
    pub pf: String,
    /// Its driver.
    pub driver: Option<String>,
    /// Whether it is set up.
    pub up: bool,
    /// Whether it has a link.
    pub carrier: bool,
    /// Its VFs in the pool.
    pub vfs: usize,
    /// Guests' addresses that it filters for because they are on PV.
    pub filters: usize,
    /// How many it has room for, where the configuration says.
    pub max_filters: Option<usize>,
}

/// A VF.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VfStatus {
    /// PCI address or TAP.
    pub vf: VfId,
    /// `free`, `held`, `moving`, `quarantined` or `resting`.
    pub state: &'static str,
    /// Who has it.
    pub vm: Option<VmName>,
    /// Why it is not usable.
    pub reason: Option<String>,
}

/// A VM.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmStatus {
    /// Its name.
    pub vm: VmName,
    /// Its pool.
    pub pool: String,
    /// `pv`, `vf`, `switching`, or `down` when QEMU does not answer.
    pub path: &'static str,
    /// The VF it has, or is getting or giving up.
    pub vf: Option<VfId>,
    /// Packets per second between the last two samples.
    pub rate_pps: Option<f64>,
    /// Of them over PV.
    pub pv_pps: Option<f64>,
    /// Of them over the VF.
    pub vf_pps: Option<f64>,
    /// Who counted.
    pub trust: Trust,
    /// `flexvf`, `stock` or `none`; `net-failover` where none is needed.
    pub agent: &'static str,
    /// Rounds that it ended on a VF.
    pub turns: u64,
    /// Its place in the last ranking, or why it cannot have a VF.
    pub reason: String,
    /// The rate that the last decision used.
    pub last_interval: Option<IntervalStatus>,
}

/// The rate of one interval.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct IntervalStatus {
    /// The decision that used it.
    pub round: u64,
    /// The figures.
    #[serde(flatten)]
    pub rate: Rate,
}

impl Status {
    /// Whether there is something to clear about a VF.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn may_clear(&self, vf: &VfId) -> Result<(), String> {
        let found = self.pools.iter().flat_map(|pool| &pool.vfs).find(|it| it.vf == *vf);
        match found.map(|it| it.state) {
            Some("quarantined" | "resting") => Ok(()),
            Some(state) => Err(format!("VF {vf} is not quarantined: it is {state}")),
            None => Err(format!("there is no VF {vf} in any pool; `flexvf status` shows them")),
        }
    }
}

impl Engine {
    /// Everything, as it is now.
    pub fn status(&self, now: Duration) -> Status {
        Status {
            strategy: self.settings.strategy.name(),
            interval_s: self.settings.interval.as_secs_f64(),
            round: self.round,
            next_round_in_s: self.next_round_in(now).as_secs_f64(),
            pools: self.pools.keys().map(|name| self.pool_status(now, name)).collect(),
            vms: self.vms.keys().filter_map(|name| self.vm_status(now, name)).collect(),
            dry_run: false,
            recorder: None,
            switches: self.ends.iter().cloned().collect(),
            problems: Vec::new(),
        }
    }

    fn pool_status(&self, now: Duration, name: &str) -> PoolStatus {
        let pool = self.pools.get(name);
        let vfs = pool.into_iter().flat_map(|pool| pool.vfs.iter());
        let status = |(vf, rest): (&VfId, &super::engine::Backoff)| {
            let held = self.holder(vf).and_then(|name| self.vms.get_key_value(name));
            let (state, reason) = match held.and_then(|(_, vm)| vm.phase()) {
                Some(Phase::OnVf) => ("held", None),
                Some(Phase::Quarantined(reason)) => ("quarantined", Some(reason)),
                Some(_) => ("moving", None),
                None if rest.until > now => ("resting", Some(rest.reason.clone())),
                None => ("free", None),
            };
            VfStatus { vf: vf.clone(), state, vm: held.map(|(vm, _)| vm.clone()), reason }
        };
        PoolStatus {
            name: name.to_owned(),
            kind: "",
            pfs: Vec::new(),
            vfs: vfs.map(status).collect(),
            problem: pool.and_then(|pool| pool.problem.clone()),
        }
    }

    fn vm_status(&self, now: Duration, name: &VmName) -> Option<VmStatus> {
        let vm = self.vms.get(name)?;
        let rate = vm.meter.recent();
        let path = match vm.phase() {
            Some(Phase::OnVf) => "vf",
            Some(Phase::ToVf | Phase::ToPv) => "switching",
            _ if vm.is_up() => "pv",
            _ => "down",
        };
        let ranked = self
            .pools
            .get(&vm.spec.pool)
            .and_then(|pool| vm.place.and_then(|place| pool.desired.ranking.get(place)));
        let ranked = ranked.map(|ranked| ranked.reason.to_string());
        let unready = vm.hold.is_none().then(|| vm.unready(now)).flatten();
        Some(VmStatus {
            vm: name.clone(),
            pool: vm.spec.pool.clone(),
            path,
            vf: vm.hold.as_ref().map(|(held, _)| held.vf.clone()),
            rate_pps: rate.map(|rate| rate.pps),
            pv_pps: rate.map(|rate| rate.pv_pps),
            vf_pps: rate.map(|rate| rate.vf_pps),
            trust: rate.map_or(Trust::Host, |rate| rate.trust),
            agent: vm.agent.name(),
            turns: vm.turns,
            reason: unready.or(ranked).unwrap_or_else(|| "not ranked yet".to_owned()),
            last_interval: vm.last_interval.map(|(round, rate)| IntervalStatus { round, rate }),
        })
    }
}
