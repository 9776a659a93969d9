//! As much TCP or UDP as goes, between a benchmark's guest and its host.
//!
//! ```text
//!   guest: flexvf-traffic blast  ◀──TCP, one connection a job: a line that says what──  host: ask
//! ```
//!
//! Whoever receives counts, by its own clock, and only in the window: what flows before (slow start,
//! full queues) and after is not in it. Left out: exact accounts of losses, for which there is
//! [`crate::traffic`], and several streams at once.

pub mod ask;
pub mod flow;
pub mod serve;

use serde::{Deserialize, Serialize};

/// The port that a guest serves jobs on.
pub const PORT: u16 = 7701;

/// What is to be counted, and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Window {
    /// From the first byte or datagram until counting begins.
    pub after_ms: u64,
    /// What is counted.
    pub for_ms: u64,
}

/// A job for a guest: the first line of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "kebab-case")]
pub enum Job {
    /// Send zeros on this connection until it is closed.
    TcpSend,
    /// Count what comes on this connection and answer with it.
    TcpReceive {
        /// When.
        window: Window,
    },
    /// Send datagrams to a port of the other side until this connection is closed.
    UdpSend {
        /// Where to.
        port: u16,
        /// Payload of each.
        bytes: u16,
    },
    /// Bind a port, answer with it, count datagrams, answer with that.
    UdpReceive {
        /// When.
        window: Window,
    },
}

/// What was counted in a window.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Bytes of payload.
    pub bytes: u64,
    /// Datagrams; reads, for TCP.
    pub packets: u64,
    /// How long the window was.
    pub us: u64,
}

impl Count {
    /// Millions of bits of payload a second.
    pub fn mbit_per_s(&self) -> f64 {
        8.0 * self.bytes as f64 / self.us.max(1) as f64
    }

    /// Datagrams a second.
    pub fn packets_per_s(&self) -> f64 {
        1e6 * self.packets as f64 / self.us.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_of_the_window() {
        let count = Count { bytes: 250_000, packets: 1000, us: 500_000 };
        assert_eq!(count.mbit_per_s(), 4.0);
        assert_eq!(count.packets_per_s(), 2000.0);
    }

    #[test]
    fn a_job_is_one_line() {
        let job = Job::UdpReceive { window: Window { after_ms: 1, for_ms: 2 } };
        let text = serde_json::to_string(&job).unwrap();
        assert_eq!(text, r#"{"do":"udp-receive","window":{"after_ms":1,"for_ms":2}}"#);
        assert_eq!(serde_json::from_str::<Job>(&text).unwrap(), job);
    }
}
