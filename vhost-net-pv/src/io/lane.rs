//! One direction of a queue pair: its ring, counters and limit.

use std::fs::File;
use std::sync::Arc;

use flexvf_protocol::stats_page::{Counter, Direction};
use tracing::{debug, warn};

use super::order::RingSetup;
use super::session::SharedMemory;
use super::stats::{RingBlock, StatsPage};
use super::tx;
use crate::logic::counters::RingCounters;
use crate::logic::dirty_log::UsedLog;
use crate::logic::ring::{Position, Ring};
use crate::logic::token_bucket::Limiter;
use crate::logic::tuning::Limit;

/// A ring that was started, and how far it is.
pub(super) struct Served {
    pub(super) setup: RingSetup,
    pub(super) position: Position,
    /// False until the used index was read from guest memory.
    resumed: bool,
}

/// One direction's ring and counters.
pub(super) struct Lane {
    pub(super) served: Option<Served>,
    pub(super) counters: RingCounters,
    pub(super) limiter: Limiter,
    block: RingBlock,
}

impl Lane {
    pub(super) fn new(page: &StatsPage, pair: usize, direction: Direction, limit: Limit) -> Self {
        let (block, counters) = page.ring(pair, direction);
        Self { served: None, counters, limiter: Limiter::new(limit), block }
    }

    /// Takes a ring that is to be served.
    pub(super) fn start(&mut self, setup: RingSetup) {
        let position =
            Position { next_available: setup.next_available, next_used: setup.next_available };
        self.served = Some(Served { setup, position, resumed: false });
        self.interrupt();
    }

    /// Learns how to interrupt the guest.
    pub(super) fn set_call(&mut self, call: Option<Arc<File>>) {
        if let Some(served) = &mut self.served {
            served.setup.call = call;
        }
        self.interrupt();
    }

    /// Gives the ring up; returns its next available index.
    pub(super) fn stop(&mut self) -> u16 {
        self.served.take().map_or(0, |served| served.position.next_available)
    }

    pub(super) fn is_on(&self) -> bool {
        self.served.as_ref().is_some_and(|s| s.setup.enabled)
    }

    pub(super) fn publish(&mut self) {
        self.block.publish(&self.counters);
    }

    /// Packets and bytes handled so far, to see what a turn has cost.
    pub(super) fn handled(&self) -> (u64, u64) {
        (self.counters.get(Counter::Segments), self.counters.get(Counter::Bytes))
    }

    /// Takes what was handled since `before` from the limit.
    pub(super) fn charge(&mut self, before: (u64, u64)) {
        let (packets, bytes) = self.handled();
        self.limiter.charge(packets.wrapping_sub(before.0), bytes.wrapping_sub(before.1));
    }

    /// Interrupts the guest unasked. What it waits for may have happened already: it was returned by a
    /// backend that then was killed, or before the descriptor came, which QEMU sends after the ring
    /// was started. With event indices nothing would ever tell the guest.
    fn interrupt(&mut self) {
        let call = self.served.as_ref().and_then(|served| served.setup.call.as_deref());
        tx::interrupt(&mut self.counters, call);
    }

    /// Resolves the ring if it is to be served.
    pub(super) fn open<'m>(
        &mut self,
        shared: SharedMemory<'m>,
        event_idx: bool,
    ) -> Option<Ring<'m>> {
        let served = self.served.as_mut().filter(|s| s.setup.enabled)?;
        match Ring::new(shared.memory?, &served.setup.layout, event_idx, served.position) {
            Ok(mut ring) => {
                if !served.resumed {
                    // Chains are returned in order and at once, so the used index in memory tells
                    // exactly what was returned, also after a backend that was killed. A front-end
                    // that has lost its backend guesses, and may have looked too early: a chain that
                    // is returned twice is the end of a Linux guest's ring.
                    let (told, index) = (served.setup.next_available, ring.used_index_in_memory());
                    if told != index {
                        debug!(
                            told,
                            index, "the ring goes on where it is, not where it is said to be"
                        );
                    }
                    ring.resume_at(index);
                    served.resumed = true;
                }
                let used_log = shared.log.zip(served.setup.used_log);
                ring.log_used(used_log.map(|(log, address)| UsedLog::new(log, address)));
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
