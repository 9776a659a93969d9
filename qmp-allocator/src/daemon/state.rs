//! The state file: read once at start, written after each decision.
//!
//! It is written beside and renamed over, so that it is never seen torn. A file that cannot be read
//! or written is told and lived without: it holds nothing that a VF or a VM depends on.

use std::io;
use std::path::{Path, PathBuf};

use tokio::sync::watch;
use tracing::warn;

use crate::logic::engine::Saved;

/// Largest state file taken in: 10,000 VMs with the longest names are below it.
const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// What an earlier daemon on this boot of the host left.
pub(super) fn read(file: &Path) -> Option<Saved> {
    let text = match read_bounded(file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => {
            warn!(file = %file.display(), %error, "state file not read; starting without");
            return None;
        }
    };
    match Saved::decode(&text, &boot_id()) {
        Ok(saved) => Some(saved),
        Err(error) => {
            warn!(file = %file.display(), %error, "state file not understood; starting without");
            None
        }
    }
}

/// Writes the file in the background, one write at a time; of several that wait, the newest.
pub(super) struct Writer {
    newest: watch::Sender<Option<Saved>>,
}

impl Writer {
    pub(super) fn new(file: PathBuf) -> Self {
        let (newest, waiting) = watch::channel(None);
        tokio::spawn(write_newest(file, waiting));
        Self { newest }
    }

    pub(super) fn write(&self, saved: Saved) {
        self.newest.send_replace(Some(saved));
    }
}

async fn write_newest(file: PathBuf, mut waiting: watch::Receiver<Option<Saved>>) {
    while waiting.changed().await.is_ok() {
        let Some(saved) = waiting.borrow_and_update().clone() else { continue };
        let path = file.clone();
        // A slow disk must not keep the daemon from its VMs.
        let written =
            tokio::task::spawn_blocking(move || replace(&path, &saved.encode(&boot_id()))).await;
        if let Ok(Err(error)) = written {
            warn!(file = %file.display(), %error, "state file not written");
        }
    }
}

fn replace(file: &Path, content: &str) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let beside = file.with_extension("new");
    std::fs::write(&beside, content)?;
    std::fs::rename(&beside, file)
}

fn read_bounded(file: &Path) -> io::Result<String> {
    let length = std::fs::metadata(file)?.len();
    if length > MAX_BYTES {
        return Err(io::Error::other(format!("{length} bytes are too many for a state file")));
    }
    std::fs::read_to_string(file)
}

pub(super) fn boot_id() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id");
    id.unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::engine::SavedPool;
    use crate::logic::policy::{Memory, Ranked, Reason, Standing};
    use flexvf_protocol::VmName;

    #[test]
    fn what_is_written_reads_back_and_a_torn_file_is_lived_without() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("sub/state.json");
        assert_eq!(read(&file), None);
        let saved = Saved { round: 7, decided_at_ms: Some(5), ..Saved::default() };
        replace(&file, &saved.encode(&boot_id())).unwrap();
        assert_eq!(read(&file), Some(saved));
        std::fs::write(&file, "{\"boot_id\": \"x\", \"sav").unwrap();
        assert_eq!(read(&file), None);
    }

    #[test]
    fn all_that_is_remembered_of_ten_thousand_vms_is_read_again() {
        let standing = Standing {
            held: 0,
            missed: 1_000_000,
            owed: -1_999_999_999,
            due: -999_999_999,
            away: 4,
        };
        let reason =
            Reason::Worth { place: 10_000, of: 10_000, pps: Some(1e6 / 3.0), as_pps: 1e5 / 3.0 };
        let names: Vec<VmName> = (0..10_000).map(|i| format!("{i:064}").parse().unwrap()).collect();
        let standings = names.iter().map(|vm| (vm.clone(), standing)).collect();
        let pool = SavedPool {
            memory: Memory { standings, ..Memory::default() },
            ranking: names.iter().map(|vm| Ranked { vm: vm.clone(), reason }).collect(),
            winners: 63,
            ..SavedPool::default()
        };
        let turns = names.into_iter().map(|vm| (vm, u64::MAX)).collect();
        let pools = [("default".to_owned(), pool)].into();
        let saved = Saved { turns, pools, ..Saved::default() };
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        replace(&file, &saved.encode(&boot_id())).unwrap();
        assert_eq!(read(&file).unwrap().pools["default"].memory, saved.pools["default"].memory);
    }

    #[test]
    fn times_of_an_earlier_boot_are_not_compared_with_this_one() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("state.json");
        let saved = Saved { round: 7, decided_at_ms: Some(5), ..Saved::default() };
        replace(&file, &saved.encode("another")).unwrap();
        assert_eq!(read(&file).unwrap().decided_at_ms, None);
    }
}
