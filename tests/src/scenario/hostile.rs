//! QEMUs and guests that send what they should not, among others that behave: the daemon stays within
//! its memory, and on time for all others.
//!
//! No guest runs: the VMs are a [`fleet`](crate::fleet)'s. All take their turns with the VFs, first in
//! peace; then some send lines of a GiB, lists ten thousand deep, bytes that are no text, events
//! without end, a byte a second, nothing, or lies, and one keeps its VF; and all that the others can see
//! of it must be no slower. It ends with a table (`hostile.md`) of what each did and what came of it.

use std::fmt::{self, Display, Formatter, Write};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::Options;
use super::io::host::Host;
use super::logic::result::Outcome;
use crate::bench::io::process::own_resident_mib;
use crate::bench::logic::pairs::median;
use crate::fleet::daemon::{Status, Switch, VmStatus};
use crate::fleet::logic::machine::{Channel, Latencies};
use crate::fleet::logic::manner::{Flood, Garble, Lie, Manner};
use crate::fleet::{Daemon, Fleet, Plan, Settings};

const VMS: usize = 60;
/// More than there are hostile VMs: one that takes a VF and gives no answer keeps it.
const VFS: usize = 24;
const INTERVAL_S: f64 = 3.0;
/// Rounds in peace, and as many among the hostile.
const ROUNDS: u64 = 6;
/// Slower than this, at the median, is not on time any more: a tenth of a second in peace is usual on a
/// busy machine.
const ALLOWANCE_MS: f64 = 50.0;
/// A status that takes longer shows a daemon that is busy with somebody.
const STATUS_WITHIN: Duration = LATE_AT_MOST;
/// Of the daemon, for all of them: what a QEMU's and a guest's line may hold, with as much again for
/// the allocator, and the room of the system's own.
const ALLOWED_MIB: f64 = HOSTILE.len() as f64 * 2.0 * (0.25 + 0.0625) + 2.0;
/// All decisions together may be so much late, and the slowest switch slower than in peace.
const LATE_AT_MOST: Duration = Duration::from_millis(500);

/// What both directions of the fastest link that the daemon believes in carry, packets a second.
const BELIEVED_PPS: f64 = 2.0 * 100_000.0 * 1e6 / (84.0 * 8.0);

const HOSTILE: [(&str, Manner); 17] = [
    ("a line of a GiB from QEMU", Manner::Floods(Channel::Qmp, Flood::LongLine)),
    ("a line of a GiB from an agent", Manner::Floods(Channel::Agent, Flood::LongLine)),
    ("events without end", Manner::Floods(Channel::Qmp, Flood::Events)),
    ("events from an agent, which has none", Manner::Floods(Channel::Agent, Flood::Events)),
    ("lists 10,000 deep from QEMU", Manner::Garbles(Channel::Qmp, Garble::Nested)),
    ("lists 10,000 deep from an agent", Manner::Garbles(Channel::Agent, Garble::Nested)),
    ("no UTF-8 from QEMU", Manner::Garbles(Channel::Qmp, Garble::NotUtf8)),
    ("no UTF-8 from an agent", Manner::Garbles(Channel::Agent, Garble::NotUtf8)),
    ("a QEMU with a byte a second", Manner::Drips(Channel::Qmp)),
    ("an agent with a byte a second", Manner::Drips(Channel::Agent)),
    ("silence", Manner::Mute),
    ("answers with stale ids", Manner::Lies(Lie::StaleIds)),
    ("10,000 interfaces for an answer", Manner::Lies(Lie::Crowd)),
    ("terminal escapes in names and refusals", Manner::Lies(Lie::Escapes)),
    ("counts 5,000,000,000 packets a second", Manner::Lies(Lie::Counters)),
    ("says that it has left, and goes on sending", Manner::Lies(Lie::Lingers)),
    ("refuses the unplug", Manner::Clings),
];

/// What was seen of the VMs that behave, and of the daemon.
struct Seen {
    median_ms: f64,
    slowest_ms: f64,
    switches: usize,
    resident_mib: f64,
    cpu_percent: f64,
    /// The daemon's last word, and the number of the last switch before.
    last: Status,
    since: u64,
}

/// Plays it.
pub fn play(options: &Options, host: &Host) -> Result<Outcome> {
    if host.pool != "emulated" || host.vfs.len() < VFS {
        bail!("this scenario needs scripts/testbed/fast-host --vfs {VFS}");
    }
    let latencies = Latencies {
        plug: Duration::from_millis(50),
        link: Duration::from_millis(50),
        unplug: Duration::from_millis(100),
    };
    let place = |wanted: Manner| {
        let at = HOSTILE.iter().position(|(_, manner)| *manner == wanted);
        at.map(|number| number * VMS / HOSTILE.len())
    };
    let without_page = place(Manner::Lies(Lie::Counters));
    let plan = Plan { vms: VMS, latencies, without_page };
    let fleet = Fleet::start(&host.run.join("fleet"), plan)?;
    let settings = Settings {
        strategy: "fair",
        interval_s: INTERVAL_S,
        sample_s: 1.0,
        switches: VFS,
        drain_s: 0.05,
        unplug_s: 2.0,
        taps: host.vfs.iter().take(VFS).cloned().collect(),
    };
    let mut daemon = Daemon::start(&host.run.join("daemon"), &host.log("flexvf.log"), &settings)?;
    daemon.register(&fleet, VMS, &[])?;
    let mut failures = Vec::new();
    let peace = look(&mut daemon, &[], &mut failures)?;
    println!("in peace: {peace}");
    let mut hostile = Vec::new();
    for (number, (what, manner)) in HOSTILE.into_iter().enumerate() {
        let vm = number * VMS / HOSTILE.len();
        fleet.set_manner(vm, manner);
        println!("{}: {what}", Fleet::name(vm));
        hostile.push(Fleet::name(vm));
    }
    let besieged = look(&mut daemon, &hostile, &mut failures)?;
    println!("among {} hostile VMs: {besieged}", HOSTILE.len());
    // Some VFs are with those who do not give them back.
    if besieged.switches < peace.switches / 2 {
        failures.push(format!(
            "others had {} switches, in peace {}",
            besieged.switches, peace.switches
        ));
    }
    if besieged.median_ms > peace.median_ms + ALLOWANCE_MS {
        failures.push(format!("others' switches: {besieged}; in peace {peace}"));
    }
    if besieged.slowest_ms > peace.slowest_ms + LATE_AT_MOST.as_secs_f64() * 1e3 {
        failures.push(format!("the slowest of others: {besieged}; in peace {peace}"));
    }
    let grown = besieged.resident_mib - peace.resident_mib;
    if grown > ALLOWED_MIB {
        failures
            .push(format!("the daemon has grown by {grown:.1} MiB, {ALLOWED_MIB:.1} are allowed"));
    }
    let treatments = HOSTILE.iter().zip(&hostile).map(|((what, manner), vm)| {
        let treatment = Treatment::of(&besieged, vm);
        failures.extend(treatment.failures(*manner).map(|wrong| format!("{vm}, {what}: {wrong}")));
        (*what, vm.as_str(), treatment)
    });
    let table = table(treatments);
    println!("{table}");
    std::fs::write(host.log("hostile.md"), table)?;
    failures.extend(unprintable(&besieged.last).map(|text| format!("in the status: {text:?}")));
    let log = std::fs::read(host.log("flexvf.log")).context("read the daemon's log")?;
    failures.extend(
        unprintable_text(&String::from_utf8_lossy(&log).replace('\n', ""))
            .then(|| "the daemon's log has characters that move a cursor".to_owned()),
    );
    Ok(Outcome {
        strategy: options.strategy.name().into(),
        pool: host.pool.clone(),
        switches: Vec::new(),
        probes: Vec::new(),
        rates: Vec::new(),
        passed: failures.is_empty(),
        failures,
    })
}

/// Some rounds of the daemon's.
fn look(daemon: &mut Daemon, hostile: &[String], failures: &mut Vec<String>) -> Result<Seen> {
    let first = daemon.status()?;
    let (cpu, began) = (daemon.cpu_time()?, Instant::now());
    let mut resident_mib: f64 = 0.0;
    let end = first.round + ROUNDS + 1;
    let patience = Duration::from_secs_f64(INTERVAL_S) * (ROUNDS as u32 + 4);
    let last = loop {
        let asked = Instant::now();
        let status = daemon.status()?;
        if asked.elapsed() > STATUS_WITHIN {
            failures.push(format!("the status took {:?}", asked.elapsed()));
        }
        resident_mib = resident_mib.max(own_resident_mib(daemon.pid())?);
        if status.round >= end {
            let on_time = first.next_round_in_s + INTERVAL_S * (ROUNDS as f64);
            let late = began.elapsed().saturating_sub(Duration::from_secs_f64(on_time));
            if late > POLL + LATE_AT_MOST {
                failures.push(format!("the decisions came late by {late:?}"));
            }
            break status;
        }
        if began.elapsed() > patience {
            bail!("{} decisions within {patience:?}", status.round - first.round);
        }
        sleep(POLL);
    };
    let before = first.switches.last().map_or(0, |switch| switch.n);
    let of_others = |switch: &&Switch| switch.n > before && !hostile.contains(&switch.vm);
    let switches: Vec<&Switch> = last.switches.iter().filter(of_others).collect();
    for switch in switches.iter().filter(|switch| switch.outcome != "done") {
        failures.push(format!("{}: {} ended {}", switch.vm, switch.direction, switch.outcome));
    }
    let mut times: Vec<f64> = switches.iter().map(|switch| switch.total_ms).collect();
    let used = daemon.cpu_time()?.saturating_sub(cpu);
    Ok(Seen {
        median_ms: median(&mut times).context("no switch")?,
        // Sorted by the median.
        slowest_ms: times.last().copied().context("no switch")?,
        switches: switches.len(),
        resident_mib,
        since: before,
        cpu_percent: 100.0 * used.as_secs_f64() / began.elapsed().as_secs_f64(),
        last,
    })
}

/// What the host did with a VM.
struct Treatment {
    path: String,
    reason: String,
    rate_pps: f64,
    trust: String,
    /// A VF that nobody can have now, and why.
    quarantined: Option<String>,
    /// Direction and outcome of each of its switches.
    switches: Vec<(String, String)>,
}

impl Treatment {
    fn of(seen: &Seen, vm: &str) -> Self {
        let status = seen.last.vms.iter().find(|status| status.vm == vm);
        let text =
            |of: fn(&VmStatus) -> &String| status.map_or_else(String::new, |vm| of(vm).clone());
        let vfs = seen.last.pools.iter().flat_map(|pool| &pool.vfs);
        let mut kept = vfs.filter(|vf| vf.vm.as_deref() == Some(vm) && vf.state == "quarantined");
        let kept = kept.next().map(|vf| vf.reason.clone().unwrap_or_default());
        let own = seen.last.switches.iter().filter(|it| it.vm == vm && it.n > seen.since);
        Self {
            path: text(|vm| &vm.path),
            reason: text(|vm| &vm.reason),
            rate_pps: status.and_then(|vm| vm.rate_pps).unwrap_or_default(),
            trust: text(|vm| &vm.trust),
            quarantined: kept,
            switches: own.map(|it| (it.direction.clone(), it.outcome.clone())).collect(),
        }
    }

    /// What should have been done otherwise.
    fn failures(&self, manner: Manner) -> impl Iterator<Item = String> {
        let left = self.switches.contains(&("to_pv".to_owned(), "done".to_owned()));
        let wrong = match manner {
            Manner::Good => None,
            // Answers are among it.
            Manner::Floods(..) => None,
            Manner::Clings => (self.quarantined.is_none() || left)
                .then(|| "the VF that it keeps is not quarantined".to_owned()),
            Manner::Lies(Lie::Lingers) => {
                (!left).then(|| "its VF was not taken back all the same".to_owned())
            }
            Manner::Lies(Lie::Counters) => {
                let believed = self.rate_pps > BELIEVED_PPS * 1.001 || self.trust != "guest";
                believed.then(|| format!("{} packets/s, counted by {}", self.rate_pps, self.trust))
            }
            Manner::Lies(Lie::Escapes) => {
                let joined = self.switches.contains(&("to_vf".to_owned(), "done".to_owned()));
                joined.then(|| "it has joined a VF that it refused".to_owned())
            }
            // They are heard at most now and then, when they have no VF that lasts.
            Manner::Mute
            | Manner::Garbles(..)
            | Manner::Drips(_)
            | Manner::Lies(Lie::StaleIds | Lie::Crowd) => {
                (self.path == "vf").then(|| "it has a VF, and nobody can take it back".to_owned())
            }
        };
        wrong.into_iter()
    }
}

/// A line a hostile VM.
fn table<'a>(treatments: impl Iterator<Item = (&'a str, &'a str, Treatment)>) -> String {
    let mut text = String::from("| VM | what it does | path | its switches | what flexvf says |\n");
    text.push_str("| --- | --- | --- | --- | --- |\n");
    for (what, vm, treatment) in treatments {
        let Treatment { path, reason, rate_pps, trust, quarantined, switches, .. } = &treatment;
        let switches: Vec<_> =
            switches.iter().map(|(to, outcome)| format!("{to} {outcome}")).collect();
        let switches = if switches.is_empty() { "none".to_owned() } else { switches.join(", ") };
        let mut says = vec![reason.replace('|', "/")];
        says.extend(quarantined.as_ref().map(|why| format!("its VF is quarantined: {why}")));
        if trust == "guest" {
            says.push(format!("{rate_pps:.0} packets/s, by the guest's word"));
        }
        let _ = writeln!(text, "| {vm} | {what} | {path} | {switches} | {} |", says.join("; "));
    }
    text
}

/// Texts of a status that a terminal would not only show.
fn unprintable(status: &Status) -> impl Iterator<Item = &String> {
    let of_vms = status.vms.iter().map(|vm| &vm.reason);
    let vfs = status.pools.iter().flat_map(|pool| &pool.vfs);
    let of_vfs = vfs.filter_map(|vf| vf.reason.as_ref());
    let of_switches = status.switches.iter().map(|switch| &switch.outcome);
    of_vms.chain(of_vfs).chain(of_switches).filter(|text| unprintable_text(text))
}

fn unprintable_text(text: &str) -> bool {
    text.contains(|c: char| c.is_control() || c == '\u{202e}')
}

impl Display for Seen {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Self { median_ms, slowest_ms, switches, resident_mib, cpu_percent, .. } = self;
        write!(
            f,
            "{switches} switches, {median_ms:.0} ms at the median, {slowest_ms:.0} at most; {resident_mib:.1} MiB, {cpu_percent:.1} % of a core"
        )
    }
}

const POLL: Duration = Duration::from_millis(200);
