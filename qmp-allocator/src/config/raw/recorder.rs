//! `[recorder]`: where the daemon writes down what it saw and decided, and how much of it is kept.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use toml::Spanned;

use super::{ConfigError, RecorderConfig, Text};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRecorder {
    folder: Option<Spanned<PathBuf>>,
    max_mb: Option<Spanned<u64>>,
}

/// None: nothing is to be recorded.
pub(super) fn recorder(
    text: &Text,
    raw: &RawRecorder,
    state_file: &Path,
) -> Result<Option<RecorderConfig>, ConfigError> {
    let folder = match &raw.folder {
        Some(folder) => text.path(folder)?,
        None => state_file.with_extension("recording"),
    };
    let max_mb = match &raw.max_mb {
        None => DEFAULT_MB,
        Some(mb) if *mb.get_ref() == 0 => return Ok(None),
        Some(mb) if SIZES_MB.contains(mb.get_ref()) => *mb.get_ref(),
        Some(mb) => {
            let (least, most) = SIZES_MB.into_inner();
            let what = format!("{} MB for recordings", mb.get_ref());
            return Err(text.refuse(mb, what, format!("give {least} to {most}, or 0 for none")));
        }
    };
    Ok(Some(RecorderConfig { folder, max_bytes: max_mb * 1_000_000 }))
}

/// Weeks of a hundred VMs at the default pace.
const DEFAULT_MB: u64 = 256;
/// Up to a terabyte.
const SIZES_MB: RangeInclusive<u64> = 1..=1_000_000;
