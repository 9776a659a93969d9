//! What a device that runs gives up: privileges, paths, and most system calls.
//!
//! A device needs rights to be made (a TAP, a socket, the stats page) and almost none to run. So it
//! opens everything first and then gives up, in two steps, since the first kind of right belongs to
//! a thread and is inherited by those it starts, and the second can be taken from all threads
//! at once when none is to be started any more:
//!
//! ```text
//! open everything ─▶ give_up_rights() ─▶ Device::new() ─▶ filter_system_calls() ─▶ serve
//!                    capabilities        starts threads   seccomp, all threads
//!                    new privileges
//!                    landlock
//! ```
//!
//! Neither can be taken back. The library calls neither by itself: they bind the whole thread and
//! the whole process, which only a program's owner may decide.
//!
//! Left out: namespaces, users and resource limits, which are the starter's (the systemd units
//! that come along set them).

use std::fmt;
use std::path::{Path, PathBuf};

use super::server::FrontEnds;

mod capabilities;
mod paths;
mod seccomp;

pub use paths::PathRules;

/// Why rights could not be given up.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Capabilities stay.
    #[error("cannot give up capabilities: {0}")]
    Capabilities(#[from] caps::errors::CapsError),
    /// The kernel refuses landlock rules that it claims to know.
    #[error("cannot restrict paths by landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// A path that is needed later is not there.
    #[error("cannot restrict paths by landlock: {0}")]
    Path(#[from] landlock::PathFdError),
    /// No system call filter.
    #[error("cannot filter system calls: {0}")]
    Seccomp(#[from] seccompiler::Error),
    /// This program's filter is wrong.
    #[error("cannot filter system calls: {0}")]
    Filter(#[from] seccompiler::BackendError),
}

/// What a device that runs still does with paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needs {
    /// A socket's file that is removed in the end.
    pub remove: Option<PathBuf>,
    /// A front-end's socket that is connected to, again and again.
    pub connect: Option<PathBuf>,
}

impl Needs {
    /// What serving these front-ends needs.
    pub fn of(front_ends: &FrontEnds) -> Self {
        match front_ends {
            FrontEnds::Listen(_, path) => Self { remove: path.clone(), connect: None },
            FrontEnds::Connect(path) => Self { remove: None, connect: Some(path.clone()) },
            FrontEnds::One(_) => Self::default(),
        }
    }
}

/// What was given up, and what this kernel or the lack of a right left. Its text is one line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// The bounding set of capabilities is empty, too; that takes `CAP_SETPCAP`.
    pub bounding: bool,
    /// How far the kernel restricts paths.
    pub paths: PathRules,
}

impl fmt::Display for Given {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "no capabilities, no new privileges, {}", self.paths)?;
        match self.bounding {
            true => Ok(()),
            false => write!(f, "; the bounding set stays, for want of CAP_SETPCAP"),
        }
    }
}

/// Gives up capabilities, new privileges and the file system, for this thread and those that it
/// starts from now on.
///
/// # Errors
/// [`SandboxError`] when the kernel refuses; a kernel without landlock is told in the answer.
pub fn give_up_rights(needs: &Needs) -> Result<Given, SandboxError> {
    let bounding = capabilities::give_up()?;
    // Sets no_new_privs, too, whether the kernel has landlock or not.
    let paths = paths::restrict(needs)?;
    Ok(Given { bounding, paths })
}

/// Leaves this process only the system calls that a running device makes: all of its threads, for
/// good. No thread can be started afterwards.
///
/// What is refused fails with `EPERM`; what only an intruder would try ends the process.
///
/// # Errors
/// [`SandboxError`] when the kernel has no filters, or a thread has one of its own.
pub fn filter_system_calls(needs: &Needs) -> Result<(), SandboxError> {
    for program in seccomp::programs(needs)? {
        seccompiler::apply_filter_all_threads(&program)?;
    }
    Ok(())
}

/// The folder of a path, as the kernel wants it.
fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
