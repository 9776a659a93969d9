//! qga-extension
fn main() {}
