//! The agent against a kernel in memory: single claims, then random histories against a naive model.

use flexvf_protocol::agent::{self as wire, ActivateArguments, AgentStatus, Path, VfArguments};
use futures_util::FutureExt;
use proptest::prelude::*;

use super::*;
use crate::logic::plan::Step;
use crate::model::{self, BOND, ModelKernel, PV, PV_MAC, VF_MAC, packets};

/// An agent on a guest whose bond is complete.
fn agent() -> Agent<ModelKernel> {
    let mut agent = bare_agent();
    agent.create_bond("bond0").now_or_never().unwrap().unwrap();
    agent.kernel.tick();
    agent.kernel.log.clear();
    // What PV carries is never the VF path's.
    let pv = agent.kernel.links.get_mut(&PV).unwrap();
    pv.stats.counters = packets(1_000_000);
    agent
}

fn bare_agent() -> Agent<ModelKernel> {
    Agent::new(ModelKernel::bare(), model::selector(), Identity::default())
}

impl Agent<ModelKernel> {
    fn ask(&mut self, command: &str, arguments: impl serde::Serialize) -> Result<Value, String> {
        let line = json!({"execute": command, "arguments": arguments, "id": 1}).to_string();
        let bytes = self.answer(Frame::Line(line.into())).now_or_never().unwrap();
        let mut answer: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(answer["id"], 1);
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(answer["error"]["desc"].as_str().unwrap().to_owned()),
        }
    }

    fn vf(&mut self, command: &str, mac: MacAddr, epoch: u64) -> Result<VfState, String> {
        let arguments = VfArguments { vf_mac: mac, epoch };
        let answer = self.ask(command, arguments)?;
        Ok(serde_json::from_value::<VfAnswer>(answer).unwrap().state)
    }

    fn join(&mut self, mac: MacAddr) -> Result<VfState, String> {
        self.vf(wire::JOIN_VF, mac, 1)
    }

    fn leave(&mut self, mac: MacAddr) -> Result<VfState, String> {
        self.vf(wire::LEAVE_VF, mac, 1)
    }

    fn activate(&mut self, path: Path, mac: MacAddr) -> Result<Option<Path>, String> {
        let arguments = ActivateArguments { path, vf_mac: mac, epoch: 1 };
        let answer = self.ask(wire::ACTIVATE, arguments)?;
        let status: AgentStatus = serde_json::from_value(answer).unwrap();
        Ok(status.active)
    }

    fn vf_packets(&mut self) -> u64 {
        let counters = self.ask(wire::COUNTERS, json!({})).unwrap();
        serde_json::from_value::<AgentCounters>(counters).unwrap().vf.rx_packets
    }

    /// A VF that was plugged, joined and activated.
    fn with_active_vf(mut self) -> (Self, u32) {
        let index = self.kernel.plug(VF_MAC);
        self.join(VF_MAC).unwrap();
        self.kernel.tick();
        self.activate(Path::Vf, VF_MAC).unwrap();
        (self, index)
    }
}

#[test]
fn a_switch_there_and_back_moves_the_shared_mac_and_leaves_the_vf_down() {
    let mut agent = agent();
    assert_eq!(agent.join(VF_MAC), Ok(VfState::Absent));
    let vf = agent.kernel.plug(VF_MAC);
    assert_eq!(agent.join(VF_MAC), Ok(VfState::Joined));
    agent.kernel.tick();
    assert_eq!(agent.join(VF_MAC), Ok(VfState::Ready));
    assert_eq!(agent.kernel.mac(vf), Some(VF_MAC));
    assert_eq!(agent.activate(Path::Vf, VF_MAC), Ok(Some(Path::Vf)));
    assert_eq!(agent.kernel.mac(vf), Some(PV_MAC));
    assert_eq!(agent.join(VF_MAC), Ok(VfState::Active));
    assert_eq!(agent.activate(Path::Pv, VF_MAC), Ok(Some(Path::Pv)));
    assert_eq!(agent.leave(VF_MAC), Ok(VfState::Present));
    assert_eq!(agent.kernel.mac(PV), Some(PV_MAC));
    assert!(!agent.kernel.links[&vf].up);
}

#[test]
fn a_vf_is_not_activated_before_the_bond_sees_it_up() {
    let mut agent = agent();
    agent.kernel.plug(VF_MAC);
    agent.join(VF_MAC).unwrap();
    let refused = agent.activate(Path::Vf, VF_MAC).unwrap_err();
    assert!(refused.contains("not ready but Joined"), "{refused}");
    assert_eq!(agent.kernel.active(), Some(PV));
}

#[test]
fn leaving_makes_pv_active_before_the_vf_is_released() {
    let (mut agent, vf) = agent().with_active_vf();
    agent.kernel.log.clear();
    assert_eq!(agent.leave(VF_MAC), Ok(VfState::Present));
    let activate = Step::Activate { port: PV, bond: BOND };
    let expected = [activate, Step::Release(vf), Step::SetDown(vf)];
    assert_eq!(agent.kernel.log, expected);
}

#[test]
fn a_join_that_fails_half_way_leaves_the_vf_released_and_down() {
    for failing_step in 1..=3 {
        let mut agent = agent();
        let vf = agent.kernel.plug(VF_MAC);
        agent.kernel.links.get_mut(&vf).unwrap().up = true;
        agent.kernel.fails_in = failing_step;
        let error = agent.join(VF_MAC).unwrap_err();
        assert!(error.contains("os error 5"), "{error}");
        let link = &agent.kernel.links[&vf];
        assert_eq!(link.controller, None, "step {failing_step}");
        // Step 1 is what sets it down.
        assert!(failing_step == 1 || !link.up);
        assert_eq!(agent.join(VF_MAC), Ok(VfState::Joined));
    }
}

#[test]
fn a_vf_that_refuses_the_shared_mac_is_left_and_pv_has_it_again() {
    let mut agent = agent();
    let vf = agent.kernel.plug(VF_MAC);
    agent.kernel.stubborn.push(vf);
    agent.join(VF_MAC).unwrap();
    agent.kernel.tick();
    let error = agent.activate(Path::Vf, VF_MAC).unwrap_err();
    assert!(error.contains("trust"), "{error}");
    assert_eq!(agent.kernel.active(), Some(PV));
    assert_eq!(agent.kernel.mac(PV), Some(PV_MAC));
}

#[test]
fn a_vf_that_vanishes_while_active_leaves_its_packets_and_the_mac_behind() {
    let (mut agent, vf) = agent().with_active_vf();
    agent.kernel.links.get_mut(&vf).unwrap().stats.counters = packets(70);
    assert_eq!(agent.vf_packets(), 70);
    agent.kernel.unplug(vf);
    // As if the kernel had not given it back.
    agent.kernel.links.get_mut(&PV).unwrap().mac = Some(VF_MAC);
    let gone = Change::Gone(vf, Some(packets(75)));
    agent.on_change(gone).now_or_never().unwrap();
    assert_eq!(agent.vf_packets(), 75);
    assert_eq!(agent.kernel.mac(PV), Some(PV_MAC));
    assert_eq!(agent.join(VF_MAC), Ok(VfState::Absent));
}

#[test]
fn a_smaller_epoch_is_refused_and_changes_nothing() {
    let mut agent = agent();
    agent.kernel.plug(VF_MAC);
    assert_eq!(agent.vf(wire::LEAVE_VF, VF_MAC, 7), Ok(VfState::Present));
    let refused = agent.vf(wire::JOIN_VF, VF_MAC, 6).unwrap_err();
    assert_eq!(refused, "epoch 6 is over: 7 was seen");
    assert!(agent.kernel.log.is_empty());
    // The same one is a repetition.
    assert_eq!(agent.vf(wire::JOIN_VF, VF_MAC, 7), Ok(VfState::Joined));
}

#[test]
fn what_was_sent_to_an_agent_before_its_restart_is_refused_by_the_next_one() {
    let mut first = agent();
    first.kernel.plug(VF_MAC);
    assert_eq!(first.vf(wire::JOIN_VF, VF_MAC, 5), Ok(VfState::Joined));
    let identity = Identity { started_ns: 60_000_000_000, ..Identity::default() };
    let mut second = Agent::new(first.kernel, model::selector(), identity);
    let status: AgentStatus =
        serde_json::from_value(second.ask(wire::STATUS, json!({})).unwrap()).unwrap();
    assert_eq!((status.started_ns, status.epoch), (60_000_000_000, 60_000));
    assert!(second.vf(wire::LEAVE_VF, VF_MAC, 5).is_err());
    assert_eq!(second.vf(wire::LEAVE_VF, VF_MAC, status.epoch + 1), Ok(VfState::Present));
}

#[test]
fn counters_without_a_look_are_those_of_a_look() {
    let (mut agent, vf) = agent().with_active_vf();
    agent.kernel.links.get_mut(&vf).unwrap().stats.counters = packets(70);
    // The first one looks, since the links have changed; the second need not.
    let looked = agent.ask(wire::COUNTERS, json!({})).unwrap();
    assert!(agent.kernel.counters(&[vf]).is_some());
    let counted = agent.ask(wire::COUNTERS, json!({})).unwrap();
    for member in ["boot-id", "started-ns", "bond", "pv", "vf"] {
        assert_eq!(looked[member], counted[member], "{member}");
    }
    assert_eq!(counted["vf"]["rx-packets"], 70);
    agent.kernel.links.get_mut(&vf).unwrap().stats.counters = packets(90);
    assert_eq!(agent.vf_packets(), 90);
}

#[test]
fn a_bond_is_made_once_and_found_complete_by_the_next_agent() {
    let mut first = bare_agent();
    // The module's own bond0, which a script has already set up.
    let module = Step::CreateBond { name: "bond0".into(), mac: None };
    first.kernel.apply(&module).now_or_never();
    first.kernel.apply(&Step::SetUp(BOND)).now_or_never();
    first.create_bond("bond0").now_or_never().unwrap().unwrap();
    assert_eq!(first.kernel.active(), Some(PV));
    assert_eq!(first.kernel.mac(BOND), Some(PV_MAC));
    let mut kernel = first.kernel;
    kernel.log.clear();
    let mut second = Agent::new(kernel, model::selector(), Identity::default());
    second.create_bond("bond0").now_or_never().unwrap().unwrap();
    assert!(second.kernel.log.is_empty());
}

#[test]
fn a_bond_whose_setting_fails_once_is_made_in_the_next_round() {
    for failing_step in 1..=5 {
        let mut agent = bare_agent();
        agent.kernel.fails_in = failing_step;
        agent.create_bond("bond0").now_or_never().unwrap().unwrap();
        assert_eq!(agent.kernel.active(), Some(PV), "step {failing_step}");
    }
}

#[test]
fn without_a_bond_a_switch_is_refused_and_the_rest_is_served() {
    let mut agent = bare_agent();
    let refused = agent.join(VF_MAC).unwrap_err();
    assert!(refused.contains("--create-bond"), "{refused}");
    let status = agent.ask(wire::STATUS, json!({})).unwrap();
    assert_eq!(status["bond"], Value::Null);
    assert_eq!(agent.vf_packets(), 0);
}

#[test]
fn a_vf_that_belongs_to_something_else_is_not_taken() {
    let mut agent = agent();
    let vf = agent.kernel.plug(VF_MAC);
    agent.kernel.links.get_mut(&vf).unwrap().controller = Some(99);
    let refused = agent.join(VF_MAC).unwrap_err();
    assert!(refused.contains("index 99"), "{refused}");
    assert_eq!(agent.leave(VF_MAC), Ok(VfState::Present));
    assert_eq!(agent.kernel.links[&vf].controller, Some(99));
}

/// What may happen to a guest with two VFs.
#[derive(Debug, Clone, Copy)]
enum Op {
    Plug(usize),
    Unplug(usize),
    Tick,
    FailIn(usize),
    Traffic(usize, u64),
    Join(usize),
    ActivateVf(usize),
    ActivatePv(usize),
    Leave(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let vf = 0usize..2;
    prop_oneof![
        3 => vf.clone().prop_map(Op::Plug),
        1 => vf.clone().prop_map(Op::Unplug),
        4 => Just(Op::Tick),
        1 => (1usize..5).prop_map(Op::FailIn),
        2 => (vf.clone(), 0u64..100).prop_map(|(vf, count)| Op::Traffic(vf, count)),
        4 => vf.clone().prop_map(Op::Join),
        4 => vf.clone().prop_map(Op::ActivateVf),
        2 => vf.clone().prop_map(Op::ActivatePv),
        2 => vf.prop_map(Op::Leave),
    ]
}

const MACS: [MacAddr; 2] = [VF_MAC, MacAddr::new([2, 0xf1, 0, 0, 0, 2])];

/// The naive model: a state per VF, and what each operation makes of it.
struct Naive {
    states: [VfState; 2],
    packets: u64,
}

impl Naive {
    fn expect(&mut self, op: Op) -> Result<(), ()> {
        use VfState::{Absent, Active, Joined, Present, Ready};
        match op {
            Op::Plug(vf) if self.states[vf] == Absent => self.states[vf] = Present,
            Op::Unplug(vf) => self.states[vf] = Absent,
            Op::Tick => self.replace(Joined, Ready),
            Op::Traffic(vf, count) if matches!(self.states[vf], Joined | Ready | Active) => {
                self.packets += count;
            }
            Op::Join(vf) if self.states[vf] == Present => self.states[vf] = Joined,
            Op::ActivatePv(_) => self.replace(Active, Ready),
            Op::ActivateVf(vf) if matches!(self.states[vf], Ready | Active) => {
                self.replace(Active, Ready);
                self.states[vf] = Active;
            }
            Op::ActivateVf(_) => return Err(()),
            Op::Leave(vf) if self.states[vf] != Absent => self.states[vf] = Present,
            _ => {}
        }
        Ok(())
    }

    fn replace(&mut self, from: VfState, to: VfState) {
        for state in &mut self.states {
            if *state == from {
                *state = to;
            }
        }
    }
}

struct World {
    agent: Agent<ModelKernel>,
    indices: [Option<u32>; 2],
}

impl World {
    fn do_it(&mut self, op: Op) -> Result<(), String> {
        let agent = &mut self.agent;
        match op {
            Op::Plug(vf) if self.indices[vf].is_none() => {
                self.indices[vf] = Some(agent.kernel.plug(MACS[vf]));
            }
            Op::Unplug(vf) => {
                if let Some(index) = self.indices[vf].take() {
                    let last = agent.kernel.links[&index].stats.counters;
                    agent.kernel.unplug(index);
                    agent.on_change(Change::Gone(index, Some(last))).now_or_never();
                }
            }
            Op::Tick => agent.kernel.tick(),
            Op::FailIn(steps) => agent.kernel.fails_in = steps,
            Op::Traffic(vf, count) => {
                let link = self.indices[vf].and_then(|index| agent.kernel.links.get_mut(&index));
                if let Some(link) = link.filter(|link| link.controller.is_some()) {
                    link.stats.counters.rx_packets += count;
                }
            }
            Op::Join(vf) => drop(agent.join(MACS[vf])?),
            Op::ActivateVf(vf) => drop(agent.activate(Path::Vf, MACS[vf])?),
            Op::ActivatePv(vf) => drop(agent.activate(Path::Pv, MACS[vf])?),
            Op::Leave(vf) => drop(agent.leave(MACS[vf])?),
            Op::Plug(_) => {}
        }
        Ok(())
    }

    fn states(&mut self) -> [VfState; 2] {
        let view = self.agent.look().now_or_never().unwrap().unwrap();
        MACS.map(|mac| view.vf_state(mac))
    }
}

proptest! {
    #[test]
    fn any_history_keeps_the_guest_connected_and_agrees_with_the_model(
        ops in prop::collection::vec(op(), 1..60)
    ) {
        let mut world = World { agent: agent(), indices: [None; 2] };
        let mut naive = Naive { states: [VfState::Absent; 2], packets: 0 };
        for op in ops {
            let before = naive.states;
            let fault_pending = world.agent.kernel.fails_in > 0;
            let result = world.do_it(op);
            let expected = naive.expect(op);
            if result.is_err() && expected.is_ok() {
                prop_assert!(fault_pending, "{op:?}: {result:?}");
                // What failed half-way: a join is undone, anything else left the guest connected.
                let states = world.states();
                if let Op::Join(_) = op {
                    prop_assert_eq!(states, before);
                }
                naive.states = states;
            } else {
                prop_assert_eq!(result.is_ok(), expected.is_ok(), "{:?}", op);
                prop_assert_eq!(world.states(), naive.states, "{:?}", op);
            }
            let kernel = &world.agent.kernel;
            let active = kernel.active().and_then(|index| kernel.links.get(&index));
            prop_assert!(active.is_some_and(Link::is_ready), "{op:?}: no path");
            prop_assert_eq!(active.unwrap().mac, Some(PV_MAC));
            prop_assert_eq!(kernel.links[&PV].controller, Some(BOND));
            prop_assert_eq!(world.agent.vf_packets(), naive.packets);
        }
    }

    #[test]
    fn asking_twice_does_nothing_the_second_time(ops in prop::collection::vec(op(), 1..30)) {
        let mut world = World { agent: agent(), indices: [None; 2] };
        for op in ops {
            let _ = world.do_it(op);
            if matches!(op, Op::Join(_) | Op::ActivateVf(_) | Op::ActivatePv(_) | Op::Leave(_))
                && world.agent.kernel.fails_in == 0
            {
                let first = world.do_it(op);
                world.agent.kernel.log.clear();
                prop_assert_eq!(world.do_it(op), first);
                prop_assert_eq!(&world.agent.kernel.log, &[]);
            }
        }
    }
}
