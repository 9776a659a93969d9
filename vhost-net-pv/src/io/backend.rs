//! The vhost-user device: what the front-end's messages do to memory, rings and workers.
//!
//! It is the handler behind the `vhost` crate's message parser, used by the connection's thread
//! only. It keeps what the front-end has said, and tells the workers; they own everything that the
//! data path touches. `vhost-user-backend` is not used: its workers share locks with the control
//! path and end silently at an error.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use flexvf_protocol::MacAddr;
use tracing::{debug, warn};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig,
    VhostUserSharedMsg, VhostUserSingleMemoryRegion, VhostUserVirtioFeatures,
    VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{
    Error as VhostError, GpuBackend, Result as VhostResult, VhostUserBackendReqHandlerMut,
};

use self::log::LogState;
use super::netdev::set_nonblocking;
use super::order::{Order, WorkerHandle};
use super::regions::{MAX_REGIONS, Regions};
use super::ring_state::{RingState, Run, check_event, check_kick, place};
use super::sys::Cut;
use crate::logic::features::{LOG_ALL, Negotiated, protocol_features};
use crate::logic::ring::MAX_RING_SIZE;

mod log;

/// The device of one process, as its front-end has configured it.
pub(super) struct Backend {
    workers: Arc<[WorkerHandle]>,
    offered: u64,
    accepted: u64,
    regions: Regions,
    cut: Arc<Cut>,
    rings: Vec<RingState>,
    log: LogState,
    set_mtu: Box<dyn FnMut(u16) -> io::Result<()> + Send>,
}

impl Backend {
    /// A device without a front-end.
    pub(super) fn new(
        workers: Arc<[WorkerHandle]>,
        offered: u64,
        set_mtu: Box<dyn FnMut(u16) -> io::Result<()> + Send>,
    ) -> io::Result<Self> {
        let rings = (0..workers.len() * 2).map(|_| RingState::default()).collect();
        let cut = Arc::new(Cut::new()?);
        let regions = Regions::new(Arc::clone(&cut));
        let log = LogState::default();
        Ok(Self { workers, offered, accepted: 0, regions, cut, rings, log, set_mtu })
    }

    /// Tells when memory in use was cut.
    pub(super) fn cut(&self) -> Arc<Cut> {
        Arc::clone(&self.cut)
    }

    /// Number of rings.
    pub(super) fn ring_count(&self) -> usize {
        self.rings.len()
    }

    /// Switches a ring on or off, whatever was negotiated so far.
    pub(super) fn enable(&mut self, ring: usize, on: bool) -> VhostResult<()> {
        self.ring(ring)?.enabled = on;
        let (_, direction) = place(ring);
        self.order(ring, Order::Enable(direction, on)).map(drop)
    }

    /// Tells the network where the guest is.
    pub(super) fn announce(&mut self, mac: MacAddr) -> VhostResult<()> {
        self.order(0, Order::Announce(mac)).map(drop)
    }

    /// Lets the interface carry frames of this MTU.
    pub(super) fn mtu(&mut self, mtu: u16) -> VhostResult<()> {
        (self.set_mtu)(mtu).map_err(|error| {
            warn!(mtu, %error, "the port cannot have the MTU that the guest was promised");
            VhostError::ReqHandlerError(error)
        })
    }

    /// Ends all use of the front-end's memory and descriptors.
    pub(super) fn reset(&mut self) {
        for (pair, worker) in self.workers.iter().enumerate() {
            if let Err(error) = worker.order(Order::Reset) {
                warn!(pair, %error, "reset failed");
            }
        }
        self.regions = Regions::new(self.cut());
        self.rings.fill_with(RingState::default);
        self.log = LogState::default();
        self.accepted = 0;
    }

    fn ring(&mut self, ring: usize) -> VhostResult<&mut RingState> {
        self.rings.get_mut(ring).ok_or(VhostError::InvalidParam)
    }

    fn order(&self, ring: usize, order: Order) -> VhostResult<u16> {
        let (pair, _) = place(ring);
        let worker = self.workers.get(pair).ok_or(VhostError::InvalidParam)?;
        worker.order(order).map_err(|error| VhostError::ReqHandlerError(io::Error::other(error)))
    }

    fn order_all(&self, order: impl Fn() -> Order) -> VhostResult<()> {
        (0..self.workers.len()).try_for_each(|pair| self.order(pair * 2, order()).map(drop))
    }

    /// Starts a ring once everything about it is known.
    fn start(&mut self, ring: usize) -> VhostResult<()> {
        let (_, direction) = place(ring);
        let awaits_log = self.awaits_log();
        let state = self.ring(ring)?;
        let Some(setup) = state.setup() else {
            return Ok(());
        };
        if awaits_log {
            state.run = Run::AwaitsLog;
            return Ok(());
        }
        state.run = Run::Running;
        self.order(ring, Order::Start(direction, setup)).map(drop)
    }

    fn stop(&mut self, ring: usize) -> VhostResult<u16> {
        let (_, direction) = place(ring);
        let state = self.ring(ring)?;
        if std::mem::take(&mut state.run) != Run::Running {
            return Ok(state.base);
        }
        let base = self.order(ring, Order::Stop(direction))?;
        self.ring(ring)?.base = base;
        Ok(base)
    }

    /// Makes `regions` the guest's memory, for the workers first.
    fn use_regions(&mut self, regions: Regions) -> VhostResult<()> {
        let memory = Arc::new(regions.memory()?);
        self.order_all(|| Order::Memory(Arc::clone(&memory)))?;
        self.regions = regions;
        self.check_log();
        Ok(())
    }
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> VhostResult<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> VhostResult<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> VhostResult<()> {
        for ring in 0..self.rings.len() {
            self.stop(ring)?;
            self.enable(ring, false)?;
        }
        self.accepted = 0;
        Ok(())
    }

    fn get_features(&mut self) -> VhostResult<u64> {
        Ok(self.offered)
    }

    fn set_features(&mut self, features: u64) -> VhostResult<()> {
        if features & !self.offered != 0 {
            return Err(VhostError::InvalidParam);
        }
        if features != self.accepted {
            debug!(features = format_args!("{features:#x}"), "features accepted");
        }
        let switched = features ^ std::mem::replace(&mut self.accepted, features);
        let negotiated = Negotiated::new(features);
        self.order_all(|| Order::Features(negotiated))?;
        if switched & LOG_ALL != 0 {
            self.use_log()?;
        }
        // Without protocol features there are no messages to enable rings with.
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            (0..self.rings.len()).try_for_each(|ring| self.enable(ring, true))?;
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> VhostResult<Option<Vec<u64>>> {
        let mut mapped = Regions::new(self.cut());
        for (region, file) in regions.iter().zip(files) {
            mapped.add(region, file)?;
        }
        self.use_regions(mapped)?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> VhostResult<()> {
        let size = u16::try_from(num).map_err(|_| VhostError::InvalidParam)?;
        if !size.is_power_of_two() || size > MAX_RING_SIZE {
            return Err(VhostError::InvalidParam);
        }
        self.ring(index as usize)?.size = size;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> VhostResult<()> {
        let ring = index as usize;
        let addresses = [
            self.regions.guest_address(descriptor)?,
            self.regions.guest_address(available)?,
            self.regions.guest_address(used)?,
        ];
        let state = self.ring(ring)?;
        let moved = state.addresses.replace(addresses) != Some(addresses);
        state.used_log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        match (state.run, moved) {
            (Run::Stopped | Run::AwaitsLog, _) => Ok(()),
            // QEMU names the same addresses again when it turns dirty logging on or off.
            (Run::Running, false) => self.use_used_log(ring),
            (Run::Running, true) => {
                self.stop(ring)?;
                self.start(ring)
            }
        }
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> VhostResult<()> {
        let base = u16::try_from(base).map_err(|_| VhostError::InvalidParam)?;
        self.ring(index as usize)?.base = base;
        Ok(())
    }

    fn get_vring_base(&mut self, index: u32) -> VhostResult<VhostUserVringState> {
        let ring = index as usize;
        let base = self.stop(ring)?;
        let state = self.ring(ring)?;
        state.kick = None;
        state.call = None;
        self.drop_idle_log()?;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> VhostResult<()> {
        let ring = usize::from(index);
        self.stop(ring)?;
        // Without a descriptor the ring would have to be polled, which no front-end asks for.
        let check = |file| check_kick(check_event(file, self.cut.as_fd())?);
        let kick = file.map(check).transpose();
        self.ring(ring)?.kick = kick.map_err(VhostError::ReqHandlerError)?.map(Arc::new);
        self.start(ring)
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> VhostResult<()> {
        let check = |file| {
            let file = check_event(file, self.cut.as_fd())?;
            set_nonblocking(file.as_fd())?;
            Ok(Arc::new(file))
        };
        let call = file.map(check).transpose().map_err(VhostError::ReqHandlerError)?;
        let ring = usize::from(index);
        let (_, direction) = place(ring);
        self.ring(ring)?.call.clone_from(&call);
        self.order(ring, Order::Call(direction, call)).map(drop)
    }

    fn set_vring_err(&mut self, _index: u8, _file: Option<File>) -> VhostResult<()> {
        // Malformed chains are counted, not reported: QEMU would stop the device for good.
        Ok(())
    }

    fn get_protocol_features(&mut self) -> VhostResult<VhostUserProtocolFeatures> {
        Ok(protocol_features())
    }

    fn set_protocol_features(&mut self, features: u64) -> VhostResult<()> {
        if features & !protocol_features().bits() != 0 {
            return Err(VhostError::InvalidParam);
        }
        self.log.shared = features & VhostUserProtocolFeatures::LOG_SHMFD.bits() != 0;
        Ok(())
    }

    fn get_queue_num(&mut self) -> VhostResult<u64> {
        // For a net device, QEMU and DPDK take this for queue pairs.
        Ok(self.workers.len() as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> VhostResult<()> {
        self.enable(index as usize, enable)
    }

    fn get_max_mem_slots(&mut self) -> VhostResult<u64> {
        Ok(MAX_REGIONS as u64)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        file: File,
        _postcopy_listening: Option<bool>,
    ) -> VhostResult<Option<u64>> {
        let mut regions = self.regions.clone();
        regions.add(region, file)?;
        self.use_regions(regions)?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> VhostResult<()> {
        let mut regions = self.regions.clone();
        regions.remove(region)?;
        self.use_regions(regions)
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> VhostResult<()> {
        self.take_log(log, file)
    }

    // What follows belongs to features that are not offered; the gate refuses the messages.

    fn get_config(
        &mut self,
        _offset: u32,
        _size: u32,
        _flags: VhostUserConfigFlags,
    ) -> VhostResult<Vec<u8>> {
        not_offered()
    }

    fn set_config(
        &mut self,
        _offset: u32,
        _data: &[u8],
        _flags: VhostUserConfigFlags,
    ) -> VhostResult<()> {
        not_offered()
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> VhostResult<()> {
        not_offered()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> VhostResult<File> {
        not_offered()
    }

    fn get_inflight_fd(
        &mut self,
        _inflight: &VhostUserInflight,
    ) -> VhostResult<(VhostUserInflight, File)> {
        not_offered()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> VhostResult<()> {
        not_offered()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> VhostResult<Option<File>> {
        not_offered()
    }

    fn check_device_state(&mut self) -> VhostResult<()> {
        not_offered()
    }

    fn get_shmem_config(&mut self) -> VhostResult<VhostUserShMemConfig> {
        not_offered()
    }
}

fn not_offered<T>() -> VhostResult<T> {
    Err(VhostError::InvalidOperation("not offered"))
}
