//! The demo: load moves from guest to guest, and the VFs follow it.

use anyhow::Result;
use flexvf_protocol::VmName;

use super::io::host::Host;
use super::logic::blame::cause_of;
use super::logic::judge::{self, Shift, names};
use super::logic::plan::{busy_guests, expected_holders, loads, rounds_for_equal_turns};
use super::logic::result::{Cause, Details, IntervalDetail, Outcome, Probe, Rate};
use super::stage::{Stage, now_ms};
use super::{Options, Strategy};
use crate::traffic::io::peer::{StreamReport, VmReport};

/// Plays it.
pub fn play(options: &Options, host: &Host) -> Result<Outcome> {
    let mut stage = Stage::build(options, host)?;
    let streams_ms = begin(&mut stage, options)?;
    let mut failures = match options.strategy {
        Strategy::Activity => {
            let shifts = follow_load(&mut stage, options)?;
            judge::shifts(&shifts)
        }
        Strategy::Fair => take_turns(&mut stage, options)?,
    };
    failures.extend(stage.wrong_macs()?);
    failures.extend(vfs_are_where_flexvf_says(&mut stage)?);
    host.save_lspci("host-lspci-with-vfs.txt")?;
    conclude(stage, options, streams_ms, failures)
}

/// Starts the streams with the first phase's load, then the daemon. When the streams began.
pub fn begin(stage: &mut Stage, options: &Options) -> Result<u64> {
    let busy = busy_guests(stage.guests.len(), stage.host.vfs.len());
    stage.set_loads(&loads(&stage.vms(), busy, options.load_pps(&stage.host), 0))?;
    let streams_ms = now_ms();
    stage.say(format!(
        "starting flexvf: strategy {}, a decision every {} s",
        options.strategy.name(),
        options.interval
    ));
    stage.start_daemon()?;
    Ok(streams_ms)
}

/// Moves the load `rounds` times and waits each time until the VFs are with the busiest.
fn follow_load(stage: &mut Stage, options: &Options) -> Result<Vec<Shift>> {
    let interval_s = options.interval as f64;
    let mut shifts = Vec::new();
    for phase in 0..options.rounds.max(1) {
        if phase > 0 {
            // Just after a decision, so that the next one sees a whole interval of the new load.
            stage.await_decision(2.0 * interval_s)?;
        }
        shifts.push(shift(stage, options, phase, 2.0 * interval_s)?);
    }
    Ok(shifts)
}

/// Moves the load to its `phase`th place and waits until the VFs have followed; longer
/// than allowed, so that late can be told from never.
pub fn shift(stage: &mut Stage, options: &Options, phase: usize, limit_s: f64) -> Result<Shift> {
    let vms = stage.vms();
    let busy = busy_guests(vms.len(), stage.host.vfs.len());
    let loads = loads(&vms, busy, options.load_pps(&stage.host), phase);
    let expected = expected_holders(&loads);
    stage.set_loads(&loads)?;
    let followed_s = stage.tick_until(2.0 * limit_s, |status| status.holders() == expected)?;
    let who = names(&expected);
    stage.say(match followed_s {
        Some(after_s) => format!("the VFs are with {who}, {after_s:.0} s after the load moved"),
        None => format!("the VFs are still not with {who}"),
    });
    Ok(Shift { expected, followed_s, limit_s })
}

/// Lets the daemon go round until everybody has had as many turns, moving the load all the while.
fn take_turns(stage: &mut Stage, options: &Options) -> Result<Vec<String>> {
    let vms = stage.vms();
    let circle = rounds_for_equal_turns(vms.len(), stage.host.vfs.len());
    let busy = busy_guests(vms.len(), stage.host.vfs.len());
    // A turn counts when its round ends, and the first decision only begins one.
    let least = circle * options.rounds.max(1) as u64 + 1;
    // A first decision that came before the guests were known begins no turn: one circle more.
    for round in 1..=least + circle {
        stage.await_decision(2.0 * options.interval as f64 + 10.0)?;
        if round >= least && judge::turns(stage.watch.last()).is_empty() {
            break;
        }
        let phase = round as usize;
        stage.set_loads(&loads(&vms, busy, options.load_pps(&stage.host), phase))?;
    }
    let failures = judge::turns(stage.watch.last());
    // The switches of the last decision end before the streams do.
    let limit_s = 2.0 * options.interval as f64;
    stage.tick()?;
    stage.tick_until(limit_s, |status| !status.is_switching())?;
    Ok(failures)
}

/// The daemon's word against QEMU's, at a moment without switches.
pub fn vfs_are_where_flexvf_says(stage: &mut Stage) -> Result<Vec<String>> {
    const LIMIT_S: f64 = 60.0;
    if stage.tick_until(LIMIT_S, |status| !status.is_switching())?.is_none() {
        return Ok(vec![format!("flexvf is still switching after {LIMIT_S:.0} s")]);
    }
    let plugged = stage.plugged()?;
    let status = stage.watch.last();
    let mut failures = judge::vfs(status, &plugged, stage.host.vfs.len());
    failures.extend(judge::holders_agree(status, &plugged));
    Ok(failures)
}

/// Ends everything in order and draws up the account.
pub fn conclude(
    mut stage: Stage,
    options: &Options,
    streams_ms: u64,
    mut failures: Vec<String>,
) -> Result<Outcome> {
    let streams_end_ms = now_ms();
    let (reports, unreached) = stage.end_streams()?;
    failures.extend(unreached);
    failures.extend(stage.end_daemon());
    let probes: Vec<Probe> = reports.iter().flat_map(probes_of).collect();
    failures.extend(judge::probes(&probes, options.max_gap_ms));
    let losses = losses_of(&stage, &reports);
    let (rates, intervals) = rates_of(&mut stage, streams_ms, streams_end_ms)?;
    failures.extend(judge::rates(&rates, &stage.vms()));
    tell(&mut stage, &reports, &probes, &losses, &rates);
    let outcome = Outcome {
        strategy: options.strategy.name().into(),
        pool: stage.host.pool.clone(),
        switches: stage.watch.switches().map(Into::into).collect(),
        probes,
        rates,
        passed: failures.is_empty(),
        failures,
    };
    let details = Details { losses, intervals, log: std::mem::take(&mut stage.log) };
    let details = serde_json::to_string_pretty(&details)?;
    std::fs::write(stage.host.log("details.json"), details)?;
    Ok(outcome)
}

fn probes_of(report: &VmReport) -> [Probe; 2] {
    let probe = |direction, stream: &StreamReport| Probe {
        vm: report.vm.clone(),
        direction,
        sent: stream.sent,
        received: stream.counts.received,
        lost: stream.sent.saturating_sub(stream.counts.received),
        duplicated: stream.counts.duplicated,
        longest_gap_ms: stream.counts.longest_gap_ms,
    };
    [probe(TO_GUEST, &report.to_guest), probe(FROM_GUEST, &report.from_guest)]
}

const TO_GUEST: &str = "to_guest";
const FROM_GUEST: &str = "from_guest";

fn losses_of(stage: &Stage, reports: &[VmReport]) -> Vec<Cause> {
    let streams = reports.iter().flat_map(|report| {
        [(TO_GUEST, &report.to_guest), (FROM_GUEST, &report.from_guest)]
            .map(|(direction, stream)| (&report.vm, direction, stream))
    });
    let causes = streams.flat_map(|(vm, direction, stream)| {
        stream.losses.iter().map(move |loss| Cause {
            vm: vm.clone(),
            direction,
            lost: loss.lost,
            noticed_ms: loss.noticed_ms,
            during: cause_of(vm, loss.noticed_ms, &stage.watch),
        })
    });
    causes.collect()
}

/// Means over the intervals that lie wholly within the streams, and each interval by itself.
fn rates_of(
    stage: &mut Stage,
    from_ms: u64,
    to_ms: u64,
) -> Result<(Vec<Rate>, Vec<IntervalDetail>)> {
    let (mut rates, mut details) = (Vec::new(), Vec::new());
    for vm in stage.vms() {
        let (mut generated, mut seen, mut seconds) = (0.0, 0.0, 0.0);
        for interval in stage.watch.intervals(&vm, from_ms, to_ms) {
            let length_s = interval.to_ms.saturating_sub(interval.from_ms) as f64 / 1000.0;
            let in_window = stage.peer.generated(&vm, interval.from_ms, interval.to_ms)?;
            let Some(packets) = in_window.filter(|_| length_s > 0.0) else {
                continue;
            };
            generated += packets;
            seen += interval.pps * length_s;
            seconds += length_s;
            details.push(IntervalDetail {
                vm: vm.clone(),
                seen: interval,
                generated_pps: packets / length_s,
            });
        }
        if seconds > 0.0 {
            rates.push(Rate { vm, generated_pps: generated / seconds, seen_pps: seen / seconds });
        }
    }
    Ok((rates, details))
}

fn tell(
    stage: &mut Stage,
    reports: &[VmReport],
    probes: &[Probe],
    losses: &[Cause],
    rates: &[Rate],
) {
    for probe in probes {
        let Probe { vm, direction, sent, lost, duplicated, longest_gap_ms, .. } = probe;
        stage.say(format!(
            "{vm:<6} probes {direction:<10} sent {sent:>6}, lost {lost}, duplicated {duplicated}, longest gap {longest_gap_ms} ms"
        ));
    }
    for Cause { vm, direction, lost, during, .. } in losses {
        stage.say(format!("{vm:<6} lost {lost} {direction} during {during}"));
    }
    for VmReport { vm, load_sent, load_received, send_errors, .. } in reports {
        stage.say(format!(
            "{vm:<6} load to guest {} of {} arrived, from guest {} of {}; refused by a kernel: {send_errors}",
            load_received.0, load_sent.0, load_received.1, load_sent.1
        ));
    }
    for Rate { vm, generated_pps, seen_pps } in rates {
        stage.say(format!(
            "{vm:<6} generated {generated_pps:.1} packets/s, flexvf saw {seen_pps:.1}"
        ));
    }
}

/// VMs by name, those in `gone` left out.
pub fn without(vms: &[VmName], gone: &VmName) -> Vec<VmName> {
    vms.iter().filter(|vm| *vm != gone).cloned().collect()
}
