//! What a datagram looks like, and what peer and guest tell each other in one.
//!
//! A datagram begins with `FVT1`, a kind, three zero bytes, the run (u32) and a number (u64), all
//! big-endian; control datagrams carry JSON behind it. A run is one scenario: its number keeps
//! stragglers of an earlier one out of the account.

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::tracker::{Counts, Loss};

/// Length of a probe or load datagram.
pub const HEADER_LEN: usize = 20;

/// Longest datagram: one Ethernet frame, also through a tunnel.
pub const MAX_LEN: usize = 1400;

/// Holes that one [`GuestReport`] looks at, so that it fits into [`MAX_LEN`].
pub const HOLES_PER_REPORT: usize = 12;

const MAGIC: [u8; 4] = *b"FVT1";

/// What a datagram is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// One of a numbered stream whose losses are counted.
    Probe = 1,
    /// One of a numbered stream that makes a guest busy.
    Load = 2,
    /// [`Want`] to a guest, [`GuestReport`] back.
    Control = 3,
}

/// The start of every datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What follows.
    pub kind: Kind,
    /// Which scenario it belongs to.
    pub run: u32,
    /// Position in the stream, from 0.
    pub seq: u64,
}

/// All that the peer wants of a guest. Sent again until confirmed; the same one twice changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Want {
    /// Grows with each change within a run; 0 only asks for the report.
    pub revision: u64,
    /// Probes a second to the peer.
    pub probe_pps: u32,
    /// Load packets a second to the peer.
    pub load_pps: u32,
    /// Report the losses in the [`HOLES_PER_REPORT`] holes from this one on.
    pub holes_from: usize,
}

/// A guest's account of the current run.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct GuestReport {
    /// The newest [`Want`] taken.
    pub revision: u64,
    /// The guest's clock at this report, for relating its other times.
    pub now_ms: u64,
    /// Probes handed to the kernel.
    pub probe_sent: u64,
    /// Load packets handed to the kernel.
    pub load_sent: u64,
    /// Packets that the kernel refused; they are in no other count.
    pub send_errors: u64,
    /// Probes that arrived.
    pub probe: Counts,
    /// Load that arrived.
    pub load: Counts,
    /// Holes noticed in the probes so far.
    pub holes: usize,
    /// [`Want::holes_from`] again: which holes `losses` is about.
    pub holes_from: usize,
    /// Probes lost in those holes.
    pub losses: Vec<Loss>,
}

impl Header {
    /// The header on the wire.
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        let fields: [&[u8]; 4] =
            [&MAGIC, &[self.kind as u8, 0, 0, 0], &self.run.to_be_bytes(), &self.seq.to_be_bytes()];
        let wire = fields.into_iter().flatten();
        bytes.iter_mut().zip(wire).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// Reads a datagram's header; the rest is what stands behind it. `None` if it is not ours.
    pub fn decode(datagram: &[u8]) -> Option<(Self, &[u8])> {
        let (magic, rest) = datagram.split_first_chunk()?;
        let (&[kind, ..], rest) = rest.split_first_chunk::<4>()?;
        let (&run, rest) = rest.split_first_chunk()?;
        let (&seq, rest) = rest.split_first_chunk()?;
        let kind = match kind {
            1 => Kind::Probe,
            2 => Kind::Load,
            3 => Kind::Control,
            _ => return None,
        };
        let header = Self { kind, run: u32::from_be_bytes(run), seq: u64::from_be_bytes(seq) };
        (*magic == MAGIC).then_some((header, rest))
    }
}

/// A control datagram of `run`.
pub fn encode_control(run: u32, message: &impl Serialize) -> Vec<u8> {
    let header = Header { kind: Kind::Control, run, seq: 0 };
    let mut datagram = header.encode().to_vec();
    datagram.extend(serde_json::to_vec(message).unwrap_or_default());
    datagram
}

/// What a control datagram says, if it is what was expected.
pub fn decode_control<T: DeserializeOwned>(payload: &[u8]) -> Option<T> {
    serde_json::from_slice(payload).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_datagram_is_pinned_to_its_wire_format() {
        let header = Header { kind: Kind::Load, run: 0x0102_0304, seq: 5 };
        let wire = *b"FVT1\x02\0\0\0\x01\x02\x03\x04\0\0\0\0\0\0\0\x05";
        assert_eq!(header.encode(), wire);
    }

    #[test]
    fn the_longest_report_fits_one_datagram() {
        let counts = Counts {
            received: u64::from(u32::MAX),
            duplicated: u64::from(u32::MAX),
            reordered: u64::from(u32::MAX),
            missing: u64::from(u32::MAX),
            next: u64::from(u32::MAX),
            longest_gap_ms: u64::from(u32::MAX),
            longest_gap_end_ms: u64::from(u32::MAX),
        };
        let loss = Loss {
            first: u64::from(u32::MAX),
            lost: u64::from(u32::MAX),
            noticed_ms: u64::from(u32::MAX),
        };
        let report = GuestReport {
            probe: counts,
            load: counts,
            losses: vec![loss; HOLES_PER_REPORT],
            ..GuestReport::default()
        };
        assert!(encode_control(1, &report).len() <= MAX_LEN);
    }

    proptest! {
        #[test]
        fn what_was_written_is_read(run: u32, seq: u64, tail: Vec<u8>) {
            for kind in [Kind::Probe, Kind::Load, Kind::Control] {
                let header = Header { kind, run, seq };
                let mut datagram = header.encode().to_vec();
                datagram.extend(&tail);
                prop_assert_eq!(Header::decode(&datagram), Some((header, &tail[..])));
            }
        }

        #[test]
        fn no_bytes_panic(bytes: Vec<u8>) {
            if let Some((_, payload)) = Header::decode(&bytes) {
                let _ = decode_control::<GuestReport>(payload);
            }
        }
    }
}
