//! The guest's boot id and clock.

use std::{fs, io};

use nix::time::{ClockId, clock_gettime};

/// Changes at each boot.
pub fn boot_id() -> Result<String, BootIdError> {
    let id = fs::read_to_string(BOOT_ID).map_err(BootIdError)?;
    Ok(id.trim().chars().take(MAX_BOOT_ID).collect())
}

/// The boot id cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("read {BOOT_ID}: {0}; is /proc mounted?")]
pub struct BootIdError(#[source] io::Error);

/// CLOCK_BOOTTIME in nanoseconds. It goes on while the guest sleeps.
pub fn boottime_ns() -> u64 {
    // Only an unknown clock makes it fail, and Linux has had this one since 2.6.39.
    clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(0, |time| {
        let seconds = u64::try_from(time.tv_sec()).unwrap_or_default();
        let nanoseconds = u64::try_from(time.tv_nsec()).unwrap_or_default();
        seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
    })
}

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// A UUID has 36 characters.
const MAX_BOOT_ID: usize = 36;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_id_stays_and_the_clock_goes_on() {
        assert_eq!(boot_id().unwrap(), boot_id().unwrap());
        let before = boottime_ns();
        assert!(before > 0 && boottime_ns() >= before);
    }
}
