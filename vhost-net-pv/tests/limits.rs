//! A limit of one direction, and a guest that kicks only when it is asked to: the other one goes on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::num::NonZeroU64;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vhost_net_pv::io::port::Source;
use vhost_net_pv::io::stats::StatsPage;
use vhost_net_pv::logic::features::Offloads;
use vhost_net_pv::logic::tuning::Limit;
use vhost_net_pv::{Device, DeviceParts, FrontEnds, Stopper, Tuning};
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VRING_USED_F_NO_NOTIFY};

use common::testing::{Driver, WRITE};
use common::{FrontEnd, RX_BUFFER, RX_BUFFERS, Shared, TX_BUFFERS};

mod common;

const RX: usize = 0;
const TX: usize = 1;
const FRAME: usize = 76;

fn slow() -> Limit {
    Limit { packets: NonZeroU64::new(1), bits: None }
}

/// Runs a guest on a port that gives frames without end.
fn with_guest(tuning: Tuning, guest: impl FnOnce(FrontEnd<'_>)) {
    let mut device = Device::new(DeviceParts {
        ports: vec![Box::new(Source)],
        offloads: Offloads::ALL,
        features: u64::MAX,
        tuning,
        stats: StatsPage::private(1).unwrap(),
        set_mtu: Box::new(|_| Ok(())),
    })
    .unwrap();
    let stopper = Stopper::new().unwrap();
    let (ours, theirs) = UnixStream::pair().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| device.serve(FrontEnds::One(theirs), &stopper).unwrap());
        let shared = Shared::new();
        let mut front_end = FrontEnd::new(ours, &shared);
        // The plain way of asking for kicks: a flag in the used ring.
        front_end.refused |= 1 << VIRTIO_RING_F_EVENT_IDX;
        front_end.start();
        guest(front_end);
    });
}

fn wants_kicks(driver: &Driver<'_>) -> bool {
    // What was offered must be seen before the flag is read, or both sides may wait.
    fence(Ordering::SeqCst);
    let flags = driver.get(driver.layout.used, 2);
    u32::from(u16::from_le_bytes([flags[0], flags[1]])) & VRING_USED_F_NO_NOTIFY == 0
}

fn send(front_end: &mut FrontEnd<'_>) {
    front_end.tx.offer(&[(TX_BUFFERS, FRAME)], 0);
    if wants_kicks(&front_end.tx) {
        front_end.kick(TX);
    }
}

fn give(front_end: &mut FrontEnd<'_>) {
    front_end.rx.offer(&[(RX_BUFFERS, RX_BUFFER as usize)], WRITE);
    if wants_kicks(&front_end.rx) {
        front_end.kick(RX);
    }
}

/// Does something many times, which would take minutes at the limit's pace.
fn within_deadline(times: u32, mut exchange: impl FnMut()) {
    let end = Instant::now() + Duration::from_secs(20);
    for time in 0..times {
        exchange();
        assert!(Instant::now() < end, "{time} of {times} frames only");
    }
}

#[test]
fn frames_from_the_guest_do_not_wait_for_a_limit_of_frames_to_it() {
    with_guest(Tuning { rx_limit: slow(), ..Tuning::default() }, |mut guest| {
        (0..32).for_each(|_| give(&mut guest));
        within_deadline(200, || {
            send(&mut guest);
            guest.wait_returned(TX);
        });
    });
}

#[test]
fn frames_to_the_guest_do_not_wait_for_a_limit_of_frames_from_it() {
    with_guest(Tuning { tx_limit: slow(), ..Tuning::default() }, |mut guest| {
        (0..60).for_each(|_| send(&mut guest));
        within_deadline(200, || {
            give(&mut guest);
            guest.wait_returned(RX);
        });
    });
}
