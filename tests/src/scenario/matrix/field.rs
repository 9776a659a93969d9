//! Guests with a gate in front of each, whose VFs are moved by the operator's pins: at once, and not
//! once an interval.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use flexvf_protocol::VmName;

use super::super::Options;
use super::super::io::gate::{Gate, Sockets};
use super::super::io::guests::shell_options;
use super::super::io::host::Host;
use super::super::logic::cells::is_settled;
use super::super::logic::judge;
use super::super::logic::plan::GuestLoad;
use super::super::stage::{Stage, now_ms};

/// A guest that was killed is up again after this at the latest.
const BOOT: Duration = Duration::from_secs(180);
/// A guest that the peer has heard so lately is up.
const HEARD_MS: u64 = 2_500;

/// See the module's text.
#[derive(Debug)]
pub(super) struct Field {
    /// Guests, daemon, peer.
    pub(super) stage: Stage,
    /// By the VMs that the daemon may know of.
    pub(super) gates: BTreeMap<VmName, Gate>,
    pins: BTreeMap<VmName, bool>,
    /// Started again, and not awaited since: what they miss is no loss.
    booting: BTreeSet<VmName>,
    losses: BTreeMap<(VmName, &'static str, u64), (u64, u64)>,
}

impl Field {
    /// Starts guests and gates, all VMs pinned to PV, and the daemon.
    pub(super) fn build(options: &Options, host: &Host, config: &str) -> Result<Self> {
        let stage = Stage::build_with(options, host, config, |number| shell_options(host, number))?;
        let mut field = Self {
            stage,
            gates: BTreeMap::new(),
            pins: BTreeMap::new(),
            booting: BTreeSet::new(),
            losses: BTreeMap::new(),
        };
        let loads: Vec<_> =
            field.stage.vms().into_iter().map(|vm| GuestLoad { vm, load_pps: 0 }).collect();
        field.stage.set_loads(&loads)?;
        field.take_in()?;
        field.stage.start_daemon()?;
        Ok(field)
    }

    /// Who is to be on a VF; all others are pinned to PV.
    pub(super) fn give_vfs_to(&mut self, vms: &[&VmName]) -> Result<()> {
        let known: Vec<VmName> = self.gates.keys().cloned().collect();
        for vm in known {
            let wanted = vms.contains(&&vm);
            if self.pins.get(&vm) != Some(&wanted) {
                self.register(&vm, wanted)?;
            }
        }
        Ok(())
    }

    /// Until these are on VFs by everybody's word, and nothing moves; how long that took.
    pub(super) fn until_settled(
        &mut self,
        vms: &[&VmName],
        limit: Duration,
    ) -> Result<Option<f64>> {
        let mut vms: Vec<VmName> = vms.iter().map(|vm| (*vm).clone()).collect();
        vms.sort();
        let began_ms = now_ms();
        loop {
            self.stage.tick()?;
            let seconds = (now_ms() - began_ms) as f64 / 1000.0;
            if is_settled(self.stage.watch.last(), &vms)
                && judge::holders_agree(self.stage.watch.last(), &self.off_quarantine()?).is_empty()
            {
                return Ok(Some(seconds));
            }
            if seconds > limit.as_secs_f64() {
                return Ok(None);
            }
        }
    }

    /// Where FlexVF's devices are by each QEMU's word; one that is being started again has none.
    pub(super) fn plugged(&self) -> Result<Vec<(VmName, String)>> {
        let mut plugged = Vec::new();
        for guest in self.stage.guests.iter().filter(|guest| self.gates.contains_key(&guest.vm)) {
            plugged.extend(guest.plugged()?.into_iter().map(|device| (guest.vm.clone(), device)));
        }
        Ok(plugged)
    }

    /// What is plugged by each QEMU's word, but for VFs that the daemon shows as quarantined.
    fn off_quarantine(&self) -> Result<Vec<(VmName, String)>> {
        let mut plugged = self.plugged()?;
        let stuck = self.stage.watch.last().vfs().filter(|vf| vf.state == "quarantined");
        let stuck: Vec<_> = stuck.map(|vf| format!("flexvf-tap-{}", vf.vf)).collect();
        plugged.retain(|(_, device)| !stuck.contains(device));
        Ok(plugged)
    }

    /// Waits until a VM has an agent and traffic: it may have been killed a moment ago.
    pub(super) fn await_ready(&mut self, vm: &VmName) -> Result<()> {
        let end_ms = now_ms() + BOOT.as_millis() as u64;
        loop {
            self.take_in()?;
            self.stage.tick()?;
            let status = self.stage.watch.last();
            let agent = status.vms.iter().any(|it| it.vm == *vm && it.agent == "flexvf");
            let heard = |report: &crate::traffic::io::peer::VmReport| {
                report.vm == *vm && report.silent_ms.is_some_and(|silent_ms| silent_ms < HEARD_MS)
            };
            if agent && self.stage.peer.report()?.iter().any(heard) {
                self.booting.remove(vm);
                return Ok(());
            }
            if now_ms() > end_ms {
                bail!("{vm} is not ready within {} s", BOOT.as_secs());
            }
        }
    }

    /// Gates for guests that have registered themselves since.
    pub(super) fn take_in(&mut self) -> Result<()> {
        for vm in self.stage.vms() {
            if !self.gates.contains_key(&vm) && self.stage.guest(&vm)?.registration().is_some() {
                let host = &self.stage.host;
                let (ours, theirs) =
                    (host.run.join(vm.as_str()), host.guests_run.join(vm.as_str()));
                fs::create_dir_all(&ours)?;
                let sockets = |folder: std::path::PathBuf| Sockets {
                    qmp: folder.join("qmp.sock"),
                    agent: folder.join("agent.sock"),
                };
                let log = host.log("gates.log");
                self.gates.insert(vm.clone(), Gate::open(sockets(ours), &sockets(theirs), &log)?);
                self.register(&vm, false)?;
            }
        }
        Ok(())
    }

    /// Takes a VM whose QEMU was killed out of everything, as its launcher does, and boots it anew.
    pub(super) fn reboot(&mut self, vm: &VmName, append: &str) -> Result<()> {
        let position = self.stage.guests.iter().position(|guest| guest.vm == *vm);
        let mut guest = self.stage.guests.remove(position.context("no such guest")?);
        self.gates.remove(vm);
        self.pins.remove(vm);
        self.booting.insert(vm.clone());
        let _ = fs::remove_file(self.stage.host.vms_dir().join(format!("{vm}.toml")));
        guest.end();
        let number = vm.as_str().trim_start_matches("vm").parse()?;
        let more = shell_options(&self.stage.host, number);
        self.stage.start_guest(number, &more, append)
    }

    /// VMs whose losses count.
    pub(super) fn running(&self) -> Vec<VmName> {
        self.gates.keys().filter(|vm| !self.booting.contains(*vm)).cloned().collect()
    }

    /// Takes down what the peer knows of losses by now.
    pub(super) fn note_losses(&mut self) -> Result<()> {
        for report in self.stage.peer.report()? {
            for (way, stream) in [("to", &report.to_guest), ("from", &report.from_guest)] {
                for loss in &stream.losses {
                    let key = (report.vm.clone(), way, loss.first);
                    self.losses.entry(key).or_insert((loss.lost, loss.noticed_ms));
                }
            }
        }
        Ok(())
    }

    /// Probes to and from these VMs whose loss was noticed in a window.
    pub(super) fn lost(&self, vms: &[VmName], from_ms: u64, to_ms: u64) -> u64 {
        let within = self.losses.iter().filter(|((vm, ..), (_, noticed_ms))| {
            vms.contains(vm) && (from_ms..to_ms).contains(noticed_ms)
        });
        within.map(|(_, (lost, _))| lost).sum()
    }

    /// Under another name first: the daemon must never read half a file.
    fn register(&mut self, vm: &VmName, wanted: bool) -> Result<()> {
        let theirs = self.stage.guest(vm)?.registration();
        let theirs = theirs.with_context(|| format!("{vm} is not registered"))?;
        let gate = &self.gates.get(vm).with_context(|| format!("{vm} has no gate"))?.sockets;
        let mut text = String::new();
        for line in theirs.lines() {
            let line = match line.split(' ').next() {
                Some("qmp") => format!("qmp = {:?}", gate.qmp),
                Some("agent") => format!("agent = {:?}", gate.agent),
                _ => line.to_owned(),
            };
            text += &(line + "\n");
        }
        if !wanted {
            text += "pin = \"pv\"\n";
        }
        let folder = self.stage.host.vms_dir();
        let new = folder.join(format!(".{vm}.new"));
        fs::write(&new, text)?;
        fs::rename(&new, folder.join(format!("{vm}.toml")))?;
        self.pins.insert(vm.clone(), wanted);
        Ok(())
    }
}
