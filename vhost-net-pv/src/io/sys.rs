//! The only unsafe code of the crate: system calls that no safe wrapper of our dependencies covers.
#![expect(
    unsafe_code,
    reason = "ioctls, scattered I/O on guest memory, descriptors from a socket or the parent"
)]

use std::ffi::c_int;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use nix::libc;

use crate::logic::gate::MAX_FDS;
use crate::logic::memory::GuestSlice;
use crate::logic::net_header::RawHeader;
use crate::logic::ring::MAX_PIECES;

/// Pieces of a scattered call: the guest's, and ours before and after them.
const MAX_VECTORS: usize = MAX_PIECES + 2;

/// linux/sockios.h
const SIOCBRADDIF: libc::c_ulong = 0x89a2;

mod ioctls {
    use nix::libc;
    nix::ioctl_write_ptr_bad!(tun_set_iff, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_read_bad!(tun_get_iff, libc::TUNGETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(tun_set_offload, libc::TUNSETOFFLOAD);
    nix::ioctl_write_ptr_bad!(tun_set_header, libc::TUNSETVNETHDRSZ, libc::c_int);
    nix::ioctl_write_ptr_bad!(tun_set_queue, libc::TUNSETQUEUE, libc::ifreq);
    nix::ioctl_read_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
    nix::ioctl_read_bad!(get_mtu, libc::SIOCGIFMTU, libc::ifreq);
    nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, libc::ifreq);
    nix::ioctl_write_ptr_bad!(bridge_add, super::SIOCBRADDIF, libc::ifreq);
}

/// Attaches `/dev/net/tun`'s descriptor to the interface `name`, which the kernel makes if needed.
pub(super) fn tun_attach(tun: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<()> {
    let request = request(name, |data| data.ifru_flags = flags as libc::c_short)?;
    // SAFETY: the descriptor is open and the kernel only reads the ifreq, which outlives the call.
    unsafe { ioctls::tun_set_iff(tun.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Name and flags of the interface that a descriptor is attached to.
pub(super) fn tun_interface(tun: BorrowedFd<'_>) -> io::Result<(String, c_int)> {
    let mut request = request("", |data| data.ifru_flags = 0)?;
    // SAFETY: the descriptor is open and the kernel writes one ifreq into one that we own.
    unsafe { ioctls::tun_get_iff(tun.as_raw_fd(), &raw mut request) }?;
    let name = request.ifr_name.iter().map(|byte| *byte as u8);
    let name = name.take_while(|byte| *byte != 0).collect();
    // SAFETY: the kernel has just written this field; every bit pattern is a valid short.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    Ok((String::from_utf8(name).map_err(io::Error::other)?, flags))
}

/// Sets which unfinished frames the kernel may hand out (`TUN_F_…`).
pub(super) fn tun_set_offload(tun: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open; the argument is a number, no memory is involved.
    unsafe { ioctls::tun_set_offload(tun.as_raw_fd(), flags as c_int) }?;
    Ok(())
}

/// Sets the length of the virtio-net header in front of each frame.
pub(super) fn tun_set_header_bytes(tun: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let bytes = c_int::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open and the kernel reads one int that outlives the call.
    unsafe { ioctls::tun_set_header(tun.as_raw_fd(), &raw const bytes) }?;
    Ok(())
}

/// Lets a queue of a multi-queue interface take part, or not.
pub(super) fn tun_set_queue(tun: BorrowedFd<'_>, takes_part: bool) -> io::Result<()> {
    let flag = match takes_part {
        true => libc::IFF_ATTACH_QUEUE,
        false => libc::IFF_DETACH_QUEUE,
    };
    let request = request("", |data| data.ifru_flags = flag as libc::c_short)?;
    // SAFETY: the descriptor is open and the kernel only reads the ifreq, which outlives the call.
    unsafe { ioctls::tun_set_queue(tun.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Sets an interface up.
pub(super) fn interface_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = request(name, |data| data.ifru_flags = 0)?;
    // SAFETY: the descriptor is open and the kernel fills in one ifreq that we own.
    unsafe { ioctls::get_flags(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the kernel has just written this field; every bit pattern is a valid short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    request.ifr_ifru.ifru_flags = flags | libc::IFF_UP as libc::c_short;
    // SAFETY: the descriptor is open and the kernel only reads the ifreq, which outlives the call.
    unsafe { ioctls::set_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// An interface's MTU.
pub(super) fn interface_mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = request(name, |data| data.ifru_mtu = 0)?;
    // SAFETY: the descriptor is open and the kernel fills in one ifreq that we own.
    unsafe { ioctls::get_mtu(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the kernel has just written this field; every bit pattern is a valid int.
    u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).map_err(io::Error::other)
}

/// Sets an interface's MTU.
pub(super) fn set_interface_mtu(socket: BorrowedFd<'_>, name: &str, mtu: u16) -> io::Result<()> {
    let request = request(name, |data| data.ifru_mtu = c_int::from(mtu))?;
    // SAFETY: the descriptor is open and the kernel only reads the ifreq, which outlives the call.
    unsafe { ioctls::set_mtu(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Makes an interface a port of a bridge.
pub(super) fn bridge_add(socket: BorrowedFd<'_>, bridge: &str, index: u32) -> io::Result<()> {
    let index = c_int::try_from(index).map_err(io::Error::other)?;
    let request = request(bridge, |data| data.ifru_ifindex = index)?;
    // SAFETY: the descriptor is open and the kernel only reads the ifreq, which outlives the call.
    unsafe { ioctls::bridge_add(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

fn request(
    name: &str,
    fill: impl FnOnce(&mut libc::__c_anonymous_ifr_ifru),
) -> io::Result<libc::ifreq> {
    // SAFETY: ifreq is plain data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { MaybeUninit::zeroed().assume_init() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("interface name {name:?} is longer than 15 bytes"),
        ));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    fill(&mut request.ifr_ifru);
    Ok(request)
}

/// Writes a header of ours and a frame in guest memory as one frame.
pub(super) fn write_frame(
    file: BorrowedFd<'_>,
    header: &RawHeader,
    frame: &[GuestSlice<'_>],
) -> io::Result<usize> {
    let mut vectors = Vectors::new();
    vectors.push(header.as_ptr().cast_mut(), header.len());
    vectors.push_guest(frame)?;
    // SAFETY: the vectors are initialised up to `count` and name memory that stays mapped for the
    // borrows of `header` and `frame`; writev only reads it. The guest may change its part
    // meanwhile, which the kernel, unlike Rust code, is built to take.
    let done = unsafe { libc::writev(file.as_raw_fd(), vectors.as_ptr(), vectors.count()) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// Reads one frame: its header to us, the rest to guest memory and, where that is too small, to
/// `spill`.
pub(super) fn read_frame(
    file: BorrowedFd<'_>,
    header: &mut RawHeader,
    frame: &[GuestSlice<'_>],
    spill: &mut [u8],
) -> io::Result<usize> {
    let mut vectors = Vectors::new();
    vectors.push(header.as_mut_ptr(), header.len());
    vectors.push_guest(frame)?;
    vectors.push(spill.as_mut_ptr(), spill.len());
    // SAFETY: the vectors are initialised up to `count` and name memory that stays mapped for the
    // borrows of `header`, `frame` and `spill`; ours is borrowed mutably, and guest memory is
    // never turned into a Rust reference, so the kernel's writes alias nothing.
    let done = unsafe { libc::readv(file.as_raw_fd(), vectors.as_ptr(), vectors.count()) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// An array of iovecs of which only the used part is ever touched.
struct Vectors {
    entries: [MaybeUninit<libc::iovec>; MAX_VECTORS],
    used: usize,
}

impl Vectors {
    const fn new() -> Self {
        Self { entries: [const { MaybeUninit::uninit() }; MAX_VECTORS], used: 0 }
    }

    fn push(&mut self, base: *mut u8, length: usize) {
        if let Some(entry) = self.entries.get_mut(self.used) {
            entry.write(libc::iovec { iov_base: base.cast(), iov_len: length });
            self.used += 1;
        }
    }

    fn push_guest(&mut self, slices: &[GuestSlice<'_>]) -> io::Result<()> {
        if slices.len() > MAX_PIECES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for slice in slices {
            // The guard does nothing for memory that is mapped throughout, which ours is.
            self.push(slice.ptr_guard_mut().as_ptr(), slice.len());
        }
        Ok(())
    }

    const fn as_ptr(&self) -> *const libc::iovec {
        self.entries.as_ptr().cast()
    }

    const fn count(&self) -> c_int {
        self.used as c_int
    }
}

/// What arrived on a socket.
pub(super) struct Received {
    /// Bytes read; 0 at the end of the stream.
    pub(super) bytes: usize,
    /// Descriptors that came along.
    pub(super) fds: Vec<OwnedFd>,
    /// More of them came than fit.
    pub(super) truncated: bool,
}

/// Receives bytes and descriptors.
pub(super) fn receive(socket: &UnixStream, buffer: &mut [u8]) -> io::Result<Received> {
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

const _: () = assert!(size_of::<libc::iovec>() == 16);
