//! `flexvf quarantine`: VFs that nobody can use just now, why, and what to do about them.
//!
//! Nothing here takes a VF from a QEMU: only QEMU's word that the device is gone gives it back.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::bail;
use serde_json::{Value, json};

use super::client::Client;
use super::status::table::table;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Show VFs that are quarantined, or rest after a failure, and why
    List {
        #[command(flatten)]
        daemon: Daemon,
        /// Print them as JSON: a list of objects with `pool`, `vf`, `state`, `vm` and `reason`
        #[arg(long)]
        json: bool,
    },
    /// Try now to get a VF back, instead of in some seconds, and tell what came of it
    ///
    /// The guest is asked once more to let go of it. A VF that QEMU still has is given to nobody, and
    /// stays where it is: have the guest let go of it (run it if it is paused, reboot it), or end its QEMU.
    Clear {
        #[command(flatten)]
        daemon: Daemon,
        /// The VF: a PCI address or a TAP, as `flexvf quarantine list` shows it
        vf: String,
    },
}

#[derive(Debug, clap::Args)]
struct Daemon {
    /// The daemon's control socket
    #[arg(short, long, value_name = "PATH", default_value = "/run/flexvf/control.sock")]
    socket: PathBuf,
}

/// A guest that lets go of a VF when it is asked does so within seconds.
const PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(100);

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let text = match args.command {
        Command::List { daemon, json } => {
            let status = Client::connect(&daemon.socket)?.ask("query-status", &json!({}))?;
            let stuck = stuck(&status);
            if json { format!("{}\n", Value::from(stuck)) } else { render(&stuck) }
        }
        Command::Clear { daemon, vf } => clear(&mut Client::connect(&daemon.socket)?, &vf)?,
    };
    // A closed pipe (`| head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn clear(client: &mut Client, vf: &str) -> anyhow::Result<String> {
    client.ask("clear-quarantine", &json!({"vf": vf}))?;
    let end = Instant::now() + PATIENCE;
    loop {
        let status = client.ask("query-status", &json!({}))?;
        let Some(stuck) = stuck(&status).into_iter().find(|it| it["vf"] == vf) else {
            return Ok(format!("VF {vf} can be used again\n"));
        };
        if Instant::now() > end {
            bail!("{}", advice(&stuck));
        }
        sleep(POLL);
    }
}

fn advice(stuck: &Value) -> String {
    let text = |key| stuck[key].as_str().unwrap_or("?");
    let (vf, vm, reason) = (text("vf"), text("vm"), text("reason"));
    if stuck["state"] == "resting" {
        return format!("VF {vf} has failed again: {reason}");
    }
    format!(
        "VF {vf} is still with {vm} ({reason}); it is given to nobody before QEMU and host have let it go. \
         Run {vm}'s guest if it is paused, reboot it, or end its QEMU; FlexVF goes on looking by itself"
    )
}

/// Each with its pool.
fn stuck(status: &Value) -> Vec<Value> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    let mut all = Vec::new();
    for pool in list(status, "pools") {
        for mut vf in list(&pool, "vfs") {
            let is_stuck = matches!(vf["state"].as_str(), Some("quarantined" | "resting"));
            if let Some(map) = vf.as_object_mut().filter(|_| is_stuck) {
                map.insert("pool".into(), pool["name"].clone());
                all.push(vf);
            }
        }
    }
    all
}

fn render(stuck: &[Value]) -> String {
    if stuck.is_empty() {
        return "no VF is quarantined\n".into();
    }
    let rows = stuck.iter().map(|it| {
        ["vf", "pool", "state", "vm", "reason"]
            .map(|key| it[key].as_str().unwrap_or("-").to_owned())
    });
    let mut text = String::new();
    table(&mut text, ["VF", "POOL", "STATE", "VM", "WHY"], rows.collect());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Value {
        json!({"pools": [
            {"name": "a", "vfs": [
                {"vf": "vf0", "state": "quarantined", "vm": "web", "reason": "no DEVICE_DELETED within 20s"},
                {"vf": "vf1", "state": "held", "vm": "db", "reason": null}]},
            {"name": "b", "vfs": [
                {"vf": "vf2", "state": "resting", "vm": null, "reason": "in use by another process"}]}]})
    }

    #[test]
    fn the_list_shows_what_cannot_be_used_and_why() {
        let expected = "\
VF   POOL  STATE        VM   WHY
vf0  a     quarantined  web  no DEVICE_DELETED within 20s
vf2  b     resting      -    in use by another process
";
        assert_eq!(render(&stuck(&status())), expected);
        assert_eq!(render(&stuck(&json!({"pools": [null, 3]}))), "no VF is quarantined\n");
    }

    #[test]
    fn who_cannot_be_helped_is_told_what_to_do() {
        let stuck = stuck(&status());
        let told = advice(&stuck[0]);
        for word in
            ["vf0", "web", "no DEVICE_DELETED within 20s", "given to nobody", "end its QEMU"]
        {
            assert!(told.contains(word), "{told}");
        }
        assert_eq!(advice(&stuck[1]), "VF vf2 has failed again: in use by another process");
    }
}
