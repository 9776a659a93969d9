//! How VMs misbehave, and the bytes that they send then.

use serde_json::{Value, json};

use super::machine::Channel;

/// How a VM behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// As it should.
    Good,
    /// Takes what it is sent, and answers nothing.
    Mute,
    /// Answers each command with bytes that are no answer.
    Garbles(Channel, Garble),
    /// Sends without being asked, as fast as it is read.
    Floods(Channel, Flood),
    /// Answers with one byte a second.
    Drips(Channel),
    /// A guest whose agent answers in time and in form, but not the truth.
    Lies(Lie),
    /// A guest that does not let go of a device.
    Clings,
}

/// What an agent says instead of the truth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lie {
    /// Answers with the id of the request before.
    StaleIds,
    /// Answers everything with ten thousand interfaces.
    Crowd,
    /// Texts that move a terminal's cursor and end its line, in its names and refusals.
    Escapes,
    /// A packet and more each nanosecond.
    Counters,
    /// Says that it has left the VF, and goes on using it.
    Lingers,
}

/// See [`Lie::Escapes`].
pub const ESCAPES: &str = "\u{1b}[2J\u{1b}]0;owned\u{7}\r\nbond0\u{202e}";

/// See [`Lie::Crowd`]: as a stock qemu-ga shows them.
pub fn crowd() -> Value {
    let one = |number: u32| {
        let [_, _, a, b] = number.to_be_bytes();
        json!({
            "name": format!("veth{number}"),
            "hardware-address": format!("02:00:00:00:{a:02x}:{b:02x}"),
            "ip-addresses": [],
        })
    };
    (0..10_000).map(one).collect()
}

/// An answer that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Garble {
    /// Lists in lists, ten thousand deep.
    Nested,
    /// Bytes that are in no UTF-8 text.
    NotUtf8,
}

/// A stream without end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flood {
    /// One line of a GiB, and then the next.
    LongLine,
    /// Events that QEMU has.
    Events,
}

/// See [`Garble::Nested`].
const DEPTH: usize = 10_000;

impl Garble {
    /// The line that answers the command of this id.
    pub fn line(self, id: &str) -> Vec<u8> {
        let value = match self {
            Self::Nested => [vec![b'['; DEPTH], vec![b']'; DEPTH]].concat(),
            // 0xff would be the agent's sign to begin anew.
            Self::NotUtf8 => b"\"\xfe\xc0\x80\xed\xa0\x80\"".to_vec(),
        };
        [b"{\"return\": ", &*value, b", \"id\": ", id.as_bytes(), b"}\r\n"].concat()
    }
}

/// Sent of a [`Flood::LongLine`] until its end.
pub const LONG_LINE_BYTES: u64 = 1 << 30;

/// A flood's bytes, piece by piece.
#[derive(Debug, Clone, Copy)]
pub struct Stream {
    flood: Flood,
    sent: u64,
}

impl Stream {
    /// From its beginning.
    pub const fn new(flood: Flood) -> Self {
        Self { flood, sent: 0 }
    }

    /// What it is.
    pub const fn flood(&self) -> Flood {
        self.flood
    }

    /// The next piece.
    pub fn next_piece(&mut self) -> Vec<u8> {
        let piece = match self.flood {
            Flood::Events => EVENT.repeat(PIECE / EVENT.len()),
            Flood::LongLine => {
                let mut piece = match self.sent {
                    0 => b"{\"return\": \"".to_vec(),
                    _ => Vec::new(),
                };
                piece.resize(PIECE, b'x');
                if self.sent + PIECE as u64 >= LONG_LINE_BYTES {
                    piece.extend_from_slice(b"\"}\n");
                }
                piece
            }
        };
        self.sent += piece.len() as u64;
        if self.sent >= LONG_LINE_BYTES {
            self.sent = 0;
        }
        piece
    }
}

const PIECE: usize = 64 * 1024;
/// What a guest makes QEMU say by opening and closing its agent's port.
const EVENT: &[u8] = b"{\"timestamp\": {\"seconds\": 1, \"microseconds\": 2}, \"event\": \"VSERPORT_CHANGE\", \"data\": {\"open\": true, \"id\": \"agent\"}}\r\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_line_ends_once_a_gib() {
        let mut stream = Stream::new(Flood::LongLine);
        let (mut bytes, mut ends) = (0, Vec::new());
        while ends.len() < 2 {
            let piece = stream.next_piece();
            bytes += piece.len() as u64;
            if piece.ends_with(b"\n") {
                ends.push(bytes);
            }
        }
        assert_eq!(ends[0], LONG_LINE_BYTES + 3);
        assert_eq!(ends[1], 2 * ends[0]);
    }

    #[test]
    fn events_are_whole_lines() {
        let piece = Stream::new(Flood::Events).next_piece();
        for line in piece.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            let event: serde_json::Value = serde_json::from_slice(line).unwrap();
            assert_eq!(event["event"], "VSERPORT_CHANGE");
        }
    }
}
