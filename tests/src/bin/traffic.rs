//! traffic
fn main() {}
