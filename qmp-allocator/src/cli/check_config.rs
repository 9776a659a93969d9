//! `flexvf check-config`.

use std::process::ExitCode;

use super::ConfigArg;
use crate::config::Config;
use crate::io::registry::Registry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArg,
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let file = &args.config.config;
    let config = Config::load(file)?;
    let pools: Vec<&str> = config.pools.iter().map(|pool| pool.name.as_str()).collect();
    println!(
        "{}: in order: strategy {}, interval {:?}, {} pool(s): {}",
        file.display(),
        config.strategy.name(),
        config.interval,
        pools.len(),
        pools.join(", ")
    );
    let mut registry = Registry::new(config.vms_dir.clone(), config.tenants.clone());
    let scan = registry.scan();
    let strangers: Vec<String> = scan
        .vms
        .values()
        .filter(|vm| config.pool(&vm.pool).is_none())
        .map(|vm| {
            format!(
                "{}: pool {:?} is not in the configuration; it has: {}",
                vm.file.display(),
                vm.pool,
                pools.join(", ")
            )
        })
        .collect();
    println!("{}: {} VM(s) in order", config.vms_dir.display(), scan.vms.len() - strangers.len());
    let problems: Vec<&String> =
        scan.problems.iter().map(|(_, text)| text).chain(&strangers).collect();
    for problem in &problems {
        eprintln!("{problem}");
    }
    Ok(if problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
