//! The kernel's links, as the agent needs them. Netlink is one; the tests have one in memory.

use std::future::Future;
use std::io;

use flexvf_protocol::agent::LinkCounters;

use crate::logic::interfaces::Address;
use crate::logic::links::Link;
use crate::logic::plan::Step;

/// Reads and changes links.
pub trait Kernel {
    /// Every link, with its counters.
    fn links(&mut self) -> impl Future<Output = Result<Vec<Link>, KernelError>>;
    /// Every link's addresses.
    fn addresses(&mut self) -> impl Future<Output = Result<Vec<Address>, KernelError>>;
    /// Counters of these links, in their order; none if links may have changed since [`Self::links`]
    /// was asked, or cannot be counted so.
    fn counters(&mut self, links: &[u32]) -> Option<Vec<LinkCounters>>;
    /// Makes one change.
    fn apply(&mut self, step: &Step) -> impl Future<Output = Result<(), KernelError>>;
    /// Waits for the next link that goes. May be dropped and called again.
    fn changed(&mut self) -> impl Future<Output = Change>;
}

/// What happened to the links by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// A link is gone; its last counters, if the kernel told them.
    Gone(u32, Option<LinkCounters>),
    /// The kernel had more to tell than fits its queue: look for yourself.
    Lost,
}

/// A request to the kernel failed.
#[derive(Debug, thiserror::Error)]
#[error("{operation}: {source}")]
pub struct KernelError {
    /// What was asked for.
    pub operation: String,
    /// The kernel's answer.
    pub source: io::Error,
}
