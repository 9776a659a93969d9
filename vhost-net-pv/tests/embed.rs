//! The example of embedding: it runs, and frames go over a port that is not ours.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost_net_pv::{FrontEnds, Stopper};

use common::{FrontEnd, Shared};

mod common;
#[path = "../examples/embed.rs"]
#[allow(dead_code, unreachable_pub, reason = "it is a program")]
mod embed;

const DEADLINE: Duration = Duration::from_secs(10);

#[test]
fn the_example_runs() {
    embed::main().unwrap();
}

#[test]
fn frames_cross_a_port_of_the_embedders_own() {
    let (wire, host) = embed::link().unwrap();
    let mut device = embed::device(wire).unwrap();
    let (vmm, ours) = UnixStream::pair().unwrap();
    let stopper = Stopper::new().unwrap();
    let serving = std::thread::spawn(move || device.serve(FrontEnds::One(ours), &stopper).unwrap());
    let shared = Shared::new();
    let mut front_end = FrontEnd::new(vmm, &shared);
    front_end.start();
    // A small frame is copied behind its header, a large one is not.
    for bytes in [60, 1500] {
        let frame: Vec<u8> = (0..bytes).map(|at: usize| at as u8).collect();
        front_end.send_frame(&frame);
        assert_eq!(host.receive(DEADLINE).unwrap(), frame);
        front_end.wait_returned(1);
    }
    front_end.give_buffers(1);
    assert!(host.send(vec![7; 1500]));
    assert_eq!(front_end.receive_frame(), [7; 1500]);
    drop(front_end);
    serving.join().unwrap();
}
