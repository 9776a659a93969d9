//! scenario
fn main() {}
