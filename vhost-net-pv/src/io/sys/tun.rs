//! TAP descriptors and interfaces: the ioctls of `linux/if_tun.h` and `linux/sockios.h`.

use std::ffi::c_int;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

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
pub(in crate::io) fn tun_attach(tun: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<()> {
    let request = request(name, |data| data.ifru_flags = flags as libc::c_short)?;
    // SAFETY: the descriptor is open and the kernel only reads the ifreq, which outlives the call.
    unsafe { ioctls::tun_set_iff(tun.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Name and flags of the interface that a descriptor is attached to.
pub(in crate::io) fn tun_interface(tun: BorrowedFd<'_>) -> io::Result<(String, c_int)> {
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
pub(in crate::io) fn tun_set_offload(tun: BorrowedFd<'_>, flags: u32) -> io::Result<()> {
    // SAFETY: the descriptor is open; the argument is a number, no memory is involved.
    unsafe { ioctls::tun_set_offload(tun.as_raw_fd(), flags as c_int) }?;
    Ok(())
}

/// Sets the length of the virtio-net header in front of each frame.
pub(in crate::io) fn tun_set_header_bytes(tun: BorrowedFd<'_>, bytes: usize) -> io::Result<()> {
    let bytes = c_int::try_from(bytes).map_err(io::Error::other)?;
    // SAFETY: the descriptor is open and the kernel reads one int that outlives the call.
    unsafe { ioctls::tun_set_header(tun.as_raw_fd(), &raw const bytes) }?;
    Ok(())
}

/// Lets a queue of a multi-queue interface take part, or not.
pub(in crate::io) fn tun_set_queue(tun: BorrowedFd<'_>, takes_part: bool) -> io::Result<()> {
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
pub(in crate::io) fn interface_up(socket: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = request(name, |data| data.ifru_flags = 0)?;
    // SAFETY: the descriptor is open and the kernel fills in one ifreq that we own.
    unsafe { ioctls::get_flags(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the kernel has just written this field; every bit pattern is a valid short.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let up = libc::IFF_UP as libc::c_short;
    if flags & up != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | up;
    // SAFETY: the descriptor is open and the kernel only reads the ifreq, which outlives the call.
    unsafe { ioctls::set_flags(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// An interface's MTU.
pub(in crate::io) fn interface_mtu(socket: BorrowedFd<'_>, name: &str) -> io::Result<u32> {
    let mut request = request(name, |data| data.ifru_mtu = 0)?;
    // SAFETY: the descriptor is open and the kernel fills in one ifreq that we own.
    unsafe { ioctls::get_mtu(socket.as_raw_fd(), &raw mut request) }?;
    // SAFETY: the kernel has just written this field; every bit pattern is a valid int.
    u32::try_from(unsafe { request.ifr_ifru.ifru_mtu }).map_err(io::Error::other)
}

/// Sets an interface's MTU.
pub(in crate::io) fn set_interface_mtu(
    socket: BorrowedFd<'_>,
    name: &str,
    mtu: u16,
) -> io::Result<()> {
    let request = request(name, |data| data.ifru_mtu = c_int::from(mtu))?;
    // SAFETY: the descriptor is open and the kernel only reads the ifreq, which outlives the call.
    unsafe { ioctls::set_mtu(socket.as_raw_fd(), &raw const request) }?;
    Ok(())
}

/// Makes an interface a port of a bridge.
pub(in crate::io) fn bridge_add(
    socket: BorrowedFd<'_>,
    bridge: &str,
    index: u32,
) -> io::Result<()> {
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
