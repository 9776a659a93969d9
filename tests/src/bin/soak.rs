//! `flexvf-soak`: see [`flexvf_tests::sim`].

use std::process::ExitCode;

use clap::Parser;
use flexvf_tests::sim::soak::{Options, run};

fn main() -> ExitCode {
    if run(Options::parse()) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
