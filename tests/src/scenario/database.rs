//! A database through a switch: sysbench beside the bridge, MariaDB in a guest, which goes to its VF and back.
//!
//! The guest is that of `scripts/testbed/debian-image --database`; sysbench runs from the same image's files, on the
//! remote peer. What comes out is transactions a second against time, with the switches marked (figure 6 of
//! `scripts/paper`): the shape of a switch, on emulated NICs and processors.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flexvf_protocol::VmName;
use serde::{Deserialize, Serialize};

use super::Options;
use super::io::guests::{identity, shell_options, shell_socket};
use super::io::host::Host;
use super::io::shell::Shell;
use super::logic::result::Outcome;
use super::stage::{Stage, now_ms};

/// What is left in [`Host::out`] for the report.
pub const RESULT: &str = "database.json";
/// The daemon decides nothing by itself meanwhile.
const INTERVAL_S: u64 = 3600;
/// For one switch, under emulation.
const SWITCH_S: f64 = 120.0;
/// For the database's files to be made, under emulation.
const PATIENCE_MS: u64 = 400_000;
/// On each path.
const STAY: Duration = Duration::from_secs(20);
/// Longer than all switches and stays.
const MOST_S: u64 = 600;
const THREADS: u32 = 4;
const ROWS: u32 = 1000;

/// All of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Database {
    /// `kvm` or `tcg`.
    pub accel: String,
    /// `sriov` or `emulated`.
    pub pool: String,
    /// Second by second.
    pub samples: Vec<Sample>,
    /// In the order of their ends.
    pub marks: Vec<Mark>,
}

/// A second of sysbench's report.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sample {
    /// Since sysbench began.
    pub at_s: f64,
    /// Transactions a second.
    pub tps: f64,
    /// Latency's 95th percentile.
    pub p95_ms: f64,
    /// Errors a second.
    pub errors: f64,
}

/// A switch.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Mark {
    /// When it began, since sysbench began; later than that by up to half a second.
    pub from_s: f64,
    /// When it had ended.
    pub to_s: f64,
    /// `to_vf` or `to_pv`.
    pub direction: String,
}

/// Plays it.
pub fn play(options: &Options, host: &Host) -> Result<Outcome> {
    let options = Options { guests: 1, ..options.clone() };
    let image = options.guest_initrd.clone().context(
        "this scenario needs the image of scripts/testbed/debian-image --database: give --guest-initrd FILE",
    )?;
    let mut root = image.into_os_string();
    root.push(".root");
    let root = PathBuf::from(root).canonicalize().context("find the image's files (FILE.root)")?;
    let config = host.daemon_config("activity", INTERVAL_S);
    let more = |number| shell_options(host, number);
    let mut stage = Stage::build_with(&options, host, &config, more)?;
    let (vm, address) = identity(1)?;
    let mut shell = Shell::connect(&shell_socket(host, vm.as_str()))?;
    stage.pin(&vm, "pv")?;
    stage.start_daemon()?;
    until(&mut stage, &vm, "pv")?;
    stage.say("the database's files are made");
    serve(&mut stage, &mut shell)?;
    let sysbench = |what: &str| {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &host.peer_ns, "chroot"]).arg(&root);
        command.args([
            "stdbuf",
            "-oL",
            "sysbench",
            "oltp_point_select",
            "--db-driver=mysql",
            "--mysql-user=root",
        ]);
        command.arg(format!("--mysql-host={address}")).arg(format!("--table-size={ROWS}"));
        command.arg(format!("--threads={THREADS}")).arg("--mysql-ignore-errors=all");
        command.args([&format!("--time={MOST_S}"), "--report-interval=1", what]);
        command
    };
    let prepared = sysbench("prepare").output().context("run sysbench prepare")?;
    ensure!(
        prepared.status.success(),
        "sysbench prepare ended with {}: {}",
        prepared.status,
        String::from_utf8_lossy(&prepared.stdout)
    );
    stage.say("sysbench begins");
    let database = through_switches(&mut stage, &vm, &mut sysbench("run"), options.rounds)?;
    let failures = judge(&database, options.rounds, stage.end_daemon());
    let file = host.log(RESULT);
    std::fs::write(&file, serde_json::to_string_pretty(&database)? + "\n")?;
    Ok(stage.outcome(&options, failures))
}

fn serve(stage: &mut Stage, shell: &mut Shell) -> Result<()> {
    shell.run("mkdir -p /var/lib/mysql /run/mysqld")?;
    shell.run(concat!(
        "(mariadb-install-db --no-defaults --user=root --datadir=/var/lib/mysql --auth-root-authentication-method=normal ",
        "--skip-test-db --skip-name-resolve; exec mariadbd --no-defaults --user=root --datadir=/var/lib/mysql ",
        "--socket=/run/mysqld/mysqld.sock --bind-address=0.0.0.0 --skip-grant-tables --skip-name-resolve) ",
        ">/tmp/database.log 2>&1 </dev/null &"
    ))?;
    let end_ms = now_ms() + PATIENCE_MS;
    let client = "mariadb --no-defaults -S /run/mysqld/mysqld.sock -e";
    while shell.run(&format!("{client} 'create database if not exists sbtest'")).is_err() {
        if now_ms() > end_ms {
            let log = shell.run("tail -n 5 /tmp/database.log").unwrap_or_default();
            bail!("the guest's database does not answer: {log}");
        }
        stage.tick()?;
    }
    Ok(())
}

/// Lines of a program as they come, with the time.
fn lines(
    command: &mut Command,
    log: &Path,
) -> Result<(std::process::Child, mpsc::Receiver<(u64, String)>)> {
    let log = std::fs::File::create(log).with_context(|| log.display().to_string())?;
    let mut child = crate::sys::tie_to_this_thread(command)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("run sysbench")?;
    let stdout = child.stdout.take().context("sysbench has no output")?;
    let (send, receive) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            if send.send((now_ms(), line)).is_err() {
                return;
            }
        }
    });
    Ok((child, receive))
}

fn through_switches(
    stage: &mut Stage,
    vm: &VmName,
    sysbench: &mut Command,
    rounds: usize,
) -> Result<Database> {
    let (mut child, said) = lines(sysbench, &stage.host.log("sysbench.log"))?;
    sleep(STAY);
    for _ in 0..rounds {
        for path in ["vf", "pv"] {
            stage.pin(vm, path)?;
            until(stage, vm, path)?;
            sleep(STAY);
        }
    }
    child.kill().context("end sysbench")?;
    child.wait().context("wait for sysbench")?;
    let mut samples = Vec::new();
    let mut began_ms = None;
    for (at_ms, line) in said.try_iter() {
        if let Some(sample) = parse(&line) {
            let of_this = at_ms.saturating_sub((sample.at_s * 1000.0) as u64);
            // The least late line tells best when sysbench began.
            began_ms = Some(began_ms.map_or(of_this, |before: u64| before.min(of_this)));
            samples.push(sample);
        }
    }
    let began_ms = began_ms.context("sysbench has reported nothing; see sysbench.log")?;
    let mark = |seen: &super::logic::watch::SeenSwitch| {
        let to_s = seen.seen_ms.saturating_sub(began_ms) as f64 / 1000.0;
        let from_s = to_s - seen.switch.total_ms / 1000.0;
        Mark { from_s, to_s, direction: seen.switch.direction.clone() }
    };
    Ok(Database {
        accel: stage.host.accel.clone(),
        pool: stage.host.pool.clone(),
        samples,
        marks: stage.watch.switches().map(mark).collect(),
    })
}

fn until(stage: &mut Stage, vm: &VmName, path: &str) -> Result<()> {
    let is_there = |status: &super::logic::status::Status| {
        let own = status.vms.iter().find(|it| it.vm == *vm);
        own.is_some_and(|own| own.path == path && own.agent == "flexvf")
    };
    if stage.tick_until(SWITCH_S, is_there)?.is_none() {
        bail!(
            "{vm} is not on {path} within {SWITCH_S} s; the daemon says {:?}",
            stage.watch.last()
        );
    }
    Ok(())
}

/// No transaction failed, and in the end there were some.
fn judge(database: &Database, rounds: usize, mut failures: Vec<String>) -> Vec<String> {
    let Database { samples, marks, .. } = database;
    if marks.len() != 2 * rounds {
        failures.push(format!("{} switches, not {}", marks.len(), 2 * rounds));
    }
    let errors: f64 = samples.iter().map(|sample| sample.errors).sum();
    if errors > 0.0 {
        failures.push(format!("{errors} transactions failed"));
    }
    if samples.iter().rev().take(5).all(|sample| sample.tps == 0.0) {
        failures.push("the database does nothing in the end".into());
    }
    failures
}

/// `[ 3s ] thds: 4 tps: 12.00 qps: 12.00 (r/w/o: …) lat (ms,95%): 9.39 err/s: 0.00 reconn/s: 0.00`
fn parse(line: &str) -> Option<Sample> {
    let (at, rest) = line.strip_prefix("[ ")?.split_once("s ] ")?;
    let number = |key: &str| -> Option<f64> {
        let (_, after) = rest.split_once(key)?;
        after.split_whitespace().next()?.parse().ok()
    };
    Some(Sample {
        at_s: at.parse().ok()?,
        tps: number(" tps: ")?,
        p95_ms: number("(ms,95%): ")?,
        errors: number("err/s: ")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "[ 3s ] thds: 4 tps: 12.50 qps: 12.50 (r/w/o: 12.50/0.00/0.00) lat (ms,95%): 9.39 err/s: 1.00 reconn/s: 0.00";

    #[test]
    fn sysbench_s_lines_are_read() {
        let sample = Sample { at_s: 3.0, tps: 12.5, p95_ms: 9.39, errors: 1.0 };
        assert_eq!(parse(LINE), Some(sample));
        assert_eq!(parse("Threads started!"), None);
        assert_eq!(parse("[ 3s ] thds: 4 tps: x"), None);
    }

    #[test]
    fn a_database_that_fails_or_stands_still_is_a_failure() {
        let sample = |tps, errors| Sample { at_s: 1.0, tps, p95_ms: 1.0, errors };
        let of = |samples| Database {
            accel: "tcg".into(),
            pool: "emulated".into(),
            samples,
            marks: Vec::new(),
        };
        assert!(judge(&of(vec![sample(1.0, 0.0)]), 0, Vec::new()).is_empty());
        assert_eq!(judge(&of(vec![sample(1.0, 2.0)]), 0, Vec::new()), ["2 transactions failed"]);
        assert_eq!(judge(&of(vec![sample(0.0, 0.0)]), 1, Vec::new()).len(), 2);
    }
}
