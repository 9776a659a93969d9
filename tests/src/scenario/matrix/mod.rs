//! The crash matrix: at each moment of a switch to a VF and of one back, the daemon is killed, and then
//! the VM's QEMU; after each kill all must come to order by itself.
//!
//! VFs are emulated ones, one in the pool, so that one that is lost is missed at once. Guests run on from
//! cell to cell; one whose QEMU was killed boots while the next cell is played.

mod field;
mod upsets;

use std::sync::mpsc::{Sender, channel};
use std::thread::spawn;
use std::time::Duration;

use anyhow::{Result, bail};
use flexvf_protocol::VmName;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::io::gate::Then;
use super::io::host::Host;
use super::io::jsonline::QmpClient;
use super::logic::cells::{Cell, Row, Victim, cells, failures, table};
use super::logic::moments::Sign;
use super::logic::result::Outcome;
use super::stage::now_ms;
use super::{Options, Strategy};
use field::Field;

/// All is to be in order again after this: a switch to PV and one to a VF under emulation, and a start
/// of the daemon, several times over.
const CONVERGED: Duration = Duration::from_secs(60);
/// A switch comes to each of its moments within this.
const REACHED: Duration = Duration::from_secs(120);
/// Losses are heard of so late at the latest: guests report every two seconds.
const REPORTED: Duration = Duration::from_secs(5);

/// Plays it.
pub fn play(options: &Options, host: &Host) -> Result<Outcome> {
    if host.pool != "emulated" {
        bail!("the matrix needs scripts/testbed/fast-host: it knows the commands of emulated VFs");
    }
    if host.vfs.len() < 2 || options.guests < 3 {
        bail!("the matrix needs two VFs and three guests");
    }
    let mut host = host.clone();
    host.guests_run = host.run.join("guests");
    let all_vfs = host.vfs.clone();
    host.vfs.truncate(1);
    let options = Options { strategy: Strategy::Activity, ..options.clone() };
    let mut field = Field::build(&options, &host, &config(&host))?;
    let mut rows = Vec::new();
    let mut windows = Vec::new();
    let vms = field.stage.vms();
    let [first, ..] = vms.as_slice() else { bail!("the matrix needs guests") };
    field.await_ready(first)?;
    field.give_vfs_to(&[first])?;
    if field.until_settled(&[first], REACHED)?.is_none() {
        bail!("{first} got no VF in {} s, without any kill", REACHED.as_secs());
    }
    let mut holder = first.clone();
    for cell in cells(options.every.into()) {
        let to = next_after(&vms, &holder);
        field.await_ready(&to)?;
        let mut counted = field.running();
        let began_ms = now_ms();
        let (row, killed, now_with) = play_cell(&mut field, cell, &holder, &to)?;
        holder = now_with;
        counted.retain(|vm| Some(vm) != killed.as_ref());
        windows.push((began_ms, now_ms(), counted));
        field.note_losses()?;
        let done = row.converged_s.is_some();
        field.stage.say(format!(
            "CELL {}",
            table(std::slice::from_ref(&row)).lines().last().unwrap_or_default()
        ));
        rows.push(row);
        if !done {
            // What follows would only tell of this again.
            break;
        }
    }
    std::thread::sleep(REPORTED);
    field.note_losses()?;
    for (row, (from_ms, to_ms, counted)) in rows.iter_mut().zip(windows) {
        row.lost = field.lost(&counted, from_ms, to_ms);
    }
    // The table is told in any case.
    let upset = if rows.iter().all(|row| row.converged_s.is_some()) {
        play_upsets(&mut field, &vms, &holder, all_vfs, &mut rows)
    } else {
        Ok(())
    };
    conclude(field, &options, &rows, upset)
}

fn play_upsets(
    field: &mut Field,
    vms: &[VmName],
    holder: &VmName,
    all_vfs: Vec<String>,
    rows: &mut Vec<Row>,
) -> Result<()> {
    field.stage.configure(&config_for_upsets(&field.stage.host))?;
    field.stage.kill_daemon()?;
    field.stage.start_daemon()?;
    upsets::with_one_vf(field, vms, holder, rows)?;
    field.stage.kill_daemon()?;
    field.stage.host.vfs = all_vfs;
    field.stage.configure(&config_for_upsets(&field.stage.host))?;
    field.stage.start_daemon()?;
    upsets::with_two_vfs(field, vms, rows)
}

fn conclude(
    mut field: Field,
    options: &Options,
    rows: &[Row],
    upset: Result<()>,
) -> Result<Outcome> {
    let mut failures = failures(rows, CONVERGED.as_secs_f64());
    failures.extend(upset.err().map(|error| format!("{error:#}")));
    failures.extend(field.stage.wrong_macs()?);
    failures.extend(field.stage.end_daemon());
    println!("{}", table(rows));
    std::fs::write(field.stage.host.log("matrix.md"), table(rows))?;
    Ok(field.stage.outcome(options, failures))
}

/// Decisions are left to the pins.
fn config(host: &Host) -> String {
    host.daemon_config(Strategy::Activity.name(), 3600)
}

/// Where deadlines are meant to pass, they are short.
fn config_for_upsets(host: &Host) -> String {
    let text = config(host);
    let text = text.replace("unplug_s = 60", "unplug_s = 12").replace("join_s = 60", "join_s = 12");
    text.replace("qmp_s = 30", "qmp_s = 5").replace("agent_s = 20", "agent_s = 4")
}

/// Moves the VF from one VM to another and kills at the cell's moment. The row, the VM that was killed,
/// and the one that has the VF now.
fn play_cell(
    field: &mut Field,
    cell: Cell,
    from: &VmName,
    to: &VmName,
) -> Result<(Row, Option<VmName>, VmName)> {
    let subject = if cell.moment.to_vf { to } else { from };
    let kills_qemu = cell.victim == Victim::Qemu;
    let pids = match cell.victim {
        Victim::Daemon => vec![field.stage.daemon_pid()?],
        Victim::Qemu => {
            let stand_in = field.gates.get(subject).map(|gate| gate.stand_in());
            let qemu = field.stage.guest(subject)?.qemu()?.as_raw().cast_unsigned();
            [Some(qemu), stand_in].into_iter().flatten().collect()
        }
    };
    let (sprung, springs) = channel();
    let act = move || kill_all(&pids, &sprung);
    match cell.moment.sign {
        Sign::Ended => at_the_end_of_a_switch(field, subject.clone(), act)?,
        sign => match field.gates.get(subject) {
            Some(gate) => gate.set_trap(sign, Then::Cut, act),
            None => bail!("{subject} has no gate"),
        },
    }
    field.stage.say(format!("{}, kill {}: {from} -> {to}", cell.what(), cell.victim.name()));
    field.give_vfs_to(&[to])?;
    let mut row = Row {
        what: cell.what(),
        to: cell.victim.name().into(),
        left: String::new(),
        converged_s: None,
        end: "the switch never came to this moment".into(),
        lost: 0,
    };
    let Ok(killed_ms) = springs.recv_timeout(REACHED) else {
        return Ok((row, None, to.clone()));
    };
    let heir = if kills_qemu && cell.moment.to_vf { from } else { to };
    if kills_qemu {
        field.reboot(subject, "")?;
        field.give_vfs_to(&[heir])?;
    } else {
        field.stage.kill_daemon()?;
    }
    row.left = whereabouts(field)?;
    if !kills_qemu {
        field.stage.start_daemon()?;
    }
    let settled = field.until_settled(&[heir], CONVERGED)?;
    row.converged_s = settled.map(|_| (now_ms() - killed_ms) as f64 / 1000.0);
    row.end = whereabouts(field)?;
    Ok((row, kills_qemu.then(|| subject.clone()), heir.clone()))
}

fn kill_all(pids: &[u32], sprung: &Sender<u64>) {
    for pid in pids {
        // One that has gone already is no failure.
        let _ = kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL);
    }
    let _ = sprung.send(now_ms());
}

/// The control socket tells of it; the event is the last thing that a switch does.
fn at_the_end_of_a_switch(
    field: &Field,
    vm: VmName,
    act: impl FnOnce() + Send + 'static,
) -> Result<()> {
    let mut client = QmpClient::connect(&field.stage.host.control_socket())?;
    spawn(move || {
        while let Ok(end) = client.event("FLEXVF_SWITCH_ENDED") {
            if end["vm"] == vm.as_str() {
                return act();
            }
        }
    });
    Ok(())
}

/// Where VFs are, by each QEMU's word.
fn whereabouts(field: &Field) -> Result<String> {
    let plugged = field.plugged()?;
    let each = plugged
        .iter()
        .map(|(vm, device)| format!("{} in {vm}", device.trim_start_matches("flexvf-tap-")));
    let each: Vec<_> = each.collect();
    Ok(if each.is_empty() { "in no VM".into() } else { each.join(", ") })
}

fn next_after(vms: &[VmName], vm: &VmName) -> VmName {
    let at = vms.iter().position(|it| it == vm).map_or(0, |at| at + 1);
    vms.get(at % vms.len().max(1)).unwrap_or(vm).clone()
}
