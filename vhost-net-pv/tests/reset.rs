//! A device that its front-end resets without hanging up, as QEMU and guests do at a reboot.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use flexvf_protocol::stats_page::{Counter, Direction, Header};
use vhost::vhost_user::message::FrontendReq;

use common::{FrontEnd, Shared};
use program::Backend;

mod common;
mod program;

fn exchange(front_end: &mut FrontEnd<'_>, seed: u8) {
    front_end.give_buffers(1);
    front_end.send_frame(&[seed; 60]);
    assert_eq!(front_end.receive_frame(), [seed; 60]);
    front_end.wait_returned(1);
}

#[test]
fn rings_stand_still_after_a_reset_and_start_anew() {
    let backend = Backend::start("loopback", 1);
    let shared = Shared::new();
    let mut front_end = FrontEnd::connect(&backend.socket(), &shared);
    front_end.start();
    exchange(&mut front_end, 1);
    let sent = || backend.page().total(Direction::Tx, Counter::Frames);
    backend.until("it is counted", || sent() == 1);

    assert_eq!(front_end.ask(FrontendReq::RESET_DEVICE, &[], &[]).unwrap(), 0);
    front_end.send_frame(&[2; 60]);
    // Its queue pair's thread answers to these, and would have found the frame by then.
    let accepted = [front_end.accepted];
    for _ in 0..2 {
        assert_eq!(front_end.ask(FrontendReq::SET_FEATURES, &accepted, &[]).unwrap(), 0);
    }
    assert_eq!(front_end.tx.used_index(), 1, "a ring that was reset was used");
    front_end.rx.restart();
    front_end.tx.restart();
    for ring in 0..2u64 {
        let enable = [ring | 1 << 32];
        assert_eq!(front_end.ask(FrontendReq::SET_VRING_ENABLE, &enable, &[]).unwrap(), 0);
    }
    front_end.start_rings([0, 0]);
    exchange(&mut front_end, 3);
    backend.until("it is counted", || sent() >= 2);
    assert_eq!(sent(), 2, "a frame was taken from a ring that was reset");
    assert_eq!(backend.page().header(Header::Refused), 0);
    assert_eq!(backend.page().header(Header::Connections), 1);
    assert!(backend.end());
}
