//! Processes, interfaces and clocks around [`super::logic`].

pub mod backend;
pub mod floor;
pub mod guest;
pub mod inject;
pub mod process;
pub mod receiver;
pub mod stage;
pub mod tap;
pub mod testpmd;
