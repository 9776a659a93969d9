//! The task that owns one QMP socket: writes requests whole, sorts what comes back.

use std::collections::{HashMap, VecDeque};
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;

use flexvf_protocol::frame::{Frame, LineSplitter};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use tokio::io::Interest;
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
    /// Goes with the line.
    pub(super) fd: Option<OwnedFd>,
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
                    outgoing.add(&request.line, request.fd);
                }
            },
            _ = stream.writable(), if !outgoing.rest().is_empty() => {
                match stream.try_io(Interest::WRITABLE, || outgoing.send(stream.as_raw_fd())) {
                    Ok(count) if count > 0 => {}
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
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
    /// Files that go with the line that begins there.
    fds: VecDeque<(usize, OwnedFd)>,
}

impl Outgoing {
    fn rest(&self) -> &[u8] {
        self.lines.get(self.sent..).unwrap_or(&[])
    }

    fn add(&mut self, line: &[u8], fd: Option<OwnedFd>) {
        let sent = self.sent.min(self.lines.len());
        self.lines.drain(..sent);
        self.sent = 0;
        for (at, _) in &mut self.fds {
            *at = at.saturating_sub(sent);
        }
        self.fds.extend(fd.map(|fd| (self.lines.len(), fd)));
        self.lines.extend_from_slice(line);
    }

    /// Sends what the socket takes, and no two files at once: QEMU keeps only the last that it got before it
    /// reads a `getfd`.
    fn send(&mut self, socket: RawFd) -> io::Result<usize> {
        let due = self.fds.front().is_some_and(|(at, _)| *at == self.sent);
        let stop = self.fds.get(usize::from(due)).map_or(self.lines.len(), |(at, _)| *at);
        let bytes = [IoSlice::new(self.lines.get(self.sent..stop).unwrap_or(&[]))];
        let fds = self.fds.front().filter(|_| due).map(|(_, fd)| [fd.as_raw_fd()]);
        let rights = fds.as_ref().map(|fds| [ControlMessage::ScmRights(fds)]);
        let rights = rights.as_ref().map_or(&[][..], |rights| &rights[..]);
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        let count = sendmsg::<()>(socket, &bytes, rights, flags, None)?;
        // The first byte has taken the file along.
        if due && count > 0 {
            self.fds.pop_front();
        }
        self.sent += count;
        Ok(count)
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
    use nix::sys::socket::{ControlMessageOwned, recvmsg};
    use proptest::prelude::*;
    use std::fs::File;
    use std::io::{IoSliceMut, Read};
    use std::os::unix::net::UnixStream as StdStream;

    /// What a read brings: text, and what is in the files that came along.
    fn take(socket: &StdStream) -> (String, Vec<String>) {
        let mut bytes = [0; 256];
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let flags = MsgFlags::empty();
        let got = recvmsg::<()>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags).unwrap();
        let mut files = Vec::new();
        for message in got.cmsgs().unwrap() {
            let ControlMessageOwned::ScmRights(fds) = message else { continue };
            files.extend(fds);
        }
        let count = got.bytes;
        let text = |fd: RawFd| {
            let mut text = String::new();
            File::open(format!("/proc/self/fd/{fd}")).unwrap().read_to_string(&mut text).unwrap();
            text
        };
        (String::from_utf8(bytes[..count].to_vec()).unwrap(), files.into_iter().map(text).collect())
    }

    fn file_with(text: &str) -> OwnedFd {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, text).unwrap();
        File::open(path).unwrap().into()
    }

    #[test]
    fn a_file_goes_with_its_own_line_and_never_two_at_once() {
        let (near, far) = StdStream::pair().unwrap();
        let mut outgoing = Outgoing::default();
        outgoing.add(b"plain\n", None);
        outgoing.add(b"first\n", Some(file_with("one")));
        outgoing.add(b"after\n", None);
        outgoing.add(b"second\n", Some(file_with("two")));
        let mut seen = Vec::new();
        while !outgoing.rest().is_empty() {
            outgoing.send(near.as_raw_fd()).unwrap();
            seen.push(take(&far));
            // A line that comes meanwhile moves the others' places.
            if seen.len() == 1 {
                outgoing.add(b"late\n", None);
            }
        }
        let seen: Vec<_> =
            seen.iter().map(|(text, files)| (text.as_str(), files.join(""))).collect();
        let expected = [
            ("plain\n", String::new()),
            ("first\nafter\n", "one".to_owned()),
            ("second\nlate\n", "two".to_owned()),
        ];
        assert_eq!(seen, expected);
    }

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
