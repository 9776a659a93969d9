//! Processes, interfaces and clocks around [`super::logic`].

pub mod backend;
pub mod floor;
pub mod front_end;
pub mod guest;
pub mod inject;
pub mod process;
pub mod stage;
pub mod tap;
pub mod testpmd;
