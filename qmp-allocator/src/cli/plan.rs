//! `flexvf plan`: what the next decision would change, if it were made now.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::Client;
use super::status::table::table;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The daemon's control socket
    #[arg(short, long, value_name = "PATH", default_value = "/run/flexvf/control.sock")]
    socket: PathBuf,
    /// Print the daemon's whole answer as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let plan = Client::connect(&args.socket)?.ask("query-plan", &json!({}))?;
    let text = if args.json { format!("{plan}\n") } else { render(&plan) };
    // A closed pipe (`| head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn render(plan: &Value) -> String {
    let mut out = String::new();
    let next = plan["next_round_in_s"].as_f64().unwrap_or(0.0);
    let strategy = plan["strategy"].as_str().unwrap_or("?");
    let _ = writeln!(
        out,
        "strategy {strategy}; the next decision is in {next:.0} s. If it were made now:"
    );
    for pool in plan["pools"].as_array().into_iter().flatten() {
        let name = pool["pool"].as_str().unwrap_or("?");
        let count = |key| pool[key].as_u64().unwrap_or(0);
        let (vfs, ranked, keep) = (count("vfs"), count("ranked"), count("keep"));
        let _ =
            writeln!(out, "\npool {name}: {vfs} VF(s), {ranked} VM(s) ranked, {keep} keep a VF");
        let rows = |key: &'static str, change: &'static str| {
            let changes = pool[key].as_array().cloned().unwrap_or_default();
            changes.into_iter().map(move |it| row(&it, change))
        };
        let rows: Vec<_> = rows("get", "get").chain(rows("lose", "lose")).collect();
        if rows.is_empty() {
            out.push_str("nothing changes\n");
        } else {
            table(&mut out, ["CHANGE", "VM", "RATE/s", "FROM/TO", "WHY"], rows);
        }
    }
    out
}

fn row(change: &Value, word: &str) -> [String; 5] {
    let text = |key| change[key].as_str();
    let rate = change["pps"].as_f64().map_or("-".to_owned(), |pps| format!("{pps:.0}"));
    let mut why = text("reason").unwrap_or("-").to_owned();
    if let Some(unready) = text("unready") {
        let _ = write!(why, " (not ready: {unready})");
    }
    let owned = |text: Option<&str>| text.unwrap_or("-").to_owned();
    [word.to_owned(), owned(text("vm")), rate, owned(text("other")), why]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_change_is_a_line_with_whose_vf_it_is_and_why() {
        let plan = json!({"strategy": "activity", "next_round_in_s": 41.7, "pools": [
            {"pool": "default", "vfs": 2, "ranked": 3, "keep": 1,
             "get": [{"vm": "db", "pps": 900.4, "reason": "rank 1 of 3 at 900 packets/s", "other": "web", "unready": "no empty root port"}],
             "lose": [{"vm": "web", "pps": 10.0, "reason": "rank 3 of 3 at 10 packets/s", "other": "db", "unready": null}]},
            {"pool": "lab", "vfs": 4, "ranked": 2, "keep": 2, "get": [], "lose": []}]});
        let expected = "\
strategy activity; the next decision is in 42 s. If it were made now:

pool default: 2 VF(s), 3 VM(s) ranked, 1 keep a VF
CHANGE  VM   RATE/s  FROM/TO  WHY
get     db   900     web      rank 1 of 3 at 900 packets/s (not ready: no empty root port)
lose    web  10      db       rank 3 of 3 at 10 packets/s

pool lab: 4 VF(s), 2 VM(s) ranked, 2 keep a VF
nothing changes
";
        assert_eq!(render(&plan), expected);
    }

    #[test]
    fn a_strange_answer_breaks_nothing() {
        assert!(render(&json!({"pools": [null, 3, {"get": [null, {}]}]})).contains("pool ?"));
    }
}
