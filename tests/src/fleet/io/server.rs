//! The thread that serves a fleet's sockets.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flexvf_protocol::MacAddr;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::conn::Conn;
use super::page::Page;
use crate::fleet::logic::machine::{Channel, Latencies, Machine, Output};
use crate::fleet::logic::manner::{Manner, Stream};
use crate::fleet::logic::monitor::GREETING;

/// What a fleet consists of.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// How many VMs.
    pub vms: usize,
    /// How long they take.
    pub latencies: Latencies,
    /// The VM that has no stats page, so that only its guest counts for it.
    pub without_page: Option<usize>,
}

/// A fleet at work, until it is dropped.
#[derive(Debug)]
pub struct Fleet {
    folder: PathBuf,
    without_page: Option<usize>,
    machines: Machines,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

type Machines = Arc<Mutex<Vec<Machine>>>;

/// Id of each VM's one root port.
const PORT: &str = "flexvf-port-0";
/// Between two growths of the pages' counters, and the longest wait for a change of manner.
const BEAT: Duration = Duration::from_millis(100);

impl Fleet {
    /// Makes a folder's sockets and pages, and serves them. VM 0 is `vm-00000`.
    pub fn start(folder: &Path, plan: Plan) -> Result<Self> {
        fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
        let machine = |number| Machine::new(mac(number), PORT, plan.latencies);
        let machines: Machines = Arc::new(Mutex::new((0..plan.vms).map(machine).collect()));
        let mut server = Server::new(folder, plan.vms, Arc::clone(&machines))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("fleet".into()).spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                if let Err(error) = server.turn() {
                    eprintln!("fleet: {error:#}");
                    return;
                }
            }
        })?;
        let without_page = plan.without_page;
        Ok(Self { folder: folder.into(), without_page, machines, stop, thread: Some(thread) })
    }

    /// How a VM behaves from now on.
    pub fn set_manner(&self, vm: usize, manner: Manner) {
        if let Some(machine) = lock(&self.machines).get_mut(vm) {
            machine.manner = manner;
        }
    }

    /// A VM's registration; its PV NIC may have a TAP.
    pub fn registration(&self, vm: usize, pv_interface: Option<&str>) -> String {
        let file = |kind| socket(&self.folder, vm, kind);
        let mut text = format!(
            "qmp = {:?}\nagent = {:?}\nmac = \"{}\"\nports = [\"{PORT}\"]\n",
            file("qmp"),
            file("agent"),
            mac(vm)
        );
        if self.without_page != Some(vm) {
            text += &format!("stats = {:?}\n", file("stats"));
        }
        if let Some(interface) = pv_interface {
            text += &format!("pv_interface = {interface:?}\n");
        }
        text
    }

    /// A VM's name.
    pub fn name(vm: usize) -> String {
        format!("vm-{vm:05}")
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn lock(machines: &Machines) -> MutexGuard<'_, Vec<Machine>> {
    machines.lock().unwrap_or_else(PoisonError::into_inner)
}

fn mac(vm: usize) -> MacAddr {
    let [.., a, b, c] = vm.to_be_bytes();
    MacAddr::new([0x52, 0x54, 0, a, b, c])
}

fn socket(folder: &Path, vm: usize, kind: &str) -> PathBuf {
    folder.join(format!("{vm:05}.{kind}"))
}

struct Server {
    epoll: Epoll,
    began: Instant,
    next_beat: Duration,
    ends: Vec<End>,
    pages: Vec<Page>,
    machines: Machines,
    later: BinaryHeap<Reverse<Later>>,
    sent_later: u64,
}

/// One of a VM's two sockets; a chardev of QEMU's has one client at a time.
struct End {
    listener: UnixListener,
    conn: Option<Conn>,
    /// Tells a connection from the one before it.
    generation: u64,
}

/// Bytes for later, in the order of their times and then of their making.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Later {
    at: Duration,
    number: u64,
    end: usize,
    generation: u64,
    bytes: Vec<u8>,
}

impl Server {
    fn new(folder: &Path, vms: usize, machines: Machines) -> Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let (mut ends, mut pages) = (Vec::new(), Vec::new());
        for vm in 0..vms {
            for kind in ["qmp", "agent"] {
                let path = socket(folder, vm, kind);
                let shown = || format!("listen at {}", path.display());
                let listener = UnixListener::bind(&path).with_context(shown)?;
                listener.set_nonblocking(true)?;
                epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, ends.len() as u64))?;
                ends.push(End { listener, conn: None, generation: 0 });
            }
            pages.push(Page::create(&socket(folder, vm, "stats"))?);
        }
        Ok(Self {
            epoll,
            began: Instant::now(),
            next_beat: Duration::ZERO,
            ends,
            pages,
            machines,
            later: BinaryHeap::new(),
            sent_later: 0,
        })
    }

    /// Waits for something, and sees to all of it.
    fn turn(&mut self) -> Result<()> {
        let now = self.began.elapsed();
        if now >= self.next_beat {
            self.next_beat = now + BEAT;
            self.beat()?;
        }
        let next = self.later.peek().map_or(self.next_beat, |Reverse(first)| first.at);
        let wait = next.min(self.next_beat).saturating_sub(now);
        // Never too early: what was said to take long must not take less.
        let wait_ms = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        let mut events = [EpollEvent::empty(); 256];
        let count = match self.epoll.wait(&mut events, EpollTimeout::from(wait_ms)) {
            Err(nix::errno::Errno::EINTR) => 0,
            other => other?,
        };
        for event in events.get(..count).unwrap_or_default() {
            let index = usize::try_from(event.data())?;
            if self.on_ready(index, event.events()).is_err() {
                self.hang_up(index)?;
            }
        }
        let now = self.began.elapsed();
        while self.later.peek().is_some_and(|Reverse(first)| first.at <= now) {
            let Some(Reverse(later)) = self.later.pop() else { break };
            let known = self.ends.get(later.end).map(|end| end.generation);
            if known == Some(later.generation) && self.send(later.end, &later.bytes).is_err() {
                self.hang_up(later.end)?;
            }
        }
        Ok(())
    }

    /// Counters grow, each VM's at a rate of its own; manners may have changed.
    fn beat(&mut self) -> Result<()> {
        let packets = |vm: usize| 10 + (vm as u64 * 7919) % 1000;
        for (vm, page) in self.pages.iter_mut().enumerate() {
            page.count(packets(vm))?;
        }
        let floods: Vec<(usize, Option<Stream>)> = lock(&self.machines)
            .iter()
            .enumerate()
            .flat_map(|(vm, machine)| {
                [Channel::Qmp, Channel::Agent].map(|channel| match machine.manner {
                    Manner::Floods(flooded, flood) if flooded == channel => {
                        (end_of(vm, channel), Some(Stream::new(flood)))
                    }
                    _ => (end_of(vm, channel), None),
                })
            })
            .collect();
        for (index, flood) in floods {
            let Some(conn) = self.ends.get_mut(index).and_then(|end| end.conn.as_mut()) else {
                continue;
            };
            if conn.is_flooding() != flood.is_some() {
                conn.flood(flood);
                self.watch(index)?;
            }
        }
        Ok(())
    }

    fn on_ready(&mut self, index: usize, ready: EpollFlags) -> Result<()> {
        let Some(end) = self.ends.get_mut(index) else { return Ok(()) };
        let Some(conn) = &mut end.conn else {
            return self.accept(index);
        };
        if ready.contains(EpollFlags::EPOLLOUT) {
            conn.flush()?;
            self.watch(index)?;
        }
        let readable = EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        if ready.intersects(readable) {
            self.answer(index)?;
        }
        Ok(())
    }

    fn answer(&mut self, index: usize) -> Result<()> {
        let Some(conn) = self.ends.get_mut(index).and_then(|end| end.conn.as_mut()) else {
            return Ok(());
        };
        for line in conn.read()? {
            let now = self.began.elapsed();
            let outputs = match lock(&self.machines).get_mut(index / 2) {
                Some(machine) => respond(machine, channel_of(index), now, &line),
                None => Vec::new(),
            };
            for Output { at, channel, bytes } in outputs {
                let end = end_of(index / 2, channel);
                if at <= now {
                    self.send(end, &bytes)?;
                } else {
                    let generation = self.ends.get(end).map_or(0, |end| end.generation);
                    let number = self.sent_later;
                    self.sent_later += 1;
                    self.later.push(Reverse(Later { at, number, end, generation, bytes }));
                }
            }
        }
        Ok(())
    }

    fn send(&mut self, index: usize, bytes: &[u8]) -> Result<()> {
        let Some(conn) = self.ends.get_mut(index).and_then(|end| end.conn.as_mut()) else {
            return Ok(());
        };
        conn.send(bytes)?;
        if conn.is_full() {
            self.watch(index)?;
        }
        Ok(())
    }

    fn accept(&mut self, index: usize) -> Result<()> {
        let Some(end) = self.ends.get_mut(index) else { return Ok(()) };
        let Ok((stream, _)) = end.listener.accept() else { return Ok(()) };
        let mut conn = Conn::new(stream)?;
        self.epoll.delete(&end.listener)?;
        self.epoll.add(conn.stream(), EpollEvent::new(EpollFlags::EPOLLIN, index as u64))?;
        if channel_of(index) == Channel::Qmp {
            conn.send(GREETING)?;
        }
        end.generation += 1;
        end.conn = Some(conn);
        Ok(())
    }

    /// The next client may come.
    fn hang_up(&mut self, index: usize) -> Result<()> {
        let Some(end) = self.ends.get_mut(index) else { return Ok(()) };
        // Its descriptor leaves the epoll with it.
        if end.conn.take().is_some() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, index as u64);
            self.epoll.add(&end.listener, event)?;
        }
        Ok(())
    }

    /// Waits for room in a socket only while something is to be sent.
    fn watch(&self, index: usize) -> Result<()> {
        let Some(conn) = self.ends.get(index).and_then(|end| end.conn.as_ref()) else {
            return Ok(());
        };
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, conn.is_full());
        self.epoll.modify(conn.stream(), &mut EpollEvent::new(flags, index as u64))?;
        Ok(())
    }
}

/// What a VM says to a line, as its manner is.
fn respond(machine: &mut Machine, channel: Channel, now: Duration, line: &[u8]) -> Vec<Output> {
    match machine.manner {
        Manner::Mute => return Vec::new(),
        Manner::Garbles(garbled, garble) if garbled == channel => {
            let bytes = garble.line(&id_of(line));
            return vec![Output { at: now, channel, bytes }];
        }
        _ => {}
    }
    let mut outputs = match channel {
        Channel::Qmp => machine.on_qmp(now, line),
        Channel::Agent => machine.on_agent(now, line),
    };
    if machine.manner == Manner::Drips(channel) {
        let drip = |(second, byte): (usize, u8)| Output {
            at: now + Duration::from_secs(second as u64),
            channel,
            bytes: vec![byte],
        };
        let bytes = outputs.into_iter().flat_map(|output| output.bytes);
        outputs = bytes.enumerate().map(drip).collect();
    }
    outputs
}

/// A request's id as it is written; a synchronisation has none.
fn id_of(line: &[u8]) -> String {
    let request: serde_json::Value = serde_json::from_slice(line).unwrap_or_default();
    request.get("id").map_or_else(|| "null".into(), ToString::to_string)
}

const fn end_of(vm: usize, channel: Channel) -> usize {
    vm * 2 + matches!(channel, Channel::Agent) as usize
}

const fn channel_of(end: usize) -> Channel {
    if end.is_multiple_of(2) { Channel::Qmp } else { Channel::Agent }
}
