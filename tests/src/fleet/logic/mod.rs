//! What a made-up VM answers, and when. No sockets, no clock.

pub mod agent;
pub mod machine;
pub mod manner;
pub mod monitor;
