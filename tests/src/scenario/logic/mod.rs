//! What a scenario asks for and what it concludes. No process, socket or clock.

pub mod blame;
pub mod judge;
pub mod plan;
pub mod result;
pub mod status;
pub mod watch;
