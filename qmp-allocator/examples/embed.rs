//! FlexVF's engine in a program of your own: no daemon, no QMP, no files.
//!
//! A VMM host that manages its VMs itself needs three things from this crate:
//!
//! - [`Engine`]: all decisions. It is given the time and [`Event`]s, and answers with [`Command`]s. It
//!   has no clock, no I/O and no threads, so it fits into any loop.
//! - [`Hypervisor`]: what your VMM has to be able to do, in four calls. Here [`TinyVmm`] does them in
//!   memory.
//! - [`carry_out`]: the commands that are the VMM's, carried out over that trait.
//!
//! What remains is yours: to prepare a VF on the host ([`Action::Prepare`], [`Action::Sanitise`],
//! [`Action::Forward`]), to speak with the guest ([`Action::Join`], [`Action::Activate`],
//! [`Action::Leave`]), and to count packets ([`Event::Sampled`]). Here all of that succeeds at once.
//!
//! Time is virtual, so an hour is played in a moment: `cargo run -p qmp-allocator --example embed`

use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use std::time::Duration;

use flexvf_protocol::agent::VfState;
use flexvf_protocol::{PciAddress, VmName};
use qmp_allocator::logic::engine::{
    AgentView, Command, Engine, Event, Held, Settings, SwitchEnd, VmSpec,
};
use qmp_allocator::logic::policy::tenant::Tenants;
use qmp_allocator::logic::policy::{Strategy, Tuning};
use qmp_allocator::logic::rate::{Count, Sample, Trust};
use qmp_allocator::logic::switch::{Action, Limits, Report};
use qmp_allocator::logic::vf::VfId;
use qmp_allocator::vmm::{
    Answer, Backend, Hypervisor, Observation, Plug, PluggedDevice, PluggedKind, Port, PortState,
    Unplug, VmmError, carry_out,
};

const POOL: &str = "default";
const PORT: &str = "slot0";
const SAMPLE_EVERY: Duration = Duration::from_secs(10);

/// A VMM that plugs and unplugs at once. A real one asks its guest to give a device up, and reports
/// [`Event::Deleted`] when the guest has.
#[derive(Default)]
struct TinyVmm {
    plugged: Mutex<BTreeMap<String, PluggedDevice>>,
}

impl TinyVmm {
    fn devices(&self) -> BTreeMap<String, PluggedDevice> {
        self.plugged.lock().map(|plugged| plugged.clone()).unwrap_or_default()
    }

    fn change<T>(&self, change: impl FnOnce(&mut BTreeMap<String, PluggedDevice>) -> T) -> T {
        change(&mut self.plugged.lock().unwrap_or_else(std::sync::PoisonError::into_inner))
    }
}

impl Hypervisor for TinyVmm {
    fn plug<'a>(&'a self, plug: &'a Plug) -> Answer<'a, ()> {
        Box::pin(async {
            let Backend::Vfio { host, .. } = plug.backend else {
                return Err(VmmError::Other("this VMM has no NIC models".into()));
            };
            if !self.devices().is_empty() {
                return Err(VmmError::PortOccupied { port: PORT.into(), by: "a VF".into() });
            }
            let device = PluggedDevice {
                id: plug.device_id.clone(),
                port: Some(plug.port.clone()),
                kind: PluggedKind::Vfio { host: Some(host) },
            };
            self.change(|plugged| plugged.insert(device.id.clone(), device));
            Ok(())
        })
    }

    fn unplug<'a>(&'a self, device_id: &'a str) -> Answer<'a, Unplug> {
        Box::pin(async {
            let gone = self.change(|plugged| plugged.remove(device_id)).is_none();
            Ok(if gone { Unplug::Gone } else { Unplug::Asked })
        })
    }

    fn forget<'a>(&'a self, _: &'a str) -> Answer<'a, ()> {
        Box::pin(async { Ok(()) })
    }

    fn observe<'a>(&'a self, ports: &'a [String]) -> Answer<'a, Observation> {
        Box::pin(async {
            let devices: Vec<_> = self.devices().into_values().collect();
            let state = match devices.first() {
                Some(device) => PortState::Occupied { by: device.id.clone() },
                None => PortState::Empty,
            };
            let port = |id: &String| Port { id: id.clone(), state: state.clone() };
            Ok(Observation { devices, ports: ports.iter().map(port).collect() })
        })
    }
}

/// The program around the engine.
struct Program {
    engine: Engine,
    vms: BTreeMap<VmName, Vm>,
    now: Duration,
    ends: Vec<SwitchEnd>,
}

#[derive(Default)]
struct Vm {
    vmm: TinyVmm,
    rate_pps: u64,
    packets: u64,
}

impl Program {
    fn new(vfs: &[PciAddress], names: &[&str]) -> Self {
        let settings = Settings {
            strategy: Strategy::Activity,
            tuning: Tuning::default(),
            tenants: Tenants::default(),
            interval: Duration::from_secs(300),
            max_concurrent_switches: 4,
            limits: Limits {
                join: Duration::from_secs(15),
                drain: Duration::from_millis(200),
                unplug: Duration::from_secs(20),
                unplug_repeat: Duration::from_secs(6),
            },
            first_look: Duration::from_secs(10),
            link_mbps: 10_000,
        };
        let now = Duration::ZERO;
        let engine = Engine::new(now, settings, &[POOL.to_owned()], None);
        let names = names.iter().filter_map(|name| name.parse().ok());
        let vms = names.map(|name| (name, Vm::default())).collect();
        let mut program = Self { engine, vms, now, ends: Vec::new() };
        let vfs = vfs.iter().map(VfId::new).collect();
        program.on(Event::Pool { pool: POOL.into(), vfs, problem: None });
        for vm in program.vms.keys().cloned().collect::<Vec<_>>() {
            let spec = VmSpec { pool: POOL.into(), ..VmSpec::default() };
            program.on(Event::Registered { vm: vm.clone(), spec });
            program.on(Event::Agent { vm: vm.clone(), view: AgentView::Ready { active: None } });
            program.observe(&vm);
        }
        program
    }

    fn set_rate(&mut self, name: &str, rate_pps: u64) {
        if let Some((_, vm)) = self.vms.iter_mut().find(|(vm, _)| vm.as_str() == name) {
            vm.rate_pps = rate_pps;
        }
    }

    /// Who has a VF, by the VMMs' own account.
    fn holders(&self) -> Vec<&str> {
        let holders = self.vms.iter().filter(|(_, vm)| !vm.vmm.devices().is_empty());
        holders.map(|(name, _)| name.as_str()).collect()
    }

    /// Wakes the engine when it wants to be woken, and samples all VMs now and then.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        let mut sample_at = self.now + SAMPLE_EVERY;
        while self.now < end {
            let wake = self.engine.wake_at(self.now).max(self.now + Duration::from_millis(1));
            self.now = wake.min(sample_at).min(end);
            if self.now == sample_at {
                sample_at += SAMPLE_EVERY;
                self.sample();
            }
            self.on(Event::Tick);
        }
    }

    fn sample(&mut self) {
        let at = self.now;
        let mut events = Vec::new();
        for (name, vm) in &mut self.vms {
            vm.packets += vm.rate_pps * SAMPLE_EVERY.as_secs();
            let pv = Some(Count { epoch: 0, packets: vm.packets, trust: Trust::Host });
            let sample = Sample { at, pv, vf: None };
            events.push(Event::Sampled { vm: name.clone(), sample });
        }
        events.into_iter().for_each(|event| self.on(event));
    }

    /// The engine's only way in and out.
    fn on(&mut self, event: Event) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            for command in self.engine.on(self.now, event) {
                match command {
                    Command::Act { vm, vf, port, action } => {
                        events.extend(self.act(vm, vf, port, action));
                    }
                    Command::Observe(vm) => events.extend(self.observed(&vm)),
                    Command::Tell(end) => self.ends.push(end),
                    // To be written to a disk and given to `Engine::new` at the next start.
                    Command::Save(_) | Command::Forget(_) => {}
                }
            }
        }
    }

    fn act(&self, vm: VmName, vf: VfId, port: String, action: Action) -> Vec<Event> {
        let (Some(it), Ok(host)) = (self.vms.get(&vm), vf.as_str().parse()) else {
            return Vec::new();
        };
        let backend = Backend::Vfio { host, node: None };
        let plug = Plug { device_id: backend.device_id(), port, backend, failover: None };
        let report = now_or_never(carry_out(&it.vmm, action, &plug)).flatten();
        let report = report.unwrap_or(match action {
            Action::Join => Report::Vf(VfState::Ready),
            Action::Leave => Report::Vf(VfState::Present),
            _ => Report::Ok,
        });
        let mut events = vec![Event::Done { vm: vm.clone(), report }];
        if action == Action::Unplug {
            events.push(Event::Deleted { vm, vf });
        }
        events
    }

    fn observe(&mut self, vm: &VmName) {
        if let Some(event) = self.observed(vm) {
            self.on(event);
        }
    }

    fn observed(&self, vm: &VmName) -> Option<Event> {
        let ports = [PORT.to_owned()];
        let seen = now_or_never(self.vms.get(vm)?.vmm.observe(&ports))?.ok()?;
        let held = seen.devices.first().and_then(|device| match &device.kind {
            PluggedKind::Vfio { host } => {
                Some(Held { vf: VfId::new(host.as_ref()?), port: device.port.clone()? })
            }
            PluggedKind::Nic { .. } => None,
        });
        let empty = seen.ports.into_iter().find(|port| port.state == PortState::Empty);
        let free_port = empty.map(|port| port.id);
        Some(Event::Observed { vm: vm.clone(), held, free_port })
    }
}

/// [`TinyVmm`] answers at once. With a real VMM this is an `await` in a task of the VM's own, so that one
/// that does not answer delays nobody else.
fn now_or_never<T>(answer: impl Future<Output = T>) -> Option<T> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::pin!(answer).poll(&mut context) {
        std::task::Poll::Ready(answer) => Some(answer),
        std::task::Poll::Pending => None,
    }
}

/// One VF and three VMs, whose load moves from the first to the last.
fn play() -> Program {
    let vf = "0000:01:10.0".parse().into_iter().collect::<Vec<_>>();
    let mut program = Program::new(&vf, &["cache", "db", "web"]);
    program.set_rate("cache", 90_000);
    program.set_rate("web", 100);
    program.run(Duration::from_secs(620));
    println!("after 10 minutes: {:?}", program.holders());
    program.set_rate("cache", 0);
    program.set_rate("web", 90_000);
    program.run(Duration::from_secs(620));
    println!("after 20 minutes: {:?}", program.holders());
    program
}

fn main() {
    for SwitchEnd { vm, vf, record, .. } in play().ends {
        println!("{vm} {:?} with {vf}: {}", record.direction, record.reason);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vf_goes_where_the_load_is() {
        let program = play();
        assert_eq!(program.holders(), ["web"]);
        let switches: Vec<_> = program.ends.iter().map(|end| end.vm.as_str()).collect();
        assert_eq!(switches, ["cache", "cache", "web"]);
    }
}
