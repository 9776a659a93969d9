//! Section 6.2: what a switch takes, as the testbed measured it (`scripts/demo --json`).

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::bench::logic::pairs::median;

/// Switches of one direction.
#[derive(Debug, Serialize)]
pub struct Switches {
    /// `to_vf` or `to_pv`.
    pub direction: String,
    /// `sriov` or `emulated`.
    pub pool: String,
    /// How many.
    pub count: usize,
    /// The shortest, the median and the longest, milliseconds.
    pub total_ms: [f64; 3],
    /// Each step's median, in their order, milliseconds.
    pub steps_ms: Vec<(String, f64)>,
}

#[derive(Deserialize)]
struct Played {
    pool: String,
    passed: bool,
    switches: Vec<Switch>,
}

#[derive(Deserialize)]
struct Switch {
    direction: String,
    steps_ms: Map<String, Value>,
    total_ms: f64,
}

/// Reads a result of `scripts/demo --json`.
///
/// # Errors
/// It is none, it had failed, or there is no switch in it.
pub fn read(file: &Path) -> Result<Vec<Switches>> {
    let name = || file.display().to_string();
    let text = std::fs::read_to_string(file).with_context(name)?;
    parse(&text).with_context(name)
}

fn parse(text: &str) -> Result<Vec<Switches>> {
    let Played { pool, passed, switches } =
        serde_json::from_str(text).context("not a result of scripts/demo --json")?;
    ensure!(passed, "that run had failed; measure again");
    let mut found = Vec::new();
    for direction in ["to_vf", "to_pv"] {
        let of = || switches.iter().filter(|switch| switch.direction == direction);
        let mut totals: Vec<f64> = of().map(|switch| switch.total_ms).collect();
        let Some(middle) = median(&mut totals) else { continue };
        let ends = |from: f64, with: fn(f64, f64) -> f64| totals.iter().copied().fold(from, with);
        let mut names: Vec<&String> = Vec::new();
        for name in of().flat_map(|switch| switch.steps_ms.keys()) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        let step = |name: &String| {
            let times = of().filter_map(|switch| switch.steps_ms.get(name)?.as_f64());
            Some((name.clone(), median(&mut times.collect::<Vec<_>>())?))
        };
        found.push(Switches {
            direction: direction.to_owned(),
            pool: pool.clone(),
            count: of().count(),
            total_ms: [ends(f64::INFINITY, f64::min), middle, ends(0.0, f64::max)],
            steps_ms: names.into_iter().filter_map(step).collect(),
        });
    }
    ensure!(!found.is_empty(), "no switch in it");
    Ok(found)
}

/// The figure's data.
pub fn csv(switches: &[Switches]) -> String {
    let mut out = "pool,direction,switches,step,median_ms\n".to_owned();
    for Switches { direction, pool, count, total_ms, steps_ms } in switches {
        let [_, total, _] = total_ms;
        for (step, ms) in steps_ms {
            let _ = writeln!(out, "{pool},{direction},{count},{step},{ms:.1}");
        }
        let _ = writeln!(out, "{pool},{direction},{count},total,{total:.1}");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_are_by_direction_and_step() {
        let switch = |direction: &str, plug: f64, total: f64| serde_json::json!({"vm": "a", "direction": direction, "steps_ms": {"prepare": 1.0, "plug": plug}, "total_ms": total});
        let switches =
            [switch("to_vf", 10.0, 30.0), switch("to_vf", 20.0, 50.0), switch("to_vf", 90.0, 90.0)];
        let text = serde_json::json!({"pool": "sriov", "passed": true, "switches": switches});
        let found = parse(&text.to_string()).unwrap();
        let [to_vf] = &found[..] else { panic!("{found:?}") };
        assert_eq!((to_vf.count, to_vf.total_ms), (3, [30.0, 50.0, 90.0]));
        assert_eq!(to_vf.steps_ms, [("prepare".to_owned(), 1.0), ("plug".to_owned(), 20.0)]);
        assert!(csv(&found).contains("sriov,to_vf,3,plug,20.0\n"));
    }

    #[test]
    fn what_has_failed_or_is_something_else_is_no_measurement() {
        let error = |text: &str| parse(text).unwrap_err().to_string();
        assert_eq!(
            error(r#"{"pool": "sriov", "passed": false, "switches": []}"#),
            "that run had failed; measure again"
        );
        assert_eq!(
            error(r#"{"pool": "sriov", "passed": true, "switches": []}"#),
            "no switch in it"
        );
        assert_eq!(error("[]"), "not a result of scripts/demo --json");
    }
}
