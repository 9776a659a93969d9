//! The agent's outside: the host's channel, the kernel's links, the guest's clock and boot id.
//!
//! Each is small and decides nothing; what it reads becomes a type of [`crate::logic`] here.

pub mod channel;
pub mod kernel;
mod netlink;
mod notices;
mod parse;
pub mod proc;
mod stats;
mod virtio_port;

pub use channel::{Channel, UnixChannel};
pub use kernel::{Change, Kernel, KernelError};
pub use netlink::Netlink;
pub use virtio_port::{OpenPortError, VirtioPort};
