//! Descriptors that come from elsewhere: over a socket, or from the parent process.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::libc;

use crate::logic::gate::MAX_FDS;

/// What arrived on a socket.
pub(in crate::io) struct Received {
    /// Bytes read; 0 at the end of the stream.
    pub(in crate::io) bytes: usize,
    /// Descriptors that came along.
    pub(in crate::io) fds: Vec<OwnedFd>,
    /// More of them came than fit.
    pub(in crate::io) truncated: bool,
}

/// Receives bytes and descriptors.
pub(in crate::io) fn receive(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<Received> {
    use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut vectors = [io::IoSliceMut::new(buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut vectors,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut fds = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(rights) = control {
            // SAFETY: the kernel has just made these descriptors for this process, and each is
            // named here only.
            fds.extend(rights.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok(Received {
        bytes: message.bytes,
        fds,
        truncated: message.flags.contains(MsgFlags::MSG_CTRUNC),
    })
}

/// Takes over a descriptor that the parent process has left open for us.
///
/// Meant for the numbers on the command line, before anything else was opened.
///
/// # Errors
/// The number is not open, or is one of the standard streams.
pub fn inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::ErrorKind::InvalidInput.into());
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
