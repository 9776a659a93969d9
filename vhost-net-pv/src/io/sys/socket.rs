//! Descriptors that come from elsewhere: over a socket, or from the parent process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;

use nix::libc;

use crate::logic::gate::MAX_FDS;

/// What arrived on a socket.
pub(in crate::io) struct Received {
    /// Bytes read; 0 at the end of the stream.
    pub(in crate::io) bytes: usize,
    /// Descriptors that came along.
    pub(in crate::io) fds: Vec<OwnedFd>,
    /// More of them came than fit, or than this process may have.
    pub(in crate::io) truncated: bool,
}

/// Receives bytes and descriptors.
///
/// Not the safe wrapper of `nix`, which forgets the descriptors that came when some did not fit.
pub(in crate::io) fn receive(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<Received> {
    let mut control = [0u64; CONTROL_WORDS];
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: msghdr is plain data, for which all zeroes is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control).cast();
    message.msg_controllen = size_of_val(&control);
    // SAFETY: the message names one vector and a control buffer, ours and of the lengths given,
    // which outlive the call.
    let bytes =
        unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC) };
    let bytes = usize::try_from(bytes).map_err(|_| io::Error::last_os_error())?;
    // SAFETY: recvmsg has just filled the message in, and nothing else has looked at it.
    let fds = unsafe { rights(&message) };
    Ok(Received { bytes, fds, truncated: message.msg_flags & libc::MSG_CTRUNC != 0 })
}

/// Takes the descriptors out of a message.
///
/// # Safety
/// `recvmsg` has filled it in, its control buffer still exists, and this is done once.
unsafe fn rights(message: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: of a message that recvmsg filled in, these two find whole headers or null.
    let mut next = unsafe { libc::CMSG_FIRSTHDR(message) };
    while let Some(header) = NonNull::new(next) {
        // SAFETY: as above; the control buffer is aligned for its headers.
        let libc::cmsghdr { cmsg_len, cmsg_level, cmsg_type } = unsafe { header.read() };
        if (cmsg_level, cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            // SAFETY: computes a length, and the address behind the header.
            let (empty, data) =
                unsafe { (libc::CMSG_LEN(0) as usize, libc::CMSG_DATA(header.as_ptr())) };
            for at in 0..cmsg_len.saturating_sub(empty) / size_of::<RawFd>() {
                // SAFETY: the header says that so many numbers follow it. The kernel has just made
                // these descriptors for this process, and each is named here only.
                fds.push(unsafe {
                    OwnedFd::from_raw_fd(data.cast::<RawFd>().add(at).read_unaligned())
                });
            }
        }
        // SAFETY: as for the first one.
        next = unsafe { libc::CMSG_NXTHDR(message, header.as_ptr()) };
    }
    fds
}

/// Room for the descriptors of a message, and the sender's credentials where a socket has been told
/// to add them.
const CONTROL_WORDS: usize = (16 + MAX_FDS * size_of::<RawFd>() + 64) / size_of::<u64>();

const _: () = assert!(align_of::<u64>() >= align_of::<libc::cmsghdr>());

/// Takes over a descriptor that the parent process has left open for us.
///
/// Meant for the numbers on the command line, before anything else was opened.
///
/// # Errors
/// The number is not open, or is one of the standard streams.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is a standard stream"));
    }
    // SAFETY: F_GETFD touches no memory and fails on a number that is not open.
    if unsafe { libc::fcntl(number, libc::F_GETFD) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it is open, as was just seen. The caller names each number once, and descriptors
    // of this process's own making are not named on its command line.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    set_cloexec(fd.as_fd())?;
    Ok(fd)
}

fn set_cloexec(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, FdFlag, fcntl};
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(())
}
