//! The front-end's log of dirty pages: which one is in force, and for whom it must wait.
//!
//! Writes are marked while a log is there and LOG_ALL is accepted. QEMU announces a log before it
//! sends it when it starts a device in the middle of a migration (the guest was reset, the backend
//! restarted). Rings wait then ([`Run::AwaitsLog`]): what they wrote meanwhile could not be marked.

use std::fs::File;
use std::sync::Arc;

use tracing::{debug, warn};
use vhost::vhost_user::message::VhostUserLog;
use vhost::vhost_user::{Error as VhostError, Result as VhostResult};

use super::{Backend, Order, Run, place};
use crate::io::log_map::SharedLog;
use crate::logic::features::LOG_ALL;

/// What the front-end has said about its log.
#[derive(Default)]
pub(super) struct LogState {
    /// It shares one by descriptor (LOG_SHMFD), so that one can come at all.
    pub(super) shared: bool,
    log: Option<Arc<SharedLog>>,
}

impl Backend {
    /// Takes the front-end's log into use.
    pub(super) fn take_log(&mut self, log: &VhostUserLog, file: File) -> VhostResult<()> {
        let log = SharedLog::map(log, file, &self.cut).map_err(VhostError::ReqHandlerError)?;
        self.log.log = Some(Arc::new(log));
        self.use_log()
    }

    /// Gives the log up once no ring is left: a device that starts again is given a new one.
    pub(super) fn drop_idle_log(&mut self) -> VhostResult<()> {
        if self.log.log.is_none() || self.rings.iter().any(|state| state.run != Run::Stopped) {
            return Ok(());
        }
        self.log.log = None;
        self.use_log()
    }

    /// A ring that started now would write pages that should be marked and cannot be.
    pub(super) const fn awaits_log(&self) -> bool {
        self.log.shared && self.logs() && self.log.log.is_none()
    }

    /// Has the workers mark pages, or no longer, and starts the rings that have waited for it.
    pub(super) fn use_log(&mut self) -> VhostResult<()> {
        let log = self.log.log.clone().filter(|_| self.logs());
        debug!(on = log.is_some(), "dirty logging");
        self.order_all(|| Order::Log(log.clone()))?;
        self.check_log();
        for ring in 0..self.rings.len() {
            if self.ring(ring)?.run == Run::AwaitsLog {
                self.start(ring)?;
            }
        }
        Ok(())
    }

    /// Has the writes to a running ring's used ring marked, or no longer; the ring goes on.
    pub(super) fn use_used_log(&mut self, ring: usize) -> VhostResult<()> {
        let (_, direction) = place(ring);
        let address = self.ring(ring)?.used_log;
        self.order(ring, Order::UsedLog(direction, address)).map(drop)
    }

    /// Says so when the guest's memory is not wholly in the log.
    pub(super) fn check_log(&self) {
        if self.logs()
            && self.log.log.as_ref().is_some_and(|log| log.log().end() < self.regions.end())
        {
            warn!("the front-end's log of dirty pages is shorter than the guest's memory");
        }
    }

    const fn logs(&self) -> bool {
        self.accepted & LOG_ALL != 0
    }
}
