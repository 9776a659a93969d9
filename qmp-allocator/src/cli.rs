//! The commands of `flexvf`.

mod check_config;
mod client;
mod explain;
mod plan;
mod quarantine;
mod replay;
mod run;
mod simulate;
mod status;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// SR-IOV virtual functions for the VMs that need them most, on bare QEMU.
#[derive(Debug, Parser)]
#[command(name = "flexvf", version, about, long_about = LONG_ABOUT, after_long_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const LONG_ABOUT: &str = "\
FlexVF gives every VM two network paths that a bond in the guest joins: a paravirtual NIC, always
there, and a virtual function (VF), given and taken. The daemon measures each VM's packet rate,
ranks the VMs every interval, and hot-plugs the VFs over QMP to those that come first.";

const AFTER_HELP: &str = "\
Files:
  /etc/flexvf/flexvf.toml   the configuration (`flexvf check-config` checks it)
  /run/flexvf/vms/*.toml    one file a VM, written by whatever starts it (see scripts/launch-vm)

Environment:
  RUST_LOG                  what is logged, for example `debug` or `qmp_allocator=debug` (default: info)

Exit status: 0 in order; 1 failed, with the reason on standard error; 2 wrong usage.";

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon in the foreground until SIGTERM or SIGINT
    ///
    /// When it ends, VFs stay where they are; the next daemon takes up what it finds plugged.
    Run(run::Args),
    /// Show who has which VF, and why
    Status(status::Args),
    /// Tell why a VM has a VF or none, and what it would take to change that
    Explain(explain::Args),
    /// Show what would change if the VFs were given away now, without doing it
    Plan(plan::Args),
    /// Show VFs that QEMU or the host has not let go of, and have FlexVF look at one again
    Quarantine(quarantine::Args),
    /// Check a configuration, and the VM files that it leads to, without running anything
    CheckConfig(check_config::Args),
    /// Compare the strategies over made-up or recorded traffic, without a host
    ///
    /// A decision sees the interval that ended and holds for the next one. GAIN is the packets that VFs
    /// carried, as a part of what the best assignment would have had them carry, which knows each interval
    /// beforehand and switches at no cost. JAIN is Jain's index of the VMs' time on a VF for their weight.
    Simulate(simulate::Args),
    /// Compare the strategies over what the daemon has recorded
    ///
    /// RECORDING is the folder that the daemon records into (`state.recording` beside its state file, unless
    /// its configuration names another), one of that folder's files, or a CSV file as for `flexvf simulate`.
    /// `as decided` is what the daemon's own decisions were worth. The table is that of `flexvf simulate`.
    Replay(replay::Args),
}

/// Where the configuration is.
#[derive(Debug, clap::Args)]
struct ConfigArg {
    /// The daemon's configuration
    #[arg(short, long, value_name = "FILE", default_value = "/etc/flexvf/flexvf.toml")]
    config: PathBuf,
}

impl Cli {
    /// Runs the command that was named.
    ///
    /// # Errors
    /// Whatever kept it from doing so, in words for its user.
    pub fn run(self) -> anyhow::Result<ExitCode> {
        match self.command {
            Command::Run(args) => run::run(args),
            Command::Status(args) => status::run(args),
            Command::Explain(args) => explain::run(&args),
            Command::Plan(args) => plan::run(&args),
            Command::Quarantine(args) => quarantine::run(args),
            Command::CheckConfig(args) => check_config::run(args),
            Command::Simulate(args) => simulate::run(&args),
            Command::Replay(args) => replay::run(&args),
        }
    }
}
