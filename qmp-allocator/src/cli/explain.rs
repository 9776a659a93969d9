//! `flexvf explain VM`: why it has a VF or none, and what it would take.

use std::fmt::Write as _;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::{Value, json};

use super::client::Client;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The VM's name, as `flexvf status` shows it
    vm: String,
    /// The daemon's control socket
    #[arg(short, long, value_name = "PATH", default_value = "/run/flexvf/control.sock")]
    socket: PathBuf,
    /// Print the daemon's whole answer as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let told = Client::connect(&args.socket)?.ask("explain", &json!({"vm": args.vm}))?;
    let text = if args.json { format!("{told}\n") } else { render(&told) };
    // A closed pipe (`| head`) is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn render(told: &Value) -> String {
    let mut out = String::new();
    let text = |key| told[key].as_str();
    let vm = text("vm").unwrap_or("?");
    let has = match (text("path"), text("vf")) {
        (Some("vf"), Some(vf)) => format!("has VF {vf}"),
        (_, Some(vf)) => format!("is on its way to or from VF {vf}, or its VF is quarantined"),
        (Some("down"), None) => "has no VF: QEMU does not answer".to_owned(),
        _ => "has no VF".to_owned(),
    };
    let _ = writeln!(out, "{vm} {has}: {}", text("reason").unwrap_or("?"));
    if let Some(unready) = text("unready") {
        let _ = writeln!(out, "It could not take one now: {unready}.");
    }
    match &told["last"] {
        Value::Null => out.push_str("No decision of this daemon has ranked it yet.\n"),
        last => {
            let (round, ago) = (last["round"].as_u64().unwrap_or(0), number(last, "ago_s"));
            let _ = writeln!(
                out,
                "Decided {ago:.0} s ago, in round {round}: {}",
                decided(last, ["was", "was not"])
            );
        }
    }
    match &told["now"] {
        Value::Null => out.push_str("If it were decided now, it would not be ranked.\n"),
        now => {
            let next = number(told, "next_round_in_s");
            let _ = writeln!(
                out,
                "If it were decided now (it will be in {next:.0} s): {}",
                decided(now, ["would be", "would not be"])
            );
            outlook(told, now, &mut out);
        }
    }
    out
}

/// In words, what a decision makes of it.
fn decided(told: &Value, [is, is_not]: [&str; 2]) -> String {
    let count = |key| told[key].as_u64().unwrap_or(0);
    let (place, of, vfs) = (count("place"), count("of"), count("vfs"));
    let verb = if told["chosen"] == true { is } else { is_not };
    let mut out = format!("it {verb} chosen, place {place} of {of} for {vfs} VF(s)");
    match (told["displaces"].as_str(), told["displaced_by"].as_str()) {
        (Some(other), _) => drop(write!(out, ", with the VF of {other}")),
        (None, Some(other)) => drop(write!(out, ", and its VF goes to {other}")),
        (None, None) => {}
    }
    if let Some(reason) = told["reason"].as_str() {
        let _ = write!(out, ": {reason}");
    }
    out.push('.');
    out
}

/// What it would take.
fn outlook(told: &Value, now: &Value, out: &mut String) {
    let outlook = &told["outlook"];
    if outlook.is_null() {
        return;
    }
    let chosen = outlook["chosen"] == true;
    let rate =
        now["pps"].as_f64().map_or("not measured yet".to_owned(), |pps| format!("now {pps:.0}"));
    let line = match (outlook["turning_pps"].as_f64(), chosen) {
        (Some(pps), false) => {
            format!("It would be chosen from {pps:.0} packets/s on ({rate}), all else as it is.")
        }
        (Some(pps), true) => format!(
            "It would lose to others at {pps:.0} packets/s or less ({rate}), all else as it is."
        ),
        (None, false) => "No packet rate of its own would have it chosen now.".to_owned(),
        (None, true) => "No packet rate of its own would have it lose now.".to_owned(),
    };
    let _ = writeln!(out, "{line}");
    let looked_at = outlook["rounds_looked_at"].as_u64().unwrap_or(0);
    let turn = outlook["turning_round"].as_u64();
    // Rounds are counted from the next decision on.
    let in_s = |round: u64| {
        number(told, "next_round_in_s")
            + round.saturating_sub(1) as f64 * number(told, "interval_s")
    };
    let line = match (turn, chosen) {
        (Some(round), false) => {
            format!("If rates stay as they are, its turn comes in {:.0} s.", in_s(round))
        }
        (Some(round), true) => {
            format!("If rates stay as they are, others come before it in {:.0} s.", in_s(round))
        }
        (None, _) => {
            format!("If rates stay as they are, that stays so for {looked_at} round(s) at least.")
        }
    };
    let _ = writeln!(out, "{line}");
    if !chosen {
        out.push_str(
            "`pin = \"vf\"` in its registration would put it before all that are not pinned.\n",
        );
    }
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told() -> Value {
        json!({"vm": "web", "pool": "default", "strategy": "activity", "path": "pv", "vf": null,
            "reason": "rank 3 of 3 at 10 packets/s", "unready": null,
            "last": {"round": 7, "ago_s": 20.0, "chosen": false, "place": 3, "of": 3, "vfs": 2, "pps": 10.0,
                "had_vf": true, "reason": "rank 3 of 3 at 10 packets/s", "displaces": null, "displaced_by": "db"},
            "now": {"round": 8, "ago_s": 0.0, "chosen": false, "place": 3, "of": 3, "vfs": 2, "pps": 12.0,
                "had_vf": false, "reason": "rank 3 of 3 at 12 packets/s", "displaces": null, "displaced_by": null},
            "outlook": {"chosen": false, "turning_pps": 500.2, "turning_round": null, "rounds_looked_at": 288},
            "interval_s": 300.0, "next_round_in_s": 280.0})
    }

    #[test]
    fn it_tells_why_and_what_it_would_take() {
        let expected = "\
web has no VF: rank 3 of 3 at 10 packets/s
Decided 20 s ago, in round 7: it was not chosen, place 3 of 3 for 2 VF(s), and its VF goes to db: rank 3 of 3 at 10 packets/s.
If it were decided now (it will be in 280 s): it would not be chosen, place 3 of 3 for 2 VF(s): rank 3 of 3 at 12 packets/s.
It would be chosen from 500 packets/s on (now 12), all else as it is.
If rates stay as they are, that stays so for 288 round(s) at least.
`pin = \"vf\"` in its registration would put it before all that are not pinned.
";
        assert_eq!(render(&told()), expected);
    }

    #[test]
    fn turns_are_told_in_seconds() {
        let mut told = told();
        told["outlook"] = json!({"chosen": false, "turning_pps": null, "turning_round": 3, "rounds_looked_at": 288});
        let text = render(&told);
        assert!(text.contains("No packet rate of its own would have it chosen now."), "{text}");
        assert!(text.contains("its turn comes in 880 s"), "{text}");
    }

    #[test]
    fn who_was_never_ranked_and_strange_answers_break_nothing() {
        let text =
            render(&json!({"vm": "a", "path": "down", "reason": "x", "unready": "QEMU is away"}));
        assert!(text.contains("has no VF: QEMU does not answer"), "{text}");
        assert!(text.contains("It could not take one now: QEMU is away."), "{text}");
        render(&json!(null));
        render(&json!({"last": 3, "now": [], "outlook": {"turning_pps": "x"}}));
    }
}
