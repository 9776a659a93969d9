//! Tests: a migration at the worst moments copies all that the receiving side writes.

use std::io;
use std::os::fd::BorrowedFd;

use proptest::prelude::*;
use vm_memory::{Bytes, GuestAddress};

use super::{BATCH, RxPump, RxState};
use crate::io::port::{Batch, Loopback, Port, Slots, Spills};
use crate::io::tx::Turn;
use crate::logic::counters::RingCounters;
use crate::logic::dirty_log::{DirtyLog, LOG_PAGE, SliceLog, UsedLog};
use crate::logic::features::{Negotiated, Offloads, offered};
use crate::logic::memory::{Map, Memory};
use crate::logic::ring::{Position, Ring};
use crate::logic::testing::{BUFFERS, Driver, WRITE, memory};

/// What a migration works with.
struct Migration {
    log: DirtyLog,
    memory: Memory,
    copy: Memory,
}

impl Migration {
    fn new() -> Self {
        Self { log: DirtyLog::new(Map::new(64).unwrap()), memory: memory(), copy: memory() }
    }

    /// Takes the marks and copies their pages.
    fn go_on(&self) {
        for page in self.log.take() {
            let address = GuestAddress(page * LOG_PAGE);
            let mut bytes = [0; LOG_PAGE as usize];
            self.memory.read_slice(&mut bytes, address).unwrap();
            self.copy.write_slice(&bytes, address).unwrap();
        }
    }

    fn is_copied(&self, address: u64, length: usize) -> bool {
        let [here, there] = [&self.memory, &self.copy].map(|memory| {
            let mut bytes = vec![0; length];
            memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
            bytes
        });
        here == there
    }
}

/// Gives frames back just after the front-end has taken all marks.
struct AtTheWorstMoment<'m>(Loopback, &'m Migration);

impl Port for AtTheWorstMoment<'_> {
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        self.0.readiness()
    }

    fn send(&mut self, batch: &mut Batch<'_>) {
        self.0.send(batch);
    }

    fn receive(&mut self, slots: &mut Slots<'_>, spills: &mut Spills) {
        self.1.go_on();
        self.0.receive(slots, spills);
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.0.set_offloads(offloads)
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        self.0.set_active(active)
    }
}

proptest! {
    #[test]
    fn all_that_was_returned_to_the_guest_is_in_a_copy_made_by_the_marks(
        steps in proptest::collection::vec(
            prop_oneof![
                (60usize..9000).prop_map(Ok),
                (20usize..5000).prop_map(Err),
            ],
            1..80,
        ),
        event_idx: bool,
    ) {
        let migration = Migration::new();
        let mut driver = Driver::new(&migration.memory, 32);
        let mut ring =
            Ring::new(&migration.memory, &driver.layout, event_idx, Position::default()).unwrap();
        ring.log_used(Some(UsedLog::new(&migration.log, driver.layout.used)));
        let negotiated = Negotiated::new(offered(1, Offloads::ALL));
        let log = SliceLog::new(&migration.log, &migration.memory);
        let mut pump = RxPump::new(ring, negotiated, Some(log));
        let mut port = AtTheWorstMoment(Loopback::new().unwrap(), &migration);
        let (mut state, mut counters) = (RxState::new(), RingCounters::default());
        let mut given = std::collections::VecDeque::new();
        let mut next = BUFFERS;
        for (seed, step) in steps.into_iter().enumerate() {
            match step {
                Ok(length) => port.send(&mut Batch::single(&mut vec![seed as u8 | 1; length])),
                Err(length) if given.len() < 32 => {
                    let head = driver.offer(&[(next, length)], WRITE);
                    given.push_back((u32::from(head), next));
                    next += length as u64;
                }
                Err(_) => {}
            }
            while pump.turn(&mut port, &mut state, &mut counters, None, BATCH) == Turn::More {}
            pump.ask_for_kick(&mut counters);
            migration.go_on();
            prop_assert!(migration.is_copied(driver.layout.used, 6 + 8 * 32));
            for (head, written) in driver.returned() {
                let (expected, address) = given.pop_front().unwrap();
                prop_assert_eq!(head, expected);
                prop_assert!(migration.is_copied(address, written as usize));
            }
        }
    }
}
