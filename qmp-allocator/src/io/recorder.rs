//! The flight recorder's files: written by a thread of its own, in a folder that stays within its bound.
//!
//! The daemon hands over what happened in batches and never waits: while the disk does not keep up, samples and decisions
//! are dropped and counted. A block that cannot be written costs that block: the file is cut back to
//! its last whole one, and the next block begins another file. Nothing is synced: what a loss of power costs is a
//! torn tail, and a recording is no more than a help.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{info, warn};

use crate::config::RecorderConfig;
use crate::logic::recording::block::{BlockHead, HEAD_BYTES, MAGIC};
use crate::logic::recording::encode::Encoder;
use crate::logic::recording::{Entry, Head};
use crate::logic::status::RecorderStatus;

/// The daemon's end.
#[derive(Debug)]
pub struct Recorder {
    batch: Vec<Entry>,
    to_thread: Option<SyncSender<Vec<Entry>>>,
    status: Arc<Mutex<RecorderStatus>>,
    ended: Receiver<()>,
}

/// Some 100 bytes each: what is in memory stays below a few MB, whatever the number of VMs.
const BATCH: usize = 4096;
/// Registrations are kept for the next batch while the disk does not keep up; no more than these.
const MAX_KEPT: usize = 100_000;
/// Batches on their way.
const MAX_WAITING: usize = 4;
/// How long the daemon's end may wait for the last batch.
const END_PATIENCE: Duration = Duration::from_secs(2);

impl Recorder {
    /// Begins to record. A folder that cannot be used is told, and tried again.
    ///
    /// # Errors
    /// No thread.
    pub fn start(config: RecorderConfig, head: Head) -> io::Result<Self> {
        let (to_thread, batches) = sync_channel::<Vec<Entry>>(MAX_WAITING);
        let (tell_end, ended) = sync_channel(1);
        let status = Arc::new(Mutex::new(RecorderStatus::default()));
        let shared = Arc::clone(&status);
        thread::Builder::new().name("recorder".into()).spawn(move || {
            let mut files = Files::new(config, head, open_new);
            for batch in batches {
                let told = files.write(&batch);
                tell(&shared, told, &files, batch.len());
            }
            // The daemon may have stopped waiting.
            let _ = tell_end.send(());
        })?;
        Ok(Self { batch: Vec::new(), to_thread: Some(to_thread), status, ended })
    }

    /// Takes in what happened.
    pub fn add(&mut self, entry: Entry) {
        self.batch.push(entry);
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// Hands over what was taken in.
    pub fn flush(&mut self) {
        let Some(to_thread) = &self.to_thread else { return };
        if self.batch.is_empty() {
            return;
        }
        let batch = std::mem::take(&mut self.batch);
        let Err(TrySendError::Full(mut batch) | TrySendError::Disconnected(mut batch)) =
            to_thread.try_send(batch)
        else {
            return;
        };
        let before = batch.len();
        // Without its registration a VM's samples mean nothing.
        batch.retain(|entry| matches!(entry, Entry::Vm(..) | Entry::Gone(_)));
        batch.truncate(MAX_KEPT);
        locked(&self.status).lost += (before - batch.len()) as u64;
        self.batch = batch;
    }

    /// How it is.
    pub fn status(&self) -> RecorderStatus {
        locked(&self.status).clone()
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        self.flush();
        self.to_thread = None;
        // A disk that hangs keeps no daemon from its end.
        let _ = self.ended.recv_timeout(END_PATIENCE);
    }
}

fn tell(status: &Mutex<RecorderStatus>, written: io::Result<()>, files: &Files, entries: usize) {
    let mut status = locked(status);
    status.bytes = files.kept.iter().map(|(_, bytes)| bytes).sum();
    status.file = files.kept.last().map(|(file, _)| file.clone());
    match written {
        Ok(()) => {
            status.entries += entries as u64;
            if status.problem.take().is_some() {
                info!(folder = %files.config.folder.display(), "recording goes on");
            }
        }
        Err(error) => {
            status.lost += entries as u64;
            let folder = files.config.folder.display();
            let problem = format!(
                "{folder}: not recorded: {error}; make room, or set `max_mb` or `folder` of [recorder]"
            );
            if status.problem.as_ref() != Some(&problem) {
                warn!("{problem}");
            }
            status.problem = Some(problem);
        }
    }
}

fn locked(status: &Mutex<RecorderStatus>) -> MutexGuard<'_, RecorderStatus> {
    // Figures and texts: in order whoever panicked.
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The folder's files, and the one that is being written.
struct Files {
    config: RecorderConfig,
    head: Head,
    encoder: Encoder,
    /// With their lengths, the oldest first; the open one last.
    kept: Vec<(PathBuf, u64)>,
    open: Option<File>,
    /// Counts files, so that no two have one name.
    number: u64,
    open_new: fn(&Path) -> io::Result<File>,
}

/// A file of its bound's eighth goes at a time.
const FILES: u64 = 8;
/// Of a recording.
pub const EXTENSION: &str = "flexvfrec";

impl Files {
    fn new(config: RecorderConfig, head: Head, open_new: fn(&Path) -> io::Result<File>) -> Self {
        let kept = found(&config.folder).unwrap_or_default();
        let number = kept.last().and_then(|(file, _)| number_of(file)).unwrap_or(0);
        Self { config, head, encoder: Encoder::default(), kept, open: None, number, open_new }
    }

    fn write(&mut self, batch: &[Entry]) -> io::Result<()> {
        let full =
            self.kept.last().is_some_and(|(_, bytes)| *bytes > self.config.max_bytes / FILES);
        if full {
            self.open = None;
        }
        let mut bytes = Vec::new();
        if self.open.is_none() {
            bytes.extend(MAGIC);
            block(&self.encoder.begin(&self.head), &mut bytes)?;
        }
        let mut content = Vec::new();
        if self.open.is_none() {
            self.encoder.resume(&mut content);
        }
        for entry in batch {
            self.encoder.add(entry, &mut content);
        }
        // What an entry does not fit into is no recording's loss: its VM was never named.
        if !content.is_empty() {
            block(&content, &mut bytes)?;
        }
        let written = self.append(&bytes);
        if written.is_err() {
            // The encoder goes by what is not in the file: another one begins anew.
            self.open = None;
        }
        written
    }

    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.make_room(bytes.len() as u64)?;
        if self.open.is_none() {
            fs::create_dir_all(&self.config.folder)?;
            self.number += 1;
            let file = self.config.folder.join(format!("{:012}.{EXTENSION}", self.number));
            self.open = Some((self.open_new)(&file)?);
            self.kept.push((file, 0));
        }
        let (Some(open), Some((path, length))) = (self.open.as_mut(), self.kept.last_mut()) else {
            return Ok(());
        };
        let written = open.write_all(bytes);
        match &written {
            Ok(()) => *length += bytes.len() as u64,
            Err(_) if *length == 0 => {
                // With nothing whole in it, it is of no use to anybody.
                let _ = fs::remove_file(path);
                self.kept.pop();
            }
            Err(_) => {
                // A reader lives with a torn tail as well.
                let _ = open.set_len(*length);
            }
        }
        written
    }

    /// The oldest files go; never the one that is being written.
    fn make_room(&mut self, bytes: u64) -> io::Result<()> {
        let others = |files: &Self| files.kept.len() - usize::from(files.open.is_some());
        loop {
            let total: u64 = self.kept.iter().map(|(_, bytes)| bytes).sum();
            if total + bytes <= self.config.max_bytes {
                return Ok(());
            }
            if others(self) == 0 {
                let what = format!("{bytes} bytes at once are more than `max_mb` allows");
                return Err(io::Error::other(what));
            }
            let (oldest, _) = self.kept.remove(0);
            match fs::remove_file(oldest) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
}

fn block(content: &[u8], out: &mut Vec<u8>) -> io::Result<()> {
    let head: [u8; HEAD_BYTES] = BlockHead::of(content)
        .encode()
        .ok_or_else(|| io::Error::other(format!("a block of {} bytes", content.len())))?;
    out.extend(head);
    out.extend(content);
    Ok(())
}

/// A recording's files, the oldest first.
///
/// # Errors
/// The folder cannot be read.
pub fn found(folder: &Path) -> io::Result<Vec<(PathBuf, u64)>> {
    let entries = fs::read_dir(folder)?.filter_map(Result::ok);
    let files = entries.filter_map(|entry| {
        let length = entry.metadata().ok().filter(fs::Metadata::is_file)?.len();
        number_of(&entry.path()).map(|_| (entry.path(), length))
    });
    let mut files: Vec<_> = files.collect();
    files.sort();
    Ok(files)
}

fn number_of(file: &Path) -> Option<u64> {
    let is_ours = file.extension().is_some_and(|extension| extension == EXTENSION);
    let stem = file.file_stem()?.to_str().filter(|stem| is_ours && stem.len() == 12)?;
    stem.parse().ok()
}

/// Who may read it may see every VM's traffic.
fn open_new(file: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).mode(0o640).open(file)
}

#[cfg(test)]
mod tests;
