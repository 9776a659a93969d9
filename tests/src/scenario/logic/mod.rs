//! What a scenario asks for and what it concludes. No process, socket or clock.

pub mod blame;
pub mod cells;
pub mod judge;
pub mod moments;
pub mod plan;
pub mod result;
pub mod status;
pub mod watch;
