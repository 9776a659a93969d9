//! A bounded newline splitter for QMP, the agent and the control socket, sans-IO.
//!
//! Bytes go in as they arrive, whole lines come out. The far side may be hostile: a line longer than
//! the cap is thrown away up to its newline and reported once, so memory never exceeds the cap and
//! the stream stays usable. JSON and text encodings are the caller's business; so is the sentinel
//! byte of `guest-sync-delimited`, which [`LineSplitter::with_reset_byte`] lets through.

use std::collections::VecDeque;

/// The longest QMP line taken: a list of some three thousand devices. Nothing that FlexVF asks for is
/// longer, and a line is what one QEMU can make the daemon hold.
pub const MAX_QMP_LINE: usize = 256 * 1024;

/// The longest line taken from a guest: sixteen interfaces with counters are 8 KiB.
pub const MAX_AGENT_LINE: usize = 64 * 1024;

/// qemu-ga's sentinel (0xFF is in no UTF-8 text): whatever stands before it is to be forgotten.
pub const RESET_BYTE: u8 = 0xff;

/// One thing found in the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// A line without its newline, never empty; a trailing carriage return is taken off.
    Line(Vec<u8>),
    /// A line was longer than the cap and was dropped.
    TooLong,
    /// The reset byte: everything before it in the same line is void.
    Reset,
}

/// Splits a byte stream into [`Frame`]s.
#[derive(Debug)]
pub struct LineSplitter {
    line: Vec<u8>,
    max_line: usize,
    reset_byte: Option<u8>,
    nesting: Option<Nesting>,
    skipping: bool,
    ready: VecDeque<Frame>,
}

impl LineSplitter {
    /// A splitter that drops lines of more than `max_line` bytes.
    pub const fn new(max_line: usize) -> Self {
        Self {
            line: Vec::new(),
            max_line,
            reset_byte: None,
            nesting: None,
            skipping: false,
            ready: VecDeque::new(),
        }
    }

    /// Also reports [`RESET_BYTE`], and forgets the line before it.
    pub const fn with_reset_byte(mut self) -> Self {
        self.reset_byte = Some(RESET_BYTE);
        self
    }

    /// Also ends a line behind a JSON object that began it: QEMU's own parser takes a stream of objects, and
    /// clients rely on it that send no newline.
    pub const fn with_objects(mut self) -> Self {
        self.nesting = Some(Nesting::NONE);
        self
    }

    /// Takes bytes as they came. Call [`Self::next_frame`] until it is empty before the next push:
    /// what is ready is bounded by what one push brings.
    pub fn push(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let object_ends = self.object_ends(byte);
            if Some(byte) == self.reset_byte {
                self.line.clear();
                self.skipping = false;
                self.nesting = self.nesting.map(|_| Nesting::NONE);
                self.ready.push_back(Frame::Reset);
            } else if byte == b'\n' {
                self.end_line();
            } else if self.skipping {
                // The rest of a line that was already reported.
            } else if self.line.len() == self.max_line {
                self.line = Vec::new();
                self.skipping = true;
                self.ready.push_back(Frame::TooLong);
            } else {
                self.line.push(byte);
            }
            if object_ends {
                self.end_line();
            }
        }
    }

    /// The oldest frame not yet taken.
    pub fn next_frame(&mut self) -> Option<Frame> {
        self.ready.pop_front()
    }

    /// Bytes of an unfinished line that are held.
    pub fn pending(&self) -> usize {
        self.line.len()
    }

    /// Follows an object that began the line; says whether this byte is its last.
    fn object_ends(&mut self, byte: u8) -> bool {
        let Some(nesting) = &mut self.nesting else { return false };
        let begins = || self.line.iter().all(u8::is_ascii_whitespace) && !self.skipping;
        match nesting.depth {
            0 if byte != b'{' || !begins() => false,
            _ => nesting.take(byte),
        }
    }

    fn end_line(&mut self) {
        self.skipping = false;
        self.nesting = self.nesting.map(|_| Nesting::NONE);
        let mut line = std::mem::take(&mut self.line);
        if line.last() == Some(&b'\r') {
            line.pop();
        }
        if !line.is_empty() {
            self.ready.push_back(Frame::Line(line));
        }
    }
}

/// Where in a JSON object the stream is.
#[derive(Debug, Clone, Copy)]
struct Nesting {
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Nesting {
    const NONE: Self = Self { depth: 0, in_string: false, escaped: false };

    /// Says whether the outermost object ends here.
    const fn take(&mut self, byte: u8) -> bool {
        match byte {
            _ if self.escaped => self.escaped = false,
            b'\\' if self.in_string => self.escaped = true,
            b'"' => self.in_string = !self.in_string,
            b'{' if !self.in_string => self.depth += 1,
            b'}' if !self.in_string => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn all(splitter: &mut LineSplitter, bytes: &[u8]) -> Vec<Frame> {
        splitter.push(bytes);
        std::iter::from_fn(|| splitter.next_frame()).collect()
    }

    #[test]
    fn a_line_over_the_cap_is_reported_once_and_the_next_one_is_read() {
        let mut splitter = LineSplitter::new(4);
        let frames = all(&mut splitter, b"123456789\nok\r\n\n1234\n");
        let line = |text: &str| Frame::Line(text.into());
        assert_eq!(frames, [Frame::TooLong, line("ok"), line("1234")]);
    }

    #[test]
    fn a_reset_voids_what_stands_before_it() {
        let mut splitter = LineSplitter::new(64).with_reset_byte();
        let frames = all(&mut splitter, b"{\"half\": \xff{}\n");
        assert_eq!(frames, [Frame::Reset, Frame::Line(b"{}".to_vec())]);
    }

    #[test]
    fn a_flood_without_newline_holds_no_more_than_the_cap() {
        let mut splitter = LineSplitter::new(1024);
        for _ in 0..1000 {
            all(&mut splitter, &[b'x'; 4096]);
            assert!(splitter.pending() <= 1024);
        }
    }

    #[test]
    fn an_object_ends_with_its_last_brace_where_no_newline_follows() {
        let mut splitter = LineSplitter::new(64).with_reset_byte().with_objects();
        let line = |text: &str| Frame::Line(text.into());
        let object = r#" {"a":{"}":"\"}"}}"#;
        assert_eq!(all(&mut splitter, object.as_bytes()), [line(object)]);
        assert_eq!(all(&mut splitter, b"{}{}\n[{}]\n"), [line("{}"), line("{}"), line("[{}]")]);
        // Half an object ends with its line, or with the reset.
        assert_eq!(all(&mut splitter, b"{\"a\": \n{}"), [line("{\"a\": "), line("{}")]);
        assert_eq!(all(&mut splitter, b"{\"\xff{}"), [Frame::Reset, line("{}")]);
        let long = format!("{{\"a\":\"{}\"}}", "x".repeat(64));
        assert_eq!(all(&mut splitter, long.as_bytes()), [Frame::TooLong]);
        assert_eq!(all(&mut splitter, b"{}"), [line("{}")]);
    }

    proptest! {
        #[test]
        fn frames_do_not_depend_on_how_bytes_are_cut(bytes: Vec<u8>, cut in 1usize..9) {
            let new = || LineSplitter::new(8).with_reset_byte().with_objects();
            let (mut whole, mut parts) = (new(), new());
            let expected = all(&mut whole, &bytes);
            let got: Vec<_> = bytes.chunks(cut).flat_map(|part| all(&mut parts, part)).collect();
            prop_assert_eq!(got, expected);
        }
    }
}
