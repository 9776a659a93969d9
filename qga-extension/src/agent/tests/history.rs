//! Any history of a guest with two VFs, against a naive model.

use proptest::prelude::*;

use super::*;

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
