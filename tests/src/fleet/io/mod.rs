//! Sockets and files around [`super::logic`].

mod conn;
mod page;
pub mod server;
