//! What a switch costs a guest: one guest, one VF, probes both ways and a TCP transfer.
//!
//! First nothing happens, which shows what the machine itself does to the traffic; then the operator's
//! pin sends the guest to its VF and back, again and again; last its VF is taken away behind everybody's
//! back, while it carries the traffic. It ends with a table (`switches.md`): what was lost, came twice or
//! late, for how long there was nothing, and what TCP had to send again.

use std::fmt::Write;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use flexvf_protocol::VmName;
use serde_json::{Value, json};

use super::Options;
use super::io::guests::{identity, shell_options, shell_socket};
use super::io::host::Host;
use super::io::jsonline::QmpClient;
use super::io::shell::Shell;
use super::logic::result::{Outcome, Probe};
use super::pv::io::streams::{Account, Streams, Target};
use super::pv::logic::result::Probes;
use super::stage::Stage;
use crate::bench::logic::pairs::median;

/// Without a switch: long enough to meet what the machine does now and then.
const REST: Duration = Duration::from_secs(20);
/// On each path, between two switches.
const STAY: Duration = Duration::from_millis(1500);
/// For one switch, under emulation.
const SWITCH_S: f64 = 120.0;
/// Until the guest answers.
const PATIENCE: Duration = Duration::from_secs(60);
/// The daemon decides nothing by itself meanwhile.
const INTERVAL_S: u64 = 3600;

/// A part of the run.
#[derive(Debug)]
struct Row {
    what: String,
    account: Account,
    /// Segments that TCP sent again: the peer and the guest.
    sent_again: (u64, u64),
}

/// Plays it.
pub fn play(options: &Options, host: &Host) -> Result<Outcome> {
    let options = Options { guests: 1, ..options.clone() };
    let [_] = host.vfs.as_slice() else {
        bail!("this scenario needs one VF: give --vfs 1");
    };
    let config = host.daemon_config("activity", INTERVAL_S);
    let stage = Stage::build_with(&options, host, &config, |number| shell_options(host, number))?;
    let mut run = Run::new(stage, &options)?;
    run.pin("pv")?;
    run.stage.start_daemon()?;
    // Its agent is heard, and the bond stands.
    let agent = if options.failover { "net-failover" } else { "flexvf" };
    run.until("the guest can switch", |vm| vm.agent == agent && vm.path == "pv")?;
    let mut rows = vec![run.row("nothing", |_| {
        sleep(REST);
        Ok(())
    })?];
    let rounds = options.rounds;
    rows.push(run.row(&format!("{rounds} to the VF, {rounds} back"), |run| {
        for _ in 0..rounds {
            run.pin("vf")?;
            run.until("the guest is on its VF", |vm| vm.path == "vf")?;
            sleep(STAY);
            run.pin("pv")?;
            run.until("the guest is back on PV", |vm| vm.path == "pv")?;
            sleep(STAY);
        }
        Ok(())
    })?);
    let failures = run.failures(&rows, rounds, options.max_lost);
    run.pin("vf")?;
    run.until("the guest is on its VF", |vm| vm.path == "vf")?;
    rows.push(run.row("the VF taken away", |run| run.take_vf_away())?);
    run.conclude(&options, &rows, failures)
}

struct Run {
    stage: Stage,
    vm: VmName,
    target: Target,
    shell: Shell,
}

impl Run {
    fn new(mut stage: Stage, options: &Options) -> Result<Self> {
        let (vm, address) = identity(1)?;
        let target = Target {
            vm: vm.clone(),
            address,
            probe_pps: options.probe_pps,
            tcp_bytes_per_s: options.tcp_bytes_per_s,
            tcp_rest_ms: 0,
        };
        // It has waited for the guest to boot; each row has a peer of its own.
        stage.peer.end();
        let shell = Shell::connect(&shell_socket(&stage.host, vm.as_str()))?;
        Ok(Self { stage, vm, target, shell })
    }

    fn pin(&mut self, path: &str) -> Result<()> {
        let vm = self.vm.clone();
        self.stage.pin(&vm, path)
    }

    fn until(
        &mut self,
        what: &str,
        holds: impl Fn(&super::logic::status::Vm) -> bool,
    ) -> Result<()> {
        let vm = self.vm.clone();
        let is_so = |status: &super::logic::status::Status| {
            let own = status.vms.iter().find(|it| it.vm == vm);
            own.is_some_and(|own| holds(own) && own.path != "switching")
        };
        if self.stage.tick_until(SWITCH_S, is_so)?.is_none() {
            bail!("not within {SWITCH_S} s: {what}; the daemon says {:?}", self.stage.watch.last());
        }
        Ok(())
    }

    /// Traffic while something happens.
    fn row(&mut self, what: &str, happens: impl FnOnce(&mut Self) -> Result<()>) -> Result<Row> {
        self.stage.say(format!("traffic, and: {what}"));
        let before = self.sent_again()?;
        let streams = Streams::start(&self.stage.host, &self.target, PATIENCE)?;
        happens(self)?;
        let account = streams.end(PATIENCE)?;
        let after = self.sent_again()?;
        let sent_again = (after.0 - before.0, after.1 - before.1);
        Ok(Row { what: what.into(), account, sent_again })
    }

    /// QEMU asks the guest for the device, and neither daemon nor agent hears of it before it is gone.
    fn take_vf_away(&mut self) -> Result<()> {
        sleep(STAY);
        let devices = self.stage.guest(&self.vm)?.plugged()?;
        let device = devices.first().context("no VF is plugged")?;
        let monitor = self.stage.guest(&self.vm)?.monitor().to_owned();
        let mut client = QmpClient::connect(&monitor)?;
        client.execute::<Value>("device_del", &json!({"id": device}))?;
        let began = Instant::now();
        client.event("DEVICE_DELETED")?;
        let took_ms = began.elapsed().as_millis();
        self.stage.say(format!("{device} is gone {took_ms} ms after device_del"));
        // The pin still wants it.
        self.until("the guest has a VF again", |vm| vm.path == "vf")?;
        sleep(STAY);
        Ok(())
    }

    fn sent_again(&mut self) -> Result<(u64, u64)> {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.stage.host.peer_ns, "cat", SNMP]);
        let output = command.output().context("run ip netns exec")?;
        let of_peer = retransmitted(&String::from_utf8_lossy(&output.stdout));
        let of_guest = retransmitted(&self.shell.run(&format!("cat {SNMP}"))?);
        Ok((of_peer.context(SNMP)?, of_guest.context(SNMP)?))
    }

    fn failures(&self, rows: &[Row], rounds: usize, max_lost: u64) -> Vec<String> {
        let mut failures = Vec::new();
        // An emulated guest on a busy machine loses one now and then by itself.
        let at_rest =
            rows.first().map(|row| [row.account.to_guest.lost, row.account.from_guest.lost]);
        let at_rest = at_rest.unwrap_or_default();
        for direction in ["to_vf", "to_pv"] {
            let switches =
                self.stage.watch.switches().filter(|it| it.switch.direction == direction);
            let (done, other): (Vec<_>, Vec<_>) =
                switches.partition(|it| it.switch.outcome == "done");
            if done.len() != rounds {
                failures.push(format!("{} switches {direction}, not {rounds}", done.len()));
            }
            failures.extend(other.iter().map(|it| format!("a switch ended so: {:?}", it.switch)));
        }
        for Row { what, account, .. } in rows.iter().skip(1) {
            let ways = [("to", &account.to_guest), ("from", &account.from_guest)];
            for ((way, probes), at_rest) in ways.into_iter().zip(at_rest) {
                if probes.lost > at_rest + max_lost {
                    failures.push(format!("{what}: {} probes {way} the guest lost", probes.lost));
                }
            }
        }
        failures
    }

    fn conclude(
        mut self,
        options: &Options,
        rows: &[Row],
        mut failures: Vec<String>,
    ) -> Result<Outcome> {
        let broken =
            rows.iter().filter(|row| !row.account.tcp.as_ref().is_some_and(|tcp| tcp.intact));
        failures.extend(broken.map(|row| format!("{}: the TCP transfer is not intact", row.what)));
        let table = table(rows, options.probe_pps);
        println!("{table}");
        for direction in ["to_vf", "to_pv"] {
            let of_direction =
                self.stage.watch.switches().filter(|it| it.switch.direction == direction);
            let mut times: Vec<f64> = of_direction.map(|it| it.switch.total_ms).collect();
            let count = times.len();
            let median_ms = median(&mut times).unwrap_or_default();
            self.stage
                .say(format!("{count} switches {direction}, {median_ms:.0} ms at the median"));
        }
        std::fs::write(self.stage.host.log("switches.md"), table)?;
        failures.extend(self.stage.end_daemon());
        let probes = rows.iter().flat_map(|row| probes_of(&self.vm, row)).collect();
        let passed = failures.is_empty();
        let outcome = self.stage.outcome(options, failures);
        Ok(Outcome { probes, passed, ..outcome })
    }
}

fn probes_of(vm: &VmName, row: &Row) -> [Probe; 2] {
    let ways = [("to_guest", row.account.to_guest), ("from_guest", row.account.from_guest)];
    ways.map(|(direction, probes)| Probe {
        vm: vm.clone(),
        direction,
        sent: probes.sent,
        received: probes.sent - probes.lost,
        lost: probes.lost,
        duplicated: probes.duplicated,
        longest_gap_ms: probes.longest_gap_ms,
    })
}

/// A line a way and row.
fn table(rows: &[Row], probe_pps: u32) -> String {
    let mut text = format!(
        "| switches | probes, {probe_pps}/s | sent | lost | twice | late | longest gap | TCP | sent again |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n"
    );
    for Row { what, account, sent_again } in rows {
        let tcp = account.tcp.as_ref();
        let mib = |bytes: fn(&super::pv::logic::result::Transfer) -> u64| {
            tcp.map_or(0.0, |tcp| bytes(tcp) as f64 / f64::from(1 << 20))
        };
        let intact = if tcp.is_some_and(|tcp| tcp.intact) { "intact" } else { "BROKEN" };
        let ways = [
            ("to the guest", account.to_guest, mib(|tcp| tcp.to_guest), sent_again.0),
            ("from the guest", account.from_guest, mib(|tcp| tcp.from_guest), sent_again.1),
        ];
        for (way, probes, mib, again) in ways {
            let Probes { sent, lost, duplicated, reordered, longest_gap_ms } = probes;
            let _ = writeln!(
                text,
                "| {what} | {way} | {sent} | {lost} | {duplicated} | {reordered} | {longest_gap_ms} ms | {mib:.1} MiB {intact} | {again} |"
            );
        }
    }
    text
}

/// Segments sent again, of the text of `/proc/net/snmp`.
fn retransmitted(text: &str) -> Option<u64> {
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Tcp: "));
    let (names, values) = (lines.next()?, lines.next()?);
    let at = names.split_whitespace().position(|name| name == "RetransSegs")?;
    values.split_whitespace().nth(at)?.parse().ok()
}

const SNMP: &str = "/proc/net/snmp";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_tcp_sent_again_is_found_by_its_name() {
        let text = "Ip: Forwarding\nIp: 1\nTcp: RtoMin OutSegs RetransSegs\nTcp: 200 7 3\nUdp: A\n";
        assert_eq!(retransmitted(text), Some(3));
        assert_eq!(retransmitted("Tcp: RtoMin\nTcp: 200\n"), None);
        assert_eq!(retransmitted(""), None);
    }
}
