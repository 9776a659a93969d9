//! `flexvf-traffic`: see [`flexvf_tests::traffic`].

use std::process::ExitCode;

use clap::Parser;
use flexvf_tests::traffic::{Command, run};

/// Probe and load streams between the testbed's remote peer and its guests, counted exactly
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("flexvf-traffic: {error:#}");
            ExitCode::FAILURE
        }
    }
}
