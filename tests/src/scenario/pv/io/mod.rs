//! Processes, sockets and files of the PV scenario.

pub mod backend;
pub mod command;
pub mod machine;
pub mod relay;
pub mod streams;
pub mod tool;
