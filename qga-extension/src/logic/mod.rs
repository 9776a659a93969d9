//! What the agent decides, without I/O, clock or async.
//!
//! [`request`] turns a line into an intent and [`answer`] a result into a line; [`links`] says what
//! the guest's network looks like, [`plan`] and [`setup`] what is to be done to it; [`counters`]
//! keeps the VF path's sum over VFs that come and go; [`interfaces`] fills qemu-ga's own schema.

pub mod answer;
pub mod counters;
pub mod identity;
pub mod interfaces;
pub mod links;
pub mod plan;
pub mod request;
pub mod setup;
