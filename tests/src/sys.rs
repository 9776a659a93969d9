//! The few calls that need `unsafe`: being told to stop, and not leaving children behind.

#![expect(unsafe_code, reason = "signal handlers and pre-exec hooks")]

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::time::{ClockId, clock_gettime};

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn note_stop(_signal: i32) {
    STOP.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP only set what [`stop_requested`] says.
pub fn catch_stop_signals() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(note_stop), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does one relaxed atomic store, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Somebody asked this program to stop.
pub fn stop_requested() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// The child gets SIGTERM when the thread that starts it ends, however that happens, and is the
/// leader of a process group of its own, so that a Ctrl-C reaches it only through us.
pub fn tie_to_this_thread(command: &mut Command) -> &mut Command {
    command.process_group(0);
    // SAFETY: prctl(PR_SET_PDEATHSIG) is a plain system call: no allocation, no lock.
    unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)) }
}

/// CLOCK_MONOTONIC in microseconds; the same for every process of a machine.
pub fn monotonic_us() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000 + time.tv_nsec() as u64 / 1000)
}
