//! A mixed load, counted by the stats page, by the TAP, by the guest, and by a capture.
//!
//! The capture is a port of the bridge to which everything is flooded, since nobody learns addresses
//! meanwhile. It can do nothing by itself (no TSO, USO, checksums), so the kernel cuts every large
//! frame before it; what arrives at its other end are the packets that a wire would carry.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use flexvf_protocol::stats_page::{Counter, Direction};

use super::io::backend::interface_counter;
use super::io::command::{run, run_in_shell};
use super::io::machine::MAC;
use super::io::streams::Streams;
use super::io::tool::Tool;
use super::logic::ledger::{Count, Ledger, Packets, Way};
use super::stage::{PATIENCE, Stage};
use crate::traffic::DEFAULT_PORT;
use crate::traffic::io::capture::Captured;
use crate::traffic::logic::stream::Outcome;

/// Bytes of TCP to the guest; as much as gets through meanwhile comes from it.
const TCP_BYTES: u64 = 24 << 20;
/// Buffers that are cut into datagrams, and what is cut from them; 43 kB stay below USO's 64 pieces.
const CUT: &str = "--count 150 --bytes 43210 --segment 1400 --per-s 60";
/// Datagrams larger than a packet, which IP cuts, and small ones.
const WHOLE: &str = "--count 100 --bytes 5000 --per-s 50";
/// Long enough for a frame under way to arrive, or for a TCP acknowledgement that was put off.
const QUIET: Duration = Duration::from_millis(700);

/// The namespace of the capture, its interface, and the bridge's end of it.
const NAMESPACE: &str = "capture";
const PORT: &str = "cap0";

/// All counters of a moment at which nothing moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Moment {
    page: Count,
    segments: Packets,
    tap: Count,
    tap_dropped: u64,
    capture_interface: u64,
}

/// Plays the load; what each place has counted.
pub fn count(stage: &mut Stage) -> Result<Ledger> {
    let bridge = stage.host.bridge.clone();
    let ports = [stage.here.nic.tap.clone(), stage.host.pf.clone(), PORT.into()];
    add_capture(&bridge)?;
    for port in &ports {
        run(&format!("bridge link set dev {port} learning off"))?;
    }
    run(&format!("ip link set {bridge} type bridge fdb_flush"))?;
    let ledger = count_load(stage);
    for port in &ports {
        run(&format!("bridge link set dev {port} learning on"))?;
    }
    run(&format!("ip link del {PORT}"))?;
    run(&format!("ip netns del {NAMESPACE}"))?;
    ledger
}

fn add_capture(bridge: &str) -> Result<()> {
    run(&format!("ip netns add {NAMESPACE}"))?;
    // Neighbour discovery of the capture's own would be captured, and counted nowhere else.
    let file = "/proc/sys/net/ipv6/conf/default/disable_ipv6";
    run_in_shell(NAMESPACE, &format!("[ ! -e {file} ] || echo 1 >{file}"))?;
    run(&format!("ip link add {PORT} type veth peer name cap1 netns {NAMESPACE}"))?;
    run(&format!("ethtool -K {PORT} tx off sg off tso off gso off tx-udp-segmentation off"))?;
    run(&format!("ip -n {NAMESPACE} link set cap1 up"))?;
    run(&format!("ip link set {PORT} up master {bridge}"))?;
    Ok(())
}

fn count_load(stage: &mut Stage) -> Result<Ledger> {
    let mut capture = Tool::start(&stage.host, NAMESPACE, "capture")?;
    ensure!(capture.line()? == "ready", "the capture does not start");
    let before = quiet_moment(stage)?;
    let guest_before = guest_count(stage)?;
    play_load(stage)?;
    let after = quiet_moment(stage)?;
    let guest = guest_count(stage)?.since(&guest_before);
    let captured: Captured = capture.end()?;
    let from_guest = captured.get(MAC).copied().unwrap_or_default().frames;
    let all: u64 = captured.values().map(|source| source.frames).sum();
    Ok(Ledger {
        page: after.page.since(&before.page),
        tap: after.tap.since(&before.tap),
        guest,
        segments: Packets {
            to_guest: after.segments.to_guest - before.segments.to_guest,
            from_guest: after.segments.from_guest - before.segments.from_guest,
        },
        captured: Packets { to_guest: all - from_guest, from_guest },
        capture_interface: after.capture_interface - before.capture_interface,
        longest: captured.values().map(|source| source.longest).max().unwrap_or_default(),
        tap_dropped: after.tap_dropped - before.tap_dropped,
    })
}

/// TCP both ways at full speed, large and small UDP both ways, all at once.
fn play_load(stage: &mut Stage) -> Result<()> {
    let streams = Streams::probes(&stage.host, &stage.target, PATIENCE)?;
    let guest = stage.target.address;
    let to_guest = format!("{guest}:{DEFAULT_PORT}");
    let tool = |line: &str| Tool::start(&stage.host, &stage.host.peer_ns, line);
    let tcp = tool(&format!("tcp --to {to_guest} --bytes {TCP_BYTES}"))?;
    let others = [CUT, WHOLE].map(|what| tool(&format!("datagrams --to {to_guest} {what}")));
    let shell = stage.here.shell()?;
    for what in [CUT, WHOLE] {
        let to_peer = format!("10.77.0.1:{DEFAULT_PORT}");
        shell.run(&format!("/flexvf/flexvf-traffic datagrams --to {to_peer} {what}"))?;
    }
    for tool in others {
        tool?.wait()?;
    }
    let outcome: Outcome = tcp.end()?;
    ensure!(outcome.intact, "the load's TCP transfer is not intact: {outcome:?}");
    streams.end(PATIENCE)?;
    Ok(())
}

/// Waits until nothing has moved for a while.
fn quiet_moment(stage: &Stage) -> Result<Moment> {
    let end = Instant::now() + PATIENCE;
    let mut last = moment(stage)?;
    while Instant::now() < end {
        sleep(QUIET);
        let now = moment(stage)?;
        if now == last {
            return Ok(now);
        }
        last = now;
    }
    bail!("the network does not come to rest: {last:?}")
}

fn moment(stage: &Stage) -> Result<Moment> {
    let nic = &stage.here.nic;
    let page = nic.page()?;
    let total = |direction, counter| page.total(direction, counter);
    let way = |direction| Way {
        frames: total(direction, Counter::Frames),
        bytes: total(direction, Counter::Bytes),
    };
    let tap = |frames, bytes| {
        Ok::<_, anyhow::Error>(Way {
            frames: nic.tap_counter(frames)?,
            bytes: nic.tap_counter(bytes)?,
        })
    };
    Ok(Moment {
        page: Count { to_guest: way(Direction::Rx), from_guest: way(Direction::Tx) },
        segments: Packets {
            to_guest: total(Direction::Rx, Counter::Segments),
            from_guest: total(Direction::Tx, Counter::Segments),
        },
        tap: Count {
            to_guest: tap("tx_packets", "tx_bytes")?,
            from_guest: tap("rx_packets", "rx_bytes")?,
        },
        tap_dropped: nic.tap_counter("tx_dropped")? + nic.tap_counter("rx_dropped")?,
        capture_interface: interface_counter(PORT, "tx_packets")?,
    })
}

fn guest_count(stage: &mut Stage) -> Result<Count> {
    let line = "cd /sys/class/net/eth0/statistics; cat rx_packets rx_bytes tx_packets tx_bytes";
    let text = stage.here.shell()?.run(line)?;
    let numbers: Vec<u64> = text.split_whitespace().map_while(|word| word.parse().ok()).collect();
    let [to_frames, to_bytes, from_frames, from_bytes] = numbers[..] else {
        bail!("the guest's counters are {text:?}");
    };
    Ok(Count {
        to_guest: Way { frames: to_frames, bytes: to_bytes },
        from_guest: Way { frames: from_frames, bytes: from_bytes },
    })
}
