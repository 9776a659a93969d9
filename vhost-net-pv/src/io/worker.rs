//! One queue pair's thread: the only user of the pair's rings, port and counters.
//!
//! It sleeps in one `epoll_wait` for kicks, frames and orders. All are watched edge by edge, so
//! nothing needs to be read to silence a kick; what may be pending is remembered instead. Before
//! it sleeps it may look for work for a while (busy-polling), during which the guest need not kick.
//! An order (new memory, a ring started or stopped) ends the current session; the next one resolves
//! everything anew. Orders are answered once they are in force.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::{Duration, Instant};

use flexvf_protocol::stats_page::{Counter, Direction};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use nix::sys::prctl;
use nix::sys::time::TimeSpec;
use tracing::warn;

use super::lane::Lane;
use super::log_map::SharedLog;
use super::order::Order;
use super::port::{Batch, Port};
use super::regions::GuestMemory;
use super::rx::RxState;
use super::session::{Pair, Session, SharedMemory};
use super::stats::StatsPage;
use crate::logic::busy_poll::BusyPoll;
use crate::logic::features::Negotiated;
use crate::logic::rarp;
use crate::logic::tuning::Tuning;

const WAKE: u64 = 0;
const RX_KICK: u64 = 1;
const TX_KICK: u64 = 2;
const PORT: u64 = 3;

/// Turns between two looks for events while there is work and the port has none of its own:
/// orders may wait that long, and nothing else would tell more than is known.
const TURNS_A_LOOK: u32 = 16;

/// Looks at the rings between two looks for events while it polls: these are system calls, which
/// cost ten times as much.
const LOOKS_AN_EVENT: u32 = 8;

/// A sender that sends nothing more for so long is interrupted for what it has sent.
const LONGEST_OWED: Duration = Duration::from_micros(50);

pub(super) struct Worker {
    index: usize,
    pair: Pair,
    epoll: Epoll,
    wake: Arc<EventFd>,
    /// To be told that the port is gone for good.
    port_gone: Arc<EventFd>,
    inbox: Receiver<(Order, SyncSender<u16>)>,
    memory: Option<Arc<GuestMemory>>,
    log: Option<Arc<SharedLog>>,
    negotiated: Negotiated,
    poll: BusyPoll,
    turns: u32,
}

impl Worker {
    pub(super) fn new(
        index: usize,
        port: Box<dyn Port>,
        page: &StatsPage,
        tuning: &Tuning,
        inbox: Receiver<(Order, SyncSender<u16>)>,
        [wake, port_gone]: [Arc<EventFd>; 2],
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(wake.as_fd(), edge(WAKE))?;
        if let Some(fd) = port.readiness() {
            epoll.add(fd, edge(PORT))?;
        }
        let pair = Pair {
            port,
            rx: Lane::new(page, index, Direction::Rx, tuning.rx_limit),
            tx: Lane::new(page, index, Direction::Tx, tuning.tx_limit),
            rx_state: RxState::new(),
            began: Instant::now(),
        };
        Ok(Self {
            index,
            pair,
            epoll,
            wake,
            port_gone,
            inbox,
            memory: None,
            log: None,
            negotiated: Negotiated::new(0),
            poll: BusyPoll::new(tuning.poll),
            turns: 0,
        })
    }

    pub(super) fn run(mut self) {
        // The kernel's 50 µs would double what a sender waits. A wish, as that time is.
        let _ = prctl::set_timerslack(1);
        self.pair.port.adopt();
        self.take_part();
        loop {
            let (memory, log) = (self.memory.clone(), self.log.clone());
            let shared = SharedMemory {
                memory: memory.as_deref().map(GuestMemory::memory),
                log: log.as_deref().map(SharedLog::log),
            };
            self.session(shared);
            // An order that takes memory away is obeyed only when nothing uses it any more.
            drop((memory, log));
            let _ = self.wake.read();
            while let Ok((order, done)) = self.inbox.try_recv() {
                let quit = matches!(order, Order::Quit);
                let answer = self.obey(order);
                let _ = done.try_send(answer);
                if quit {
                    return;
                }
            }
        }
    }

    fn obey(&mut self, order: Order) -> u16 {
        match order {
            Order::Ready => {}
            Order::Memory(memory) => self.memory = Some(memory),
            Order::Features(negotiated) => self.negotiate(negotiated),
            Order::Start(direction, setup) => {
                self.lane(direction).start(setup);
                self.take_part();
            }
            Order::Enable(direction, enabled) => {
                if let Some(served) = &mut self.lane(direction).served {
                    served.setup.enabled = enabled;
                }
                self.take_part();
            }
            Order::Call(direction, call) => self.lane(direction).set_call(call),
            Order::Log(log) => self.log = log,
            Order::UsedLog(direction, address) => {
                if let Some(served) = &mut self.lane(direction).served {
                    served.setup.used_log = address;
                }
            }
            Order::Stop(direction) => return self.stop(direction),
            Order::Announce(mac) => {
                let mut frame = rarp::announcement(mac);
                self.pair.port.send(&mut Batch::single(&mut frame));
            }
            Order::Reset | Order::Quit => {
                self.stop(Direction::Rx);
                self.stop(Direction::Tx);
                self.memory = None;
                self.log = None;
            }
        }
        0
    }

    fn negotiate(&mut self, negotiated: Negotiated) {
        self.negotiated = negotiated;
        // Offloads belong to the interface, not to a queue: one worker sets them.
        if self.index == 0
            && let Err(error) = self.pair.port.set_offloads(negotiated.offloads)
        {
            warn!(%error, "the port does not take the guest's offloads");
        }
    }

    fn stop(&mut self, direction: Direction) -> u16 {
        let next_available = self.lane(direction).stop();
        if direction == Direction::Rx {
            let lost = self.pair.rx_state.reset();
            self.pair.rx.counters.add(Counter::DropNoBuffer, lost as u64);
            self.pair.rx.publish();
        }
        self.take_part();
        next_available
    }

    /// A pair that the guest does not use must not be given frames, which it would keep for ever.
    fn take_part(&mut self) {
        let active = self.index == 0 || self.pair.rx.is_on() || self.pair.tx.is_on();
        if let Err(error) = self.pair.port.set_active(active) {
            warn!(pair = self.index, active, %error, "the port's queue does not switch");
        }
    }

    const fn lane(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::Rx => &mut self.pair.rx,
            Direction::Tx => &mut self.pair.tx,
        }
    }

    /// Serves the rings as they are now, until there is an order.
    fn session(&mut self, shared: SharedMemory<'_>) {
        let mut session = Session::new(&mut self.pair, shared, self.negotiated);
        self.watch(&session, true);
        while !self.wait(&mut session) {
            session.turns(&mut self.pair);
        }
        self.watch(&session, false);
        session.end(&mut self.pair);
    }

    fn watch(&self, session: &Session<'_>, on: bool) {
        let rings = [
            (session.rx.is_some(), &self.pair.rx, RX_KICK),
            (session.tx.is_some(), &self.pair.tx, TX_KICK),
        ];
        for (_, lane, token) in rings.into_iter().filter(|(served, ..)| *served) {
            let Some(served) = &lane.served else { continue };
            let watched = match on {
                true => self.epoll.add(&served.setup.kick, edge(token)),
                false => self.epoll.delete(&served.setup.kick),
            };
            if let Err(error) = watched {
                warn!(pair = self.index, %error, "kick descriptor cannot be watched");
            }
        }
    }

    /// Waits for something to do. True: there is an order.
    fn wait(&mut self, session: &mut Session<'_>) -> bool {
        if session.has_work() {
            self.turns = self.turns.wrapping_add(1);
            let passive = self.pair.port.readiness().is_none();
            return if passive && !self.turns.is_multiple_of(TURNS_A_LOOK) {
                false
            } else {
                self.events(session, EpollTimeout::ZERO)
            };
        }
        if let Some(wait) = session.take_held_back() {
            // The other lane has nothing to do, and must be heard of when it has.
            session.interrupt_sender(&mut self.pair);
            if session.ask_for_kicks(&mut self.pair) {
                return false;
            }
            return self.events(session, at_least(wait));
        }
        if !self.poll.window().is_zero() && self.look_for_work(session) {
            return false;
        }
        if session.ask_for_kicks(&mut self.pair) {
            return false;
        }
        self.sleep(session)
    }

    /// Waits for events, so long at the most. True: there are some.
    fn is_ready_within(&self, longest: Duration) -> bool {
        let mut fds = [PollFd::new(self.epoll.0.as_fd(), PollFlags::POLLIN)];
        ppoll(&mut fds, Some(TimeSpec::from_duration(longest)), None).is_ok_and(|ready| ready > 0)
    }

    /// Busy-polls for as long as that has lately been worth it. True: there is something.
    fn look_for_work(&mut self, session: &mut Session<'_>) -> bool {
        let began = Instant::now();
        let mut elapsed = Duration::ZERO;
        while elapsed < self.poll.window() {
            if elapsed > LONGEST_OWED {
                session.interrupt_sender(&mut self.pair);
            }
            if (0..LOOKS_AN_EVENT).any(|_| session.look(&mut self.pair)) {
                return true;
            }
            // An order must not be forgotten between here and the sleep: put the wake-up back.
            if self.events(session, EpollTimeout::ZERO) {
                let _ = self.wake.write(1);
                return false;
            }
            if session.has_work() {
                return true;
            }
            elapsed = began.elapsed();
        }
        false
    }

    fn sleep(&mut self, session: &mut Session<'_>) -> bool {
        let began = Instant::now();
        let timeout = match session.owes_sender() {
            // Whatever it was that came: what is owed must not wait for the next thing.
            true if self.is_ready_within(LONGEST_OWED) => EpollTimeout::ZERO,
            true => {
                session.interrupt_sender(&mut self.pair);
                EpollTimeout::NONE
            }
            false => EpollTimeout::NONE,
        };
        let order = self.events(session, timeout);
        self.poll.slept(began.elapsed());
        order
    }

    /// Takes what has happened, or waits until something does. True: there is an order.
    fn events(&mut self, session: &mut Session<'_>, timeout: EpollTimeout) -> bool {
        let mut events = [EpollEvent::empty(); 4];
        // An interrupted wait is one without events.
        let count = self.epoll.wait(&mut events, timeout).unwrap_or_default();
        let mut order = false;
        for event in events.into_iter().take(count) {
            match event.data() {
                WAKE => order = true,
                RX_KICK => {
                    self.pair.rx.counters.add(Counter::Kicks, 1);
                    session.rx_pending = true;
                }
                TX_KICK => {
                    self.pair.tx.counters.add(Counter::Kicks, 1);
                    session.tx_pending = true;
                }
                _ if event.events().contains(EpollFlags::EPOLLERR) => {
                    // It never comes back; whoever serves the device is to end with an error.
                    let _ = self.port_gone.write(1);
                }
                _ => session.rx_pending = true,
            }
        }
        order
    }
}

const fn edge(token: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN.union(EpollFlags::EPOLLET), token)
}

/// A timeout of whole milliseconds that is not shorter than `wait`.
fn at_least(wait: Duration) -> EpollTimeout {
    let millis = wait.as_millis().saturating_add(1);
    u16::try_from(millis).map_or(EpollTimeout::from(u16::MAX), EpollTimeout::from)
}
