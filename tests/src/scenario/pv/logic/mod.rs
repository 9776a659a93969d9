//! What the PV scenario concludes. No process, socket or clock.

pub mod agreed;
pub mod ledger;
pub mod result;
