//! Counters of single links by RTM_GETSTATS, a tenth of the work of a dump of all links, however many
//! those are.
//!
//! The kernel has answered before the request's system call returns, so nothing here waits.

use std::io;

use flexvf_protocol::agent::LinkCounters;
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{Socket, SocketAddr};

/// A socket for such requests.
pub(super) struct Stats {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Stats {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        Ok(Self { socket, sequence: 0, buffer: Vec::with_capacity(MAX_ANSWER) })
    }

    /// The links' counters, in their order: one request for all.
    pub(super) fn of(&mut self, links: &[u32]) -> io::Result<Vec<LinkCounters>> {
        if links.is_empty() {
            return Ok(Vec::new());
        }
        let first = self.sequence;
        self.buffer.clear();
        for link in links {
            put_request(&mut self.buffer, *link, self.sequence);
            self.sequence = self.sequence.wrapping_add(1);
        }
        let sent = self.socket.send(&self.buffer, 0)?;
        if sent != self.buffer.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        (0..links.len() as u32).map(|number| self.receive(first.wrapping_add(number))).collect()
    }

    fn receive(&mut self, sequence: u32) -> io::Result<LinkCounters> {
        loop {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            // What is left of requests that failed half-way is passed over.
            if number(&self.buffer, SEQUENCE_AT) == Some(sequence) {
                return read_answer(&self.buffer);
            }
        }
    }
}

/// `struct nlmsghdr` and `struct if_stats_msg` (linux/netlink.h, linux/if_link.h).
fn put_request(buffer: &mut Vec<u8>, link: u32, sequence: u32) {
    buffer.extend((ATTRIBUTES_AT as u32).to_ne_bytes());
    buffer.extend(RTM_GETSTATS.to_ne_bytes());
    buffer.extend(NLM_F_REQUEST.to_ne_bytes());
    buffer.extend(sequence.to_ne_bytes());
    buffer.extend([0; 4]); // port: the kernel fills it in
    buffer.extend([0; 4]); // family and padding
    buffer.extend(link.to_ne_bytes());
    buffer.extend(FILTER_LINK_64.to_ne_bytes());
}

fn read_answer(message: &[u8]) -> io::Result<LinkCounters> {
    let odd = || io::Error::from(io::ErrorKind::InvalidData);
    match half(message, TYPE_AT).ok_or_else(odd)? {
        RTM_NEWSTATS => link_64(message).ok_or_else(odd),
        NLMSG_ERROR => {
            let code = number(message, ERROR_AT).ok_or_else(odd)?;
            Err(io::Error::from_raw_os_error(0_i32.wrapping_sub(code.cast_signed())))
        }
        _ => Err(odd()),
    }
}

/// Finds IFLA_STATS_LINK_64 among the attributes.
fn link_64(message: &[u8]) -> Option<LinkCounters> {
    let mut rest = message.get(ATTRIBUTES_AT..)?;
    loop {
        let length = usize::from(half(rest, 0)?);
        let content = rest.get(ATTRIBUTE_HEADER..length)?;
        if half(rest, 2)? == IFLA_STATS_LINK_64 {
            return counters(content);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// The beginning of `struct rtnl_link_stats64`.
fn counters(stats: &[u8]) -> Option<LinkCounters> {
    let counter = |place: usize| {
        let bytes = stats.get(place * 8..)?.first_chunk()?;
        Some(u64::from_ne_bytes(*bytes))
    };
    Some(LinkCounters {
        rx_packets: counter(0)?,
        tx_packets: counter(1)?,
        rx_bytes: counter(2)?,
        tx_bytes: counter(3)?,
        rx_dropped: counter(6)?,
        tx_dropped: counter(7)?,
    })
}

fn number(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const RTM_NEWSTATS: u16 = 92;
const RTM_GETSTATS: u16 = 94;
const IFLA_STATS_LINK_64: u16 = 1;
const FILTER_LINK_64: u32 = 1 << (IFLA_STATS_LINK_64 - 1);

/// Offsets in a message.
const TYPE_AT: usize = 4;
const SEQUENCE_AT: usize = 8;
const ERROR_AT: usize = 16;
const ATTRIBUTES_AT: usize = 28;
const ATTRIBUTE_HEADER: usize = 4;

/// An answer has some 230 bytes.
const MAX_ANSWER: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    /// The loopback interface, in every network namespace.
    const LO: u32 = 1;

    #[test]
    fn several_links_counters_come_in_the_order_asked_for() {
        let mut stats = Stats::open().unwrap();
        let twice = stats.of(&[LO, LO]).unwrap();
        assert_eq!(twice.len(), 2);
        // What loops back is received as often as it is sent.
        assert!(twice.iter().all(|lo| lo.rx_bytes == lo.tx_bytes));
        assert_eq!(stats.of(&[]).unwrap(), []);
    }

    #[test]
    fn a_link_that_is_gone_is_an_error_and_the_next_answer_is_not_mixed_up_with_it() {
        let mut stats = Stats::open().unwrap();
        let gone = u32::MAX >> 1;
        let error = stats.of(&[gone, LO, LO]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::ENODEV as i32), "{error}");
        assert_eq!(stats.of(&[LO]).unwrap().len(), 1);
    }

    #[test]
    fn an_answer_cut_short_is_no_answer() {
        let mut message = vec![0; ATTRIBUTES_AT];
        message[TYPE_AT..][..2].copy_from_slice(&RTM_NEWSTATS.to_ne_bytes());
        message.extend(12_u16.to_ne_bytes());
        message.extend(IFLA_STATS_LINK_64.to_ne_bytes());
        message.extend([1; 8]);
        for length in 0..=message.len() {
            assert!(read_answer(&message[..length]).is_err());
        }
    }
}
