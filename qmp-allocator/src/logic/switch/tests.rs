//! The switch, step by step, and against every order of events that a seeded world can bring.

use flexvf_protocol::agent::VfState;

use super::*;
use proptest::prelude::*;

const LIMITS: Limits = Limits {
    join: Duration::from_secs(10),
    drain: Duration::from_millis(200),
    unplug: Duration::from_secs(20),
    unplug_repeat: Duration::from_secs(6),
};

const fn at(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

fn done(report: Report) -> Input {
    Input::Done(report)
}

fn ready() -> Input {
    done(Report::Vf(VfState::Ready))
}

fn on_vf() -> Tenure {
    let (mut tenure, first) = Tenure::begin(at(0), LIMITS, "rank 1".into());
    assert_eq!(first, Action::Prepare);
    assert_eq!(tenure.on(at(10), done(Report::Ok)), Some(Action::Plug));
    assert_eq!(tenure.on(at(500), done(Report::Ok)), Some(Action::Join));
    assert_eq!(tenure.on(at(510), done(Report::Vf(VfState::Absent))), None);
    assert_eq!(tenure.on(tenure.wake_at().unwrap(), Input::Tick), Some(Action::Join));
    assert_eq!(tenure.on(at(1000), ready()), Some(Action::Forward(Target::Both)));
    assert_eq!(tenure.on(at(1005), done(Report::Ok)), Some(Action::Activate(Path::Vf)));
    assert_eq!(
        tenure.on(at(1010), done(Report::Ok)),
        Some(Action::Forward(Target::Only(Path::Vf)))
    );
    assert_eq!(tenure.on(at(1020), done(Report::Ok)), None);
    assert_eq!(tenure.phase(), Phase::OnVf);
    tenure
}

fn unplugging() -> Tenure {
    let mut tenure = on_vf();
    tenure.take_record();
    let take = Input::Take { reason: "its turn is over".into() };
    assert_eq!(tenure.on(at(5000), take), Some(Action::Forward(Target::Both)));
    assert_eq!(tenure.on(at(5010), done(Report::Ok)), Some(Action::Activate(Path::Pv)));
    assert_eq!(
        tenure.on(at(5015), done(Report::Ok)),
        Some(Action::Forward(Target::Only(Path::Pv)))
    );
    assert_eq!(tenure.on(at(5020), done(Report::Ok)), None);
    assert_eq!(tenure.on(at(5219), Input::Tick), None);
    assert_eq!(tenure.on(at(5220), Input::Tick), Some(Action::Leave));
    assert_eq!(tenure.on(at(5230), done(Report::Vf(VfState::Present))), Some(Action::Unplug));
    assert_eq!(tenure.on(at(5240), done(Report::Ok)), None);
    tenure
}

#[test]
fn the_way_there_and_back_takes_its_steps_in_order_and_tells_their_times() {
    let record = on_vf().take_record().unwrap();
    assert_eq!((record.direction, record.outcome), (Direction::ToVf, Outcome::Done));
    let names: Vec<_> = record.steps_ms.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["prepare", "plug", "join", "overlap", "activate", "forward"]);
    assert_eq!(record.total_ms, 1020.0);

    let mut tenure = unplugging();
    assert_eq!(tenure.on(at(6000), Input::Deleted), Some(Action::Sanitise));
    assert_eq!(tenure.on(at(6100), done(Report::Ok)), None);
    assert_eq!(tenure.phase(), Phase::Ended);
    let record = tenure.take_record().unwrap();
    assert_eq!((record.direction, record.reason.as_str()), (Direction::ToPv, "its turn is over"));
    assert_eq!(record.total_ms, 1100.0);
    assert_eq!(tenure.take_record(), None);
}

#[test]
fn a_vf_is_not_reused_before_device_deleted() {
    let mut tenure = unplugging();
    // Asked again, but never inside the five seconds in which a second request cancels the first.
    assert_eq!(tenure.on(at(10_000), Input::Tick), None);
    assert_eq!(tenure.on(at(11_230), Input::Tick), Some(Action::Unplug));
    tenure.on(at(11_240), done(Report::Refused("already in the process of unplug".into())));
    assert_eq!(tenure.on(at(25_230), Input::Tick), Some(Action::Look));
    assert_eq!(tenure.on(at(25_240), done(Report::DevicePresent(true))), None);
    assert!(
        matches!(tenure.phase(), Phase::Quarantined(reason) if reason.contains("DEVICE_DELETED"))
    );
    assert!(matches!(tenure.take_record().unwrap().outcome, Outcome::Quarantined(_)));

    assert_eq!(tenure.on(at(900_000), Input::Deleted), Some(Action::Sanitise));
    tenure.on(at(900_010), done(Report::Ok));
    assert_eq!(tenure.phase(), Phase::Ended);
}

#[test]
fn a_plug_that_may_have_happened_is_unplugged() {
    let (mut tenure, _) = Tenure::begin(at(0), LIMITS, String::new());
    tenure.on(at(1), done(Report::Ok));
    assert_eq!(tenure.on(at(9000), done(Report::Unknown("timeout".into()))), Some(Action::Unplug));
    assert_eq!(tenure.on(at(9001), done(Report::DevicePresent(false))), Some(Action::Sanitise));
    tenure.on(at(9002), done(Report::Ok));
    assert_eq!(tenure.take_record().unwrap().outcome, Outcome::Undone("timeout".into()));
}

#[test]
fn a_refused_plug_is_undone_without_an_unplug() {
    let (mut tenure, _) = Tenure::begin(at(0), LIMITS, String::new());
    tenure.on(at(1), done(Report::Ok));
    let refused = Report::Refused("slot 0 occupied".into());
    assert_eq!(tenure.on(at(2), done(refused)), Some(Action::Sanitise));
    tenure.on(at(3), done(Report::Ok));
    assert_eq!(tenure.take_record().unwrap().outcome, Outcome::Undone("slot 0 occupied".into()));
}

#[test]
fn a_guest_that_never_takes_the_vf_in_gives_it_back() {
    let (mut tenure, _) = Tenure::begin(at(0), LIMITS, String::new());
    tenure.on(at(1), done(Report::Ok));
    tenure.on(at(2), done(Report::Ok));
    let late = done(Report::Vf(VfState::Joined));
    assert_eq!(tenure.on(at(10_003), late), Some(Action::Forward(Target::Both)));
    assert_eq!(tenure.phase(), Phase::ToPv);
}

#[test]
fn a_silent_agent_does_not_stop_the_way_back_and_frames_go_both_ways_until_its_end() {
    let mut tenure = on_vf();
    tenure.on(at(5000), Input::Take { reason: String::new() });
    let silent = || done(Report::Unknown("silent".into()));
    assert_eq!(tenure.on(at(5010), done(Report::Ok)), Some(Action::Activate(Path::Pv)));
    assert_eq!(tenure.on(at(7010), silent()), None);
    assert_eq!(tenure.on(at(8000), Input::Tick), Some(Action::Leave));
    assert_eq!(tenure.on(at(9000), silent()), Some(Action::Unplug));
}

#[test]
fn a_host_that_cannot_send_frames_to_pv_keeps_the_guest_on_its_vf_and_tries_again() {
    let mut tenure = on_vf();
    tenure.take_record();
    let both = Some(Action::Forward(Target::Both));
    assert_eq!(tenure.on(at(5000), Input::Take { reason: String::new() }), both);
    assert_eq!(tenure.on(at(5010), done(Report::Refused("no such TAP".into()))), None);
    assert_eq!(tenure.phase(), Phase::Quarantined("no such TAP".into()));
    assert!(matches!(tenure.take_record().unwrap().outcome, Outcome::Quarantined(_)));
    assert_eq!(tenure.on(tenure.wake_at().unwrap(), Input::Tick), both);
    assert_eq!(tenure.on(at(20_000), done(Report::Ok)), Some(Action::Activate(Path::Pv)));
}

#[test]
fn a_refused_preparation_is_over_at_once_because_the_vf_is_anothers() {
    let (mut tenure, _) = Tenure::begin(at(0), LIMITS, String::new());
    assert_eq!(tenure.on(at(1), done(Report::Refused("in use".into()))), None);
    assert_eq!(tenure.phase(), Phase::Ended);
    assert_eq!(tenure.take_record().unwrap().outcome, Outcome::Undone("in use".into()));

    let (mut tenure, _) = Tenure::begin(at(0), LIMITS, String::new());
    let half = done(Report::Unknown("bound, but its address cannot be set".into()));
    assert_eq!(tenure.on(at(1), half), Some(Action::Sanitise));
}

#[test]
fn a_guest_that_was_reset_has_both_paths_and_is_joined_again_when_its_agent_is_there() {
    let mut tenure = on_vf();
    let both = Some(Action::Forward(Target::Both));
    assert_eq!(tenure.on(at(5000), Input::Reset), both);
    assert_eq!(tenure.on(at(5010), done(Report::Ok)), None);
    assert_eq!(tenure.phase(), Phase::OnVf, "it may be taken meanwhile");
    assert_eq!(tenure.on(at(40_000), Input::Uses(Some(Path::Pv))), Some(Action::Join));
    assert_eq!(tenure.on(at(40_500), ready()), both);
}

#[test]
fn a_bond_that_left_the_vf_is_led_back_but_not_more_often_than_a_liar_may_ask() {
    let mut tenure = on_vf();
    assert_eq!(tenure.on(at(1500), Input::Uses(Some(Path::Vf))), None);
    assert_eq!(tenure.on(at(1600), Input::Uses(Some(Path::Pv))), None);
    let led = tenure.on(at(12_000), Input::Uses(Some(Path::Pv)));
    assert_eq!(led, Some(Action::Forward(Target::Both)));
    assert_eq!(tenure.on(at(12_010), done(Report::Ok)), Some(Action::Join));
}

#[test]
fn a_late_event_of_an_earlier_device_ends_in_an_orderly_way_back() {
    let mut tenure = on_vf();
    assert_eq!(tenure.on(at(5000), Input::Deleted), Some(Action::Sanitise));
    let there = done(Report::DevicePresent(true));
    assert_eq!(tenure.on(at(5010), there), Some(Action::Forward(Target::Both)));
    assert_eq!(tenure.on(at(5020), done(Report::Ok)), Some(Action::Activate(Path::Pv)));
}

#[test]
fn the_end_of_qemu_frees_the_vf_at_any_step() {
    let mut tenure = on_vf();
    assert_eq!(tenure.on(at(5000), Input::Exited), Some(Action::Sanitise));

    let (mut tenure, _) = Tenure::begin(at(0), LIMITS, String::new());
    assert_eq!(tenure.on(at(1), Input::Exited), None, "an action is still out");
    assert_eq!(tenure.on(at(2), done(Report::Ok)), Some(Action::Sanitise));
    tenure.on(at(3), done(Report::Ok));
    assert_eq!(tenure.phase(), Phase::Ended);
}

#[test]
fn an_adopted_vf_is_joined_again_at_once_or_when_the_agent_is_heard_of() {
    let (mut tenure, action) = Tenure::adopt(at(0), LIMITS, true);
    assert_eq!(action, Some(Action::Join));
    let active = done(Report::Vf(VfState::Active));
    assert_eq!(tenure.on(at(5), active), Some(Action::Forward(Target::Both)));
    let (mut tenure, action) = Tenure::adopt(at(0), LIMITS, false);
    assert_eq!((action, tenure.phase()), (None, Phase::OnVf));
    assert_eq!(tenure.on(at(10), Input::Uses(Some(Path::Vf))), Some(Action::Join));
}

#[test]
fn a_host_that_cannot_restore_the_vf_keeps_trying() {
    let mut tenure = on_vf();
    tenure.on(at(5000), Input::Exited);
    tenure.on(at(5001), done(Report::Refused("EBUSY".into())));
    assert_eq!(tenure.phase(), Phase::Quarantined("EBUSY".into()));
    assert_eq!(tenure.on(tenure.wake_at().unwrap(), Input::Tick), Some(Action::Sanitise));
    tenure.on(at(20_000), done(Report::Ok));
    assert_eq!(tenure.phase(), Phase::Ended);
}

fn inputs() -> impl Strategy<Value = Input> {
    let state = prop_oneof![
        Just(VfState::Absent),
        Just(VfState::Present),
        Just(VfState::Joined),
        Just(VfState::Ready),
        Just(VfState::Active),
    ];
    prop_oneof![
        4 => Just(done(Report::Ok)),
        3 => state.prop_map(|state| done(Report::Vf(state))),
        2 => any::<bool>().prop_map(|present| done(Report::DevicePresent(present))),
        1 => Just(done(Report::Refused("no".into()))),
        1 => Just(done(Report::Unknown("late".into()))),
        1 => Just(Input::Deleted),
        1 => Just(Input::Exited),
        1 => Just(Input::Reset),
        2 => prop_oneof![Just(None), Just(Some(Path::Pv)), Just(Some(Path::Vf))].prop_map(Input::Uses),
        2 => Just(Input::Take { reason: "take".into() }),
        6 => Just(Input::Tick),
    ]
}

proptest! {
    /// A naive model of QEMU beside it: the device may be there from the plug on until QEMU says
    /// otherwise, and as long as it may, nothing restores the VF and the tenure does not end.
    #[test]
    fn nothing_lets_go_of_a_vf_that_qemu_may_hold(
        steps in proptest::collection::vec((inputs(), 0u64..4000), 1..120)
    ) {
        let (mut tenure, first) = Tenure::begin(at(0), LIMITS, String::new());
        let (mut out, mut may_hold, mut ended) = (Some(first), false, false);
        let mut now = at(0);
        for (input, pause) in steps {
            now += at(pause);
            let answer = matches!(input, Input::Done(_));
            if answer && out.is_none() {
                continue;
            }
            match (&input, out) {
                (Input::Done(Report::Refused(_)), Some(Action::Plug)) => may_hold = false,
                (Input::Done(Report::DevicePresent(false)), Some(Action::Look | Action::Unplug)) => may_hold = false,
                (Input::Exited, _) => may_hold = false,
                // Of an earlier device, while this one is not plugged yet.
                (Input::Deleted, waiting) => may_hold = may_hold && waiting == Some(Action::Plug),
                _ => {}
            }
            if answer {
                out = None;
            }
            if let Some(action) = tenure.on(now, input) {
                prop_assert_eq!(out, None, "two actions at once");
                prop_assert!(!(action == Action::Sanitise && may_hold), "restored while QEMU may hold it");
                prop_assert!(!ended, "an action after the end");
                may_hold |= action == Action::Plug;
                out = Some(action);
            }
            ended = tenure.phase() == Phase::Ended;
            prop_assert!(!(ended && may_hold));
            prop_assert!(
                ended || out.is_some() || tenure.wake_at().is_some() || tenure.phase() == Phase::OnVf,
                "stuck in {:?}", tenure
            );
        }
    }
}
