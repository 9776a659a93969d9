//! qga-extension
