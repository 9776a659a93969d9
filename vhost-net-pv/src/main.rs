//! vhost-net-pv
fn main() {}
