//! The stats page: made or taken up, locked, and written by each queue pair's own thread.
//!
//! The layout is `flexvf_protocol::stats_page`'s. Should somebody shorten the file while it is mapped
//! here, a program that has called [`survive_cut_memory`](crate::survive_cut_memory) counts on in
//! memory of its own, and says so; another one ends with SIGBUS.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{SystemTime, UNIX_EPOCH};

use flexvf_protocol::stats_page::{
    Counter, Direction, HEADER_BYTES, Header, MAGIC, MAX_PAGE_BYTES, MAX_QUEUE_PAIRS, PageError,
    Snapshot, VERSION, page_bytes,
};
use nix::fcntl::{Flock, FlockArg, posix_fallocate};
use nix::libc;
use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

use super::sys::{Cut, Watched};
use crate::logic::counters::RingCounters;

/// Why there is no stats page.
#[derive(Debug, thiserror::Error)]
pub enum StatsError {
    /// The file cannot be made, read or mapped.
    #[error("stats page {path}: {cause}{}", hint(.cause))]
    File {
        /// Path of the file.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
    /// Another backend writes it.
    #[error("stats page {0} is in use by another backend; give each NIC a file of its own")]
    InUse(PathBuf),
    /// Something else, which is not ours to write over.
    #[error("{0} is not a stats page of this version; choose another path")]
    Foreign(PathBuf),
    /// More queue pairs than a page has room for.
    #[error("{0} queue pairs do not fit a stats page of {MAX_QUEUE_PAIRS}")]
    QueuePairs(usize),
}

/// What may be wrong with the path of a file that is to be made.
pub(super) fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::NotFound => "; is its folder there?",
        _ => "",
    }
}

/// A mapping, taken from the table of watched ones before it goes.
#[derive(Debug)]
struct Mapped {
    watched: Option<(Watched, Arc<Cut>)>,
    region: MmapRegion<()>,
}

/// The page of one device. Clones share it.
#[derive(Debug, Clone)]
pub struct StatsPage {
    map: Arc<Mapped>,
    /// Held for as long as the page is written.
    _lock: Option<Arc<Flock<File>>>,
}

impl StatsPage {
    /// A page that nobody else sees.
    ///
    /// # Errors
    /// [`StatsError`] when there is no memory for it.
    pub fn private(queue_pairs: usize) -> Result<Self, StatsError> {
        check_pairs(queue_pairs)?;
        let map = MmapRegion::new(page_bytes(queue_pairs)).map_err(|error| StatsError::File {
            path: PathBuf::from("(memory)"),
            cause: io::Error::other(error),
        })?;
        let page = Self { map: Arc::new(Mapped { watched: None, region: map }), _lock: None };
        page.initialise(queue_pairs, 0);
        page.set(Header::Pid, u64::from(std::process::id()));
        Ok(page)
    }

    /// Opens a page file: goes on with its counters if it is a page for as many queue pairs, and
    /// begins a new generation otherwise.
    ///
    /// # Errors
    /// [`StatsError`] when the file cannot be had, or another backend has it.
    pub fn open(path: &Path, queue_pairs: usize) -> Result<Self, StatsError> {
        check_pairs(queue_pairs)?;
        let failed = |cause| StatsError::File { path: path.to_owned(), cause };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            // What is written to is what the path says.
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .map_err(failed)?;
        if !file.metadata().map_err(failed)?.is_file() {
            return Err(StatsError::Foreign(path.to_owned()));
        }
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| StatsError::InUse(path.to_owned()))?;
        let old = read_page(&lock).map_err(failed)?;
        let other = matches!(old, Err(PageError::Version(_)))
            || old.is_err() && !may_be_replaced(&lock).map_err(failed)?;
        if other {
            return Err(StatsError::Foreign(path.to_owned()));
        }
        let bytes = page_bytes(queue_pairs);
        let keep = matches!(&old, Ok(page) if page.queue_pairs() == queue_pairs);
        if !keep {
            // Readers find no magic until the new page is whole.
            lock.set_len(0).map_err(failed)?;
        }
        // With blocks behind it: writing to a mapped hole of a full file system would be the end of us.
        posix_fallocate(&*lock, 0, bytes as i64).map_err(|error| failed(error.into()))?;
        let mapped = lock.try_clone().map_err(failed)?;
        let map = MmapRegion::from_file(FileOffset::new(mapped, 0), bytes)
            .map_err(|error| failed(io::Error::other(error)))?;
        let cut = Arc::new(Cut::new().map_err(failed)?);
        let watched = Some((Watched::new(map.as_ptr(), map.size(), &cut), cut));
        let map = Arc::new(Mapped { watched, region: map });
        let page = Self { map, _lock: Some(Arc::new(lock)) };
        if !keep {
            let before = old.map_or(0, |page| page.header(Header::Generation));
            page.initialise(queue_pairs, before);
        }
        page.set(Header::Pid, u64::from(std::process::id()));
        page.set(Header::Connected, 0);
        Ok(page)
    }

    fn initialise(&self, queue_pairs: usize, generation_before: u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let clock = now.map_or(0, |since| since.as_nanos() as u64);
        self.set(Header::Version, VERSION);
        self.set(Header::QueuePairs, queue_pairs as u64);
        self.set(Header::Generation, clock.max(generation_before.wrapping_add(1)));
        self.store(Header::Magic.offset(), MAGIC, Ordering::Release);
    }

    /// Writes a word of the header.
    pub fn set(&self, word: Header, value: u64) {
        self.store(word.offset(), value, Ordering::Relaxed);
    }

    /// Adds one to a word of the header. One thread at a time may do so.
    pub fn increment(&self, word: Header) {
        self.set(word, self.load(word.offset()).wrapping_add(1));
    }

    /// The file was cut since the last question: the counters go on in memory that nobody else sees.
    pub fn was_cut(&self) -> bool {
        self.map.watched.as_ref().is_some_and(|(_, cut)| cut.take())
    }

    /// One ring's place in the page, and the counters that it goes on from.
    pub fn ring(&self, queue_pair: usize, direction: Direction) -> (RingBlock, RingCounters) {
        let mut words = [0; Counter::ALL.len()];
        for (word, counter) in words.iter_mut().zip(Counter::ALL) {
            *word = self.load(counter.offset(queue_pair, direction));
        }
        let block = RingBlock { page: self.clone(), queue_pair, direction, published: words };
        (block, RingCounters::from_words(words))
    }

    fn store(&self, offset: usize, value: u64, order: Ordering) {
        // It fails for an offset outside the page only; all offsets come from the layout.
        let _ = self.map.region.as_volatile_slice().store(value.to_le(), offset, order);
    }

    fn load(&self, offset: usize) -> u64 {
        let word: Result<u64, _> =
            self.map.region.as_volatile_slice().load(offset, Ordering::Relaxed);
        word.map_or(0, u64::from_le)
    }
}

/// A file with nothing in it, a page that was never finished (zeroes stand in for the magic until then),
/// or one that was cut.
fn may_be_replaced(file: &File) -> io::Result<bool> {
    let mut bytes = vec![0; MAX_PAGE_BYTES + 1];
    let filled = file.read_at(&mut bytes, 0)?;
    let content = bytes.get(..filled).unwrap_or_default();
    let is_ours = content.starts_with(&MAGIC.to_le_bytes());
    // One that was begun and never finished.
    let is_blank = content.iter().all(|byte| *byte == 0);
    Ok(filled <= MAX_PAGE_BYTES && (is_ours || is_blank))
}

/// One ring's block, written by the ring's thread only.
#[derive(Debug)]
pub struct RingBlock {
    page: StatsPage,
    queue_pair: usize,
    direction: Direction,
    published: [u64; Counter::ALL.len()],
}

impl RingBlock {
    /// Writes the counters that have changed since the last time.
    pub fn publish(&mut self, counters: &RingCounters) {
        let news = counters.words().iter().zip(&mut self.published);
        for ((now, published), counter) in news.zip(Counter::ALL) {
            if now != published {
                *published = *now;
                let offset = counter.offset(self.queue_pair, self.direction);
                self.page.store(offset, *now, Ordering::Relaxed);
            }
        }
    }
}

/// Reads a page file as it is now.
///
/// # Errors
/// The file cannot be read, or is no stats page.
pub fn read(path: &Path) -> anyhow::Result<Snapshot> {
    use anyhow::Context;
    let context = || path.display().to_string();
    // A FIFO would have us wait until somebody writes to it.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .with_context(context)?;
    if !file.metadata().with_context(context)?.is_file() {
        return Err(StatsError::Foreign(path.to_owned()).into());
    }
    read_page(&file).with_context(context)?.with_context(context)
}

fn read_page(file: &File) -> io::Result<Result<Snapshot, PageError>> {
    let mut bytes = vec![0; MAX_PAGE_BYTES];
    let mut filled = 0;
    // Pages on other file systems than tmpfs may come in pieces.
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match file.read_at(rest, filled as u64)? {
            0 => break,
            more => filled += more,
        }
    }
    Ok(Snapshot::parse(bytes.get(..filled).unwrap_or_default()))
}

const fn check_pairs(queue_pairs: usize) -> Result<(), StatsError> {
    match queue_pairs {
        1..=MAX_QUEUE_PAIRS => Ok(()),
        _ => Err(StatsError::QueuePairs(queue_pairs)),
    }
}

const _: () = assert!(HEADER_BYTES > Header::Refused.offset());

#[cfg(test)]
mod tests {
    use super::*;

    fn count(page: &StatsPage, frames: u64) {
        let (mut block, mut counters) = page.ring(0, Direction::Tx);
        counters.add(Counter::Frames, frames);
        block.publish(&counters);
    }

    #[test]
    fn counters_go_on_after_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nic.stats");
        count(&StatsPage::open(&path, 2).unwrap(), 5);
        let first = read(&path).unwrap();
        count(&StatsPage::open(&path, 2).unwrap(), 7);
        let second = read(&path).unwrap();
        assert_eq!(second.ring(0, Direction::Tx, Counter::Frames), 12);
        assert_eq!(first.header(Header::Generation), second.header(Header::Generation));
    }

    #[test]
    fn another_number_of_queues_is_a_new_generation() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nic.stats");
        count(&StatsPage::open(&path, 1).unwrap(), 5);
        let first = read(&path).unwrap();
        drop(StatsPage::open(&path, 2).unwrap());
        let second = read(&path).unwrap();
        assert_eq!(second.total(Direction::Tx, Counter::Frames), 0);
        assert!(second.header(Header::Generation) > first.header(Header::Generation));
    }

    #[test]
    fn what_is_not_ours_is_not_written_over() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nic.stats");
        let mut newer = MAGIC.to_le_bytes().to_vec();
        newer.resize(HEADER_BYTES, 0xff);
        // As disk images and archives begin, and what is too long for a page.
        let zeroes_first = [&[0; 512][..], b"precious data"].concat();
        let long = vec![0; MAX_PAGE_BYTES + 1];
        for content in [&b"precious data"[..], b"a", &newer, &zeroes_first, &long] {
            std::fs::write(&path, content).unwrap();
            assert!(matches!(StatsPage::open(&path, 1), Err(StatsError::Foreign(_))));
            assert_eq!(std::fs::read(&path).unwrap(), content);
        }
    }

    #[test]
    fn an_empty_file_and_a_page_that_was_cut_become_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nic.stats");
        for bytes in [0, 8, 100, HEADER_BYTES as u64 + 8] {
            drop(StatsPage::open(&path, 1).unwrap());
            File::options().write(true).open(&path).unwrap().set_len(bytes).unwrap();
            drop(StatsPage::open(&path, 1).unwrap());
            assert_eq!(read(&path).unwrap().queue_pairs(), 1, "{bytes} bytes");
        }
    }

    #[test]
    fn two_backends_do_not_write_one_page() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nic.stats");
        let _first = StatsPage::open(&path, 1).unwrap();
        assert!(matches!(StatsPage::open(&path, 1), Err(StatsError::InUse(_))));
    }

    #[test]
    fn more_pairs_than_fit_are_refused() {
        assert!(matches!(StatsPage::private(17), Err(StatsError::QueuePairs(17))));
    }
}
