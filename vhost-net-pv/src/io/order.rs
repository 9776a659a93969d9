//! What the control path tells the workers, and how it waits until that is in force.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Sender, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use flexvf_protocol::MacAddr;
use flexvf_protocol::stats_page::Direction;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::port::Port;
use super::stats::StatsPage;
use super::worker::Worker;
use crate::logic::features::Negotiated;
use crate::logic::memory::Memory;
use crate::logic::ring::Layout;
use crate::logic::tuning::Tuning;

/// A worker answers after the batch at hand; this long means that it is stuck.
const ORDER_DEADLINE: Duration = Duration::from_secs(5);

/// A ring to serve.
#[derive(Debug)]
pub(super) struct RingSetup {
    pub(super) layout: Layout,
    pub(super) next_available: u16,
    pub(super) enabled: bool,
    pub(super) kick: Arc<File>,
    pub(super) call: Option<Arc<File>>,
}

/// What a worker is told to do.
#[derive(Debug)]
pub(super) enum Order {
    /// Nothing; the answer tells that the thread is there and has its port.
    Ready,
    Memory(Arc<Memory>),
    Features(Negotiated),
    Start(Direction, RingSetup),
    Enable(Direction, bool),
    Call(Direction, Option<Arc<File>>),
    /// Stop a ring; the answer is its next available index.
    Stop(Direction),
    /// Send an announcement for the guest.
    Announce(MacAddr),
    /// Forget rings and memory: the front-end is gone.
    Reset,
    Quit,
}

/// A worker did not do as told.
#[derive(Debug, thiserror::Error)]
#[error("worker of queue pair {0} is gone or stuck")]
pub(super) struct WorkerLost(usize);

/// The other threads' end of a worker.
#[derive(Debug)]
pub(super) struct WorkerHandle {
    pair: usize,
    orders: Sender<(Order, SyncSender<u16>)>,
    wake: Arc<EventFd>,
    thread: Option<JoinHandle<()>>,
}

impl WorkerHandle {
    /// Starts the thread of a queue pair, and returns once it has its processor and its port: what
    /// it needs of the system it has by then.
    pub(super) fn spawn(
        pair: usize,
        port: Box<dyn Port>,
        page: &StatsPage,
        tuning: &Tuning,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (orders, inbox) = channel();
        let worker = Worker::new(pair, port, page, tuning, inbox, Arc::clone(&wake))?;
        let cpu = tuning.cpu(pair);
        let (report, pinned) = sync_channel(1);
        let run = move || {
            let done = cpu.map_or(Ok(()), pin);
            let goes_on = done.is_ok();
            let _ = report.send(done);
            if goes_on {
                worker.run();
            }
        };
        let thread = std::thread::Builder::new().name(format!("queue-{pair}")).spawn(run)?;
        pinned.recv().map_err(io::Error::other)??;
        let handle = Self { pair, orders, wake, thread: Some(thread) };
        handle.order(Order::Ready).map_err(io::Error::other)?;
        Ok(handle)
    }

    /// Gives an order and waits until it is in force.
    pub(super) fn order(&self, order: Order) -> Result<u16, WorkerLost> {
        let (done, answer) = sync_channel(1);
        let lost = || WorkerLost(self.pair);
        self.orders.send((order, done)).map_err(|_| lost())?;
        self.wake.write(1).map_err(|_| lost())?;
        answer.recv_timeout(ORDER_DEADLINE).map_err(|_| lost())
    }
}

/// Keeps the calling thread on one processor.
fn pin(cpu: usize) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        if self.order(Order::Quit).is_ok()
            && let Some(thread) = self.thread.take()
        {
            let _ = thread.join();
        }
    }
}
