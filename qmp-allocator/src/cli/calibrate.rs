//! `flexvf calibrate`: what a VF is worth to a guest, measured.
//!
//! Echoes at several rates and sizes over PV, then over a VF, in turns. Paths are changed by the operator's own
//! word, `pin` in the VM's registration, which is put back in the end. The daemon does the switching.

mod pin;

use std::fmt::Write as _;
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::ConfigArg;
use super::client::Client;
use super::status::table::table;
use crate::config::{Calibration, Config, Point};
use crate::io::echo::{Burst, Echo};
use crate::logic::echo::{Echoes, MAX_BYTES, MIN_BYTES};
use crate::logic::gain::Model;
use pin::{Pinned, StopSignals};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The VM, as `flexvf status` names it
    vm: String,
    /// The guest's address on its bond
    #[arg(long, value_name = "ADDRESS")]
    target: Ipv4Addr,
    #[command(flatten)]
    config: ConfigArg,
    /// Write the curve here, for `gain_file`
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Echoes a second; each is two packets to the daemon, which counts both directions
    #[arg(long, value_delimiter = ',', default_value = "100,300,1000,3000,10000", value_name = "N,...", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    rates: Vec<u32>,
    /// Payload of each, bytes
    #[arg(long, value_delimiter = ',', default_value = "64,512,1400", value_name = "N,...", value_parser = sizes())]
    bytes: Vec<u32>,
    /// For how long at each rate and size
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// Turns of both paths; a machine whose speed changes needs several
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Print what was measured as JSON
    #[arg(long)]
    json: bool,
}

fn sizes() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(MIN_BYTES as i64..=MAX_BYTES as i64)
}

/// A guest that boots, or a switch under emulation, takes minutes.
const SWITCH: Duration = Duration::from_secs(180);
const POLL: Duration = Duration::from_millis(200);
/// After a switch: the guest announces itself, neighbours learn.
const SETTLE: Duration = Duration::from_secs(1);
/// Beyond this part of lost echoes a path is not slow but full, and the times of the others say little.
const MAX_LOST: f64 = 0.5;

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config.config)?;
    let stop = StopSignals::catch()?;
    let mut echo = Echo::open(SocketAddrV4::new(args.target, 0))
        .context("open a raw socket for ICMP: run this as root, or with CAP_NET_RAW")?;
    let mut client = Client::connect(&config.control_socket)?;
    place(&mut client, &args.vm)?;
    let mut pinned = Pinned::new(&config.vms_dir, &args.vm)?;
    let mut measured: Vec<Both> = args.cells().map(Both::new).collect();
    let mut vf = String::new();
    for round in 1..=args.rounds {
        for path in ["pv", "vf"] {
            eprintln!("calibrate: round {round} of {}, over {path}", args.rounds);
            pinned.pin(path)?;
            until(&mut client, &stop, &args.vm, path)?;
            sleep(SETTLE);
            // The daemon may have been about to move it by its policy when it read the pin.
            let at = until(&mut client, &stop, &args.vm, path)?;
            vf = at.unwrap_or(vf);
            // Neighbours and caches are found before anything counts.
            echo.burst(Burst { per_s: 20, bytes: MIN_BYTES, time: SETTLE })?;
            for both in &mut measured {
                stop.check()?;
                let burst = Burst { time: Duration::from_secs(args.seconds), ..both.cell };
                let echoes = echo.burst(burst).with_context(|| args.target.to_string())?;
                if path == "pv" { both.pv.add(echoes) } else { both.vf.add(echoes) }
            }
            let now = place(&mut client, &args.vm)?;
            if now["path"] != path {
                let reason = now["reason"].as_str().unwrap_or("no reason is known");
                bail!("{} has left {path} while it was measured: {reason}", args.vm);
            }
        }
    }
    drop(pinned);
    let points: Vec<Point> = measured.iter().filter_map(Both::point).collect();
    let calibration = Calibration { vm: args.vm.clone(), vf, points };
    for both in measured.iter().filter(|both| both.point().is_none()) {
        let (Burst { per_s, bytes, .. }, target) = (both.cell, args.target);
        let [pv, vf] = [&both.pv, &both.vf].map(|path| 100.0 * path.lost());
        eprintln!(
            "calibrate: {per_s} echoes/s of {bytes} bytes left out: {pv:.0} % over PV and {vf:.0} % over the VF got no answer of {target}"
        );
    }
    let curve = calibration.fit().context("nothing to fit a curve to")?;
    if let Some(file) = &args.out {
        std::fs::write(file, calibration.text())
            .with_context(|| format!("write {}", file.display()))?;
    }
    let text = if args.json {
        format!("{}\n", serde_json::to_string_pretty(&calibration)?)
    } else {
        render(&calibration, &curve, args.out.as_deref())
    };
    // A closed pipe (`| head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn cells(&self) -> impl Iterator<Item = Burst> {
        let by_size = |per_s: u32| {
            let cell =
                move |bytes: &u32| Burst { per_s, bytes: *bytes as usize, time: Duration::ZERO };
            self.bytes.iter().map(cell)
        };
        self.rates.iter().flat_map(move |per_s| by_size(*per_s))
    }
}

/// What was measured at one rate and size.
struct Both {
    cell: Burst,
    pv: Echoes,
    vf: Echoes,
}

impl Both {
    fn new(cell: Burst) -> Self {
        Self { cell, pv: Echoes::default(), vf: Echoes::default() }
    }

    /// None where a path was full.
    fn point(&self) -> Option<Point> {
        let Self { cell, pv, vf } = self;
        let (pv_lost, vf_lost) = (pv.lost(), vf.lost());
        if pv_lost.max(vf_lost) > MAX_LOST {
            return None;
        }
        Some(Point {
            pps: f64::midpoint(pv.pps(), vf.pps()),
            bytes: cell.bytes,
            pv_us: pv.one_way_us()?,
            vf_us: vf.one_way_us()?,
            pv_lost,
            vf_lost,
        })
    }
}

/// The VM in the daemon's status.
fn place(client: &mut Client, vm: &str) -> anyhow::Result<Value> {
    let status = client.ask("query-status", &json!({}))?;
    let all = status["vms"].as_array().cloned().unwrap_or_default();
    let found = all.into_iter().find(|it| it["vm"] == vm);
    found.with_context(|| format!("there is no VM {vm:?}; `flexvf status` shows those there are"))
}

/// Waits until the VM is on a path; which VF it has there.
fn until(
    client: &mut Client,
    stop: &StopSignals,
    vm: &str,
    path: &str,
) -> anyhow::Result<Option<String>> {
    let end = Instant::now() + SWITCH;
    loop {
        stop.check()?;
        let now = place(client, vm)?;
        if now["path"] == path {
            return Ok(now["vf"].as_str().map(str::to_owned));
        }
        if Instant::now() > end {
            let reason = now["reason"].as_str().unwrap_or("no reason is known");
            bail!("{vm} is not on {path} after {} s: {reason}", SWITCH.as_secs());
        }
        sleep(POLL);
    }
}

fn render(calibration: &Calibration, curve: &impl Model, file: Option<&Path>) -> String {
    let row = |point: &Point| {
        let Point { pps, bytes, pv_us, vf_us, pv_lost, vf_lost } = point;
        [
            format!("{pps:.0}"),
            bytes.to_string(),
            format!("{pv_us:.1}"),
            format!("{vf_us:.1}"),
            format!("{:.2}", pv_us / vf_us.max(1e-9)),
            format!("{:.1}", 100.0 * pv_lost),
            format!("{:.1}", 100.0 * vf_lost),
            format!("{:.0}", curve.gain(*pps)),
        ]
    };
    let rows = calibration.points.iter().map(row).collect();
    let mut text = String::new();
    table(
        &mut text,
        ["PACKETS/S", "BYTES", "PV US", "VF US", "PV/VF", "PV LOST %", "VF LOST %", "GAIN US/S"],
        rows,
    );
    let gains = calibration.points.iter().any(|point| curve.gain(point.pps) > 0.0);
    if !gains {
        let _ = writeln!(
            text,
            "\nA VF saved nothing at any rate: by this curve no VM is worth a switch."
        );
    }
    if let Some(file) = file {
        let _ =
            writeln!(text, "\nTo go by it: gain_file = {file:?} in [policy] of the configuration.");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn both(pv: Echoes, vf: Echoes) -> Both {
        Both { cell: Burst { per_s: 100, bytes: 64, time: Duration::ZERO }, pv, vf }
    }

    fn echoes(sent: u64, round_trips_us: Vec<f64>) -> Echoes {
        Echoes { sent, round_trips_us, lasted_s: 1.0 }
    }

    #[test]
    fn a_path_that_is_full_is_no_point() {
        let whole = || echoes(2, vec![40.0, 40.0]);
        let point = both(whole(), echoes(2, vec![20.0])).point().unwrap();
        assert_eq!((point.pv_us, point.vf_us, point.pps), (20.0, 10.0, 3.5));
        assert_eq!((point.pv_lost, point.vf_lost), (0.0, 0.5));
        assert_eq!(both(whole(), echoes(3, vec![20.0])).point(), None);
        assert_eq!(both(echoes(0, vec![]), whole()).point(), None);
    }

    #[test]
    fn the_table_says_what_a_vf_saves_or_that_it_saves_nothing() {
        let point = both(echoes(1, vec![40.0]), echoes(1, vec![20.0])).point().unwrap();
        let mut calibration = Calibration { vm: "a".into(), vf: "vf0".into(), points: vec![point] };
        let told = |it: &Calibration| render(it, &it.fit().unwrap(), Some(Path::new("/g.toml")));
        let text = told(&calibration);
        let row: Vec<&str> = text.lines().nth(1).unwrap().split_whitespace().collect();
        assert_eq!(row, ["2", "64", "20.0", "10.0", "2.00", "0.0", "0.0", "20"]);
        assert!(text.ends_with("gain_file = \"/g.toml\" in [policy] of the configuration.\n"));
        calibration.points[0].vf_us = 30.0;
        assert!(told(&calibration).contains("saved nothing"));
    }
}
