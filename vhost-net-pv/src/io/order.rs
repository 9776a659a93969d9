//! What the control path tells the workers, and how it waits until that is in force.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flexvf_protocol::MacAddr;
use flexvf_protocol::stats_page::Direction;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::unistd::Pid;

use super::log_map::SharedLog;
use super::port::Port;
use super::regions::GuestMemory;
use super::stats::StatsPage;
use super::sys;
use super::worker::Worker;
use crate::logic::features::Negotiated;
use crate::logic::ring::Layout;
use crate::logic::tuning::Tuning;

/// A worker answers after the batch at hand; this long means that it is stuck.
const ORDER_DEADLINE: Duration = Duration::from_secs(5);
/// A worker that takes this long may wait for an interrupt's descriptor.
const ORDER_PATIENCE: Duration = Duration::from_millis(500);
/// Pause between two attempts to free it.
const FREE_PAUSE: Duration = Duration::from_millis(1);

/// A ring to serve.
#[derive(Debug)]
pub(super) struct RingSetup {
    pub(super) layout: Layout,
    /// Guest address by which writes to the used ring are logged.
    pub(super) used_log: Option<u64>,
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
    Memory(Arc<GuestMemory>),
    Features(Negotiated),
    Start(Direction, RingSetup),
    Enable(Direction, bool),
    Call(Direction, Option<Arc<File>>),
    /// Mark pages that are written in this log, or in none.
    Log(Option<Arc<SharedLog>>),
    /// Mark writes to the used ring by this guest address, or not at all.
    UsedLog(Direction, Option<u64>),
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
    calls: Mutex<Calls>,
}

impl WorkerHandle {
    /// Starts the thread of a queue pair, and returns once it has its processor and its port: what
    /// it needs of the system it has by then.
    pub(super) fn spawn(
        pair: usize,
        port: Box<dyn Port>,
        page: &StatsPage,
        tuning: &Tuning,
        port_gone: &Arc<EventFd>,
    ) -> io::Result<Self> {
        let wake = Arc::new(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?);
        let (orders, inbox) = channel();
        let events = [&wake, port_gone].map(Arc::clone);
        let worker = Worker::new(pair, port, page, tuning, inbox, events)?;
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
        let handle = Self { pair, orders, wake, thread: Some(thread), calls: Mutex::default() };
        handle.order(Order::Ready).map_err(io::Error::other)?;
        Ok(handle)
    }

    /// Gives an order and waits until it is in force.
    pub(super) fn order(&self, order: Order) -> Result<u16, WorkerLost> {
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        let calls_then = calls.after(&order);
        let (done, answer) = sync_channel(1);
        let lost = || WorkerLost(self.pair);
        self.orders.send((order, done)).map_err(|_| lost())?;
        self.wake.write(1).map_err(|_| lost())?;
        let obeyed =
            answer.recv_timeout(ORDER_PATIENCE).or_else(|_| calls.free_until_answered(&answer));
        let answer = obeyed.map_err(|_| lost())?;
        *calls = calls_then;
        Ok(answer)
    }
}

/// Keeps the calling thread on one processor.
fn pin(cpu: usize) -> io::Result<()> {
    let mut cpus = CpuSet::new();
    cpus.set(cpu)?;
    Ok(sched_setaffinity(Pid::from_raw(0), &cpus)?)
}

/// The interrupts' descriptors that a worker is using.
///
/// Writing to one does not wait, unless the front-end, which shares it, makes it do so and fills it
/// up. The front-end's own traffic then stands still, as it has wished; but orders get through.
#[derive(Debug, Default, Clone)]
struct Calls {
    rx: Option<Arc<File>>,
    tx: Option<Arc<File>>,
}

impl Calls {
    /// What is in use once an order is in force.
    fn after(&self, order: &Order) -> Self {
        let (direction, call) = match order {
            Order::Start(direction, setup) => (direction, setup.call.clone()),
            Order::Call(direction, call) => (direction, call.clone()),
            Order::Stop(direction) => (direction, None),
            Order::Reset | Order::Quit => return Self::default(),
            _ => return self.clone(),
        };
        match direction {
            Direction::Rx => Self { rx: call, tx: self.tx.clone() },
            Direction::Tx => Self { rx: self.rx.clone(), tx: call },
        }
    }

    /// Empties what is full, in which the worker may be stuck, until it answers.
    fn free_until_answered(&self, answer: &Receiver<u16>) -> Result<u16, RecvTimeoutError> {
        let deadline = Instant::now() + ORDER_DEADLINE;
        loop {
            for call in [&self.rx, &self.tx].into_iter().flatten().filter(|call| is_full(call)) {
                sys::drain(call.as_fd());
            }
            match answer.recv_timeout(FREE_PAUSE) {
                Err(RecvTimeoutError::Timeout) if Instant::now() < deadline => {}
                answered => return answered,
            }
        }
    }
}

/// No interrupt can be added. No honest front-end lets 2^64 of them pile up.
fn is_full(call: &File) -> bool {
    let mut fds = [PollFd::new(call.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|writable| writable == 0)
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
