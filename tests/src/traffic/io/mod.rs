//! Sockets and clocks around [`super::logic`].

pub mod peer;
pub mod serve;
pub mod socket;
