//! The `vhost-net-pv` program: parses, runs the task, tells how it ended.

use std::io::{ErrorKind, Write, stderr, stdout};
use std::process::ExitCode;

use clap::Parser;
use vhost_net_pv::config::{Cli, FeaturesArgs, Task};
use vhost_net_pv::{io, report};

mod logging;
mod serve;
mod watch;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match cli.command {
        Some(Task::Stats { file, json, watch: Some(every) }) => watch::watch(&file, json, every),
        Some(Task::Stats { file, json, watch: None }) => {
            io::stats::read(&file).and_then(|page| match json {
                true => print(&format!("{}\n", report::json(&page))),
                false => print(&report::table(&page)),
            })
        }
        Some(Task::Features(arguments)) => tell_features(&arguments),
        // The word of QEMU's docs/interop/vhost-user.rst, "Backend program conventions".
        None if cli.serve.print_capabilities => print("{\n  \"type\": \"net\"\n}\n"),
        None => serve::serve(&cli.serve),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        // Who reads us has read enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody may be there to read it.
            let _ = writeln!(stderr(), "vhost-net-pv: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn tell_features(arguments: &FeaturesArgs) -> anyhow::Result<()> {
    let probed = arguments.probe()?;
    print(&match arguments.json {
        true => report::features_json(probed.offered, probed.chosen),
        false => report::features_table(probed.offered, probed.chosen),
    })
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = stdout().lock();
    out.write_all(text.as_bytes())?;
    Ok(out.flush()?)
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.kind() == ErrorKind::BrokenPipe)
}
