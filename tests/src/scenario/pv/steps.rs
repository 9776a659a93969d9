//! What happens to the guest and its backend, one thing a function.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flexvf_protocol::stats_page::Header;
use serde_json::json;

use super::io::command::run;
use super::io::machine::MAC;
use super::io::relay::Relay;
use super::io::streams::Streams;
use super::logic::result::{Limits, Step};
use super::stage::{PATIENCE, Stage};

/// An outage that ends by QEMU's connecting again: under emulation both take their time.
const RECONNECT: Limits = Limits { gap_ms: 5000, lost: None, duplicated: BATCH };
/// Frames that were sent when a backend was killed, but not yet returned to the guest; the next
/// backend sends them again rather than lose them.
const BATCH: u64 = 64;

/// Kills in a row.
const KILLS: usize = 20;
/// Longest time for the reconnects of a step.
const RECONNECTS_END: Duration = Duration::from_secs(30);
/// Fewer prove nothing.
const MIN_RECONNECTS: u64 = 100;

/// Nothing happens: what the emulation itself carries.
pub fn calm(stage: &mut Stage) -> Result<Step> {
    let limits = Limits { gap_ms: 3000, lost: Some(0), duplicated: 0 };
    stage.measure("calm", limits, |_| Ok("nothing".into()))
}

/// The backend is killed and started again.
pub fn kill(stage: &mut Stage) -> Result<Step> {
    stage.measure("kill", RECONNECT, |stage| {
        kill_once(stage)?;
        Ok("SIGKILL to the backend, started again".into())
    })
}

/// The same, again and again.
pub fn kills(stage: &mut Stage) -> Result<Step> {
    let limits = Limits { gap_ms: 10_000, duplicated: BATCH * KILLS as u64, ..RECONNECT };
    stage.measure("kills", limits, |stage| {
        for _ in 0..KILLS {
            kill_once(stage)?;
        }
        Ok(format!("{KILLS} times SIGKILL and a new start, as soon as QEMU was connected"))
    })
}

fn kill_once(stage: &mut Stage) -> Result<()> {
    stage.here.kill_backend()?;
    stage.here.start_backend()?;
    stage.until("QEMU connects to the new backend", |stage| {
        Ok(stage.here.nic.page()?.header(Header::Connected) == 1)
    })
}

/// The guest gives its NIC away and takes it again.
pub fn rebind(stage: &mut Stage) -> Result<Step> {
    let limits = Limits { gap_ms: 6000, lost: None, duplicated: 0 };
    stage.measure("rebind", limits, |stage| {
        let driver = "/sys/bus/virtio/drivers/virtio_net";
        let shell = stage.here.shell()?;
        let devices = shell.run("ls /sys/class/net/eth0/device/driver | grep '^virtio'")?;
        let device = devices.trim();
        shell.run(&format!("echo {device} >{driver}/unbind"))?;
        sleep(Duration::from_millis(500));
        shell.run(&format!("echo {device} >{driver}/bind"))?;
        Ok(format!("unbound {device} from virtio_net in the guest, bound it again 0.5 s later"))
    })
}

/// QEMU tells the network where the guest is, which has forgotten it.
pub fn announce(stage: &mut Stage) -> Result<Step> {
    let limits = Limits { gap_ms: 3000, lost: Some(0), duplicated: 0 };
    stage.measure("announce", limits, |stage| {
        let rounds = json!({"initial": 50, "max": 100, "rounds": 5, "step": 50});
        stage.here.machine()?.execute("announce-self", &rounds)?;
        sleep(Duration::from_secs(1));
        Ok("announce-self, 5 rounds".into())
    })
}

/// Without traffic, an announcement alone brings the guest's address to the bridge.
pub fn announcement_is_heard(stage: &mut Stage) -> Result<Vec<String>> {
    let tap = stage.here.nic.tap.clone();
    run(&format!("bridge fdb del {MAC} dev {tap} master"))?;
    let rounds = json!({"initial": 50, "max": 100, "rounds": 1, "step": 50});
    stage.here.machine()?.execute("announce-self", &rounds)?;
    sleep(Duration::from_secs(1));
    Ok(where_the_bridge_sends(stage, &tap)?.into_iter().collect())
}

/// Complains unless the bridge has the guest at `tap`.
pub fn where_the_bridge_sends(stage: &Stage, tap: &str) -> Result<Option<String>> {
    let entries = run(&format!("bridge fdb show br {}", stage.host.bridge))?;
    let learned = entries.lines().find(|line| line.starts_with(MAC)).unwrap_or("nothing");
    let right = learned.contains(&format!(" dev {tap} "));
    Ok((!right).then(|| format!("the bridge should have {MAC} at {tap}; it has: {learned}")))
}

/// The guest's link goes down and up.
pub fn link(stage: &mut Stage) -> Result<Step> {
    let limits = Limits { gap_ms: 5000, lost: None, duplicated: 0 };
    stage.measure("link", limits, |stage| {
        stage.here.set_link(false)?;
        sleep(Duration::from_secs(1));
        stage.here.set_link(true)?;
        Ok("set_link off, on 1 s later".into())
    })
}

/// The connection is cut, again and again, at any point of the handshake; the backend lives on.
///
/// In two steps, of which the first is a quarter: what is taken once is taken in it.
pub fn reconnects(stage: &mut Stage, wanted: u64) -> Result<Vec<Step>> {
    let behind = stage.host.run.join("behind-relay.sock");
    stage.here.end_backend()?;
    let relay = Relay::start(&stage.here.nic.socket, &behind)?;
    stage.here.start_backend_at(&behind)?;
    stage.until("QEMU connects through the relay", |_| Ok(relay.connections() > 0))?;
    let quarter = wanted.div_ceil(4);
    let mut steps = vec![cut_often(stage, &relay, "reconnects", quarter)?];
    steps.push(cut_often(stage, &relay, "more", wanted - quarter)?);
    drop(relay);
    stage.here.end_backend()?;
    stage.here.start_backend()?;
    Ok(steps)
}

fn cut_often(stage: &mut Stage, relay: &Relay, name: &str, wanted: u64) -> Result<Step> {
    let limits = Limits { gap_ms: 1000 * RECONNECTS_END.as_secs() + RECONNECT.gap_ms, ..RECONNECT };
    stage.measure(name, limits, |stage| {
        let began = Instant::now();
        let mut done = 0;
        while done < wanted && began.elapsed() < RECONNECTS_END {
            // From 0 to 15 ms, evenly: also into the handshake, which takes some.
            sleep(Duration::from_millis(done % 16));
            let before = relay.connections();
            if relay.cut() {
                done += 1;
                stage.until("QEMU connects again", |_| Ok(relay.connections() > before))?;
            }
        }
        let least = MIN_RECONNECTS.min(wanted);
        ensure!(done >= least, "only {done} reconnects in {RECONNECTS_END:?}");
        let refused = stage.here.nic.page()?.header(Header::Refused);
        let seconds = began.elapsed().as_secs_f64();
        ensure!(refused == 0, "{refused} connections of QEMU's were refused");
        Ok(format!("{done} connections cut within {seconds:.1} s"))
    })
}

/// The guest starts anew, with probes on their way to it all the while.
pub fn reboot(stage: &mut Stage) -> Result<Step> {
    let streams = Streams::probes(&stage.host, &stage.target, PATIENCE)?;
    let began = Instant::now();
    stage.here.shell()?.send("reboot -f")?;
    // Or the old guest's shell would take the question.
    sleep(Duration::from_secs(1));
    let up_s = stage.guest_uptime_s().context("after the reboot")?;
    let took_s = began.elapsed().as_secs_f64();
    ensure!(up_s < took_s, "the guest did not reboot: it has been up for {up_s} s");
    drop(streams);
    let limits = Limits { gap_ms: 3000, lost: Some(0), duplicated: 0 };
    stage.measure("reboot", limits, |_| {
        Ok(format!("reboot in the guest, up again {took_s:.1} s later; the traffic is of after it"))
    })
}
