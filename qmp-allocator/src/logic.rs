//! What FlexVF decides, apart from how it is done: no I/O, no clock, no async.
//!
//! [`engine`] holds it together: events in, commands out. It asks [`rate`] how busy the VMs were,
//! [`policy`] who deserves a VF, [`reconcile`] what to move next, and [`switch`] how to move it.

pub mod engine;
pub mod policy;
pub mod rate;
pub mod reconcile;
pub mod simulate;
pub mod status;
pub mod switch;
pub mod vf;
