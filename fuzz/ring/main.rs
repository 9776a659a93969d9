//! A guest that means harm: any descriptors, chains, indices and headers, changed at any moment of
//! the walk, by the guest's other processors (a thread) and by the port in mid-turn.
//!
//! What the walk must hold to, whatever the guest does:
//! - no panic, and no turn without an end, nor turns without progress that want another one;
//! - each chain taken is returned once: the two indices go on in step, but where the guest's jumps;
//! - each chain is counted once when sending, and each frame once when receiving.
//!
//! And while the guest leaves ring and lengths alone: chains are returned in their order, with as
//! many bytes as were written, and what was written for the guest is marked in a dirty log.
#![no_main]

use arbitrary::Arbitrary;
use flexvf_protocol::stats_page::Counter;
use libfuzzer_sys::fuzz_target;
use vhost_net_pv::io::fuzzing::{Walk, Way};
use vhost_net_pv::logic::ring::Position;

use dirty::{Log, Written};
use guest::Guest;
use port::FuzzPort;
use script::{Deed, Place, Poke};

mod dirty;
mod guest;
mod memory;
mod port;
mod scribbler;
mod script;

const MAX_DEEDS: usize = 64;
/// A turn's own bound.
const BATCH: u16 = 64;
/// Turns in a row: each takes a chain or a frame, and there are no more than these.
const MAX_TURNS: usize = 70_000;

/// One guest, and what it does.
#[derive(Debug, Arbitrary)]
struct Input {
    receives: bool,
    features: Features,
    logs: bool,
    log_size: u8,
    place: Place,
    start: u16,
    deeds: Vec<Deed>,
    /// What the guest's other processors change all the time: from one value to the other.
    scribbles: Vec<(Poke, u64)>,
}

#[derive(Debug, Arbitrary)]
struct Features {
    modern: bool,
    mergeable: bool,
    event_idx: bool,
    in_order: bool,
}

impl Features {
    fn bits(&self) -> u64 {
        let bit = |on: bool, bit: u32| u64::from(on) << bit;
        bit(self.modern, 32)
            | bit(self.mergeable, 15)
            | bit(self.event_idx, 29)
            | bit(self.in_order, 35)
    }
}

fuzz_target!(|input: Input| run(&input));

fn run(input: &Input) {
    let memory = memory::memory();
    memory::wipe(memory);
    let mut guest = Guest::new(memory, input.receives, input.log_size, &input.place, input.start);
    let position = Position { next_available: input.start, next_used: input.start };
    let way = if input.receives { Way::Rx } else { Way::Tx };
    let log = input.logs.then(Log::new);
    let dirty = log.as_ref().map(Log::dirty);
    let walk = Walk::new(way, memory, &guest.layout, input.features.bits(), position, dirty);
    let Ok(mut walk) = walk else { return };
    let mut port = FuzzPort::new(memory);
    // What is written meanwhile by others cannot be told from what the walk writes.
    let judged_log = log.as_ref().filter(|_| input.scribbles.is_empty());
    let scribbles = input.scribbles.iter().map(|(poke, other)| (guest.address(poke), *other));
    let _scribbling = scribbler::scribble(scribbles.collect());
    for deed in input.deeds.iter().take(MAX_DEEDS) {
        match deed {
            Deed::Turn(limit) => {
                let mut judge = Judge::new(&walk, &port, judged_log);
                walk.turn(&mut port, limit % BATCH + 1);
                judge.turned(&walk, &port, input, &mut guest);
            }
            Deed::Turns => settle(&mut walk, &mut port, input, &mut guest, judged_log),
            Deed::AskForKick => drop(ask_for_kick(&mut walk, &mut guest)),
            Deed::Frame(length) => port.offer(usize::from(*length)),
            Deed::InMidTurn(pokes) => port.poke_later(pokes.iter().map(|p| guest.address(p))),
            other => guest.does(other),
        }
    }
}

/// Goes on as a worker does, until there is nothing left to do.
fn settle(
    walk: &mut Walk<'_>,
    port: &mut FuzzPort,
    input: &Input,
    guest: &mut Guest<'_>,
    log: Option<&Log>,
) {
    for _ in 0..MAX_TURNS {
        let mut judge = Judge::new(walk, port, log);
        let more = walk.turn(port, BATCH);
        judge.turned(walk, port, input, guest);
        if !more && !ask_for_kick(walk, guest) {
            return;
        }
        assert!(!more || judge.progress, "a turn did nothing and wants another one");
        if !more && !judge.progress {
            // A guest whose index jumps at each look could go on for ever, at its own expense.
            return;
        }
    }
    panic!("turns without an end");
}

fn ask_for_kick(walk: &mut Walk<'_>, guest: &mut Guest<'_>) -> bool {
    let before = walk.position();
    let asked = walk.ask_for_kick();
    if walk.position() != before {
        guest.is_lost();
    }
    asked
}

/// What a turn may do.
struct Judge<'l> {
    before: Position,
    /// What memory was, and the log of what is written to it.
    written: Option<Written<'l>>,
    counted_before: [u64; 6],
    given_before: u64,
    was_holding: bool,
    progress: bool,
}

const COUNTED: [Counter; 6] = [
    Counter::Frames,
    Counter::DropMalformed,
    Counter::DropPort,
    Counter::DropNoBuffer,
    Counter::Bytes,
    Counter::Segments,
];

impl<'l> Judge<'l> {
    fn new(walk: &Walk<'_>, port: &FuzzPort, log: Option<&'l Log>) -> Self {
        Self {
            written: log.filter(|_| !port.is_to_poke()).map(Log::watch),
            before: walk.position(),
            counted_before: COUNTED.map(|counter| walk.counters.get(counter)),
            given_before: port.given(),
            was_holding: walk.is_holding(),
            progress: false,
        }
    }

    fn turned(&mut self, walk: &Walk<'_>, port: &FuzzPort, input: &Input, guest: &mut Guest<'_>) {
        let after = walk.position();
        let counted = COUNTED.map(|counter| walk.counters.get(counter));
        let mut news = [0; 6];
        for ((new, now), before) in news.iter_mut().zip(counted).zip(self.counted_before) {
            *new = now - before;
        }
        let [frames, malformed, port_drops, no_buffer, bytes, segments] = news;
        let taken = after.next_available.wrapping_sub(self.before.next_available);
        let returned = after.next_used.wrapping_sub(self.before.next_used);
        let given = port.given() - self.given_before;
        self.progress = returned > 0 || given > 0 || no_buffer > 0;
        assert!(segments >= frames, "a frame is a packet at least");
        if input.receives {
            let settled = frames + no_buffer;
            match (self.was_holding, walk.is_holding()) {
                (false, false) => assert_eq!(given, settled, "a frame was lost or doubled"),
                (false, true) => assert!(given > settled),
                (true, false) => assert!(given < settled),
                (true, true) => {}
            }
        } else {
            let chains = frames + malformed + port_drops;
            // A jump of the index is counted as malformed, and ends the turn.
            let jumped = returned == 0 && chains == 1;
            assert!(jumped || chains == u64::from(returned), "{chains} of {returned} counted");
            assert!(returned <= BATCH);
        }
        let jumped = taken != returned;
        assert!(!jumped || malformed > 0, "{taken} chains taken, {returned} returned");
        // What is in buffers that were not returned need not be marked.
        let all_returned = !self.was_holding && !walk.is_holding() && no_buffer == 0;
        if jumped {
            guest.is_lost();
        } else {
            if let Some(written) = self.written.take().filter(|_| all_returned) {
                guest.check_marks(&written);
            }
            let in_order = !input.receives && input.features.in_order;
            let header_bytes =
                guest.header_bytes(input.features.modern || input.features.mergeable);
            let written = if input.receives { bytes + header_bytes * frames } else { 0 };
            guest.check_returned(self.before, returned, in_order, written);
        }
    }
}
