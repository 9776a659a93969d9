//! What the kernel tells of a QEMU process: who it runs as, and how much memory it may lock.

use std::fs;

use crate::logic::memlock::Limits;

/// User and group that a process runs as, in effect.
pub fn owner(pid: i32) -> Option<(u32, u32)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some((effective(&status, "Uid:")?, effective(&status, "Gid:")?))
}

/// The NUMA node that all of a process's memory comes from, if it may come from one only.
pub fn numa_node(pid: i32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    line(&status, "Mems_allowed_list:")?.trim().parse().ok()
}

/// What bounds the memory that a process may lock.
pub fn lock_limits(pid: i32) -> Option<Limits> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let capabilities = u64::from_str_radix(line(&status, "CapEff:")?.trim(), 16).ok()?;
    if capabilities & (1 << CAP_IPC_LOCK) != 0 {
        return Some(Limits { most: None, locked: 0 });
    }
    let locked_kib: u64 = line(&status, "VmLck:")
        .and_then(|text| text.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let soft = line(&limits, "Max locked memory")?.split_whitespace().next()?;
    Some(Limits { most: soft.parse().ok(), locked: locked_kib.saturating_mul(1024) })
}

/// Fields of `Uid:` and `Gid:` are real, effective, saved, file system.
fn effective(status: &str, key: &str) -> Option<u32> {
    line(status, key)?.split_whitespace().nth(1)?.parse().ok()
}

fn line<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(key))
}

/// capabilities(7).
const CAP_IPC_LOCK: u32 = 14;

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::resource::{Resource, getrlimit};

    #[test]
    fn a_process_is_read_as_the_kernel_tells_it_itself() {
        let pid = std::process::id().try_into().unwrap();
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        assert_eq!(owner(pid), Some((uid.as_raw(), gid.as_raw())));
        let limits = lock_limits(pid).unwrap();
        let (soft, _) = getrlimit(Resource::RLIMIT_MEMLOCK).unwrap();
        // Whoever may lock all has no limit.
        assert!(limits.most.is_none() || limits.most == Some(soft), "{limits:?}");
        assert_eq!((owner(0), lock_limits(0)), (None, None));
    }
}
