//! A VM's stats page, as a PV backend would write it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context, Result};
use flexvf_protocol::stats_page::{Counter, Direction, Header, MAGIC, VERSION, page_bytes};

#[derive(Debug)]
pub(super) struct Page {
    file: File,
    packets: u64,
}

impl Page {
    /// One queue pair, nothing counted yet.
    pub(super) fn create(path: &Path) -> Result<Self> {
        let mut bytes = vec![0; page_bytes(1)];
        let words = [
            (Header::Magic, MAGIC),
            (Header::Version, VERSION),
            (Header::QueuePairs, 1),
            (Header::Generation, 1),
        ];
        for (word, value) in words {
            let at = word.offset();
            if let Some(slot) = bytes.get_mut(at..at + 8) {
                slot.copy_from_slice(&value.to_le_bytes());
            }
        }
        let shown = || format!("write {}", path.display());
        let file = File::create(path).with_context(shown)?;
        file.write_all_at(&bytes, 0).with_context(shown)?;
        Ok(Self { file, packets: 0 })
    }

    /// The guest has received so many packets more.
    pub(super) fn count(&mut self, packets: u64) -> Result<()> {
        self.packets += packets;
        let at = Counter::Segments.offset(0, Direction::Rx) as u64;
        self.file.write_all_at(&self.packets.to_le_bytes(), at).context("write a stats page")
    }
}
