//! Whether a QEMU may lock its guest's memory, which a VF pins whole.
//!
//! Asked before a plug: afterwards QEMU would say no more than that it cannot allocate memory.

/// What bounds the memory that a process may lock, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// RLIMIT_MEMLOCK; none for a process that may lock any amount.
    pub most: Option<u64>,
    /// Locked already.
    pub locked: u64,
}

/// Why the process cannot lock so much more memory; `None` if it can.
pub fn obstacle(pid: i32, limits: Limits, guest_bytes: u64) -> Option<String> {
    let most = limits.most?;
    let needed = limits.locked.saturating_add(guest_bytes);
    (needed > most).then(|| {
        let (most, needed) = (most / MIB, needed.div_ceil(MIB));
        format!(
            "QEMU (process {pid}) may lock {most} MiB of memory, and a VF pins {needed} MiB; \
             `prlimit --pid {pid} --memlock=unlimited`, and at its start `ulimit -l unlimited` \
             or systemd's LimitMEMLOCK=infinity"
        )
    })
}

const MIB: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn exactly_what_fits_is_let_through(most in 0u64..100, locked in 0u64..100, guest in 0u64..100) {
            let limits = Limits { most: Some(most * MIB), locked: locked * MIB };
            let told = obstacle(7, limits, guest * MIB);
            prop_assert_eq!(told.is_none(), locked + guest <= most);
        }
    }

    #[test]
    fn the_obstacle_names_process_figures_and_remedies() {
        let limits = Limits { most: Some(8 * MIB), locked: 0 };
        assert_eq!(
            obstacle(4711, limits, 4096 * MIB).unwrap(),
            "QEMU (process 4711) may lock 8 MiB of memory, and a VF pins 4096 MiB; `prlimit --pid 4711 --memlock=unlimited`, and at its start `ulimit -l unlimited` or systemd's LimitMEMLOCK=infinity"
        );
        assert_eq!(obstacle(4711, Limits { most: None, locked: 0 }, u64::MAX), None);
        assert!(obstacle(1, Limits { most: Some(u64::MAX - 1), locked: 9 }, u64::MAX).is_some());
    }
}
