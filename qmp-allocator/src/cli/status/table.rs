//! The status as a table. Reads the daemon's JSON, so that a newer daemon's additions do no harm.

use std::fmt::Write;

use serde_json::Value;

pub(super) fn render(status: &Value) -> String {
    let mut out = String::new();
    let _ = writeln!(
        out,
        "strategy {}, every {} s; round {}, next in {:.0} s",
        text(status, "strategy"),
        number(status, "interval_s"),
        number(status, "round"),
        number(status, "next_round_in_s"),
    );
    if status["dry_run"] == true {
        out.push_str("dry run: nothing is done to any VM or VF\n");
    }
    out.push('\n');
    let vms = rows(status, "vms").map(|vm| {
        [
            text(vm, "vm").to_owned(),
            text(vm, "path").to_owned(),
            or_dash(vm, "vf"),
            rate(vm, "rate_pps"),
            rate(vm, "pv_pps"),
            rate(vm, "vf_pps"),
            text(vm, "trust").to_owned(),
            text(vm, "agent").to_owned(),
            number(vm, "turns").to_string(),
            text(vm, "reason").to_owned(),
        ]
    });
    table(
        &mut out,
        ["VM", "PATH", "VF", "PPS", "PV", "VF PPS", "COUNTED BY", "AGENT", "TURNS", "WHY"],
        vms.collect(),
    );
    for pool in rows(status, "pools") {
        let _ = writeln!(out, "\npool {} ({})", text(pool, "name"), text(pool, "kind"));
        let pfs: Vec<_> = rows(pool, "pfs").map(pf_row).collect();
        if !pfs.is_empty() {
            table(&mut out, ["PF", "DRIVER", "LINK", "FILTERS"], pfs);
        }
        let vfs = rows(pool, "vfs").map(|vf| {
            [
                or_dash(vf, "vf"),
                text(vf, "state").to_owned(),
                or_dash(vf, "vm"),
                or_dash(vf, "reason"),
            ]
        });
        table(&mut out, ["VF", "STATE", "VM", "WHY"], vfs.collect());
    }
    let problems: Vec<&Value> = rows(status, "problems").collect();
    if !problems.is_empty() {
        out.push_str("\nneeds a hand:\n");
        for problem in problems {
            let _ = writeln!(out, "  {}", text(problem, "text"));
        }
    }
    out
}

/// Filters as `3 of 24`, where it is known how many there are.
fn pf_row(pf: &Value) -> [String; 4] {
    let is = |key| pf.get(key).and_then(Value::as_bool).unwrap_or(false);
    let link = match (is("up"), is("carrier")) {
        (false, _) => "down",
        (true, false) => "none",
        (true, true) => "up",
    };
    let used = number(pf, "filters");
    let filters = match pf.get("max_filters").and_then(Value::as_u64) {
        Some(most) => format!("{used} of {most}"),
        None => used.to_string(),
    };
    [text(pf, "pf").to_owned(), or_dash(pf, "driver"), link.to_owned(), filters]
}

pub(in crate::cli) fn table<const N: usize>(
    out: &mut String,
    head: [&str; N],
    rows: Vec<[String; N]>,
) {
    let head = head.map(str::to_owned);
    let mut widths = [0; N];
    for row in std::iter::once(&head).chain(&rows) {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    for row in std::iter::once(&head).chain(&rows) {
        let mut line = String::new();
        for (width, cell) in widths.iter().zip(row) {
            let _ = write!(line, "{cell:<width$}  ", width = *width);
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

fn rows<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value.get(key).and_then(Value::as_array).into_iter().flatten()
}

fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or("?")
}

fn or_dash(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_str).unwrap_or("-").to_owned()
}

fn number(value: &Value, key: &str) -> f64 {
    value.get(key).and_then(Value::as_f64).unwrap_or(0.0)
}

fn rate(value: &Value, key: &str) -> String {
    value.get(key).and_then(Value::as_f64).map_or_else(|| "-".to_owned(), |pps| format!("{pps:.0}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_shows_who_has_which_vf_and_why() {
        let status = json!({
            "strategy": "activity", "interval_s": 30.0, "round": 4, "next_round_in_s": 12.4,
            "vms": [
                {"vm": "web", "path": "vf", "vf": "0000:01:10.0", "rate_pps": 812.3, "pv_pps": 1.0, "vf_pps": 811.3,
                 "trust": "guest", "agent": "flexvf", "turns": 3, "reason": "rank 1 of 2 at 812 packets/s"},
                {"vm": "db", "path": "pv", "vf": null, "rate_pps": null, "pv_pps": null, "vf_pps": null,
                 "trust": "host", "agent": "none", "turns": 0, "reason": "agent not heard yet"}
            ],
            "pools": [{"name": "default", "kind": "sriov", "pfs": [
                {"pf": "eth0", "driver": "igb", "up": true, "carrier": true, "vfs": 1, "filters": 1, "max_filters": 24},
                {"pf": "eth1", "driver": null, "up": true, "carrier": false, "vfs": 0, "filters": 0, "max_filters": null}],
              "vfs": [
                {"vf": "0000:01:10.0", "state": "held", "vm": "web", "reason": null}]}],
            "problems": [{"subject": "a.toml", "text": "a.toml:3: unknown key `ports_`; remove it"}]
        });
        let expected = "\
strategy activity, every 30 s; round 4, next in 12 s

VM   PATH  VF            PPS  PV  VF PPS  COUNTED BY  AGENT   TURNS  WHY
web  vf    0000:01:10.0  812  1   811     guest       flexvf  3      rank 1 of 2 at 812 packets/s
db   pv    -             -    -   -       host        none    0      agent not heard yet

pool default (sriov)
PF    DRIVER  LINK  FILTERS
eth0  igb     up    1 of 24
eth1  -       none  0
VF            STATE  VM   WHY
0000:01:10.0  held   web  -

needs a hand:
  a.toml:3: unknown key `ports_`; remove it
";
        assert_eq!(render(&status), expected);
    }

    #[test]
    fn nothing_that_a_daemon_may_answer_panics() {
        for status in
            [json!(null), json!({"vms": 3}), json!({"vms": [null, {"vm": 7}], "pools": [[]]})]
        {
            render(&status);
        }
    }
}
