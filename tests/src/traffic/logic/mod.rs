//! Numbers, rates and accounts, given the time. No socket and no clock.

pub mod history;
pub mod message;
pub mod pacer;
pub mod stream;
pub mod tracker;
