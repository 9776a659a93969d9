//! The front-end's dirty log, mapped from the file that it shares.
//!
//! The one place where such a file is mapped. Its length is checked before. QEMU's log cannot be cut
//! afterwards, since it is sealed (`F_SEAL_SHRINK`); one that is cut ends the connection, as guest
//! memory that is cut does.

use std::fs::File;
use std::io;
use std::sync::Arc;

use vhost::vhost_user::message::VhostUserLog;
use vm_memory::FileOffset;

use super::regions::check_part;
use super::sys::{Cut, Watched};
use crate::logic::dirty_log::{DirtyLog, MAX_LOG_BYTES};
use crate::logic::memory::Map;

/// A front-end's log: mapped, and cared for when it is cut, as long as this lives.
#[derive(Debug)]
pub(super) struct SharedLog {
    /// Before the log, so that it is dropped before.
    _watched: Watched,
    log: DirtyLog,
}

impl SharedLog {
    /// Maps the part of a file that the front-end's message names.
    pub(super) fn map(message: &VhostUserLog, file: File, cut: &Arc<Cut>) -> io::Result<Self> {
        let VhostUserLog { mmap_size: bytes, mmap_offset: offset } = *message;
        let refused = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        if bytes == 0 || bytes > MAX_LOG_BYTES {
            return Err(refused(format!("a dirty log of {bytes} bytes; at most {MAX_LOG_BYTES}")));
        }
        if !file.metadata()?.is_file() {
            return Err(refused("a dirty log that is no memory".to_owned()));
        }
        check_part(&file, offset, bytes)
            .map_err(|error| refused(format!("a dirty log that is not there: {error}")))?;
        let length = usize::try_from(bytes).map_err(io::Error::other)?;
        let map = Map::from_file(FileOffset::new(file, offset), length)
            .map_err(|error| refused(format!("a dirty log that cannot be mapped: {error}")))?;
        Ok(Self { _watched: Watched::new(map.as_ptr(), map.size(), cut), log: DirtyLog::new(map) })
    }

    pub(super) const fn log(&self) -> &DirtyLog {
        &self.log
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: u64) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(bytes).unwrap();
        file
    }

    fn map(message: &VhostUserLog, file: File) -> io::Result<SharedLog> {
        SharedLog::map(message, file, &Arc::new(Cut::new()?))
    }

    #[test]
    fn marks_are_in_the_file_at_the_offset_that_was_named() {
        let shared = file(3 * 4096);
        let log = map(&VhostUserLog::new(4096, 8192), shared.try_clone().unwrap()).unwrap();
        log.log().mark(0x2000, 1);
        let again = map(&VhostUserLog::new(3 * 4096, 0), shared).unwrap();
        assert_eq!(again.log().marked(), [8 * 8192 + 2]);
    }

    #[test]
    fn a_log_that_is_not_wholly_in_its_file_is_refused() {
        for (bytes, offset) in
            [(0, 0), (4097, 0), (4096, 1), (1, 4096), (4096, u64::MAX - 10), (MAX_LOG_BYTES + 1, 0)]
        {
            let refused = map(&VhostUserLog::new(bytes, offset), file(4096));
            assert!(refused.is_err(), "{bytes} bytes at {offset} were mapped");
        }
        let device = File::open("/dev/zero").unwrap();
        assert!(map(&VhostUserLog::new(4096, 0), device).is_err());
    }

    #[test]
    fn a_log_longer_than_any_guest_needs_is_refused() {
        let sparse = file(2 * MAX_LOG_BYTES);
        let log = VhostUserLog::new(MAX_LOG_BYTES + 4096, 0);
        assert!(map(&log, sparse).is_err());
    }

    #[test]
    fn a_log_that_cannot_be_written_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        std::fs::write(&path, [0; 4096]).unwrap();
        assert!(map(&VhostUserLog::new(4096, 0), File::open(path).unwrap()).is_err());
    }
}
