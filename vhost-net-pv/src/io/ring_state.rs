//! What the front-end has said about one ring.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use flexvf_protocol::stats_page::Direction;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::stat::fstat;

use super::order::RingSetup;
use crate::logic::ring::Layout;

/// What is known about a ring.
#[derive(Default)]
pub(super) struct RingState {
    pub(super) size: u16,
    pub(super) base: u16,
    /// Descriptors, available ring, used ring, as guest addresses.
    pub(super) addresses: Option<[u64; 3]>,
    /// Guest address by which writes to the used ring are logged.
    pub(super) used_log: Option<u64>,
    pub(super) kick: Option<Arc<File>>,
    pub(super) call: Option<Arc<File>>,
    pub(super) enabled: bool,
    pub(super) run: Run,
}

/// Whether a ring runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Run {
    #[default]
    Stopped,
    /// It was started, but pages that it writes must be marked in a log that has not come yet.
    AwaitsLog,
    Running,
}

impl RingState {
    /// All that a worker needs, once it is known.
    pub(super) fn setup(&self) -> Option<RingSetup> {
        let [descriptors, available, used] = self.addresses?;
        Some(RingSetup {
            layout: Layout { size: self.size, descriptors, available, used },
            used_log: self.used_log,
            next_available: self.base,
            enabled: self.enabled,
            kick: Arc::clone(self.kick.as_ref()?),
            call: self.call.clone(),
        })
    }
}

/// Queue pair and direction of a ring: even ones are receive queues (virtio 1.x, section 5.1.2).
pub(super) const fn place(ring: usize) -> (usize, Direction) {
    let direction = match ring.is_multiple_of(2) {
        true => Direction::Rx,
        false => Direction::Tx,
    };
    (ring / 2, direction)
}

/// A ring's descriptors must be event descriptors: what is written to a pipe or a socket may wait
/// for its reader.
///
/// The kernel has one inode for all of that kind, and for others that nobody ever waits to write to;
/// `own` is one of ours.
pub(super) fn check_event(file: File, own: BorrowedFd<'_>) -> io::Result<File> {
    let (found, wanted) = (fstat(&file)?, fstat(own)?);
    match (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino) {
        true => Ok(file),
        false => {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "a ring's descriptor is no eventfd"))
        }
    }
}

/// A kick must be something that can be waited for.
pub(super) fn check_kick(file: File) -> io::Result<File> {
    let event = EpollEvent::new(EpollFlags::EPOLLIN, 0);
    Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?.add(file.as_fd(), event)?;
    Ok(file)
}
