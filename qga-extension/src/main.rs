//! Starts the agent: reads the command line, opens its channel, makes the bond if asked, serves.

use std::io::{IsTerminal, stderr};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;
use qga_extension::agent::Agent;
use qga_extension::config::Config;
use qga_extension::io::{Channel, Netlink, UnixChannel, VirtioPort, proc};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};

fn main() -> ExitCode {
    let config = Config::parse();
    tracing_subscriber::fmt()
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .with_max_level(config.log_level())
        .with_target(false)
        .init();
    match start(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: &Config) -> anyhow::Result<()> {
    // One thread, and no timer: an agent with nothing to do is never woken.
    let runtime = Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let mut stop = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        tokio::select! {
            result = serve(config) => result,
            _ = stop.recv() => Ok(()),
            _ = interrupt.recv() => Ok(()),
        }
    })
}

async fn serve(config: &Config) -> anyhow::Result<()> {
    let kernel = Netlink::open().context("open netlink")?;
    let mut agent = Agent::new(kernel, config.selector(), proc::identity()?);
    if let Some(name) = &config.create_bond {
        agent.create_bond(name).await?;
    }
    match &config.listen_unix {
        Some(path) => run(agent, UnixChannel::bind(path)?).await,
        None => run(agent, VirtioPort::open(&config.port)?).await,
    }
}

async fn run(mut agent: Agent<Netlink>, mut channel: impl Channel) -> anyhow::Result<()> {
    tracing::info!("serving {channel}");
    Err(agent.serve(&mut channel).await).context(format!("serve {channel}"))
}
