//! One connection of the daemon's to a made-up VM.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use flexvf_protocol::frame::{Frame, LineSplitter};

use crate::fleet::logic::manner::Stream;

/// More than any request has.
const MAX_REQUEST: usize = 64 * 1024;
/// Held for a daemon that does not read.
const MAX_OUTGOING: usize = 1 << 20;

#[derive(Debug)]
pub(super) struct Conn {
    stream: UnixStream,
    lines: LineSplitter,
    outgoing: Vec<u8>,
    sent: usize,
    flood: Option<Stream>,
}

impl Conn {
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        let lines = LineSplitter::new(MAX_REQUEST).with_reset_byte();
        Ok(Self { stream, lines, outgoing: Vec::new(), sent: 0, flood: None })
    }

    pub(super) const fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// From now on it is never done with sending; or it is again.
    pub(super) const fn flood(&mut self, flood: Option<Stream>) {
        self.flood = flood;
    }

    pub(super) const fn is_flooding(&self) -> bool {
        self.flood.is_some()
    }

    /// Lines that have come; fails when the daemon has gone.
    pub(super) fn read(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let mut buffer = [0; 16 * 1024];
        let mut lines = Vec::new();
        loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.lines.push(buffer.get(..count).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(lines),
                Err(error) => return Err(error),
            }
            lines.extend(std::iter::from_fn(|| self.lines.next_frame()).filter_map(|frame| {
                match frame {
                    Frame::Line(line) => Some(line),
                    Frame::TooLong | Frame::Reset => None,
                }
            }));
        }
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.outgoing.len() - self.sent > MAX_OUTGOING {
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.outgoing.extend_from_slice(bytes);
        self.flush()
    }

    /// Whether anything waits for the daemon to read.
    pub(super) fn is_full(&self) -> bool {
        self.is_flooding() || self.sent < self.outgoing.len()
    }

    pub(super) fn flush(&mut self) -> io::Result<()> {
        // A flood must leave time for the other VMs.
        for _ in 0..MAX_WRITES {
            if self.sent == self.outgoing.len() {
                self.outgoing.clear();
                self.sent = 0;
                match &mut self.flood {
                    None => return Ok(()),
                    Some(flood) => self.outgoing = flood.next_piece(),
                }
            }
            match self.stream.write(self.outgoing.get(self.sent..).unwrap_or_default()) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

const MAX_WRITES: usize = 16;
