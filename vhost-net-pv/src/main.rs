//! The `vhost-net-pv` program: parses, starts logging, serves until a signal.

use std::io::IsTerminal;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use nix::sys::signal::{SigSet, Signal};
use tracing_subscriber::EnvFilter;
use vhost_net_pv::config::{Cli, ServeArgs, Task};
use vhost_net_pv::{Stopper, io, report};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Task::Stats { file, json }) => io::stats::read(&file).map(|page| match json {
            true => println!("{}", report::json(&page)),
            false => print!("{}", report::table(&page)),
        }),
        None => serve(&cli.serve),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-net-pv: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(arguments: &ServeArgs) -> anyhow::Result<()> {
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    // Blocked before the first thread starts, so that no thread but ours is interrupted.
    let signals: SigSet = [Signal::SIGTERM, Signal::SIGINT].into_iter().collect();
    signals.thread_block().context("cannot block signals")?;
    vhost_net_pv::survive_cut_memory().context("cannot handle SIGBUS")?;
    let (mut device, front_ends) = arguments.open()?;
    let stopper = Stopper::new().context("cannot make an event descriptor")?;
    let at_signal = stopper.clone();
    std::thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let _ = signals.wait();
            at_signal.stop();
        })
        .context("cannot start a thread")?;
    tracing::info!("ready");
    device.serve(front_ends, &stopper).context("cannot accept front-ends")
}
