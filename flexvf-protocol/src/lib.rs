//! What crosses a process boundary in FlexVF, and nothing else.
//!
//! Addresses and names are parsed once into [`MacAddr`], [`PciAddress`] and [`VmName`] and trusted
//! from there on. [`frame`] splits hostile byte streams into bounded lines, [`stats_page`] fixes the
//! layout of the counters that `vhost-net-pv` shares, and [`agent`] names the commands that host and
//! guest exchange. No I/O, no clock, no async: each program brings its own.

pub mod agent;
pub mod frame;
pub mod stats_page;

mod mac;
mod name;
mod pci;

pub use mac::{MacAddr, ParseMacError};
pub use name::{ParseVmNameError, VmName};
pub use pci::{ParsePciAddressError, PciAddress};
