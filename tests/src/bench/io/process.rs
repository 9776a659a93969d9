//! What the kernel says of a process's memory and sleep.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use crate::bench::logic::texts::status_number;

/// How often the threads of a process have gone to sleep of their own accord, and so been woken.
pub fn voluntary_switches(pid: u32) -> Result<u64> {
    let folder = format!("/proc/{pid}/task");
    let mut switches = 0;
    for thread in fs::read_dir(&folder).with_context(|| format!("read {folder}"))? {
        switches += number(&thread?.path().join("status"), "voluntary_ctxt_switches")?;
    }
    Ok(switches)
}

/// Memory in RAM, MiB, without what is shared: that is the guest's, and counted as the guest's.
pub fn own_resident_mib(pid: u32) -> Result<f64> {
    let status = format!("/proc/{pid}/status");
    let own = number(status.as_ref(), "RssAnon")? + number(status.as_ref(), "RssFile")?;
    Ok(own as f64 / 1024.0)
}

fn number(file: &Path, key: &str) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| format!("read {}", file.display()))?;
    status_number(&text, key).with_context(|| format!("{} has no {key}", file.display()))
}
