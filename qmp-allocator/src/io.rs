//! Adapters: one outside world each, nothing decided.
//!
//! | module | what it speaks to |
//! |---|---|
//! | [`registry`] | the folder of VM registration files |
//! | [`qmp`] | QEMU's monitor socket |
//! | [`agent`] | the agent in a guest, ours or a stock qemu-ga |
//! | [`stats`] | stats pages of PV backends |
//! | [`sysfs`] | PCI functions of the host and their drivers |
//! | [`vfio`] | VFIO's group nodes |
//! | [`found`] | records of what VFs were like |
//! | [`proc`] | QEMU's process |
//! | [`netlink`] | links, a PF's per-VF settings and counters, forwarding entries |
//!
//! Everything that another process sends is bounded in size and in time, and no fault of it panics.

pub mod agent;
pub mod found;
pub mod netlink;
pub mod proc;
pub mod qmp;
pub mod registry;
pub mod stats;
pub mod sysfs;
pub mod vfio;

mod text;
