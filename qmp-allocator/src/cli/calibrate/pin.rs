//! A VM's registration with another `pin`, for as long as this is held.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Puts the registration back when it ends.
pub(super) struct Pinned {
    file: PathBuf,
    before: String,
    written: String,
}

impl Pinned {
    /// Of a VM in the folder of registrations.
    pub(super) fn new(folder: &Path, vm: &str) -> anyhow::Result<Self> {
        let file = folder.join(format!("{vm}.toml"));
        let before = fs::read_to_string(&file)
            .with_context(|| format!("registration {}", file.display()))?;
        Ok(Self { file, written: before.clone(), before })
    }

    /// Pins the VM to a path.
    pub(super) fn pin(&mut self, path: &str) -> anyhow::Result<()> {
        let text = pinned(&self.before, path);
        self.write(&text).with_context(|| format!("registration {}", self.file.display()))?;
        self.written = text;
        Ok(())
    }

    /// Under another name first: the daemon must never read half a file. Its mode is kept.
    fn write(&self, text: &str) -> io::Result<()> {
        if fs::read_to_string(&self.file)? != self.written {
            return Err(io::Error::other("somebody else has changed it meanwhile"));
        }
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        let new = self.file.with_file_name(format!(".{name}.calibrate"));
        fs::copy(&self.file, &new)?;
        fs::write(&new, text)?;
        fs::rename(&new, &self.file)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Err(error) = self.write(&self.before) {
            eprintln!(
                "calibrate: {} could not be put back: {error}; see to its `pin` yourself",
                self.file.display()
            );
        }
    }
}

/// A registration with this pin and no other: a line of its own, as all of its keys are.
fn pinned(registration: &str, path: &str) -> String {
    let is_pin = |line: &&str| {
        let rest = line.trim_start().strip_prefix("pin");
        rest.is_some_and(|rest| rest.trim_start().starts_with('='))
    };
    let others = registration.lines().filter(|line| !is_pin(line));
    others.fold(format!("pin = \"{path}\"\n"), |text, line| text + line + "\n")
}

/// SIGINT and SIGTERM, which are to end this in order.
pub(super) struct StopSignals(SignalFd);

impl StopSignals {
    pub(super) fn catch() -> anyhow::Result<Self> {
        let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM].into_iter().collect();
        signals.thread_block().context("block signals")?;
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        Ok(Self(SignalFd::with_flags(&signals, flags).context("catch signals")?))
    }

    /// Fails if there was one.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        match self.0.read_signal() {
            Ok(Some(_)) => bail!("stopped by a signal"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_replaced_and_all_else_is_kept() {
        let text = "mac = \"x\"\n pin=\"pv\"\npinned = 1\n# pin = 2\n";
        assert_eq!(pinned(text, "vf"), "pin = \"vf\"\nmac = \"x\"\npinned = 1\n# pin = 2\n");
    }

    #[test]
    fn the_registration_is_put_back_unless_somebody_else_has_changed_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("web.toml");
        fs::write(&file, "weight = 2\n").unwrap();
        let mut held = Pinned::new(folder.path(), "web").unwrap();
        held.pin("vf").unwrap();
        held.pin("pv").unwrap();
        assert_eq!(fs::read_to_string(&file).unwrap(), "pin = \"pv\"\nweight = 2\n");
        drop(held);
        assert_eq!(fs::read_to_string(&file).unwrap(), "weight = 2\n");
        let mut held = Pinned::new(folder.path(), "web").unwrap();
        held.pin("vf").unwrap();
        fs::write(&file, "weight = 3\n").unwrap();
        assert!(held.pin("pv").is_err());
        drop(held);
        assert_eq!(fs::read_to_string(&file).unwrap(), "weight = 3\n");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        assert!(Pinned::new(folder.path(), "other").is_err());
    }
}
