//! FlexVF on the host: samples packet rates, ranks the VMs, moves SR-IOV VFs between them over QMP.
//!
//! Arrows go down only: the `flexvf` command → [`cli`] → [`daemon`] → [`control`], [`io`], [`vmm`] →
//! [`logic`]. [`logic`] is pure: it is given the time and what was seen, and answers what to do.
//! [`daemon`] is the one place that waits.

pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod io;
pub mod logic;
pub mod vmm;
