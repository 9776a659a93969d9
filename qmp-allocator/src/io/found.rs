//! What VFs were like before FlexVF changed them: one small file a VF, beside the state file.
//!
//! Written before a VF is first changed and removed once it is put back, so a daemon that was killed
//! in between finds it. A record that cannot be written is kept in memory, and its VF is put back all
//! the same unless this daemon dies: a full disk must not keep VFs from VMs.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flexvf_protocol::PciAddress;
use serde::{Deserialize, Serialize};

use crate::logic::settings::Original;

/// The folder of records.
#[derive(Debug)]
pub struct Found {
    dir: PathBuf,
    boot_id: String,
    unwritten: Mutex<BTreeMap<PciAddress, Original>>,
}

#[derive(Debug, Serialize, Deserialize)]
struct OnDisk {
    /// VFs begin anew with each boot of the host.
    boot_id: String,
    original: Original,
}

impl Found {
    /// Records in this folder, which need not exist yet; those of another boot of the host count
    /// for nothing.
    pub const fn new(dir: PathBuf, boot_id: String) -> Self {
        Self { dir, boot_id, unwritten: Mutex::new(BTreeMap::new()) }
    }

    /// What is noted of a VF: nothing for one that is as it was found. A file that cannot be read is
    /// told and lived without.
    pub fn read(&self, vf: PciAddress) -> Original {
        if let Some(original) = self.unwritten().get(&vf) {
            return original.clone();
        }
        let path = self.path(vf);
        match self.read_file(&path) {
            Ok(original) => original.unwrap_or_default(),
            Err(error) => {
                tracing::warn!(file = %path.display(), %error, "what this VF was like is not known any more");
                Original::default()
            }
        }
    }

    /// Notes what a VF was like.
    ///
    /// # Errors
    /// The file could not be written; the record is kept in memory then.
    pub fn write(&self, vf: PciAddress, original: &Original) -> io::Result<()> {
        let on_disk = OnDisk { boot_id: self.boot_id.clone(), original: original.clone() };
        let path = self.path(vf);
        let written = serde_json::to_string(&on_disk).map_err(io::Error::other).and_then(|text| {
            fs::create_dir_all(&self.dir)?;
            let beside = path.with_extension("new");
            fs::write(&beside, text)?;
            fs::rename(&beside, &path)
        });
        match &written {
            Ok(()) => self.unwritten().remove(&vf),
            Err(_) => self.unwritten().insert(vf, original.clone()),
        };
        written
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
    }

    /// The VF is as it was found, or no more.
    pub fn remove(&self, vf: PciAddress) {
        self.unwritten().remove(&vf);
        let path = self.path(vf);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(file = %path.display(), %error, "record of a VF not removed");
        }
    }

    fn read_file(&self, path: &Path) -> io::Result<Option<Original>> {
        let length = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other?.len(),
        };
        if length > MAX_BYTES {
            return Err(io::Error::other(format!("{length} bytes are too many for a VF's record")));
        }
        let on_disk: OnDisk = serde_json::from_str(&fs::read_to_string(path)?)?;
        Ok((on_disk.boot_id == self.boot_id).then_some(on_disk.original))
    }

    fn path(&self, vf: PciAddress) -> PathBuf {
        self.dir.join(format!("{vf}.json"))
    }

    fn unwritten(&self) -> MutexGuard<'_, BTreeMap<PciAddress, Original>> {
        // A map of whole records is in order whoever panicked.
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A record has some hundred bytes.
const MAX_BYTES: u64 = 64 * 1024;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::settings::{Setting, VfSettings, Wish};

    fn original() -> Original {
        let mut original = Original { node_owner: Some((0, 0)), ..Original::default() };
        let found = VfSettings { trust: Some(false), ..VfSettings::default() };
        original.note(&[Wish::required(Setting::Trust(true))], &found);
        original
    }

    fn vf() -> PciAddress {
        "0000:01:10.0".parse().unwrap()
    }

    #[test]
    fn a_record_outlives_the_daemon_and_not_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("state.vfs");
        let daemon = |boot: &str| Found::new(folder.clone(), boot.to_owned());
        assert_eq!(daemon("a").read(vf()), Original::default());
        daemon("a").write(vf(), &original()).unwrap();
        assert_eq!(daemon("a").read(vf()), original());
        assert_eq!(daemon("b").read(vf()), Original::default());
        for _ in 0..2 {
            daemon("a").remove(vf());
            assert_eq!(daemon("a").read(vf()), Original::default());
        }
    }

    #[test]
    fn without_a_disk_the_record_is_kept_in_memory() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "").unwrap();
        let found = Found::new(dir.path().join("file/state.vfs"), "a".into());
        let error = found.write(vf(), &original()).unwrap_err().to_string();
        assert!(error.contains("file/state.vfs/0000:01:10.0.json: "), "{error}");
        assert_eq!(found.read(vf()), original());
        found.remove(vf());
        assert_eq!(found.read(vf()), Original::default());
    }

    #[test]
    fn a_torn_record_is_lived_without() {
        let dir = tempfile::tempdir().unwrap();
        let found = Found::new(dir.path().into(), "a".into());
        fs::write(dir.path().join("0000:01:10.0.json"), "{\"boot_id\": \"a\", \"or").unwrap();
        assert_eq!(found.read(vf()), Original::default());
    }
}
