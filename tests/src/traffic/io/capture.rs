//! Frames as they arrive on any interface of this network namespace, counted by their source.
//!
//! For a namespace that holds one end of a veth and nothing else. Frames are counted as the kernel
//! shows them: whoever wants packets as on a wire has the other end segment them.

use std::collections::BTreeMap;
use std::io::stdin;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use anyhow::{Context, Result};
use flexvf_protocol::MacAddr;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket, sockopt,
};
use serde::{Deserialize, Serialize};

/// Seconds of the fastest stream that emulation carries.
const RECEIVE_BUFFER_BYTES: usize = 64 << 20;
/// Both Ethernet addresses: all that is looked at.
const HEAD_BYTES: usize = 12;
/// More sources than a testbed has; further ones are counted together, under zero.
const MAX_SOURCES: usize = 64;

/// Frames of one source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Frames {
    /// How many.
    pub frames: u64,
    /// Their bytes, Ethernet header included, FCS not.
    pub bytes: u64,
    /// The longest one.
    pub longest: u64,
}

/// What was captured, by source address.
pub type Captured = BTreeMap<String, Frames>;

/// Counts until stdin ends; `ready` is called once nothing can be missed any more.
pub fn capture(ready: impl FnOnce()) -> Result<Captured> {
    let all = SockProtocol::EthAll;
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, all);
    let socket = socket.context("open a packet socket (needs CAP_NET_RAW)")?;
    if setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER_BYTES).is_err() {
        setsockopt(&socket, sockopt::RcvBuf, &RECEIVE_BUFFER_BYTES)?;
    }
    ready();
    let mut captured = Captured::new();
    loop {
        let stdin = stdin();
        let mut fds = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(stdin.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut fds, PollTimeout::NONE).context("wait for frames")?;
        let [frames, end] = fds.map(|fd| fd.any().unwrap_or(false));
        if frames {
            take(&socket, &mut captured)?;
        } else if end {
            return Ok(captured);
        }
    }
}

fn take(socket: &OwnedFd, captured: &mut Captured) -> Result<()> {
    let mut head = [0; HEAD_BYTES];
    loop {
        // The length returned is the frame's, not the buffer's.
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC;
        match recv(socket.as_raw_fd(), &mut head, flags) {
            Ok(bytes) => count(captured, &head, bytes as u64),
            Err(nix::Error::EAGAIN) => return Ok(()),
            Err(nix::Error::EINTR) => {}
            Err(error) => return Err(error).context("read frames"),
        }
    }
}

fn count(captured: &mut Captured, head: &[u8; HEAD_BYTES], bytes: u64) {
    let [_, _, _, _, _, _, source @ ..] = *head;
    let mut source = MacAddr::new(source).to_string();
    if captured.len() >= MAX_SOURCES && !captured.contains_key(&source) {
        source = MacAddr::new([0; 6]).to_string();
    }
    let of_source = captured.entry(source).or_default();
    of_source.frames += 1;
    of_source.bytes += bytes;
    of_source.longest = of_source.longest.max(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_counted_by_their_source() {
        let mut captured = Captured::new();
        let head = |last| [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, last];
        count(&mut captured, &head(1), 60);
        count(&mut captured, &head(1), 1514);
        count(&mut captured, &head(2), 42);
        let of = |mac: &str| captured.get(mac).copied().unwrap();
        assert_eq!(of("02:00:00:00:00:01"), Frames { frames: 2, bytes: 1574, longest: 1514 });
        assert_eq!(of("02:00:00:00:00:02").frames, 1);
    }
}
