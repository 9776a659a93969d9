//! `flexvf-paper`: see [`flexvf_tests::paper`].

use anyhow::Result;
use clap::Parser;
use flexvf_tests::paper::{Options, run};

fn main() -> Result<()> {
    run(&Options::parse())
}
