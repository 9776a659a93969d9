//! Sockets and clocks around [`super::logic`].

pub mod capture;
pub mod datagrams;
pub mod peer;
pub mod serve;
pub mod socket;
pub mod tcp;
