//! The guest moves to another QEMU on another backend and TAP of the same bridge, under traffic.

use anyhow::{Result, bail};
use serde::Deserialize;
use serde_json::json;

use super::io::machine::Start;
use super::logic::result::{Limits, Step};
use super::stage::Stage;

/// What QEMU aims at; the guest stands still for longer on a busy machine.
const DOWNTIME_MS: u64 = 300;
/// Bytes a second: no limit that matters here.
const BANDWIDTH: u64 = 1 << 30;

/// Many pages are to be written meanwhile, by whole 64 KiB frames.
const TCP_BYTES_PER_S: u64 = 4_000_000;
/// Pages that were written, but not read by anybody until the guest is at the other place: those that
/// a backend which forgot to mark them would lose.
const TCP_REST_MS: u64 = 300;

/// QEMU's account.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Progress {
    status: Option<String>,
    error_desc: Option<String>,
    #[serde(default)]
    total_time: u64,
    #[serde(default)]
    downtime: u64,
    ram: Option<Ram>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Ram {
    transferred: u64,
    dirty_sync_count: u64,
}

/// Moves the guest to where it is not.
pub fn migrate(stage: &mut Stage, name: &str) -> Result<Step> {
    let host = stage.host.clone();
    stage.there.start_backend()?;
    stage.there.start_machine(&host, Start::Incoming)?;
    let socket = host.run.join("migration.sock");
    let uri = json!({"uri": format!("unix:{}", socket.display())});
    stage.there.machine()?.execute("migrate-incoming", &uri)?;
    let limits = Limits { gap_ms: 5000, lost: None, duplicated: 0 };
    let usual = stage.target.clone();
    stage.target.tcp_bytes_per_s = TCP_BYTES_PER_S;
    stage.target.tcp_rest_ms = TCP_REST_MS;
    let step = stage.measure(name, limits, |stage| {
        let source = stage.here.machine()?;
        let parameters = json!({"downtime-limit": DOWNTIME_MS, "max-bandwidth": BANDWIDTH});
        source.execute("migrate-set-parameters", &parameters)?;
        source.execute("migrate", &uri)?;
        stage.until("the migration is over", |stage| {
            let progress = progress(stage)?;
            match progress.status.as_deref() {
                Some("failed" | "cancelled") => {
                    let why = progress.error_desc.unwrap_or_else(|| "QEMU does not say why".into());
                    bail!("the migration failed: {why}")
                }
                status => Ok(status == Some("completed")),
            }
        })?;
        let progress = progress(stage)?;
        std::mem::swap(&mut stage.here, &mut stage.there);
        let Progress { total_time, downtime, ram, .. } = progress;
        let (kib, rounds) = ram.map_or((0, 0), |it| (it.transferred >> 10, it.dirty_sync_count));
        Ok(format!(
            "to {}: {kib} KiB in {total_time} ms, {rounds} rounds, downtime {downtime} ms",
            stage.here.nic.tap
        ))
    })?;
    stage.target = usual;
    stage.there.quit_machine()?;
    stage.there.end_backend()?;
    Ok(step)
}

fn progress(stage: &mut Stage) -> Result<Progress> {
    let answer = stage.here.machine()?.execute("query-migrate", &json!({}))?;
    Ok(serde_json::from_value(answer)?)
}
