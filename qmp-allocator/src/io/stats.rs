//! Stats pages of PV backends.
//!
//! Read for each sample and never mapped: whoever truncates a mapped file kills its readers.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use flexvf_protocol::stats_page::{MAX_PAGE_BYTES, PageError, Snapshot};
use nix::fcntl::OFlag;

/// Why there is no sample.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The file cannot be read.
    #[error("stats page {path}: {cause}; is the VM's vhost-net-pv running?")]
    Read {
        /// The file.
        path: String,
        /// The system's word.
        cause: io::Error,
    },
    /// The file is no stats page.
    #[error("stats page {path}: {cause}; give the file that vhost-net-pv was told to write")]
    Page {
        /// The file.
        path: String,
        /// What is wrong with it.
        cause: PageError,
    },
}

/// A page that is read again and again. Its file stays open while it is the one at its path, which is
/// looked at now and then: a backend that starts anew takes up the page that it finds.
#[derive(Debug)]
pub struct StatsPage {
    file: Option<(File, Instant)>,
    look_period: Duration,
}

impl Default for StatsPage {
    fn default() -> Self {
        Self { file: None, look_period: LOOK_PERIOD }
    }
}

impl StatsPage {
    /// Reads the page at `path`. Does not follow a symbolic link, and does not wait for a FIFO's
    /// other end.
    ///
    /// # Errors
    /// [`StatsError`] when the file is absent, not a regular file, or not a page.
    pub fn read(&mut self, path: &Path) -> Result<Snapshot, StatsError> {
        let shown = || path.display().to_string();
        let mut buffer = [0; MAX_PAGE_BYTES];
        let length = self.read_bytes(path, &mut buffer);
        let length = length.map_err(|cause| StatsError::Read { path: shown(), cause })?;
        let bytes = buffer.get(..length).unwrap_or(&[]);
        Snapshot::parse(bytes).map_err(|cause| StatsError::Page { path: shown(), cause })
    }

    fn read_bytes(&mut self, path: &Path, buffer: &mut [u8]) -> io::Result<usize> {
        let known = self
            .file
            .take()
            .filter(|(file, looked)| looked.elapsed() < self.look_period || is_at_a_path(file));
        let (file, mut looked) = match known {
            Some(known) => known,
            None => (open(path)?, Instant::now()),
        };
        let length = file.read_at(buffer, 0)?;
        if looked.elapsed() >= self.look_period {
            looked = Instant::now();
        }
        self.file = Some((file, looked));
        Ok(length)
    }
}

/// Not unlinked, and not replaced by renaming another over it.
fn is_at_a_path(file: &File) -> bool {
    file.metadata().is_ok_and(|of| of.nlink() > 0)
}

fn open(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let mut options = OpenOptions::new();
    let file = options.read(true).custom_flags(flags.bits()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

/// Between two looks whether a page is still at its path.
const LOOK_PERIOD: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;
    use flexvf_protocol::stats_page::{
        Counter, Direction, Header, MAGIC, RING_BYTES, VERSION, page_bytes,
    };

    fn page() -> Vec<u8> {
        let mut bytes = vec![0; page_bytes(1)];
        for (word, value) in
            [(Header::Magic, MAGIC), (Header::Version, VERSION), (Header::QueuePairs, 1)]
        {
            bytes[word.offset()..word.offset() + 8].copy_from_slice(&value.to_le_bytes());
        }
        let at = Counter::Frames.offset(0, Direction::Rx);
        bytes[at..at + 8].copy_from_slice(&7u64.to_le_bytes());
        bytes
    }

    #[test]
    fn a_page_is_read_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        std::fs::write(&path, page()).unwrap();
        let snapshot = StatsPage::default().read(&path).unwrap();
        assert_eq!(snapshot.total(Direction::Rx, Counter::Frames), 7);
    }

    #[test]
    fn a_huge_file_is_read_no_further_than_a_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        std::fs::write(&path, page()).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(1 << 40).unwrap();
        let snapshot = StatsPage::default().read(&path).unwrap();
        assert_eq!(snapshot.total(Direction::Rx, Counter::Frames), 7);
    }

    #[test]
    fn a_page_that_was_made_anew_is_the_one_that_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        let mut pages = StatsPage { look_period: Duration::ZERO, ..StatsPage::default() };
        let mut frames =
            || pages.read(&path).map(|page| page.total(Direction::Rx, Counter::Frames));
        assert!(frames().is_err());
        std::fs::write(&path, page()).unwrap();
        assert_eq!(frames().unwrap(), 7);
        let mut other = page();
        let at = Counter::Frames.offset(0, Direction::Rx);
        other[at] = 9;
        let beside = dir.path().join("new");
        std::fs::write(&beside, &other).unwrap();
        std::fs::rename(&beside, &path).unwrap();
        assert_eq!(frames().unwrap(), 9);
        std::fs::remove_file(&path).unwrap();
        assert!(frames().is_err());
        std::fs::write(&path, page()).unwrap();
        assert_eq!(frames().unwrap(), 7);
    }

    #[test]
    fn what_is_no_regular_file_is_refused_without_waiting() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status();
        assert!(made.unwrap().success());
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        for path in [fifo, link, dir.path().into(), dir.path().join("absent")] {
            let error = StatsPage::default().read(&path).unwrap_err();
            assert!(matches!(error, StatsError::Read { .. }), "{error}");
        }
    }

    #[test]
    fn a_truncated_page_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats");
        std::fs::write(&path, &page()[..page_bytes(1) - RING_BYTES]).unwrap();
        let error = StatsPage::default().read(&path).unwrap_err().to_string();
        assert!(error.contains(path.to_str().unwrap()), "{error}");
    }
}
