//! The task that owns one QMP socket: writes requests whole, sorts what comes back.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::time::Duration;

use flexvf_protocol::frame::{Frame, LineSplitter};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};

use super::Happening;
use super::wire::{Incoming, classify};
#[cfg(test)]
use crate::io::READ_BYTES;
use crate::io::try_read;

/// One command, and where its answer goes.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) id: u64,
    pub(super) line: Vec<u8>,
    pub(super) answer: oneshot::Sender<Vec<u8>>,
}

/// Runs until QEMU closes the socket, or nobody can ask any more. Answers still awaited are then
/// dropped, which their callers see as closed.
pub(super) async fn run(
    stream: UnixStream,
    mut splitter: LineSplitter,
    mut requests: mpsc::Receiver<Request>,
    events: mpsc::Sender<Happening>,
) {
    let mut outgoing = Outgoing::default();
    let mut inbox = Inbox { waiting: HashMap::new(), events: events.clone(), missed: false };
    let mut pace = Pace::new(Instant::now());
    inbox.sort(&mut splitter);
    loop {
        let resume = pace.resume_at(Instant::now());
        tokio::select! {
            request = requests.recv(), if outgoing.rest().len() < MAX_OUTGOING => match request {
                None => return,
                Some(request) => {
                    inbox.expect(request.id, request.answer);
                    outgoing.add(&request.line);
                }
            },
            _ = stream.writable(), if !outgoing.rest().is_empty() => {
                match stream.try_write(outgoing.rest()) {
                    Ok(count) if count > 0 => outgoing.sent += count,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                    _ => return,
                }
            }
            _ = stream.readable(), if resume.is_none() => match try_read(&stream, &mut splitter) {
                Ok(None) => {}
                Ok(Some(count)) => {
                    pace.taken(count);
                    inbox.sort(&mut splitter);
                }
                Err(_) => return,
            },
            () = sleep_until(resume.unwrap_or_else(Instant::now)), if resume.is_some() => {}
            permit = events.reserve(), if inbox.missed => match permit {
                Ok(permit) => {
                    permit.send(Happening::Missed);
                    inbox.missed = false;
                }
                // Nobody listens to events: commands go on.
                Err(_) => inbox.missed = false,
            },
        }
    }
}

/// Held for a QEMU that does not read; commands have some hundred bytes.
const MAX_OUTGOING: usize = 64 * 1024;

/// Lines on their way out.
#[derive(Default)]
struct Outgoing {
    lines: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    fn rest(&self) -> &[u8] {
        self.lines.get(self.sent..).unwrap_or(&[])
    }

    fn add(&mut self, line: &[u8]) {
        self.lines.drain(..self.sent.min(self.lines.len()));
        self.sent = 0;
        self.lines.extend_from_slice(line);
    }
}

/// Where what comes in goes.
struct Inbox {
    waiting: HashMap<u64, oneshot::Sender<Vec<u8>>>,
    events: mpsc::Sender<Happening>,
    missed: bool,
}

impl Inbox {
    fn expect(&mut self, id: u64, answer: oneshot::Sender<Vec<u8>>) {
        // Callers that gave up leave their entry; each new one sweeps them out.
        self.waiting.retain(|_, answer| !answer.is_closed());
        self.waiting.insert(id, answer);
    }

    fn sort(&mut self, splitter: &mut LineSplitter) {
        while let Some(frame) = splitter.next_frame() {
            // A line that is too long answers nobody: its caller runs into the deadline.
            let Frame::Line(line) = frame else { continue };
            match classify(&line) {
                Incoming::Answer(id) => {
                    if let Some(answer) = self.waiting.remove(&id) {
                        // The caller may have given up in this moment.
                        let _ = answer.send(line);
                    }
                }
                Incoming::Event(_) if self.missed => {}
                Incoming::Event(event) => {
                    let sent = self.events.try_send(Happening::Event(event));
                    self.missed = matches!(sent, Err(mpsc::error::TrySendError::Full(_)));
                }
                Incoming::Noise => {}
            }
        }
    }
}

/// Bounds what one QEMU can make the daemon read, and so parse: a QEMU gone mad with events costs
/// a few percent of a core instead of all of it.
struct Pace {
    window_began: Instant,
    taken: usize,
}

impl Pace {
    /// Read in one window at most. `qom-list` answers have a few KiB.
    const BYTES: usize = 256 * 1024;
    const WINDOW: Duration = Duration::from_millis(100);

    fn new(now: Instant) -> Self {
        Self { window_began: now, taken: 0 }
    }

    fn taken(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_add(bytes);
    }

    /// When to read again, if not at once.
    fn resume_at(&mut self, now: Instant) -> Option<Instant> {
        let end = self.window_began + Self::WINDOW;
        if now >= end {
            *self = Self::new(now);
        }
        (self.taken >= Self::BYTES).then_some(end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_window_brings_more_than_its_bytes_and_one_read(
            reads in prop::collection::vec((0u64..40, 1..=READ_BYTES), 1..500),
        ) {
            let begin = Instant::now();
            let mut now = begin;
            let mut pace = Pace::new(begin);
            let mut windows: HashMap<Instant, usize> = HashMap::new();
            for (pause_ms, bytes) in reads {
                now += Duration::from_millis(pause_ms);
                if let Some(resume) = pace.resume_at(now) {
                    prop_assert!(resume > now && resume <= now + Pace::WINDOW);
                    now = resume;
                    prop_assert_eq!(pace.resume_at(now), None);
                }
                // As greedy as can be: all of a window's bytes at once.
                for _ in 0..Pace::BYTES / READ_BYTES {
                    if pace.resume_at(now).is_some() {
                        break;
                    }
                    pace.taken(bytes);
                    *windows.entry(pace.window_began).or_default() += bytes;
                }
            }
            prop_assert!(windows.values().all(|bytes| *bytes < Pace::BYTES + READ_BYTES));
        }
    }
}
