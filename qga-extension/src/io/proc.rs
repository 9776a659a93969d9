//! The guest's boot id, system, name and clocks.

use std::fs::{self, File};
use std::io::{self, Read};

use nix::sys::utsname::uname;
use nix::time::{ClockId, clock_gettime};

use crate::logic::identity::{Identity, OsInfo};

/// Which guest this is, and when the agent started: now.
pub fn identity() -> Result<Identity, BootIdError> {
    let id = fs::read_to_string(BOOT_ID).map_err(BootIdError)?;
    let boot_id = id.trim().chars().take(MAX_BOOT_ID).collect();
    Ok(Identity { boot_id, started_ns: boottime_ns(), os: os_info() })
}

/// The boot id cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {BOOT_ID}: {0}; is /proc mounted?")]
pub struct BootIdError(#[source] io::Error);

/// The guest's name, as `uname -n` has it.
pub fn host_name() -> String {
    uname().map_or_else(|_| String::new(), |names| names.nodename().to_string_lossy().into_owned())
}

/// CLOCK_BOOTTIME in nanoseconds. It goes on while the guest sleeps.
pub fn boottime_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_BOOTTIME)
}

/// Nanoseconds since 1970.
pub fn realtime_ns() -> u64 {
    nanoseconds(ClockId::CLOCK_REALTIME)
}

fn nanoseconds(clock: ClockId) -> u64 {
    // Only an unknown clock makes it fail, and Linux has had both since 2.6.39.
    clock_gettime(clock).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or_default();
        let nanoseconds = u64::try_from(time.tv_nsec()).unwrap_or_default();
        seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
    })
}

fn os_info() -> OsInfo {
    let mut os = OsInfo::default();
    if let Ok(names) = uname() {
        os.kernel_release = names.release().to_string_lossy().into_owned();
        os.kernel_version = names.version().to_string_lossy().into_owned();
        os.machine = names.machine().to_string_lossy().into_owned();
    }
    // A guest that says nothing of itself, such as an initramfs, has neither.
    match OS_RELEASE.iter().find_map(|path| first_bytes(path).ok()) {
        Some(bytes) => os.with_release(&String::from_utf8_lossy(&bytes)),
        None => os,
    }
}

fn first_bytes(path: &str) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_OS_RELEASE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// In the order of os-release(5).
const OS_RELEASE: [&str; 2] = ["/etc/os-release", "/usr/lib/os-release"];

/// Such a file has a few hundred bytes; it must not make an answer longer than the host takes.
const MAX_OS_RELEASE: u64 = 16 * 1024;

/// A UUID has 36 characters.
const MAX_BOOT_ID: usize = 36;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_stays_and_the_clock_goes_on() {
        let (first, second) = (identity().unwrap(), identity().unwrap());
        assert_eq!(first.boot_id, second.boot_id);
        assert!(first.started_ns > 0 && second.started_ns >= first.started_ns);
        assert!(realtime_ns() > boottime_ns());
    }

    #[test]
    fn the_kernel_says_its_release_and_the_guests_name() {
        assert!(identity().unwrap().os.kernel_release.contains('.'));
        assert!(!host_name().is_empty());
    }
}
