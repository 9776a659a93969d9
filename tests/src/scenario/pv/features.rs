//! A guest of its own that is offered everything: what it agrees to, and whether that works.
//!
//! It has 16 queue pairs, a larger MTU than its network, and is the standby half of a failover pair:
//! its NIC is `eth1`, below `eth0`. Its offloads are then switched by `ethtool`, and frames counted:
//! how many packets each was shows whether large ones still pass.

use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flexvf_protocol::stats_page::{Counter, Direction};

use super::io::backend::Nic;
use super::io::machine::{Guest, Start};
use super::io::tool::Tool;
use super::logic::agreed;
use super::stage::{Side, Stage};
use crate::scenario::Options;
use crate::traffic::DEFAULT_PORT;
use crate::traffic::logic::stream::Outcome;

const GUEST: Guest = Guest {
    name: "pv2",
    address: "10.77.0.12",
    mac: "52:54:00:77:01:02",
    properties: ",host_mtu=2000,failover=on,in_order=on",
};
const QUEUES: u8 = 16;
const BACKEND: &str = "--mtu 2000 --features all,standby";
/// The largest MTU is the one that was promised, and no larger one. It is the failover's, which has
/// 1500 to begin with: a smaller promise would keep its NIC from joining it.
const MTU_IS_KEPT: &str = "ip link set eth0 mtu 2000 && ! ip link set eth0 mtu 2001 && \
                           ip link set eth0 mtu 1500";
/// What QEMU must have said until the guest is up, beside what every front-end says.
const MESSAGES: [&str; 6] = [
    "GET_QUEUE_NUM",
    "RESET_DEVICE",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "NET_SET_MTU",
    "SET_STATUS",
];
/// Flows enough to have one on each of 16 queues, but once in 30,000 times.
const FLOWS: &str = "--count 200 --sockets 200 --bytes 60 --per-s 2000";
/// Bytes of TCP, each way, that make large frames.
const TCP_BYTES: u64 = 1 << 20;
/// For what is on its way.
const SETTLE: Duration = Duration::from_millis(100);

/// Frames, and what they are on the wire, of one way.
#[derive(Debug, Clone, Copy)]
struct Way {
    frames: u64,
    segments: u64,
}

/// Boots the guest and looks at everything; what was not as it should be.
pub fn play(stage: &Stage, options: &Options) -> Result<Vec<String>> {
    let nic = Nic::new(&stage.host, options, "c").with(QUEUES, BACKEND);
    let mut side = Side::new("c", nic, GUEST);
    side.start_backend()?;
    side.start_machine(&stage.host, Start::Boot)?;
    let mut wrong = Vec::new();
    let bits = side.shell()?.run("cat /sys/class/net/eth1/device/features")?;
    let missing = agreed::missing(bits.trim());
    let agreed = agreed::EXPECTED.iter().map(|(_, name)| *name);
    let agreed: Vec<_> = agreed.filter(|name| !missing.contains(name)).collect();
    stage.say(&format!("features: the guest has agreed to {}", agreed.join(", ")));
    if !missing.is_empty() {
        wrong.push(format!("the guest has not agreed to {}", missing.join(", ")));
    }
    let mtu = side.shell()?.run(MTU_IS_KEPT);
    wrong.extend(mtu.err().map(|error| format!("the guest's largest MTU: {error:#}")));
    let heard = side.nic.backend_log()?;
    let unheard = MESSAGES.into_iter().filter(|it| !heard.contains(&format!("request=Ok({it})")));
    wrong.extend(unheard.map(|message| format!("QEMU sent no {message}")));
    wrong.extend(idle_queues(stage, &mut side)?);
    wrong.extend(switched_offloads(stage, &mut side)?);
    side.quit_machine()?;
    side.end_backend()?;
    Ok(wrong.into_iter().map(|text| format!("features: {text}")).collect())
}

/// Queues on which nothing comes, of many flows each way.
fn idle_queues(stage: &Stage, side: &mut Side) -> Result<Option<String>> {
    side.shell()?.run(&format!("ethtool -L eth1 combined {QUEUES}"))?;
    let to = |address| format!("datagrams --to {address}:{DEFAULT_PORT} {FLOWS}");
    let tool = Tool::start(&stage.host, &stage.host.peer_ns, &to(GUEST.address))?;
    // A processor sends on queues of its own.
    let line = format!(
        "for cpu in /sys/devices/system/cpu/cpu[0-9]*; do \
         taskset -c ${{cpu##*cpu}} /flexvf/flexvf-traffic {} || exit; done",
        to("10.77.0.1")
    );
    side.shell()?.run(&line)?;
    tool.wait()?;
    sleep(SETTLE);
    let page = side.nic.page()?;
    let rings =
        (0..usize::from(QUEUES)).flat_map(|pair| [(pair, Direction::Rx), (pair, Direction::Tx)]);
    let idle: Vec<_> =
        rings.filter(|(pair, way)| page.ring(*pair, *way, Counter::Frames) == 0).collect();
    Ok((!idle.is_empty()).then(|| format!("no frame came on {idle:?}")))
}

/// Offloads that do not do what the guest has switched them to.
fn switched_offloads(stage: &Stage, side: &mut Side) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let expect = |large: bool, way: Way, which: &str| {
        let is_large = way.segments > way.frames;
        (is_large != large).then(|| format!("with {which}, {way:?}"))
    };
    let [to_guest, from_guest] = transfer(stage, side)?;
    wrong.extend(expect(true, to_guest, "all offloads on, to the guest"));
    wrong.extend(expect(true, from_guest, "all offloads on, from the guest"));
    side.shell()?.run("ethtool -K eth1 tso off")?;
    let [_, from_guest] = transfer(stage, side)?;
    wrong.extend(expect(false, from_guest, "TSO off, from the guest"));
    side.shell()?.run("ethtool -K eth1 tx off")?;
    transfer(stage, side).context("without checksum offload")?;
    side.shell()?.run("ethtool -K eth1 tx on tso on")?;
    let [_, from_guest] = transfer(stage, side)?;
    wrong.extend(expect(true, from_guest, "TSO on again, from the guest"));
    // QEMU 10 answers to this one by itself and tells no vhost-user back end: frames must only pass.
    side.shell()?.run("ethtool -K eth1 rx-gro-hw off")?;
    transfer(stage, side).context("with receive offloads off")?;
    Ok(wrong)
}

/// TCP both ways, whole; its frames.
fn transfer(stage: &Stage, side: &Side) -> Result<[Way; 2]> {
    let before = ways(side)?;
    let line = format!("tcp --to {}:{DEFAULT_PORT} --bytes {TCP_BYTES}", GUEST.address);
    let outcome: Outcome = Tool::start(&stage.host, &stage.host.peer_ns, &line)?.end()?;
    ensure!(outcome.intact, "a TCP transfer of {} is not intact: {outcome:?}", GUEST.name);
    sleep(SETTLE);
    let after = ways(side)?;
    let [to_guest, from_guest] = [0, 1].map(|way: usize| Way {
        frames: after[way].frames - before[way].frames,
        segments: after[way].segments - before[way].segments,
    });
    Ok([to_guest, from_guest])
}

fn ways(side: &Side) -> Result<[Way; 2]> {
    let page = side.nic.page().context("the guest that is offered everything")?;
    Ok([Direction::Rx, Direction::Tx].map(|way| Way {
        frames: page.total(way, Counter::Frames),
        segments: page.total(way, Counter::Segments),
    }))
}
