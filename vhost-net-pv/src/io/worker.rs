//! One queue pair's thread: the only user of the pair's rings, port and counters.
//!
//! It sleeps in one `epoll_wait` for kicks, frames and orders. All are watched edge by edge, so
//! nothing needs to be read to silence a kick; what may be pending is remembered instead. An order
//! (new memory, a ring started or stopped) ends the current session; the next one resolves
//! everything anew. Orders are answered once they are in force.

use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender};
use std::time::Instant;

use flexvf_protocol::stats_page::{Counter, Direction};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::EventFd;
use tracing::{debug, warn};

use super::order::{Order, RingSetup};
use super::port::{Batch, Port};
use super::rx::{RxPump, RxState};
use super::stats::{RingBlock, StatsPage};
use super::tx::{Turn, TxPump};
use crate::logic::counters::RingCounters;
use crate::logic::features::Negotiated;
use crate::logic::memory::Memory;
use crate::logic::rarp;
use crate::logic::ring::{Position, Ring};

const WAKE: u64 = 0;
const RX_KICK: u64 = 1;
const TX_KICK: u64 = 2;
const PORT: u64 = 3;

/// A ring that was started, and how far it is.
struct Served {
    setup: RingSetup,
    position: Position,
    /// False until the used index was read from guest memory.
    resumed: bool,
}

/// One direction's ring and counters.
struct Lane {
    served: Option<Served>,
    counters: RingCounters,
    block: RingBlock,
}

pub(super) struct Worker {
    pair: usize,
    port: Box<dyn Port>,
    epoll: Epoll,
    wake: Arc<EventFd>,
    inbox: Receiver<(Order, SyncSender<u16>)>,
    memory: Option<Arc<Memory>>,
    negotiated: Negotiated,
    rx: Lane,
    tx: Lane,
    rx_state: RxState,
}

impl Worker {
    pub(super) fn new(
        pair: usize,
        port: Box<dyn Port>,
        page: &StatsPage,
        inbox: Receiver<(Order, SyncSender<u16>)>,
        wake: Arc<EventFd>,
    ) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(wake.as_fd(), edge(WAKE))?;
        if let Some(fd) = port.readiness() {
            epoll.add(fd, edge(PORT))?;
        }
        Ok(Self {
            pair,
            port,
            epoll,
            wake,
            inbox,
            memory: None,
            negotiated: Negotiated::new(0),
            rx: Lane::new(page, pair, Direction::Rx),
            tx: Lane::new(page, pair, Direction::Tx),
            rx_state: RxState::new(),
        })
    }

    pub(super) fn run(mut self) {
        self.take_part();
        loop {
            let memory = self.memory.clone();
            self.session(memory.as_deref());
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
            Order::Memory(memory) => self.memory = Some(memory),
            Order::Features(negotiated) => self.negotiate(negotiated),
            Order::Start(direction, setup) => {
                let position = Position {
                    next_available: setup.next_available,
                    next_used: setup.next_available,
                };
                self.lane(direction).served = Some(Served { setup, position, resumed: false });
                self.take_part();
            }
            Order::Enable(direction, enabled) => {
                if let Some(served) = &mut self.lane(direction).served {
                    served.setup.enabled = enabled;
                }
                self.take_part();
            }
            Order::Call(direction, call) => {
                if let Some(served) = &mut self.lane(direction).served {
                    served.setup.call = call;
                }
            }
            Order::Stop(direction) => return self.stop(direction),
            Order::Announce(mac) => {
                let mut frame = rarp::announcement(mac);
                self.port.send(&mut Batch::single(&mut frame));
            }
            Order::Reset | Order::Quit => {
                self.stop(Direction::Rx);
                self.stop(Direction::Tx);
                self.memory = None;
            }
        }
        0
    }

    fn negotiate(&mut self, negotiated: Negotiated) {
        self.negotiated = negotiated;
        // Offloads belong to the interface, not to a queue: one worker sets them.
        if self.pair == 0
            && let Err(error) = self.port.set_offloads(negotiated.offloads)
        {
            warn!(%error, "the port does not take the guest's offloads");
        }
    }

    fn stop(&mut self, direction: Direction) -> u16 {
        let stopped = self.lane(direction).served.take();
        if direction == Direction::Rx {
            self.rx_state.reset();
        }
        self.take_part();
        stopped.map_or(0, |served| served.position.next_available)
    }

    /// A pair that the guest does not use must not be given frames, which it would keep for ever.
    fn take_part(&mut self) {
        let active = self.pair == 0 || self.rx.is_on() || self.tx.is_on();
        if let Err(error) = self.port.set_active(active) {
            warn!(pair = self.pair, active, %error, "the port's queue does not switch");
        }
    }

    const fn lane(&mut self, direction: Direction) -> &mut Lane {
        match direction {
            Direction::Rx => &mut self.rx,
            Direction::Tx => &mut self.tx,
        }
    }

    /// Serves the rings as they are now, until there is an order.
    fn session(&mut self, memory: Option<&Memory>) {
        let event_idx = self.negotiated.event_idx;
        let rx_ring = self.rx.open(memory, event_idx);
        let tx_ring = self.tx.open(memory, event_idx);
        let mut session = Session {
            rx: rx_ring.map(|ring| RxPump::new(ring, self.negotiated)),
            tx: tx_ring.map(|ring| TxPump::new(ring, self.negotiated.header_bytes)),
            rx_pending: true,
            tx_pending: true,
            starved_since: None,
        };
        self.watch(&session, true);
        while !self.wait(&mut session) {
            self.turns(&mut session);
        }
        self.watch(&session, false);
        self.count_starving(&mut session);
        if let (Some(pump), Some(served)) = (&session.rx, &mut self.rx.served) {
            served.position = pump.position();
        }
        if let (Some(pump), Some(served)) = (&session.tx, &mut self.tx.served) {
            served.position = pump.position();
        }
        self.rx.publish();
        self.tx.publish();
    }

    fn watch(&self, session: &Session<'_>, on: bool) {
        let rings =
            [(session.rx.is_some(), &self.rx, RX_KICK), (session.tx.is_some(), &self.tx, TX_KICK)];
        for (_, lane, token) in rings.into_iter().filter(|(served, ..)| *served) {
            let Some(served) = &lane.served else { continue };
            let watched = match on {
                true => self.epoll.add(&served.setup.kick, edge(token)),
                false => self.epoll.delete(&served.setup.kick),
            };
            if let Err(error) = watched {
                warn!(pair = self.pair, %error, "kick descriptor cannot be watched");
            }
        }
    }

    /// Waits for something to do. True: there is an order.
    fn wait(&mut self, session: &mut Session<'_>) -> bool {
        let timeout = match session.has_work() {
            true => EpollTimeout::ZERO,
            false => EpollTimeout::NONE,
        };
        let mut events = [EpollEvent::empty(); 4];
        // An interrupted wait is one without events.
        let count = self.epoll.wait(&mut events, timeout).unwrap_or_default();
        let mut order = false;
        for event in events.into_iter().take(count) {
            match event.data() {
                WAKE => order = true,
                RX_KICK => {
                    self.rx.counters.add(Counter::Kicks, 1);
                    session.rx_pending = true;
                }
                TX_KICK => {
                    self.tx.counters.add(Counter::Kicks, 1);
                    session.tx_pending = true;
                }
                _ => session.rx_pending = true,
            }
        }
        order
    }

    fn turns(&mut self, session: &mut Session<'_>) {
        if session.tx_pending
            && let Some(pump) = &mut session.tx
        {
            let call = self.tx.served.as_ref().and_then(|s| s.setup.call.as_deref());
            let turn = pump.turn(&mut *self.port, &mut self.tx.counters, call);
            session.tx_pending = turn == Turn::More;
            self.tx.publish();
        }
        if session.rx_pending && session.rx.is_some() {
            self.rx_turn(session);
            self.rx.publish();
        }
    }

    fn rx_turn(&mut self, session: &mut Session<'_>) {
        let Some(pump) = &mut session.rx else { return };
        let call = self.rx.served.as_ref().and_then(|s| s.setup.call.as_deref());
        let counters = &mut self.rx.counters;
        let turn = pump.turn(&mut *self.port, &mut self.rx_state, counters, call);
        session.rx_pending = turn == Turn::More;
        if turn == Turn::Starved && self.frames_wait() {
            session.starved_since.get_or_insert_with(Instant::now);
        } else {
            self.count_starving(session);
        }
    }

    /// A frame is waiting, as far as can be seen without taking it.
    fn frames_wait(&self) -> bool {
        let readable = |fd| {
            let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
        };
        self.rx_state.is_holding() || self.port.readiness().is_some_and(readable)
    }

    fn count_starving(&mut self, session: &mut Session<'_>) {
        if let Some(since) = session.starved_since.take() {
            let full_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.rx.counters.add(Counter::FullNs, full_ns);
        }
    }
}

/// What a session works with; borrows the memory it was started on.
struct Session<'m> {
    rx: Option<RxPump<'m>>,
    tx: Option<TxPump<'m>>,
    rx_pending: bool,
    tx_pending: bool,
    starved_since: Option<Instant>,
}

impl Session<'_> {
    const fn has_work(&self) -> bool {
        (self.rx_pending && self.rx.is_some()) || (self.tx_pending && self.tx.is_some())
    }
}

impl Lane {
    fn new(page: &StatsPage, pair: usize, direction: Direction) -> Self {
        let (block, counters) = page.ring(pair, direction);
        Self { served: None, counters, block }
    }

    fn is_on(&self) -> bool {
        self.served.as_ref().is_some_and(|s| s.setup.enabled)
    }

    fn publish(&mut self) {
        self.block.publish(&self.counters);
    }

    /// Resolves the ring if it is to be served.
    fn open<'m>(&mut self, memory: Option<&'m Memory>, event_idx: bool) -> Option<Ring<'m>> {
        let served = self.served.as_mut().filter(|s| s.setup.enabled)?;
        match Ring::new(memory?, &served.setup.layout, event_idx, served.position) {
            Ok(mut ring) => {
                if !served.resumed {
                    // Chains are returned in order and at once, so the used index in memory tells
                    // exactly what was returned, also after a backend that was killed.
                    ring.resume_used(ring.used_index_in_memory());
                    served.resumed = true;
                }
                debug!(layout = ?served.setup.layout, position = ?ring.position(), "ring served");
                Some(ring)
            }
            Err(error) => {
                warn!(%error, "ring cannot be served");
                None
            }
        }
    }
}

const fn edge(token: u64) -> EpollEvent {
    EpollEvent::new(EpollFlags::EPOLLIN.union(EpollFlags::EPOLLET), token)
}
