//! What one answer costs the guest: `cargo bench -p qga-extension`.
//!
//! The bound for `counters` is 50 µs. Request, system calls and answer are real, the bytes' way through
//! the port is not in it; bond, PV NIC and VF are this machine's loopback interface, three times, so that
//! it needs no such guest. `after a change` is the answer that has to look at all links first.
#![allow(clippy::unwrap_used, reason = "a benchmark fails by panicking")]

use std::hint::black_box;

use criterion::Criterion;
use flexvf_protocol::agent::{COUNTERS, LinkCounters, STATUS};
use flexvf_protocol::frame::Frame;
use qga_extension::agent::Agent;
use qga_extension::io::{Change, Kernel, KernelError, Netlink, proc};
use qga_extension::logic::interfaces::Address;
use qga_extension::logic::links::{Bond, Link, PvSelector, Selector};
use qga_extension::logic::plan::Step;

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let mut criterion = Criterion::default().configure_from_args();
    for (name, command, anew) in [
        ("counters", COUNTERS, false),
        ("counters after a change", COUNTERS, true),
        ("status", STATUS, false),
    ] {
        let mut agent = runtime.block_on(async { agent(anew) });
        let line = format!("{{\"execute\":\"{command}\",\"id\":1}}");
        let mut ask = || runtime.block_on(agent.answer(Frame::Line(line.clone().into_bytes())));
        let answer = String::from_utf8(ask()).unwrap();
        assert!(answer.contains("\"return\"") && answer.contains("boot-id"), "{answer}");
        criterion.bench_function(name, |bencher| bencher.iter(|| black_box(ask())));
    }
    criterion.final_summary();
}

/// A bond with both ports, all of which count as the loopback interface does.
struct Loopback {
    kernel: Netlink,
    /// Links change all the time.
    restless: bool,
}

const LO: u32 = 1;
const BOND: u32 = 1001;
const PV: u32 = 1002;
const VF: u32 = 1003;

fn agent(restless: bool) -> Agent<Loopback> {
    let kernel = Loopback { kernel: Netlink::open().unwrap(), restless };
    let pv = PvSelector::Name("virtio_net".into());
    let selector = Selector { bond: None, pv };
    Agent::new(kernel, selector, proc::identity().unwrap())
}

impl Kernel for Loopback {
    async fn links(&mut self) -> Result<Vec<Link>, KernelError> {
        let links = self.kernel.links().await?;
        let lo = links.iter().find(|link| link.index == LO).unwrap();
        let made_up = |index, driver: &str| Link {
            index,
            name: format!("eth{index}"),
            driver: Some(driver.into()),
            controller: (index != BOND).then_some(BOND),
            bond: (index == BOND).then_some(Bond { active_backup: true, active_port: Some(PV) }),
            ..lo.clone()
        };
        let more = [(BOND, "bonding"), (PV, "virtio_net"), (VF, "iavf")];
        Ok(links.iter().cloned().chain(more.map(|(index, name)| made_up(index, name))).collect())
    }

    async fn addresses(&mut self) -> Result<Vec<Address>, KernelError> {
        self.kernel.addresses().await
    }

    fn counters(&mut self, links: &[u32]) -> Option<Vec<LinkCounters>> {
        assert_eq!(links, [BOND, PV, VF]);
        match self.restless {
            true => None,
            false => self.kernel.counters(&links.iter().map(|_| LO).collect::<Vec<_>>()),
        }
    }

    async fn apply(&mut self, step: &Step) -> Result<(), KernelError> {
        self.kernel.apply(step).await
    }

    async fn changed(&mut self) -> Change {
        self.kernel.changed().await
    }
}
