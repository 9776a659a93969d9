//! The front-end's side of dirty logging: what QEMU says when a migration begins and ends.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::memfd::{MFdFlags, memfd_create};
use vhost::vhost_user::message::FrontendReq;
use vhost_net_pv::logic::memory::Map;
use vm_memory::{FileOffset, VolatileMemory};

use super::{FrontEnd, LOG_ALL};

/// Bytes of memory that a bit stands for.
pub(crate) const PAGE: u64 = 4096;
/// Where the used rings are logged: elsewhere, to show which address was used.
pub(crate) const USED_LOGS: [u64; 2] = [0x200 * PAGE, 0x210 * PAGE];
/// Long enough for the memory of the tests.
const LOG_BYTES: u64 = 0x100;

/// A front-end's log.
pub(crate) struct Log {
    pub(crate) file: OwnedFd,
    map: Map,
}

impl Log {
    pub(crate) fn new() -> Self {
        let file = memfd_create(c"log", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, LOG_BYTES.cast_signed()).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap().into(), 0);
        let map = Map::from_file(offset, LOG_BYTES as usize).unwrap();
        Self { file, map }
    }

    /// Takes the marks, as QEMU does: 64 at a time. Returns the pages.
    pub(crate) fn take(&self) -> BTreeSet<u64> {
        let mut pages = BTreeSet::new();
        for word in 0..LOG_BYTES / 8 {
            let bits: &AtomicU64 = self.map.get_atomic_ref(8 * word as usize).unwrap();
            let bits = u64::from_le(bits.swap(0, Ordering::SeqCst));
            pages.extend((0..64).filter(|bit| bits & 1 << bit != 0).map(|bit| 64 * word + bit));
        }
        pages
    }
}

impl FrontEnd<'_> {
    /// Shares a log, and waits until it is in use.
    pub(crate) fn set_log(&mut self, log: &Log) -> io::Result<()> {
        self.tell(FrontendReq::SET_LOG_BASE, &[LOG_BYTES, 0], &[log.file.as_raw_fd()]);
        let mut reply = [0; 28];
        self.stream.read_exact(&mut reply)?;
        assert_eq!(reply[..4], u32::from(FrontendReq::SET_LOG_BASE).to_ne_bytes());
        Ok(())
    }

    /// Begins to log, in QEMU's order.
    pub(crate) fn log_on(&mut self, log: &Log) {
        self.set_log(log).unwrap();
        self.switch_log(true);
    }

    /// Logs no longer.
    pub(crate) fn log_off(&mut self) {
        self.switch_log(false);
    }

    fn switch_log(&mut self, on: bool) {
        self.accepted = if on { self.accepted | LOG_ALL } else { self.accepted & !LOG_ALL };
        let answer = self.ask(FrontendReq::SET_FEATURES, &[self.accepted], &[]);
        assert_eq!(answer.unwrap(), 0);
        for ring in 0..2 {
            let addresses = self.addresses(ring, on);
            let answer = self.ask(FrontendReq::SET_VRING_ADDR, &addresses, &[]);
            assert_eq!(answer.unwrap(), 0);
        }
    }
}
