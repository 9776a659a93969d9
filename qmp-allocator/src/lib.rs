//! qmp-allocator
