//! Whether a process has ended, safe against a process id that is given out anew.

use std::fs::read_to_string;

/// A process, by its id and the moment it began.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    began: u64,
}

impl Process {
    /// The process that has this id now.
    pub(super) fn of(pid: i32) -> Option<Self> {
        let (_, began) = stat(pid)?;
        Some(Self { pid, began })
    }

    /// Its id.
    pub(super) const fn pid(self) -> i32 {
        self.pid
    }

    /// Its files are closed: it is gone, or a zombie that nobody has waited for yet.
    pub(super) fn has_ended(self) -> bool {
        stat(self.pid)
            .is_none_or(|(state, began)| began != self.began || matches!(state, 'Z' | 'X'))
    }
}

/// State and start time (fields 3 and 22 of proc_pid_stat(5)).
fn stat(pid: i32) -> Option<(char, u64)> {
    let stat = read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may contain anything, closing brackets too.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_has_ended_once_it_is_a_zombie() {
        let own = Process::of(std::process::id().try_into().unwrap()).unwrap();
        assert!(!own.has_ended());
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let process = Process::of(child.id().try_into().unwrap()).unwrap();
        assert!(!process.has_ended());
        drop(child.stdin.take());
        // Only waiting for it would make it more than a zombie.
        while !process.has_ended() {
            std::thread::yield_now();
        }
        child.wait().unwrap();
        assert!(process.has_ended());
    }
}
