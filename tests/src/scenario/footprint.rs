//! What the programs of FlexVF take while something happens: processor time and memory, by the kernels' own accounts.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::io::shell::Shell;
use crate::bench::io::process::own_resident_mib;
use crate::bench::logic::texts::status_number;

/// One program during one part of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Footprint {
    /// `flexvf`, `vhost-net-pv` or `qga-extension`.
    pub program: String,
    /// What happened meanwhile.
    pub during: String,
    /// For how long, seconds.
    pub lasted_s: f64,
    /// Switches in that time.
    pub switches: usize,
    /// Processor time, ms.
    pub cpu_ms: f64,
    /// Memory in RAM at the end, MiB; what is shared with the guest is the guest's.
    pub resident_mib: f64,
}

/// A program's account at a moment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Account {
    /// Processor time so far, ms.
    pub cpu_ms: f64,
    /// Memory, MiB.
    pub resident_mib: f64,
}

/// Of a process of this machine.
pub fn of_process(pid: u32) -> Result<Account> {
    let folder = format!("/proc/{pid}/task");
    let mut cpu_ns = 0;
    for thread in fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
        // A thread may just have ended.
        let text = fs::read_to_string(thread?.path().join("schedstat")).unwrap_or_default();
        cpu_ns += first_number(&text).unwrap_or(0);
    }
    Ok(Account { cpu_ms: cpu_ns as f64 / 1e6, resident_mib: own_resident_mib(pid)? })
}

/// Of the agent in a guest.
pub fn of_agent(shell: &mut Shell) -> Result<Account> {
    let told = shell.run(
        "for p in /proc/[0-9]*; do if [ \"$(cat $p/comm 2>/dev/null)\" = qga-extension ]; then cat $p/task/*/schedstat; echo /; cat $p/status; break; fi; done",
    )?;
    parse_agent(&told).with_context(|| format!("the guest's agent is not found in {told:?}"))
}

fn parse_agent(told: &str) -> Option<Account> {
    let (threads, status) = told.split_once("/\n")?;
    let cpu_ns: u64 = threads.lines().filter_map(first_number).sum();
    // With what is on the guest's initramfs, which counts as shared memory.
    let resident_kib = status_number(status, "VmRSS")?;
    Some(Account { cpu_ms: cpu_ns as f64 / 1e6, resident_mib: resident_kib as f64 / 1024.0 })
}

fn first_number(text: &str) -> Option<u64> {
    text.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_s_threads_are_added_up() {
        let told = "5000000 1 2\n1500000 3 4\n/\nName:\tqga-extension\nVmRSS:\t    2048 kB\n";
        let account = Account { cpu_ms: 6.5, resident_mib: 2.0 };
        assert_eq!(parse_agent(told), Some(account));
        assert_eq!(parse_agent("/\nName: x\n"), None);
        assert_eq!(parse_agent(""), None);
    }

    #[test]
    fn this_process_has_used_some() {
        let account = of_process(std::process::id()).unwrap();
        assert!(account.cpu_ms > 0.0 && account.resident_mib > 0.0, "{account:?}");
    }
}
