//! Processes, sockets and files around [`super::logic`].

pub mod child;
pub mod gate;
pub mod guests;
pub mod host;
pub mod jsonline;
pub mod peer;
pub mod shell;
