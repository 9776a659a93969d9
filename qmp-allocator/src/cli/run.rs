//! `flexvf run`.

use std::process::ExitCode;

use anyhow::Context;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::ConfigArg;
use crate::config::Config;
use crate::daemon::{self, Mode};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
    /// Look, count, decide, record and tell, and do nothing to any VM or VF
    ///
    /// The log says at each decision who would get a VF and who would lose one; `flexvf status`, `plan` and
    /// `explain` work as ever. The state file is read and not written. VFs found plugged stay where they are. QEMU's QMP
    /// socket and the guests' agents are connected to, so another daemon must not be running.
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let config = Config::load(&args.config.config)?;
    let mode = if args.dry_run { Mode::DryRun } else { Mode::Act };
    raise_descriptor_limit();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(daemon::run(config, mode))?;
    Ok(ExitCode::SUCCESS)
}

/// Two connections a VM: the usual soft limit of 1024 descriptors ends at 500 VMs.
fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::RLIMIT_NOFILE);
    if let Err(error) = limit.and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard)) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}
