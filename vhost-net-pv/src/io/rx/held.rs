//! Frames that were read but have no place in the ring yet.

use std::collections::VecDeque;

use crate::io::port::{MAX_SLOTS, Spills};
use crate::logic::net_header::RawHeader;

/// What outlives a ring's use: memory for frames that do not fit, and such frames.
#[derive(Debug, Default)]
pub(in crate::io) struct RxState {
    pub(super) spills: Spills,
    /// In their order, and before everything that the port still has. Never more than one
    /// reading brings, since nothing is read while there is one.
    held: VecDeque<Held>,
}

/// A frame that waits for buffers.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) header: RawHeader,
    pub(super) frame: Vec<u8>,
}

impl RxState {
    /// Nothing held.
    pub(in crate::io) fn new() -> Self {
        Self { spills: Spills::new(), held: VecDeque::with_capacity(MAX_SLOTS) }
    }

    /// Forgets frames that were meant for an earlier guest; says how many there were.
    pub(in crate::io) fn reset(&mut self) -> usize {
        self.held.drain(..).count()
    }

    /// A frame waits.
    pub(in crate::io) fn is_holding(&self) -> bool {
        !self.held.is_empty()
    }

    pub(super) fn hold(&mut self, held: Held) {
        self.held.push_back(held);
    }

    /// Takes the frame whose turn it is.
    pub(super) fn next(&mut self) -> Option<Held> {
        self.held.pop_front()
    }

    /// Puts the frame back whose turn it is.
    pub(super) fn put_back(&mut self, held: Held) {
        self.held.push_front(held);
    }
}
