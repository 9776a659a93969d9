//! `flexvf status`: a table for people, JSON for programs.

pub(super) mod table;

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use super::client::Client;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The daemon's control socket
    #[arg(short, long, value_name = "PATH", default_value = "/run/flexvf/control.sock")]
    socket: PathBuf,
    /// Print the daemon's whole answer as JSON (one object; one a line with --watch)
    #[arg(long)]
    json: bool,
    /// Show it again every SECONDS until interrupted
    #[arg(short, long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "2", value_parser = period)]
    watch: Option<Duration>,
}

fn period(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.parse().map_err(|_| "give seconds, such as 2 or 0.5".to_owned())?;
    if (0.1..=86400.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("give 0.1 to 86400 seconds".to_owned())
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut client = Client::connect(&args.socket)?;
    let mut out = std::io::stdout();
    let clear = args.watch.is_some() && !args.json && out.is_terminal();
    loop {
        let status = client.ask("query-status", &serde_json::json!({}))?;
        let text = if args.json { format!("{status}\n") } else { table::render(&status) };
        // Home, the text, then clear what is left below: no flicker.
        let text =
            if clear { format!("\x1b[H{}\x1b[J", text.replace('\n', "\x1b[K\n")) } else { text };
        // A closed pipe (`| head`) is no failure.
        if out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_err() {
            return Ok(ExitCode::SUCCESS);
        }
        match args.watch {
            Some(period) => std::thread::sleep(period),
            None => return Ok(ExitCode::SUCCESS),
        }
    }
}
