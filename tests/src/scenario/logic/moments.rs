//! The moments of a switch at which something may be killed, each by what passes between the daemon
//! and the VM just then.
//!
//! The daemon changes a VM by QMP and agent commands, and the host by itself between two of them. So
//! every moment at which a kill can leave something different behind is one of three: a command that
//! was asked and not carried out, one that was carried out and not answered, or, for what the host
//! does by itself, the next command. Commands that only look are left out.

use flexvf_protocol::agent::{ACTIVATE, JOIN_VF, LEAVE_VF};
use serde_json::Value;

/// A moment of a switch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    /// What people call it.
    pub name: &'static str,
    /// Of a switch to the VF, else of one back to PV.
    pub to_vf: bool,
    /// By what it is known.
    pub sign: Sign,
}

/// By what a moment is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The daemon asks this; it does not arrive.
    Asked(Call),
    /// This was carried out; the daemon does not learn of it.
    Answered(Call),
    /// QEMU tells this; the daemon does not hear it.
    Told(&'static str),
    /// The daemon has told that the switch has ended.
    Ended,
}

/// A command, and what must be in its arguments or its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Call {
    command: &'static str,
    with: Option<(&'static str, &'static str)>,
}

/// Something on its way between the daemon and a VM.
#[derive(Debug, Clone, Copy)]
pub enum Passing<'a> {
    /// A command with its arguments.
    Request(&'a str, &'a Value),
    /// The answer to a command with these arguments.
    Answer(&'a str, &'a Value, &'a Value),
    /// An event.
    Event(&'a str),
}

/// Every moment of a switch to an emulated VF, in their order, then of one back.
pub const MOMENTS: [Moment; 20] = [
    to_vf("prepared", Sign::Asked(call("netdev_del"))),
    to_vf("backend added", Sign::Answered(call("netdev_add"))),
    to_vf("plug asked", Sign::Asked(call("device_add"))),
    to_vf("plugged", Sign::Answered(call("device_add"))),
    to_vf("join asked", Sign::Asked(call(JOIN_VF))),
    to_vf("join begun", Sign::Answered(call(JOIN_VF))),
    to_vf("joined", Sign::Answered(call_with(JOIN_VF, "state", "ready"))),
    to_vf("forwarded to both", Sign::Asked(call_with(ACTIVATE, "path", "vf"))),
    to_vf("VF activated", Sign::Answered(call_with(ACTIVATE, "path", "vf"))),
    to_vf("forwarded to the VF: done", Sign::Ended),
    to_pv("forwarded to both", Sign::Asked(call_with(ACTIVATE, "path", "pv"))),
    to_pv("PV activated", Sign::Answered(call_with(ACTIVATE, "path", "pv"))),
    to_pv("forwarded to PV, drained", Sign::Asked(call(LEAVE_VF))),
    to_pv("left", Sign::Answered(call(LEAVE_VF))),
    to_pv("unplug asked", Sign::Asked(call("device_del"))),
    to_pv("unplug begun", Sign::Answered(call("device_del"))),
    to_pv("device gone", Sign::Told("DEVICE_DELETED")),
    to_pv("restoring", Sign::Asked(call("netdev_del"))),
    to_pv("backend removed", Sign::Answered(call("netdev_del"))),
    to_pv("restored: done", Sign::Ended),
];

/// The moment of this name.
pub fn moment(name: &str) -> Option<Moment> {
    MOMENTS.iter().find(|moment| moment.name == name).copied()
}

impl Moment {
    /// In words.
    pub fn what(&self) -> String {
        let way = if self.to_vf { "to the VF" } else { "back to PV" };
        format!("{way}: {}", self.name)
    }
}

impl Sign {
    /// Whether this is it.
    pub fn is(&self, passing: Passing<'_>) -> bool {
        match (self, passing) {
            (Self::Asked(call), Passing::Request(command, arguments)) => {
                call.fits(command, &[arguments])
            }
            (Self::Answered(call), Passing::Answer(command, arguments, answer)) => {
                call.fits(command, &[arguments, answer])
            }
            (Self::Told(event), Passing::Event(name)) => *event == name,
            _ => false,
        }
    }
}

impl Call {
    fn fits(&self, command: &str, values: &[&Value]) -> bool {
        let has = |(key, text): (&str, &str)| values.iter().any(|value| value[key] == text);
        self.command == command && self.with.is_none_or(has)
    }
}

const fn call(command: &'static str) -> Call {
    Call { command, with: None }
}

const fn call_with(command: &'static str, key: &'static str, text: &'static str) -> Call {
    Call { command, with: Some((key, text)) }
}

const fn to_vf(name: &'static str, sign: Sign) -> Moment {
    Moment { name, to_vf: true, sign }
}

const fn to_pv(name: &'static str, sign: Sign) -> Moment {
    Moment { name, to_vf: false, sign }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_command_asked_is_not_one_carried_out() {
        let (none, done) = (json!({"id": "x"}), json!({}));
        let asked = Passing::Request("device_add", &none);
        let answered = Passing::Answer("device_add", &none, &done);
        let (plug_asked, plugged) =
            (moment("plug asked").unwrap().sign, moment("plugged").unwrap().sign);
        assert!(plug_asked.is(asked) && !plug_asked.is(answered));
        assert!(plugged.is(answered) && !plugged.is(asked));
        assert!(!plugged.is(Passing::Event("device_add")));
    }

    #[test]
    fn paths_and_states_are_told_apart() {
        let activate = |path| json!({"path": path, "epoch": 3});
        let sign = moment("PV activated").unwrap().sign;
        assert!(sign.is(Passing::Answer(ACTIVATE, &activate("pv"), &json!({}))));
        assert!(!sign.is(Passing::Answer(ACTIVATE, &activate("vf"), &json!({}))));
        let joined = moment("joined").unwrap().sign;
        assert!(joined.is(Passing::Answer(JOIN_VF, &json!({}), &json!({"state": "ready"}))));
        assert!(!joined.is(Passing::Answer(JOIN_VF, &json!({}), &json!({"state": "joined"}))));
    }

    #[test]
    fn no_two_moments_are_the_same() {
        for (position, moment) in MOMENTS.iter().enumerate() {
            let same = |it: &&Moment| it.to_vf == moment.to_vf && it.sign == moment.sign;
            assert_eq!(MOMENTS.iter().position(|it| same(&it)), Some(position), "{}", moment.name);
        }
    }
}
