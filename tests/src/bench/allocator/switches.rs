//! How long switches take: the daemon's own part, a whole round, a round beside a VM that is silent.

use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::{VFS, VMS, World, bounded, vf_taps};
use crate::bench::drive::{Experiment, Side};
use crate::bench::io::stage::Stage;
use crate::bench::logic::pairs::{Better, median};
use crate::bench::logic::row::Row;
use crate::fleet::daemon::{Status, Switch};
use crate::fleet::logic::machine::Latencies;
use crate::fleet::logic::manner::Manner;
use crate::fleet::{Fleet, Plan, Settings};

/// QEMU and guests that take no time: what is left is the daemon's own.
pub const AT_ONCE: Latencies =
    Latencies { plug: Duration::ZERO, link: Duration::ZERO, unplug: Duration::ZERO };
/// As timed on the emulated SR-IOV host, with guests that have run before.
pub const AS_TIMED: Latencies = Latencies {
    plug: Duration::from_millis(450),
    link: Duration::from_millis(1000),
    unplug: Duration::from_millis(750),
};

/// The daemon's own part, then whole rounds.
pub fn experiments(stage: &Stage) -> Vec<Box<dyn Experiment + '_>> {
    vec![
        Box::new(OwnPart { stage, world: None }),
        Box::new(Rounds { stage, row: ROUND, worlds: None }),
        Box::new(Rounds { stage, row: SILENT, worlds: None }),
    ]
}

/// One switch after the other in a host full of VMs.
struct OwnPart<'s> {
    stage: &'s Stage,
    world: Option<(World, u64)>,
}

const BOUND_MS: f64 = 5.0;

impl Experiment for OwnPart<'_> {
    fn rows(&self) -> Vec<Row> {
        vec![
            bounded("plug-own-part", "ms", "the bound"),
            bounded("unplug-own-part", "ms", "the bound"),
        ]
    }

    fn run(&mut self, side: Side, rows: &[Row]) -> Result<Vec<f64>> {
        if side == Side::Peer {
            return Ok(vec![BOUND_MS; rows.len()]);
        }
        let (mut world, seen) = match self.world.take() {
            Some(world) => world,
            None => {
                let settings = Settings {
                    strategy: "fair",
                    interval_s: 5.0,
                    sample_s: 1.0,
                    switches: 1,
                    drain_s: 0.0,
                    unplug_s: 20.0,
                    taps: vf_taps(VFS)?,
                };
                let plan = Plan { vms: VMS, latencies: AT_ONCE, without_page: None };
                (World::build(self.stage, plan, &settings)?, 0)
            }
        };
        let status = a_round(&mut world, seen, 2 * VFS)?;
        let values = rows.iter().map(|row| {
            let direction = if row.name.starts_with("plug") { "to_vf" } else { "to_pv" };
            let of = after(&status, seen).filter(|switch| switch.direction == direction);
            median(&mut of.map(|switch| switch.total_ms).collect::<Vec<_>>()).context("no switch")
        });
        let values = values.collect::<Result<Vec<_>>>()?;
        let last = status.switches.last().map_or(0, |switch| switch.n);
        self.world = Some((world, last));
        Ok(values)
    }
}

/// 63 VFs change hands at once; against one alone, or with against without a silent VM.
struct Rounds<'s> {
    stage: &'s Stage,
    row: Row,
    worlds: Option<[World; 2]>,
}

const ROUND: Row = Row {
    name: "round-of-63",
    unit: "ms",
    peer_name: "one VF alone",
    better: Better::Lower,
    // At most 1.3 times as long.
    wanted: 0.77,
};
const SILENT: Row = Row {
    name: "beside-a-silent-vm",
    unit: "ms",
    peer_name: "none is silent",
    better: Better::Lower,
    wanted: 1.0,
};
const INTERVAL_S: f64 = 4.0;

impl Experiment for Rounds<'_> {
    fn rows(&self) -> Vec<Row> {
        vec![self.row]
    }

    fn run(&mut self, side: Side, _rows: &[Row]) -> Result<Vec<f64>> {
        let worlds = match self.worlds.take() {
            Some(worlds) => self.worlds.insert(worlds),
            None => {
                let alone = if self.row == ROUND { 1 } else { VFS };
                self.worlds.insert([rounds_of(self.stage, VFS)?, rounds_of(self.stage, alone)?])
            }
        };
        let [ours, peer] = worlds;
        let took = match side {
            Side::Ours => ours.round(self.row == SILENT)?,
            Side::Peer => peer.round(false)?,
        };
        Ok(vec![took.as_secs_f64() * 1e3])
    }
}

fn rounds_of(stage: &Stage, vfs: usize) -> Result<World> {
    let settings = Settings {
        strategy: "fair",
        interval_s: INTERVAL_S,
        sample_s: 1.0,
        switches: VFS,
        drain_s: 0.2,
        unplug_s: 20.0,
        taps: vf_taps(vfs)?,
    };
    let mut world =
        World::build(stage, Plan { vms: VMS, latencies: AS_TIMED, without_page: None }, &settings)?;
    world.daemon.until(PATIENCE, "all VFs are in use", |status| holders(status).count() == vfs)?;
    Ok(world)
}

impl World {
    /// From the first switch that the next decision begins to the end of the last one. With
    /// `silence`, one more VM that has a VF answers nothing any more; it is left out of the count.
    fn round(&mut self, silence: bool) -> Result<Duration> {
        let mut status = self.daemon.status()?;
        if status.next_round_in_s < QUIET_S {
            std::thread::sleep(Duration::from_secs_f64(status.next_round_in_s + QUIET_S));
            status = self.daemon.status()?;
        }
        // By then all switches of the round before have ended.
        let before = (status.next_round_in_s - QUIET_S).max(0.0);
        std::thread::sleep(Duration::from_secs_f64(before));
        let mut status = self.daemon.status()?;
        if silence {
            let chosen = (0..VMS).find(|vm| {
                !self.silent.contains(vm) && holders(&status).any(|name| name == Fleet::name(*vm))
            });
            let chosen = chosen.context("no VM has a VF")?;
            self.fleet.set_manner(chosen, Manner::Mute);
            self.silent.push(chosen);
        }
        let silent: Vec<String> = self.silent.iter().map(|vm| Fleet::name(*vm)).collect();
        let expected = holders(&status).filter(|name| !silent.iter().any(|vm| vm == name)).count();
        let ends = self.daemon.switch_ends(Duration::from_secs_f64(QUIET_S + INTERVAL_S - 0.2))?;
        let ends = ends.iter().filter(|(_, switch)| !silent.contains(&switch.vm));
        let done: Vec<_> = ends.filter(|(_, switch)| switch.outcome == "done").collect();
        if done.len() != 2 * expected {
            status = self.daemon.status()?;
            bail!(
                "{} of {} switches ended in order in round {}",
                done.len(),
                2 * expected,
                status.round
            );
        }
        let ended = done.iter().map(|(at, _)| *at).max().unwrap_or_default();
        let began = done
            .iter()
            .map(|(at, switch)| at.saturating_sub(Duration::from_secs_f64(switch.total_ms / 1e3)));
        Ok(ended.saturating_sub(began.min().unwrap_or_default()))
    }
}

fn holders(status: &Status) -> impl Iterator<Item = &str> {
    status.vms.iter().filter(|vm| vm.path == "vf").map(|vm| vm.vm.as_str())
}

/// The status once so many switches have ended since that one.
fn a_round(world: &mut World, since: u64, switches: usize) -> Result<Status> {
    world.daemon.until(PATIENCE, "the switches of a round", |status| {
        after(status, since).count() >= switches
    })
}

fn after(status: &Status, since: u64) -> impl Iterator<Item = &Switch> {
    status.switches.iter().filter(move |switch| switch.n > since)
}

const PATIENCE: Duration = Duration::from_secs(60);
/// Without switches, at the end of a round.
const QUIET_S: f64 = 0.5;
