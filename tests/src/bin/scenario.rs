//! `flexvf-scenario`: see [`flexvf_tests::scenario`].

use std::process::ExitCode;

use clap::Parser;
use flexvf_tests::scenario::{Options, run};
use flexvf_tests::sys::catch_stop_signals;

fn main() -> ExitCode {
    let options = Options::parse();
    let result = catch_stop_signals().map_err(anyhow::Error::from);
    match result.and_then(|()| run(&options)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("flexvf-scenario: {error:#}");
            ExitCode::FAILURE
        }
    }
}
