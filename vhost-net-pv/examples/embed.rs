//! A virtual NIC inside a program of one's own: no TAP, no socket in the file system, no process.
//!
//! The program here is a small VMM host: it keeps one end of a link into each guest ([`HostEnd`])
//! and gives the device the other one ([`Wire`], a [`Port`]). The VMM gets a connected socket. What
//! runs is what a VMM would see first; a real one goes on to share the guest's memory.
//!
//!     cargo run --example embed

use std::error::Error;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use vhost_net_pv::io::port::{Batch, Slots, Spills};
use vhost_net_pv::io::stats::StatsPage;
use vhost_net_pv::logic::feature_names::{FeatureSet, names};
use vhost_net_pv::logic::features::{Offloads, offered};
use vhost_net_pv::logic::memory::{self, GuestSlice};
use vhost_net_pv::logic::net_header::HEADER_BYTES;
use vhost_net_pv::{Device, DeviceParts, FrontEnds, Port, Stopper, Tuning};

/// Frames that wait in each direction; more are dropped, and the device counts them.
const MAX_WAITING: usize = 256;
/// A wire carries whole frames only: a guest is not offered to leave checksums or segmentation to
/// us, nor we to leave them to it.
const FEATURES: &str = "mrg_rxbuf,indirect_desc,event_idx,in_order";

/// The device's end of a link.
pub struct Wire {
    to_host: SyncSender<Vec<u8>>,
    from_host: Receiver<Vec<u8>>,
    waiting: Arc<EventFd>,
}

/// The host's end of a link.
pub struct HostEnd {
    to_guest: SyncSender<Vec<u8>>,
    from_guest: Receiver<Vec<u8>>,
    waiting: Arc<EventFd>,
}

/// A link: the device's end, the host's end.
pub fn link() -> io::Result<(Wire, HostEnd)> {
    let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
    let waiting = Arc::new(EventFd::from_flags(flags)?);
    let (to_host, from_guest) = sync_channel(MAX_WAITING);
    let (to_guest, from_host) = sync_channel(MAX_WAITING);
    let wire = Wire { to_host, from_host, waiting: Arc::clone(&waiting) };
    Ok((wire, HostEnd { to_guest, from_guest, waiting }))
}

impl HostEnd {
    /// Sends a frame to the guest; false if too many wait already.
    pub fn send(&self, frame: Vec<u8>) -> bool {
        self.to_guest.try_send(frame).is_ok() && self.waiting.write(1).is_ok()
    }

    /// Takes a frame of the guest's.
    pub fn receive(&self, within: Duration) -> Result<Vec<u8>, RecvTimeoutError> {
        self.from_guest.recv_timeout(within)
    }
}

impl Port for Wire {
    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.waiting.as_fd())
    }

    fn send(&mut self, batch: &mut Batch<'_>) {
        for frame in batch.frames() {
            // Behind the header comes the whole frame if it is small; otherwise it is in memory that
            // the guest may change at any time, so it is looked at in a copy only.
            let mut copy = frame.front.get(HEADER_BYTES..).unwrap_or_default().to_vec();
            let front = copy.len();
            let rest: usize = frame.pieces.iter().map(GuestSlice::len).sum();
            copy.resize(front + rest, 0);
            memory::copy_out(frame.pieces, 0, &mut copy[front..]);
            *frame.taken = self.to_host.try_send(copy).is_ok();
        }
    }

    fn receive(&mut self, slots: &mut Slots<'_>, spills: &mut Spills) {
        for ((slot, pieces), spill) in slots.each().zip(spills.each()) {
            let Ok(frame) = self.from_host.try_recv() else {
                slot.take(None);
                continue;
            };
            slot.header = [0; HEADER_BYTES];
            let in_place = memory::copy_in(pieces, 0, &frame);
            let rest = frame.get(in_place..).unwrap_or_default();
            let fits = rest.len().min(spill.len());
            spill[..fits].copy_from_slice(&rest[..fits]);
            slot.take(Some(HEADER_BYTES + in_place + fits));
        }
    }

    fn set_offloads(&mut self, _offloads: Offloads) -> io::Result<()> {
        Ok(())
    }

    fn set_active(&mut self, _active: bool) -> io::Result<()> {
        Ok(())
    }
}

/// A device with one queue pair on a wire.
pub fn device(wire: Wire) -> Result<Device, Box<dyn Error>> {
    let offloads = Offloads::default();
    Ok(Device::new(DeviceParts {
        ports: vec![Box::new(wire)],
        offloads,
        features: FEATURES.parse::<FeatureSet>()?.resolve(offered(1, offloads))?,
        tuning: Tuning::default(),
        stats: StatsPage::private(1)?,
        set_mtu: Box::new(|_mtu| Ok(())),
    })?)
}

/// Serves one front-end, and ends.
pub fn main() -> Result<(), Box<dyn Error>> {
    let (wire, _host) = link()?;
    let mut device = device(wire)?;
    device.on_front_end(|connected| println!("VMM connected: {connected}"));
    let (for_vmm, ours) = UnixStream::pair()?;
    let stopper = Stopper::new()?;
    // With a guest of its own, the VMM would keep the socket for as long as the guest lives. This
    // one asks what the device offers, and is gone.
    let vmm = std::thread::spawn(move || ask_features(for_vmm));
    device.serve(FrontEnds::One(ours), &stopper)?;
    let features = vmm.join().map_err(|_| "the VMM panicked")??;
    println!("offered: {}", names(features));
    Ok(())
}

/// `GET_FEATURES`, as any vhost-user front-end begins.
fn ask_features(mut socket: UnixStream) -> io::Result<u64> {
    const GET_FEATURES: [u32; 3] = [1, 1, 0];
    socket.write_all(&GET_FEATURES.map(u32::to_ne_bytes).concat())?;
    let (mut head, mut features) = ([0; 12], [0; 8]);
    socket.read_exact(&mut head)?;
    socket.read_exact(&mut features)?;
    Ok(u64::from_ne_bytes(features))
}
