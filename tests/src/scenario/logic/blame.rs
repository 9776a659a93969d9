//! Which switch a lost packet belongs to, and which of its steps.
//!
//! A switch's times are known to within a poll: it ended shortly before it was first seen to have
//! ended, and its steps lie before that, one after the other. A loss is noticed when the next packet
//! arrives, so it is also looked for a little after the switch.

use flexvf_protocol::VmName;

use super::watch::{SeenSwitch, Watch};

/// How far outside a switch a loss is still laid to it: two polls, and the pause in a stream.
const SLACK_MS: u64 = 1500;

/// Around a kill, switches are under way of which no daemon tells afterwards.
const AROUND_KILL_MS: u64 = 3000;

/// What was going on with `vm` when a loss was noticed, in words.
pub fn cause_of(vm: &VmName, noticed_ms: u64, watch: &Watch) -> String {
    let near = |seen: &&SeenSwitch| {
        let begin_ms = begin_ms(seen).saturating_sub(SLACK_MS);
        (begin_ms..=seen.seen_ms + SLACK_MS).contains(&noticed_ms)
    };
    let mut near: Vec<_> = watch.switches().filter(near).collect();
    // The VM's own switch explains more than a kill, and that more than a neighbour's switch.
    near.sort_by_key(|seen| seen.switch.vm != *vm);
    let killed = |at_ms: &u64| at_ms.abs_diff(noticed_ms) <= AROUND_KILL_MS;
    let killed = watch.kills_ms().iter().any(killed);
    match near.first() {
        Some(seen) if seen.switch.vm == *vm => {
            let step = step_at(seen, noticed_ms);
            format!("its switch {} ({step})", seen.switch.direction)
        }
        _ if killed => "the kill of flexvf".into(),
        Some(seen) => {
            let (step, switch) = (step_at(seen, noticed_ms), &seen.switch);
            format!("{}'s switch {} ({step})", switch.vm, switch.direction)
        }
        None => "no switch under way".into(),
    }
}

fn begin_ms(seen: &SeenSwitch) -> u64 {
    seen.seen_ms.saturating_sub(seen.switch.total_ms.max(0.0) as u64)
}

fn step_at(seen: &SeenSwitch, at_ms: u64) -> String {
    let mut end_ms = begin_ms(seen) as f64;
    for (step, ms) in &seen.switch.steps_ms.0 {
        end_ms += ms;
        if at_ms as f64 <= end_ms {
            return format!("about {step}");
        }
    }
    "just after".into()
}

#[cfg(test)]
mod tests {
    use super::super::status::Status;
    use super::*;

    fn watch(vms: &[(&str, u64)]) -> Watch {
        let mut watch = Watch::default();
        for (n, (vm, seen_ms)) in vms.iter().enumerate() {
            let text = format!(
                r#"{{"switches": [{{"n": {n}, "vm": "{vm}", "vf": "vf0", "direction": "to_vf",
                "steps_ms": {{"plug": 3000, "join": 1000}}, "total_ms": 4000}}]}}"#
            );
            let status: Status = serde_json::from_str(&text).unwrap();
            watch.take(status, *seen_ms);
        }
        watch
    }

    fn cause(vm: &str, noticed_ms: u64, watch: &Watch) -> String {
        cause_of(&vm.parse().unwrap(), noticed_ms, watch)
    }

    #[test]
    fn a_loss_is_laid_to_the_step_it_fell_into() {
        let watch = watch(&[("a", 10_000)]);
        let cause = |at_ms| cause("a", at_ms, &watch);
        assert_eq!(cause(7_000), "its switch to_vf (about plug)");
        assert_eq!(cause(9_500), "its switch to_vf (about join)");
        assert_eq!(cause(11_000), "its switch to_vf (just after)");
        assert_eq!(cause(3_000), "no switch under way");
    }

    #[test]
    fn the_own_switch_goes_before_a_kill_and_that_before_a_neighbours() {
        let mut watch = watch(&[("b", 10_000), ("a", 10_100)]);
        assert_eq!(cause("c", 7_000, &watch), "b's switch to_vf (about plug)");
        watch.daemon_killed(8_000);
        assert_eq!(cause("a", 7_000, &watch), "its switch to_vf (about plug)");
        assert_eq!(cause("c", 7_000, &watch), "the kill of flexvf");
    }
}
