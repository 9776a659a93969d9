//! `flexvf-bench`: see [`flexvf_tests::bench`].

use std::process::ExitCode;

use clap::Parser;
use flexvf_tests::bench::{Options, run};

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("flexvf-bench: {error:#}");
            ExitCode::from(2)
        }
    }
}
