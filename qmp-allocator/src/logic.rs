//! What FlexVF decides, apart from how it is done: no I/O, no clock, no async.
//!
//! [`engine`] holds it together: events in, commands out. It asks [`rate`] how busy the VMs were,
//! [`policy`] who deserves a VF, [`reconcile`] what to move next, and [`switch`] how to move it.
//! [`decision`] is what was decided as people and recordings are told it, [`outlook`] what would change it.
//! [`settings`] plans what a VF's PF is told and how that is undone, [`memlock`] who may not have one.

pub mod decision;
pub mod engine;
pub mod explain;
pub mod memlock;
pub mod outlook;
pub mod policy;
pub mod rate;
pub mod reconcile;
pub mod recording;
pub mod settings;
pub mod simulate;
pub mod status;
pub mod switch;
pub mod vf;
