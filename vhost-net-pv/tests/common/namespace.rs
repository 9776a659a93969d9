//! Tests with interfaces of their own.

use std::process::Command;

use nix::sched::{CloneFlags, unshare};

/// Runs a test in a namespace of its own, in a thread, since a namespace belongs to a thread.
pub(crate) fn in_namespace(test: impl FnOnce() + Send + 'static) {
    let run = move || match unshare(CloneFlags::CLONE_NEWNET) {
        Ok(()) => test(),
        Err(error) => {
            let allowed = std::env::var_os("FLEXVF_ALLOW_SKIP").is_some_and(|value| value == "1");
            assert!(
                allowed,
                "no network namespace ({error}): run as root, or set FLEXVF_ALLOW_SKIP=1"
            );
            eprintln!("SKIPPED: no network namespace ({error})");
        }
    };
    if let Err(panic) = std::thread::spawn(run).join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs `ip` there.
pub(crate) fn ip(arguments: &str) {
    let status = Command::new("ip").args(arguments.split(' ')).status();
    assert!(status.unwrap().success(), "ip {arguments} failed");
}
