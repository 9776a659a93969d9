//! qmp-allocator
fn main() {}
