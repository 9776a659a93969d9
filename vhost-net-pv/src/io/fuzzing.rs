//! A way in for fuzzers (`--cfg fuzzing`): the walk of one ring, without a worker around it.

use super::port::Port;
use super::rx::{RxPump, RxState};
use super::tx::{Turn, TxPump};
use crate::logic::counters::RingCounters;
use crate::logic::dirty_log::{DirtyLog, SliceLog, UsedLog};
use crate::logic::features::Negotiated;
use crate::logic::memory::Memory;
use crate::logic::ring::{BadLayout, Layout, Position, Ring};

/// A ring that is walked turn by turn.
pub struct Walk<'m> {
    pump: Pump<'m>,
    /// What was counted so far.
    pub counters: RingCounters,
}

enum Pump<'m> {
    Tx(TxPump<'m>),
    Rx(RxPump<'m>, RxState),
}

/// Which way a ring's frames go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From the guest.
    Tx,
    /// To the guest.
    Rx,
}

impl<'m> Walk<'m> {
    /// A ring at its start, or anywhere else.
    ///
    /// # Errors
    /// The ring cannot be used.
    pub fn new(
        way: Way,
        memory: &'m Memory,
        layout: &Layout,
        features: u64,
        position: Position,
        log: Option<&'m DirtyLog>,
    ) -> Result<Self, BadLayout> {
        let negotiated = Negotiated::new(features);
        let mut ring = Ring::new(memory, layout, negotiated.event_idx, position)?;
        ring.log_used(log.map(|log| UsedLog::new(log, layout.used)));
        let pump = match way {
            Way::Tx => Pump::Tx(TxPump::new(ring, negotiated)),
            Way::Rx => {
                let log = log.map(|log| SliceLog::new(log, memory));
                Pump::Rx(RxPump::new(ring, negotiated, log), RxState::new())
            }
        };
        Ok(Self { pump, counters: RingCounters::default() })
    }

    /// One turn of at most so many frames. True: it wants another one at once.
    pub fn turn(&mut self, port: &mut dyn Port, limit: u16) -> bool {
        let counters = &mut self.counters;
        let turn = match &mut self.pump {
            Pump::Tx(pump) => pump.turn(port, counters, None, limit),
            Pump::Rx(pump, state) => pump.turn(port, state, counters, None, limit),
        };
        turn == Turn::More
    }

    /// Asks the guest for a kick. True: there is work already.
    pub fn ask_for_kick(&mut self) -> bool {
        match &mut self.pump {
            Pump::Tx(pump) => pump.ask_for_kick(&mut self.counters),
            Pump::Rx(pump, _) => pump.ask_for_kick(&mut self.counters),
        }
    }

    /// How far it is.
    pub fn position(&self) -> Position {
        match &self.pump {
            Pump::Tx(pump) => pump.position(),
            Pump::Rx(pump, _) => pump.position(),
        }
    }

    /// Frames that wait for buffers.
    pub fn is_holding(&self) -> bool {
        match &self.pump {
            Pump::Tx(_) => false,
            Pump::Rx(_, state) => state.is_holding(),
        }
    }
}
