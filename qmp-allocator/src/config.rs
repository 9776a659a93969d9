//! The daemon's configuration file and the VMs' registration files, parsed and checked.
//!
//! Both are TOML, and both refuse unknown keys: a misspelt setting is an error with a line number,
//! not a default in disguise. What comes out is trusted from here on. Whether the named interfaces,
//! sockets and functions exist is not asked here: they come and go while the daemon runs.

mod daemon;
mod raw;
mod text;
mod vf;
mod vm;

pub use daemon::{
    Config, Deadlines, EmulatedPool, MacOrder, NodeOwner, Pool, PoolKind, RecorderConfig,
    SriovPool, Strategy, Tuning, VfRange, VfioKind,
};
pub use text::ConfigError;
pub use vf::VfOptions;
pub use vm::{Pin, VmConfig};
