//! The only unsafe code of the crate: system calls that no safe wrapper of our dependencies covers.
#![expect(
    unsafe_code,
    reason = "ioctls, scattered I/O on guest memory, descriptors from a socket or the parent, SIGBUS"
)]

mod event;
mod frames;
mod sigbus;
mod socket;
mod tun;
mod uring;

pub(super) use event::drain;
pub(super) use frames::{prefetch, prefetch_buffer, read_frame, write_frame};
pub use sigbus::survive_cut_memory;
pub(super) use sigbus::{Cut, Watched};
pub use socket::inherited;
pub(super) use socket::receive;
pub(super) use tun::{
    bridge_add, interface_mtu, interface_up, set_interface_mtu, tun_attach, tun_interface,
    tun_set_header_bytes, tun_set_offload, tun_set_queue,
};
pub(super) use uring::{UNREGISTER_FILES, Uring};
