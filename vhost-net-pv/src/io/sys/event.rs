//! Reading an event descriptor that somebody else shares, without ever waiting.

use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

/// Sets an eventfd's counter back to zero; one that is zero already stays it.
///
/// Whether a plain read would wait is up to everybody who has the descriptor; this never does.
pub(in crate::io) fn drain(event: BorrowedFd<'_>) {
    let mut counter = [0u8; 8];
    let vector = libc::iovec { iov_base: counter.as_mut_ptr().cast(), iov_len: counter.len() };
    // SAFETY: the descriptor is open, and the kernel writes at most the eight bytes that the one
    // vector names, which are ours and outlive the call.
    unsafe { libc::preadv2(event.as_raw_fd(), &raw const vector, 1, -1, libc::RWF_NOWAIT) };
}
