//! What crosses FlexVF's crates: the traffic tool, the scenarios on real QEMU guests, the allocator's
//! simulator, fleets of made-up VMs, the benchmarks, the tidy rules.
//!
//! Five programs are made of it. `flexvf-traffic` runs in each guest and beside the bridge and counts
//! packets exactly; `flexvf-scenario` runs on the testbed's host, starts guests and the daemon, moves
//! the load about and judges what came of it; `flexvf-bench` measures against others' programs; `flexvf-soak` plays the engine against faults;
//! `flexvf-paper` plays the paper's evaluation. All
//! keep what can be reasoned about (`logic/`) apart from sockets and processes (`io/`). Nothing here
//! is part of the product.

pub mod bench;
pub mod blast;
pub mod fleet;
pub mod paper;
pub mod scenario;
pub mod sim;
pub mod sys;
pub mod tidy;
pub mod traffic;
