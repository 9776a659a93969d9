//! A time during which a queue pair's rings and memory stay as they are.

use std::time::{Duration, Instant};

use flexvf_protocol::stats_page::Counter;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::lane::Lane;
use super::port::Port;
use super::rx::{RxPump, RxState};
use super::tx::{Turn, TxPump};
use crate::logic::dirty_log::{DirtyLog, SliceLog};
use crate::logic::features::Negotiated;
use crate::logic::memory::Memory;
use crate::logic::token_bucket::Allowance;

/// A queue pair's two lanes, its port, and what the receiving side keeps between sessions.
pub(super) struct Pair {
    pub(super) port: Box<dyn Port>,
    pub(super) rx: Lane,
    pub(super) tx: Lane,
    pub(super) rx_state: RxState,
    /// The beginning of time for the limits.
    pub(super) began: Instant,
}

/// What the front-end shares.
#[derive(Clone, Copy)]
pub(super) struct SharedMemory<'m> {
    pub(super) memory: Option<&'m Memory>,
    /// Where to mark what is written to it, while the front-end wants that.
    pub(super) log: Option<&'m DirtyLog>,
}

/// What a session works with; borrows the memory it was started on.
pub(super) struct Session<'m> {
    pub(super) rx: Option<RxPump<'m>>,
    pub(super) tx: Option<TxPump<'m>>,
    /// There may be something to do.
    pub(super) rx_pending: bool,
    pub(super) tx_pending: bool,
    /// The receive ring has no buffers; a kick is what brings some.
    rx_starved: bool,
    starved_since: Option<Instant>,
    /// How long the limits keep a lane with work from it.
    held_back: Option<Duration>,
}

impl<'m> Session<'m> {
    pub(super) fn new(pair: &mut Pair, shared: SharedMemory<'m>, negotiated: Negotiated) -> Self {
        let rx_ring = pair.rx.open(shared, negotiated.event_idx);
        let tx_ring = pair.tx.open(shared, negotiated.event_idx);
        let log = shared.memory.zip(shared.log).map(|(memory, log)| SliceLog::new(log, memory));
        Self {
            rx: rx_ring.map(|ring| RxPump::new(ring, negotiated, log)),
            tx: tx_ring.map(|ring| TxPump::new(ring, negotiated)),
            rx_pending: true,
            tx_pending: true,
            rx_starved: false,
            starved_since: None,
            held_back: None,
        }
    }

    /// Leaves positions and counters for the next session.
    pub(super) fn end(&mut self, pair: &mut Pair) {
        self.count_starving(pair);
        self.interrupt_sender(pair);
        if let (Some(pump), Some(served)) = (&self.rx, &mut pair.rx.served) {
            served.position = pump.position();
        }
        if let (Some(pump), Some(served)) = (&self.tx, &mut pair.tx.served) {
            served.position = pump.position();
        }
        pair.rx.publish();
        pair.tx.publish();
    }

    /// There is something to do right now.
    pub(super) const fn has_work(&self) -> bool {
        let pending =
            (self.rx_pending && self.rx.is_some()) || (self.tx_pending && self.tx.is_some());
        pending && self.held_back.is_none()
    }

    /// How long the limits want nothing done, if that is what keeps work from being done.
    pub(super) fn take_held_back(&mut self) -> Option<Duration> {
        self.held_back.take()
    }

    /// Gives both directions their turn.
    pub(super) fn turns(&mut self, pair: &mut Pair) {
        let mut waits = [Duration::ZERO; 2];
        let mut limited = [false; 2];
        if !self.tx_pending {
            self.interrupt_sender(pair);
        }
        self.look_at_idle_lanes(pair);
        if self.tx_pending && self.tx.is_some() {
            match allowance(&mut pair.tx, pair.began) {
                Allowance::Frames(limit) => self.tx_turn(pair, limit),
                Allowance::Wait(wait) => {
                    (limited[0], waits[0]) = (true, wait);
                    self.interrupt_sender(pair);
                }
            }
        }
        if self.rx_pending && self.rx.is_some() {
            match allowance(&mut pair.rx, pair.began) {
                Allowance::Frames(limit) => self.rx_turn(pair, limit),
                Allowance::Wait(wait) => (limited[1], waits[1]) = (true, wait),
            }
        }
        // A lane that still may work is not made to wait for the other one.
        let busy = |pending: bool, there: bool, limited: bool| pending && there && !limited;
        let free = busy(self.tx_pending, self.tx.is_some(), limited[0])
            || busy(self.rx_pending, self.rx.is_some(), limited[1]);
        let shortest = waits.into_iter().zip(limited).filter(|(_, on)| *on).map(|(wait, _)| wait);
        self.held_back = shortest.min().filter(|_| !free);
    }

    /// A lane without work was not asked for kicks while the other one has some: it is looked at.
    fn look_at_idle_lanes(&mut self, pair: &mut Pair) {
        if !self.tx_pending {
            self.look(pair);
        }
        if self.rx_starved
            && !self.rx_pending
            && let Some(pump) = &mut self.rx
        {
            self.rx_pending = pump.is_offered(&mut pair.rx.counters);
        }
    }

    /// Tells the guest now that frames it sent are done, if it wants to know and was not told yet.
    pub(super) fn interrupt_sender(&mut self, pair: &mut Pair) {
        if let Some(pump) = &mut self.tx {
            let call = pair.tx.served.as_ref().and_then(|s| s.setup.call.as_deref());
            pump.interrupt(&mut pair.tx.counters, call);
        }
    }

    /// The sender is to be interrupted before long.
    pub(super) fn owes_sender(&self) -> bool {
        self.tx.as_ref().is_some_and(TxPump::owes_interrupt)
    }

    /// The guest has frames ready, seen without being told.
    pub(super) fn look(&mut self, pair: &mut Pair) -> bool {
        let offered = self.tx.as_mut().is_some_and(|pump| pump.is_offered(&mut pair.tx.counters));
        self.tx_pending |= offered;
        offered
    }

    /// Asks the guest to kick, before a sleep. True: a lane that had no work has some after all.
    pub(super) fn ask_for_kicks(&mut self, pair: &mut Pair) -> bool {
        let mut found = false;
        if !self.tx_pending
            && let Some(pump) = &mut self.tx
        {
            self.tx_pending = pump.ask_for_kick(&mut pair.tx.counters);
            found |= self.tx_pending;
        }
        if self.rx_starved
            && !self.rx_pending
            && let Some(pump) = &mut self.rx
        {
            self.rx_pending = pump.ask_for_kick(&mut pair.rx.counters);
            found |= self.rx_pending;
        }
        found
    }

    fn tx_turn(&mut self, pair: &mut Pair, limit: u16) {
        let Some(pump) = &mut self.tx else { return };
        let before = pair.tx.handled();
        let call = pair.tx.served.as_ref().and_then(|s| s.setup.call.as_deref());
        let turn = pump.turn(&mut *pair.port, &mut pair.tx.counters, call, limit);
        self.tx_pending = turn == Turn::More;
        pair.tx.charge(before);
        pair.tx.publish();
    }

    fn rx_turn(&mut self, pair: &mut Pair, limit: u16) {
        let Some(pump) = &mut self.rx else { return };
        let before = pair.rx.handled();
        let call = pair.rx.served.as_ref().and_then(|s| s.setup.call.as_deref());
        let (port, state) = (&mut *pair.port, &mut pair.rx_state);
        let turn = pump.turn(port, state, &mut pair.rx.counters, call, limit);
        self.rx_pending = turn == Turn::More;
        self.rx_starved = turn == Turn::Starved;
        if self.rx_starved && frames_wait(pair) {
            self.starved_since.get_or_insert_with(Instant::now);
        } else {
            self.count_starving(pair);
        }
        pair.rx.charge(before);
        pair.rx.publish();
    }

    fn count_starving(&mut self, pair: &mut Pair) {
        if let Some(since) = self.starved_since.take() {
            let full_ns = u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX);
            pair.rx.counters.add(Counter::FullNs, full_ns);
        }
    }
}

fn allowance(lane: &mut Lane, began: Instant) -> Allowance {
    if !lane.limiter.is_on() {
        return Allowance::Frames(u16::MAX);
    }
    let allowance = lane.limiter.allowance(began.elapsed());
    if matches!(allowance, Allowance::Wait(_)) {
        lane.counters.add(Counter::Throttled, 1);
    }
    allowance
}

/// A frame is waiting, as far as can be seen without taking it.
fn frames_wait(pair: &Pair) -> bool {
    let readable = |fd| {
        let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO).is_ok_and(|count| count > 0)
    };
    pair.rx_state.is_holding() || pair.port.readiness().is_some_and(readable)
}
