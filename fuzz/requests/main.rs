//! A host that means harm, or that is many hosts at once: any bytes and any requests, in any order, to
//! the agent of a guest whose links come, go and refuse.
//!
//! What the agent must hold to, whatever it is sent:
//! - no panic; one answer a line, a JSON object of bounded length, with the request's id;
//! - the PV NIC stays in the bond, and the bond has an active port as long as one of them works;
//! - an epoch that is over moves nothing, and what the VFs have counted never shrinks.
#![no_main]

use std::pin::pin;
use std::task::{Context, Poll, Waker};

use arbitrary::Arbitrary;
use flexvf_protocol::MacAddr;
use flexvf_protocol::agent::{
    ACTIVATE, ActivateArguments, COUNTERS, JOIN_VF, LEAVE_VF, Path, VfArguments,
};
use flexvf_protocol::frame::{Frame, LineSplitter, MAX_AGENT_LINE, RESET_BYTE};
use libfuzzer_sys::fuzz_target;
use qga_extension::agent::Agent;
use qga_extension::io::Change;
use qga_extension::logic::identity::Identity;
use qga_extension::logic::request::COMMANDS;
use qga_extension::model::{self, BOND, ModelKernel, PV, packets};
use serde_json::{Value, json};

/// What happens to the agent or its guest.
#[derive(Debug, Arbitrary)]
enum Deed<'a> {
    /// Bytes as they are.
    Bytes(&'a [u8]),
    /// A command with any arguments and id, JSON or not.
    Request {
        command: u8,
        arguments: &'a str,
        id: &'a str,
    },
    /// A well-formed switch.
    Switch {
        way: Way,
        vf: bool,
        epoch: u8,
    },
    Plug(bool),
    Unplug(bool),
    /// The bond's monitor looks.
    Tick,
    FailIn(u8),
    /// A VF that keeps its address.
    Stubborn(bool),
    Traffic(bool, u8),
}

#[derive(Debug, Clone, Copy, Arbitrary)]
enum Way {
    Join,
    ToVf,
    ToPv,
    Leave,
}

const MAX_DEEDS: usize = 64;
const MACS: [MacAddr; 2] = [model::VF_MAC, MacAddr::new([2, 0xf1, 0, 0, 0, 2])];

fuzz_target!(|deeds: Vec<Deed<'_>>| {
    let mut guest = Guest::new();
    for deed in deeds.into_iter().take(MAX_DEEDS) {
        guest.play(deed);
        guest.check();
    }
});

struct Guest {
    agent: Agent<ModelKernel>,
    splitter: LineSplitter,
    vfs: [Option<u32>; 2],
    counted: u64,
}

impl Guest {
    fn new() -> Self {
        let kernel = ModelKernel::bare();
        let mut agent = Agent::new(kernel, model::selector(), Identity::default());
        now(agent.create_bond("bond0")).expect("nothing is in the way of a bond");
        agent.kernel_mut().tick();
        let splitter = LineSplitter::new(MAX_AGENT_LINE).with_reset_byte().with_objects();
        Self { agent, splitter, vfs: [None; 2], counted: 0 }
    }

    fn play(&mut self, deed: Deed<'_>) {
        let kernel = self.agent.kernel_mut();
        match deed {
            Deed::Bytes(bytes) => self.send(bytes),
            Deed::Request { command, arguments, id } => {
                let command = COMMANDS[usize::from(command) % COMMANDS.len()];
                let line = format!(
                    "{{\"execute\":\"{command}\",\"arguments\":{arguments},\"id\":{id}}}\n"
                );
                self.send(line.as_bytes());
            }
            Deed::Switch { way, vf, epoch } => {
                self.switch(way, MACS[usize::from(vf)], epoch.into())
            }
            Deed::Plug(vf) => {
                let place = &mut self.vfs[usize::from(vf)];
                if place.is_none() {
                    *place = Some(kernel.plug(MACS[usize::from(vf)]));
                }
            }
            Deed::Unplug(vf) => {
                if let Some(index) = self.vfs[usize::from(vf)].take() {
                    let last = kernel.links[&index].stats.counters;
                    kernel.unplug(index);
                    now(self.agent.on_change(Change::Gone(index, Some(last))));
                }
            }
            Deed::Tick => kernel.tick(),
            Deed::FailIn(steps) => kernel.fails_in = steps.into(),
            Deed::Stubborn(vf) => kernel.stubborn.extend(self.vfs[usize::from(vf)]),
            Deed::Traffic(vf, more) => {
                let link = self.vfs[usize::from(vf)].and_then(|index| kernel.links.get_mut(&index));
                if let Some(link) = link {
                    let now = link.stats.counters.rx_packets + u64::from(more);
                    link.stats.counters = packets(now);
                }
            }
        }
    }

    fn switch(&mut self, way: Way, vf_mac: MacAddr, epoch: u64) {
        let activate = |path| json!(ActivateArguments { path, vf_mac, epoch });
        let (command, arguments) = match way {
            Way::Join => (JOIN_VF, json!(VfArguments { vf_mac, epoch })),
            Way::ToVf => (ACTIVATE, activate(Path::Vf)),
            Way::ToPv => (ACTIVATE, activate(Path::Pv)),
            Way::Leave => (LEAVE_VF, json!(VfArguments { vf_mac, epoch })),
        };
        let reached =
            self.ask(&json!({"execute": "__io.flexvf_status"}))["return"]["epoch"].clone();
        let steps = self.agent.kernel_mut().log.len();
        let answer = self.ask(&json!({"execute": command, "arguments": arguments, "id": epoch}));
        if reached.as_u64().is_some_and(|reached| epoch < reached) {
            assert!(answer["error"].is_object(), "{answer}");
            assert_eq!(self.agent.kernel_mut().log.len(), steps, "an epoch that is over");
        }
    }

    fn send(&mut self, bytes: &[u8]) {
        self.splitter.push(bytes);
        while let Some(frame) = self.splitter.next_frame() {
            self.answer(frame);
        }
    }

    fn ask(&mut self, request: &Value) -> Value {
        self.answer(Frame::Line(request.to_string().into_bytes())).expect("a line has an answer")
    }

    fn answer(&mut self, frame: Frame) -> Option<Value> {
        let request = match &frame {
            Frame::Line(line) => serde_json::from_slice::<Value>(line).ok(),
            Frame::TooLong => None,
            Frame::Reset => {
                assert!(now(self.agent.answer(frame)).is_empty());
                return None;
            }
        };
        let bytes = now(self.agent.answer(frame));
        let line = bytes.strip_prefix(&[RESET_BYTE]).unwrap_or(&bytes);
        let line = line.strip_suffix(b"\n").expect("an answer is a line");
        assert!(line.len() <= MAX_AGENT_LINE && !line.contains(&b'\n'));
        let answer: Value = serde_json::from_slice(line).expect("an answer is JSON");
        assert!(answer["return"].is_null() != answer["error"].is_null(), "{answer}");
        let id = request.as_ref().and_then(|request| request.get("id"));
        if let Some(id) = id.filter(|_| answer["error"]["desc"] != "the answer is too long") {
            assert_eq!(answer.get("id"), Some(id));
        }
        Some(answer)
    }

    fn check(&mut self) {
        let counters = self.ask(&json!({"execute": COUNTERS}));
        let vf = counters["return"]["vf"]["rx-packets"].as_u64().expect("counters are numbers");
        assert!(vf >= self.counted, "{vf} after {}", self.counted);
        self.counted = vf;
        let kernel = self.agent.kernel_mut();
        assert_eq!(kernel.links[&PV].controller, Some(BOND));
        assert!(kernel.links[&PV].up);
        let active = kernel.active().and_then(|index| kernel.links.get(&index));
        assert!(active.is_some_and(|port| port.is_ready()), "no path: {active:?}");
    }
}

/// The result of what never waits, since its kernel is in memory.
fn now<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(result) => result,
        Poll::Pending => unreachable!("the model's kernel answers at once"),
    }
}
