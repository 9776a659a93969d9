//! What guests and others do at the worst moment: an agent that dies, another client in FlexVF's place,
//! a guest that is stopped while it is asked for its VF, one that knows no hot-plug.

use std::os::unix::net::UnixStream;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flexvf_protocol::VmName;
use serde_json::{Value, json};

use super::super::io::gate::Then;
use super::super::io::guests::shell_socket;
use super::super::io::jsonline::QmpClient;
use super::super::io::shell::Shell;
use super::super::logic::cells::Row;
use super::super::logic::moments::{Moment, moment};
use super::super::logic::status::Status;
use super::super::stage::now_ms;
use super::field::Field;
use super::{CONVERGED, REACHED, next_after, whereabouts};

/// A switch of a VM that nothing is wrong with, while another one is stuck: a scan of the registrations,
/// a way to PV and one to the VF, under emulation.
const ON_TIME: Duration = Duration::from_secs(30);
/// From the first step of a switch to the quarantine of its VF: both deadlines of `super::config_for_upsets`, and some.
const QUARANTINED: Duration = Duration::from_secs(60);

/// With one VF in the pool, which `holder` has; who has it in the end.
pub(super) fn with_one_vf(
    field: &mut Field,
    vms: &[VmName],
    holder: &VmName,
    rows: &mut Vec<Row>,
) -> Result<VmName> {
    let (second, third) = others(vms, holder);
    for vm in [holder, &second, &third] {
        field.await_ready(vm)?;
    }
    rows.push(agent_dies(field, known("join begun")?, &second, &second)?);
    rows.push(agent_dies(field, known("PV activated")?, &second, &third)?);
    rows.push(second_client(field, &third, &second, holder)?);
    Ok(second)
}

/// With two VFs in the pool; the daemon has just been started.
pub(super) fn with_two_vfs(field: &mut Field, vms: &[VmName], rows: &mut Vec<Row>) -> Result<()> {
    let [first, second, third, ..] = vms else { bail!("this needs three guests") };
    field.give_vfs_to(&[first, second])?;
    ensure!(
        field.until_settled(&[first, second], REACHED)?.is_some(),
        "{first} and {second} got no VFs in {} s, without any fault",
        REACHED.as_secs()
    );
    rows.push(stopped(field, first, [second, third])?);
    rows.push(without_hot_plug(field, first, [second, third])?);
    Ok(())
}

/// The agent in `victim` is killed at a moment of the switch that gives the VF to `to`.
fn agent_dies(field: &mut Field, when: Moment, victim: &VmName, to: &VmName) -> Result<Row> {
    let shell = shell_socket(&field.stage.host, victim.as_str());
    let gate = field.gates.get(victim).context("no gate")?;
    gate.set_trap(when.sign, Then::Pass, move || {
        // The guest's init starts it again a second later.
        let killed =
            Shell::connect(&shell).and_then(|mut shell| shell.run("killall -9 qga-extension"));
        if let Err(error) = killed {
            println!("the agent was not killed: {error:#}");
        }
    });
    let began_ms = now_ms();
    field.give_vfs_to(&[to])?;
    let settled = field.until_settled(&[to], CONVERGED)?;
    let sprung = field.gates.get(victim).is_some_and(|gate| !gate.unset_trap());
    Ok(Row {
        what: when.what(),
        to: "agent".into(),
        left: if sprung { "no answer" } else { "IT NEVER CAME TO THIS" }.into(),
        converged_s: settled.filter(|_| sprung).map(|_| seconds_since(began_ms)),
        end: whereabouts(field)?,
        lost: 0,
    })
}

/// Another program waits at a VM's QMP socket, and has it once the daemon is gone.
fn second_client(field: &mut Field, holder: &VmName, vm: &VmName, other: &VmName) -> Result<Row> {
    let socket = field.stage.host.guests_run.join(vm.as_str()).join("qmp.sock");
    let intruder = UnixStream::connect(&socket)?;
    field.stage.kill_daemon()?;
    field.stage.start_daemon()?;
    field.give_vfs_to(&[other])?;
    let settled = field.until_settled(&[other], CONVERGED)?;
    let told = |status: &Status| reason_of(status, vm).contains("another client");
    let told_s = field.stage.tick_until(CONVERGED.as_secs_f64(), told)?;
    let left = format!(
        "{vm} {}; VF from {holder} to {other} meanwhile in {}",
        if told_s.is_some() {
            "is shown with \"another client is connected?\""
        } else {
            "IS NOT SHOWN AS CUT OFF"
        },
        in_words(settled)
    );
    drop(intruder);
    let began_ms = now_ms();
    field.give_vfs_to(&[vm])?;
    let back = field.until_settled(&[vm], CONVERGED)?;
    let good = settled.is_some() && told_s.is_some() && back.is_some();
    Ok(Row {
        what: "a second client on the QMP socket".into(),
        to: "flexvf".into(),
        left,
        converged_s: good.then(|| seconds_since(began_ms)),
        end: whereabouts(field)?,
        lost: 0,
    })
}

/// The guest is stopped when it is asked for its VF, and goes on later.
fn stopped(field: &mut Field, vm: &VmName, others: [&VmName; 2]) -> Result<Row> {
    let monitor = field.stage.guest(vm)?.monitor().to_owned();
    let gate = field.gates.get(vm).context("no gate")?;
    gate.set_trap(known("unplug asked")?.sign, Then::Pass, move || {
        let stopped = QmpClient::connect(&monitor)
            .and_then(|mut client| client.execute::<Value>("stop", &json!({})));
        if let Err(error) = stopped {
            println!("the guest was not stopped: {error:#}");
        }
    });
    let what = "guest stopped when asked for its VF, then run again";
    costs_one_vf(field, vm, others, &others, what, "cont")
}

/// The guest has no driver for hot-plug, until it boots anew.
fn without_hot_plug(field: &mut Field, vm: &VmName, others: [&VmName; 2]) -> Result<Row> {
    field.stage.guest(vm)?.kill_qemu()?;
    field.reboot(vm, "acpiphp.disable=1")?;
    field.await_ready(vm)?;
    // One VF is free for it.
    let [second, _] = others;
    field.give_vfs_to(&[second])?;
    ensure!(field.until_settled(&[second], REACHED)?.is_some(), "{second} keeps no VF");
    let what = "guest without PCI hot-plug gets a VF, then resets";
    costs_one_vf(field, vm, others, &[vm, second], what, "system_reset")
}

/// `vm` is going to be stuck with a VF once `wanted` are to have VFs. The others go on switching on time;
/// its VF is quarantined, and cannot be cleared away under it; after `cure` both VFs serve the others.
fn costs_one_vf(
    field: &mut Field,
    vm: &VmName,
    [second, third]: [&VmName; 2],
    wanted: &[&VmName],
    what: &str,
    cure: &str,
) -> Result<Row> {
    field.give_vfs_to(wanted)?;
    let begun =
        |status: &Status| status.vms.iter().any(|it| it.vm == *vm && it.path == "switching");
    ensure!(
        field.stage.tick_until(CONVERGED.as_secs_f64(), begun)?.is_some(),
        "{vm} is not switched"
    );
    // While it is asked for its VF, and not yet given up.
    let to_third = moved(field, wanted.contains(&vm).then_some(vm), third)?;
    let to_second = moved(field, wanted.contains(&vm).then_some(vm), second)?;
    let is_stuck = |status: &Status| status.vfs().any(|vf| vf.state == "quarantined");
    let stuck = field.stage.tick_until(QUARANTINED.as_secs_f64(), is_stuck)?;
    let reason = field.stage.watch.last().vfs().find_map(|vf| vf.reason.clone());
    let list = flexvf(field, &["quarantine", "list"])?;
    let listed = String::from_utf8_lossy(&list.stdout).into_owned();
    field.stage.say(format!("flexvf quarantine list:\n{listed}"));
    let again = moved(field, None, third)?;
    let vf = field.stage.watch.last().vfs().find(|vf| vf.state == "quarantined");
    let vf = vf.map(|vf| vf.vf.clone()).unwrap_or_default();
    let clear = flexvf(field, &["quarantine", "clear", &vf])?;
    let refusal = String::from_utf8_lossy(&clear.stderr).into_owned();
    field.stage.say(format!("flexvf quarantine clear {vf}: {refusal}"));
    let refused = !clear.status.success() && field.stage.guest(vm)?.plugged()?.len() == 1;

    field.stage.guest(vm)?.qmp(cure)?;
    let began_ms = now_ms();
    field.give_vfs_to(&[second, third])?;
    let healed = field.until_settled(&[second, third], QUARANTINED)?;
    let good = stuck.is_some()
        && listed.contains(vm.as_str())
        && refused
        && healed.is_some()
        && [to_third, to_second, again].iter().all(Option::is_some);
    let left = format!(
        "quarantined: \"{}\"; meanwhile {third} served in {}, {second} in {}, {third} in {}; clear {}",
        reason.unwrap_or_else(|| "NOT QUARANTINED".into()),
        in_words(to_third),
        in_words(to_second),
        in_words(again),
        if refused { "refused" } else { "NOT REFUSED" },
    );
    Ok(Row {
        what: what.into(),
        to: vm.to_string(),
        left,
        converged_s: good.then(|| seconds_since(began_ms)),
        end: whereabouts(field)?,
        lost: 0,
    })
}

/// The VF that is not stuck goes to this VM; how long that took, if it was on time.
fn moved(field: &mut Field, besides: Option<&VmName>, to: &VmName) -> Result<Option<f64>> {
    let wanted: Vec<&VmName> = besides.into_iter().chain([to]).collect();
    field.give_vfs_to(&wanted)?;
    let has = |status: &Status| status.holders() == std::slice::from_ref(to);
    field.stage.tick_until(ON_TIME.as_secs_f64(), has)
}

fn flexvf(field: &Field, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("flexvf");
    command.args(arguments).arg("--socket").arg(field.stage.host.control_socket());
    command.output().context("run flexvf")
}

fn reason_of(status: &Status, vm: &VmName) -> String {
    let found = status.vms.iter().find(|it| it.vm == *vm);
    found.map(|it| it.reason.clone()).unwrap_or_default()
}

fn in_words(seconds: Option<f64>) -> String {
    seconds.map_or_else(|| "NO TIME".into(), |seconds| format!("{seconds:.1} s"))
}

fn seconds_since(began_ms: u64) -> f64 {
    (now_ms() - began_ms) as f64 / 1000.0
}

fn known(name: &str) -> Result<Moment> {
    moment(name).with_context(|| format!("there is no moment {name:?}"))
}

fn others(vms: &[VmName], vm: &VmName) -> (VmName, VmName) {
    let second = next_after(vms, vm);
    let third = next_after(vms, &second);
    (second, third)
}
