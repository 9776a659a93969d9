//! What the kernel tells of links by itself.
//!
//! It is waited for when there is nothing else to do, and read to its end before an answer that rests
//! on an earlier look at the links: the kernel tells of a change before the call that made it returns.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;

use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::sys::protocols::NETLINK_ROUTE;
use rtnetlink::sys::{AsyncSocket, SocketAddr, TokioSocket};

use super::kernel::Change;
use super::parse;

/// The kernel's notifications about links.
pub(super) struct Notices {
    socket: TokioSocket,
    buffer: Vec<u8>,
    waiting: VecDeque<Change>,
    /// Links have changed since [`Self::forget`].
    any: bool,
}

impl Notices {
    /// Listens from now on. Needs a tokio runtime.
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        socket.socket_mut().bind(&SocketAddr::new(0, LINK_GROUP))?;
        let buffer = Vec::with_capacity(MAX_MESSAGE);
        Ok(Self { socket, buffer, waiting: VecDeque::new(), any: true })
    }

    /// Waits for the next change. May be dropped and called again.
    pub(super) async fn next(&mut self) -> Change {
        loop {
            if let Some(change) = self.waiting.pop_front() {
                return change;
            }
            let Self { socket, buffer, .. } = self;
            buffer.clear();
            match poll_fn(|context| socket.poll_recv(context, buffer)).await {
                Ok(()) => self.take(),
                Err(error) => self.take_error(&error),
            }
        }
    }

    /// From here on [`Self::any`] tells of what comes.
    pub(super) fn forget(&mut self) {
        self.drain();
        self.any = false;
    }

    /// The links must not be taken for what they were.
    pub(super) const fn set(&mut self) {
        self.any = true;
    }

    /// Has a link come, gone or changed?
    pub(super) fn any(&mut self) -> bool {
        self.drain();
        self.any
    }

    fn drain(&mut self) {
        for _ in 0..MAX_DRAINED {
            self.buffer.clear();
            match self.socket.socket_ref().recv(&mut self.buffer, 0) {
                Ok(_) => self.take(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) => self.take_error(&error),
            }
        }
        self.any = true;
    }

    fn take(&mut self) {
        self.any = true;
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.buffer);
        let Ok(NetlinkMessage { payload: NetlinkPayload::InnerMessage(message), .. }) = message
        else {
            return;
        };
        // A bridge tells of its ports in the same way, with a family of its own.
        if let RouteNetlinkMessage::DelLink(link) = message
            && link.header.interface_family == AddressFamily::Unspec
        {
            self.push(Change::Gone(link.header.index, parse::counters(&link)));
        }
    }

    /// The kernel drops what does not fit its queue, and says so once.
    fn take_error(&mut self, error: &io::Error) {
        self.any = true;
        if error.raw_os_error() == Some(Errno::ENOBUFS as i32) {
            self.push(Change::Lost);
        }
    }

    fn push(&mut self, change: Change) {
        if self.waiting.len() == MAX_WAITING {
            self.waiting.clear();
            self.waiting.push_back(Change::Lost);
        }
        self.waiting.push_back(change);
    }
}

/// RTMGRP_LINK, as bind(2) takes it.
const LINK_GROUP: u32 = 1;
/// The kernel's messages about one link have a page at most, some pages with many queues.
const MAX_MESSAGE: usize = 32 * 1024;
/// Taken at a time before an answer. Links that change faster are looked at anew anyway.
const MAX_DRAINED: usize = 256;
/// Changes that nobody has taken yet.
const MAX_WAITING: usize = 1024;
