//! A front-end in this process: a guest that sends and takes frames as fast as a backend lets it.
//!
//! It costs some ten nanoseconds a frame, so that a backend is what is measured, and so that one
//! processor can do this and feed a TAP too; a front-end that polls by itself, like DPDK's, would not
//! let it. A guest with one queue pair, mergeable buffers and 256-entry rings, as QEMU gives it. The
//! headers of each frame that it sends are written anew, as DPDK's generator does it.

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
use vm_memory::{
    Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap, VolatileMemory,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::bench::logic::frame::with_header;
use crate::sys::prefetch_to_write;

/// A running front-end; it disconnects when this is dropped.
pub struct FrontEnd {
    memory: GuestMemoryMmap,
    to_guest: Ring,
    from_guest: Ring,
    /// What it sends: a frame with its virtio-net header.
    frame: Vec<u8>,
    in_order: bool,
    // Kept open: the connection is the device.
    _connection: Frontend,
}

/// The driver's side of a ring, whose buffers are all alike.
struct Ring {
    index: usize,
    /// Where its parts and buffers lie in guest memory.
    at: u64,
    kick: EventFd,
    call: EventFd,
    available: u16,
    /// Buffers that have come back so far.
    used: u64,
}

impl FrontEnd {
    /// Connects to a backend and gives it buffers for frames to the guest.
    pub fn connect(socket: &Path) -> Result<Self> {
        let mut front_end = Self {
            memory: shared_memory()?,
            to_guest: Ring::new(0)?,
            from_guest: Ring::new(1)?,
            frame: with_header(FRAME_BYTES),
            in_order: false,
            _connection: Frontend::connect(socket, 2).context("connect to the backend")?,
        };
        front_end.to_guest.lay_out(&front_end.memory, VRING_DESC_F_WRITE, BUFFER_BYTES)?;
        let length = front_end.frame.len() as u64;
        front_end.from_guest.lay_out(&front_end.memory, 0, length)?;
        for index in 0..RING {
            let at = GuestAddress(front_end.from_guest.buffer(index));
            front_end.memory.write_slice(&front_end.frame, at)?;
        }
        front_end.negotiate().context("speak vhost-user with the backend")?;
        Ok(front_end)
    }

    /// Takes the frames that have arrived, gives their buffers back, and returns the number of all
    /// frames so far.
    pub fn received(&mut self) -> Result<u64> {
        self.to_guest.turn(&self.memory, self.in_order, None)
    }

    /// Sends as many frames as there is room for, and returns the number of all that were taken.
    pub fn sent(&mut self) -> Result<u64> {
        let headers = self.frame.get(..HEADERS);
        self.from_guest.turn(&self.memory, self.in_order, headers)
    }

    fn negotiate(&mut self) -> Result<()> {
        let mut connection = self._connection.clone();
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
            let offered = connection.get_protocol_features()?;
            let confirmed = offered & VhostUserProtocolFeatures::REPLY_ACK;
            connection.set_protocol_features(confirmed)?;
            if !confirmed.is_empty() {
                // What is asked to be confirmed is in force when the call returns.
                connection.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
            }
        }
        connection.set_features(features)?;
        let region = self.memory.iter().next().context("no memory")?;
        connection.set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region)?])?;
        for ring in [&self.to_guest, &self.from_guest] {
            ring.start(&mut connection, &self.memory)?;
        }
        self.to_guest.offer(&self.memory, RING)
    }
}

impl Ring {
    fn new(index: usize) -> Result<Self> {
        Ok(Self {
            index,
            at: RINGS + RING_BYTES * index as u64,
            kick: EventFd::new(EFD_NONBLOCK)?,
            call: EventFd::new(EFD_NONBLOCK)?,
            available: 0,
            used: 0,
        })
    }

    /// One descriptor a buffer; interrupts are not wanted.
    fn lay_out(&self, memory: &GuestMemoryMmap, flags: u32, bytes: u64) -> Result<()> {
        for index in 0..RING {
            let at = self.at + DESCRIPTORS + 16 * u64::from(index);
            memory.write_obj(self.buffer(index), GuestAddress(at))?;
            memory.write_obj(bytes as u32, GuestAddress(at + 8))?;
            memory.write_obj(flags as u16, GuestAddress(at + 12))?;
            memory
                .write_obj(index, GuestAddress(self.at + AVAILABLE + 4 + 2 * u64::from(index)))?;
        }
        let quiet = VRING_AVAIL_F_NO_INTERRUPT as u16;
        memory.write_obj(quiet, GuestAddress(self.at + AVAILABLE))?;
        Ok(())
    }

    const fn buffer(&self, index: u16) -> u64 {
        self.at + BUFFERS + BUFFER_BYTES * index as u64
    }

    fn start(&self, connection: &mut Frontend, memory: &GuestMemoryMmap) -> Result<()> {
        let host = |at| Ok::<_, anyhow::Error>(memory.get_host_address(GuestAddress(at))? as u64);
        connection.set_vring_num(self.index, RING)?;
        connection.set_vring_addr(
            self.index,
            &VringConfigData {
                queue_max_size: RING,
                queue_size: RING,
                flags: 0,
                desc_table_addr: host(self.at + DESCRIPTORS)?,
                used_ring_addr: host(self.at + USED)?,
                avail_ring_addr: host(self.at + AVAILABLE)?,
                log_addr: None,
            },
        )?;
        connection.set_vring_base(self.index, 0)?;
        connection.set_vring_call(self.index, &self.call)?;
        connection.set_vring_kick(self.index, &self.kick)?;
        connection.set_vring_enable(self.index, true)?;
        Ok(())
    }

    /// Takes back what was used and puts as much on offer again, with `headers` written if there are
    /// some; returns the number of all buffers used so far.
    fn turn(
        &mut self,
        memory: &GuestMemoryMmap,
        in_order: bool,
        headers: Option<&[u8]>,
    ) -> Result<u64> {
        let ring = memory.get_slice(GuestAddress(self.at), RING_BYTES as usize)?;
        let used: u16 = ring.load(USED as usize + 2, Ordering::Acquire)?;
        let free = RING.checked_sub(self.available.wrapping_sub(used));
        let free = free.context("the backend used more buffers than it was given")?;
        if free < BURST {
            return Ok(self.used);
        }
        let heads = ring.get_array_ref::<u64>(USED as usize + 4, usize::from(RING))?;
        let offers = ring.get_array_ref::<u16>(AVAILABLE as usize + 4, usize::from(RING))?;
        let first_lap = self.used == 0 && self.available < RING;
        for ahead in 0..free {
            let slot = self.available.wrapping_add(ahead) % RING;
            if headers.is_some() {
                let soon = self.buffer(slot.wrapping_add(PREFETCHED) % RING) - self.at;
                prefetch_to_write(&ring.offset(soon as usize)?);
            }
            // One used entry may stand for several buffers in order, and says nothing for the others.
            let head = match in_order || first_lap {
                true => slot,
                false => heads.load(usize::from(slot)) as u16 % RING,
            };
            if let Some(headers) = headers {
                let at = self.buffer(head) - self.at;
                ring.subslice(at as usize, headers.len())?.copy_from(headers);
            }
            offers.store(usize::from(slot), head);
        }
        if !first_lap {
            self.used += u64::from(free);
        }
        self.offer(memory, free)?;
        Ok(self.used)
    }

    fn offer(&mut self, memory: &GuestMemoryMmap, count: u16) -> Result<()> {
        self.available = self.available.wrapping_add(count);
        let ring = memory.get_slice(GuestAddress(self.at), RING_BYTES as usize)?;
        ring.store(self.available, AVAILABLE as usize + 2, Ordering::Release)?;
        // The index must be seen before the backend's wish is read, or both sides may sleep.
        fence(Ordering::SeqCst);
        let flags: u16 = ring.load(USED as usize, Ordering::Relaxed)?;
        if u32::from(flags) & VRING_USED_F_NO_NOTIFY == 0 {
            self.kick.write(1)?;
        }
        Ok(())
    }
}

/// Frames that are worth a turn, as drivers see it that work in bursts.
const BURST: u16 = 32;
/// Frames between the one that is written and the one that is asked for.
const PREFETCHED: u16 = 12;
/// Of the frames sent.
const FRAME_BYTES: usize = 64;
/// Of virtio-net, Ethernet, IP and UDP.
const HEADERS: usize = 12 + 14 + 20 + 8;
const RING: u16 = 256;
/// Odd in cache lines, so that not all fall into the same sets.
const BUFFER_BYTES: u64 = 2048 + 64;

// Where the parts of a ring and its buffers lie.
const DESCRIPTORS: u64 = 0;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const BUFFERS: u64 = 0x10000;
const RING_BYTES: u64 = (BUFFERS + BUFFER_BYTES * RING as u64).next_multiple_of(0x1000);
/// Where the rings lie in guest memory, one after the other.
const RINGS: u64 = 0x1000;
const MEMORY_BYTES: u64 = (RINGS + 2 * RING_BYTES).next_multiple_of(2 << 20);

fn shared_memory() -> Result<GuestMemoryMmap> {
    let file = File::from(memfd_create(c"guest", MFdFlags::MFD_CLOEXEC)?);
    file.set_len(MEMORY_BYTES)?;
    let range = (GuestAddress(0), MEMORY_BYTES as usize, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([range]).context("map the guest's memory")
}
