//! Which switch a lost packet belongs to, and which of its steps.
//!
//! A switch's times are known to within a poll: it ended shortly before it was first seen to have
//! ended, and its steps lie before that, one after the other. A loss is noticed when the next packet
//! arrives, so it is also looked for a little after the switch.

use flexvf_protocol::VmName;

use super::watch::SeenSwitch;

/// How far outside a switch a loss is still laid to it: two polls, and the pause in a stream.
const SLACK_MS: u64 = 1500;

/// What was going on with `vm` when a loss was noticed, in words.
pub fn cause_of<'a>(
    vm: &VmName,
    noticed_ms: u64,
    switches: impl Iterator<Item = &'a SeenSwitch>,
) -> String {
    let near = |seen: &&SeenSwitch| {
        let begin_ms = begin_ms(seen).saturating_sub(SLACK_MS);
        (begin_ms..=seen.seen_ms + SLACK_MS).contains(&noticed_ms)
    };
    let mut near: Vec<_> = switches.filter(near).collect();
    // The VM's own switch explains more than a neighbour's.
    near.sort_by_key(|seen| seen.switch.vm != *vm);
    let Some(seen) = near.first() else {
        return "no switch under way".into();
    };
    let switch = &seen.switch;
    let whose = if switch.vm == *vm {
        "its".to_owned()
    } else {
        format!("{}'s", switch.vm)
    };
    let step = step_at(seen, noticed_ms);
    format!("{whose} switch {} ({step})", switch.direction)
}

fn begin_ms(seen: &SeenSwitch) -> u64 {
    seen.seen_ms
        .saturating_sub(seen.switch.total_ms.max(0.0) as u64)
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
    use super::super::status::{Steps, Switch};
    use super::*;

    fn seen(vm: &str, seen_ms: u64) -> SeenSwitch {
        let switch = Switch {
            n: 1,
            vm: vm.parse().unwrap(),
            vf: "vf0".into(),
            direction: "to_vf".into(),
            reason: String::new(),
            outcome: "done".into(),
            detail: None,
            steps_ms: Steps(vec![("plug".into(), 3000.0), ("join".into(), 1000.0)]),
            total_ms: 4000.0,
        };
        SeenSwitch { switch, seen_ms }
    }

    #[test]
    fn a_loss_is_laid_to_the_step_it_fell_into() {
        let (vm, switches) = ("a".parse().unwrap(), [seen("a", 10_000)]);
        let cause = |at_ms| cause_of(&vm, at_ms, switches.iter());
        assert_eq!(cause(7_000), "its switch to_vf (about plug)");
        assert_eq!(cause(9_500), "its switch to_vf (about join)");
        assert_eq!(cause(11_000), "its switch to_vf (just after)");
        assert_eq!(cause(3_000), "no switch under way");
    }

    #[test]
    fn the_own_switch_goes_before_a_neighbours() {
        let switches = [seen("b", 10_000), seen("a", 10_100)];
        let cause = |vm: &str| cause_of(&vm.parse().unwrap(), 7_000, switches.iter());
        assert_eq!(cause("a"), "its switch to_vf (about plug)");
        assert_eq!(cause("c"), "b's switch to_vf (about plug)");
    }
}
