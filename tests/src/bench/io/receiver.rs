//! A front-end in this process: a guest that takes frames and gives its buffers back at once.
//!
//! It costs some ten nanoseconds a frame, so that one processor can do this and feed the TAP too,
//! which a front-end that polls by itself, like DPDK's, would not let it. A guest with one queue
//! pair, mergeable buffers and a 256-entry ring, as QEMU gives it.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result};
use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::{
    VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_bindings::virtio_config::{VIRTIO_F_IN_ORDER, VIRTIO_F_VERSION_1};
use virtio_bindings::virtio_net::{VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_MRG_RXBUF};
use virtio_bindings::virtio_ring::{
    VRING_AVAIL_F_NO_INTERRUPT, VRING_DESC_F_WRITE, VRING_USED_F_NO_NOTIFY,
};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A running front-end; it disconnects when this is dropped.
pub struct Receiver {
    memory: GuestMemoryMmap,
    kick: EventFd,
    available: u16,
    received: u64,
    in_order: bool,
    // Kept open: the connection is the device.
    _connection: Frontend,
    _call: EventFd,
}

impl Receiver {
    /// Connects to a backend and gives it all its buffers.
    pub fn connect(socket: &Path) -> Result<Self> {
        let memory = shared_memory()?;
        let connection = Frontend::connect(socket, 2).context("connect to the backend")?;
        let kick = EventFd::new(EFD_NONBLOCK)?;
        let call = EventFd::new(EFD_NONBLOCK)?;
        let mut receiver = Self {
            memory,
            kick,
            available: 0,
            received: 0,
            in_order: false,
            _connection: connection.clone(),
            _call: call.try_clone()?,
        };
        receiver.lay_out()?;
        receiver.negotiate(connection, &call).context("speak vhost-user with the backend")?;
        Ok(receiver)
    }

    /// Takes the frames that have arrived, gives their buffers back, and returns the number of all
    /// frames so far.
    pub fn received(&mut self) -> Result<u64> {
        let used: u16 = self.memory.load(USED_INDEX, Ordering::Acquire)?;
        // A buffer is given back in its own place: ours are all alike and used in order.
        let count = used.wrapping_sub(self.available.wrapping_sub(RING));
        if count == 0 {
            return Ok(self.received);
        }
        for ahead in 0..count {
            let slot = self.available.wrapping_add(ahead) % RING;
            let at = u64::from(slot);
            let head: u32 = self.memory.read_obj(GuestAddress(USED + 4 + 8 * at))?;
            // One used entry may stand for several buffers then, and says nothing for the others.
            let head = if self.in_order { slot } else { head as u16 };
            self.memory.write_obj(head, GuestAddress(AVAILABLE + 4 + 2 * at))?;
        }
        self.offer(count)?;
        self.received += u64::from(count);
        Ok(self.received)
    }

    fn offer(&mut self, count: u16) -> Result<()> {
        self.available = self.available.wrapping_add(count);
        self.memory.store(self.available, AVAILABLE_INDEX, Ordering::Release)?;
        // The index must be seen before the backend's wish is read, or both sides may sleep.
        fence(Ordering::SeqCst);
        let flags: u16 = self.memory.load(GuestAddress(USED), Ordering::Relaxed)?;
        if u32::from(flags) & VRING_USED_F_NO_NOTIFY == 0 {
            self.kick.write(1)?;
        }
        Ok(())
    }

    /// One descriptor a buffer, all of them on offer; interrupts are not wanted.
    fn lay_out(&self) -> Result<()> {
        for index in 0..RING {
            let at = DESCRIPTORS + 16 * u64::from(index);
            let buffer = BUFFERS + BUFFER_BYTES * u64::from(index);
            self.memory.write_obj(buffer, GuestAddress(at))?;
            self.memory.write_obj(BUFFER_BYTES as u32, GuestAddress(at + 8))?;
            self.memory.write_obj(VRING_DESC_F_WRITE as u16, GuestAddress(at + 12))?;
            let slot = GuestAddress(AVAILABLE + 4 + 2 * u64::from(index));
            self.memory.write_obj(index, slot)?;
        }
        let quiet = VRING_AVAIL_F_NO_INTERRUPT as u16;
        self.memory.write_obj(quiet, GuestAddress(AVAILABLE))?;
        Ok(())
    }

    fn negotiate(&mut self, mut connection: Frontend, call: &EventFd) -> Result<()> {
        connection.set_owner()?;
        let protocol = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        let wanted = [
            VIRTIO_F_VERSION_1,
            VIRTIO_F_IN_ORDER,
            VIRTIO_NET_F_MRG_RXBUF,
            VIRTIO_NET_F_GUEST_CSUM,
        ];
        let wanted = wanted.iter().fold(protocol, |sum, bit| sum | 1u64 << bit);
        let features = connection.get_features()? & wanted;
        self.in_order = features & (1 << VIRTIO_F_IN_ORDER) != 0;
        if features & protocol != 0 {
            connection.get_protocol_features()?;
            connection.set_protocol_features(VhostUserProtocolFeatures::REPLY_ACK)?;
            // What is asked to be confirmed is in force when the call returns.
            connection.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        }
        connection.set_features(features)?;
        let region = self.memory.iter().next().context("no memory")?;
        connection.set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region)?])?;
        let host =
            |at| Ok::<_, anyhow::Error>(self.memory.get_host_address(GuestAddress(at))? as u64);
        connection.set_vring_num(RX, RING)?;
        connection.set_vring_addr(
            RX,
            &VringConfigData {
                queue_max_size: RING,
                queue_size: RING,
                flags: 0,
                desc_table_addr: host(DESCRIPTORS)?,
                used_ring_addr: host(USED)?,
                avail_ring_addr: host(AVAILABLE)?,
                log_addr: None,
            },
        )?;
        connection.set_vring_base(RX, 0)?;
        connection.set_vring_call(RX, call)?;
        connection.set_vring_kick(RX, &self.kick)?;
        connection.set_vring_enable(RX, true)?;
        self.offer(RING)
    }
}

/// The ring of frames to the guest.
const RX: usize = 0;
const RING: u16 = 256;
const BUFFER_BYTES: u64 = 2048;

// Where the ring's parts and the buffers lie in guest memory.
const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x3000;
const USED: u64 = 0x4000;
const BUFFERS: u64 = 0x10000;
const AVAILABLE_INDEX: GuestAddress = GuestAddress(AVAILABLE + 2);
const USED_INDEX: GuestAddress = GuestAddress(USED + 2);
const MEMORY_BYTES: u64 = BUFFERS + BUFFER_BYTES * RING as u64;

fn shared_memory() -> Result<GuestMemoryMmap> {
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(MEMORY_BYTES)?;
    let range = (GuestAddress(0), MEMORY_BYTES as usize, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).context("map the guest's memory")
}
