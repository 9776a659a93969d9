//! Numbers, names and texts of a benchmark. No process, no clock.

pub mod cores;
pub mod frame;
pub mod offer;
pub mod pairs;
pub mod result;
pub mod row;
pub mod table;
pub mod texts;
