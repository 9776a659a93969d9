//! Reads recordings: a file, or a folder of them. Any byte may be anything.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use super::recorder::{EXTENSION, found};
use crate::logic::recording::block::{BlockHead, HEAD_BYTES, MAGIC};
use crate::logic::recording::decode::{Decoder, Garbled, Item, head};
use crate::logic::recording::gather::Gatherer;

/// Why a recording was not read.
#[derive(Debug, thiserror::Error)]
pub enum RecordingError {
    /// The system's word.
    #[error("{path}: {cause}")]
    Io {
        /// File or folder.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
    /// Nothing in it.
    #[error(
        "{0}: no recording in this folder (files NUMBER.{EXTENSION}); is `max_mb` of [recorder] 0?"
    )]
    Empty(PathBuf),
    /// It begins with something else.
    #[error("{0}: not a recording of this version of flexvf (its first bytes are others)")]
    Stranger(PathBuf),
    /// Its content is not what was written.
    #[error(
        "{path}: garbled at byte {at}: {what}; what follows cannot be believed: leave the file out"
    )]
    Garbled {
        /// The file.
        path: PathBuf,
        /// Where its bad block begins.
        at: u64,
        /// In words.
        what: String,
    },
}

/// A last block that was not whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Torn {
    /// The file.
    pub file: PathBuf,
    /// Bytes that were not read.
    pub bytes: u64,
}

/// Reads a file, or all of a folder's, into `gatherer`. What was torn off their ends.
///
/// # Errors
/// [`RecordingError`].
pub fn read(path: &Path, gatherer: &mut Gatherer) -> Result<Vec<Torn>, RecordingError> {
    let failed = |cause| RecordingError::Io { path: path.to_owned(), cause };
    let files = if path.is_dir() {
        found(path).map_err(failed)?.into_iter().map(|(file, _)| file).collect()
    } else {
        vec![path.to_owned()]
    };
    if files.is_empty() {
        return Err(RecordingError::Empty(path.to_owned()));
    }
    let torn = files.into_iter().filter_map(|file| read_file(file, gatherer).transpose());
    torn.collect()
}

/// Whether a file begins as a recording does.
///
/// # Errors
/// It cannot be read.
pub fn is_recording(file: &Path) -> io::Result<bool> {
    let mut magic = Vec::new();
    File::open(file)?.take(MAGIC.len() as u64).read_to_end(&mut magic)?;
    // Of any version: an older one is no CSV either.
    Ok(magic.len() == MAGIC.len() && magic.starts_with(&MAGIC[..MAGIC.len() - 1]))
}

fn read_file(path: PathBuf, gatherer: &mut Gatherer) -> Result<Option<Torn>, RecordingError> {
    let failed = |cause| RecordingError::Io { path: path.clone(), cause };
    let file = File::open(&path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    let mut bytes = BufReader::with_capacity(READ_BYTES, file);
    let mut magic = [0; MAGIC.len()];
    let got = fill(&mut bytes, &mut magic).map_err(failed)?;
    let torn = |from: u64| Torn { file: path.clone(), bytes: length.saturating_sub(from) };
    if magic.get(..got) != MAGIC.get(..got) {
        return Err(RecordingError::Stranger(path));
    }
    if got < magic.len() {
        return Ok(Some(torn(0)));
    }
    let mut at = magic.len() as u64;
    let (mut decoder, mut begun) = (Decoder::default(), false);
    let mut content = Vec::new();
    loop {
        let garbled = |what: String| RecordingError::Garbled { path: path.clone(), at, what };
        let mut first = [0; HEAD_BYTES];
        match fill(&mut bytes, &mut first).map_err(failed)? {
            0 => return Ok(None),
            HEAD_BYTES => {}
            _ => return Ok(Some(torn(at))),
        }
        let Some(block) = BlockHead::decode(first) else {
            // A host that lost power may have left zeroes.
            return if first == [0; HEAD_BYTES] && only_zeroes(&mut bytes).map_err(failed)? {
                Ok(Some(torn(at)))
            } else {
                Err(garbled("no block begins here".into()))
            };
        };
        content.clear();
        let wanted = block.length as u64;
        (&mut bytes).take(wanted).read_to_end(&mut content).map_err(failed)?;
        let end = at + HEAD_BYTES as u64 + wanted;
        if !block.fits(&content) {
            if end >= length {
                return Ok(Some(torn(at)));
            }
            return Err(garbled("a wrong checksum".into()));
        }
        if begun {
            let took = decoder.read(&content, |item: Item| gatherer.take(item));
            took.map_err(|error: Garbled| garbled(error.to_string()))?;
        } else {
            let head = head(&content).map_err(|error| garbled(format!("no head: {error}")))?;
            gatherer.begin(head);
            begun = true;
        }
        at = end;
    }
}

/// As many bytes as there are, up to the buffer's length.
fn fill(bytes: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match bytes.read(rest) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

fn only_zeroes(bytes: &mut impl Read) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        let got = fill(bytes, &mut buffer)?;
        if got == 0 {
            return Ok(true);
        }
        if buffer.get(..got).is_some_and(|read| read.iter().any(|byte| *byte != 0)) {
            return Ok(false);
        }
    }
}

const READ_BYTES: usize = 1 << 20;
