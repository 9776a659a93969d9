//! Serving, from the first signal to the last: what the library leaves to its program.

use std::sync::Arc;

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use tracing::{info, warn};
use vhost_net_pv::config::{Opened, ServeArgs, Switch};
use vhost_net_pv::io::sandbox::{self, Needs};
use vhost_net_pv::io::systemd::Notifier;
use vhost_net_pv::{Device, Stopper};

use super::logging;

/// Serves until a signal, or until the only front-end has gone.
pub(crate) fn serve(arguments: &ServeArgs) -> anyhow::Result<()> {
    logging::start();
    // Blocked before the first thread starts, so that no thread but ours is interrupted.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("cannot block signals")?;
    vhost_net_pv::survive_cut_memory().context("cannot handle SIGBUS")?;
    let notifier = Arc::new(Notifier::from_environment().context("NOTIFY_SOCKET")?);
    let opened = arguments.open()?;
    let needs = Needs::of(&opened.front_ends);
    let served = confined(opened, &needs, arguments.sandbox, signals, &notifier);
    if served.is_err()
        && let Some(path) = &needs.remove
    {
        // Serving removes it, too; but it may never have begun.
        let _ = std::fs::remove_file(path);
    }
    served
}

fn confined(
    opened: Opened,
    needs: &Needs,
    sandbox: Switch,
    signals: SigSet,
    notifier: &Arc<Notifier>,
) -> anyhow::Result<()> {
    const OTHERWISE: &str = "start with --sandbox off to go without";
    // Before the threads, which inherit it.
    let given = match sandbox {
        Switch::On => Some(sandbox::give_up_rights(needs).context(OTHERWISE)?),
        Switch::Off => None,
    };
    let mut device = Device::new(opened.parts).context("cannot start the device's threads")?;
    let stopper = Stopper::new().context("cannot make an event descriptor")?;
    stop_at(signals, stopper.clone(), Arc::clone(notifier)).context("cannot start a thread")?;
    // After the threads: from here on none can be started.
    match given {
        Some(given) => {
            sandbox::filter_system_calls(needs).context(OTHERWISE)?;
            info!("sandbox: system calls filtered, {given}");
        }
        None => warn!("sandbox off: all rights of this process are kept"),
    }
    let to_manager = Arc::clone(notifier);
    device.on_front_end(move |connected| to_manager.front_end(connected));
    notifier.ready();
    info!("ready");
    device.serve(opened.front_ends, &stopper).context("cannot go on")
}

fn stop_at(signals: SigSet, stopper: Stopper, notifier: Arc<Notifier>) -> std::io::Result<()> {
    let wait = move || {
        let _ = signals.wait();
        info!("told to end");
        notifier.stopping();
        stopper.stop();
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(wait)?;
    Ok(())
}
