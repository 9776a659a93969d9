//! VMs, QEMUs and guests that do as they are told, a little later; time is a number.

use std::collections::{BTreeMap, BTreeSet};

use flexvf_protocol::agent::{Path, VfState};

use super::*;
use crate::logic::policy::tenant::Tenants;
use crate::logic::policy::{Strategy, Tuning};
use crate::logic::rate::{Count, Sample, Trust};
use crate::logic::switch::{Action, Limits, Report};

pub(super) struct World {
    pub(super) engine: Engine,
    pub(super) now: Duration,
    pub(super) ends: Vec<SwitchEnd>,
    pub(super) refuses_unplug: Option<VmName>,
    pub(super) broken_vf: Option<VfId>,
    pub(super) unpluggable_vf: Option<VfId>,
    vfs: usize,
    saved: Option<Saved>,
    plugged: BTreeMap<VmName, Held>,
    joined: BTreeSet<VmName>,
    dead: BTreeSet<VmName>,
    rates: BTreeMap<VmName, (f64, f64)>,
    due: Vec<(Duration, u64, Event)>,
    sequence: u64,
}

const LATENCY: Duration = Duration::from_millis(100);
const SAMPLE: Duration = Duration::from_secs(1);

impl World {
    pub(super) fn new(strategy: Strategy, vms: usize, vfs: usize) -> Self {
        let now = Duration::from_secs(1000);
        let mut world = Self {
            engine: Engine::new(now, settings(strategy), &["default".into()], None),
            now,
            ends: Vec::new(),
            refuses_unplug: None,
            broken_vf: None,
            unpluggable_vf: None,
            vfs,
            saved: None,
            plugged: BTreeMap::new(),
            joined: BTreeSet::new(),
            dead: BTreeSet::new(),
            rates: (0..vms).map(|i| (name(i), (0.0, 0.0))).collect(),
            due: Vec::new(),
            sequence: 0,
        };
        world.introduce();
        world
    }

    pub(super) fn interval(&self) -> Duration {
        self.engine.settings.interval
    }

    pub(super) fn set_rates(&mut self, rates: &[f64]) {
        for (i, rate) in rates.iter().enumerate() {
            self.rates.get_mut(&name(i)).unwrap().0 = *rate;
        }
    }

    /// VMs whose guest really has a joined VF and whose engine says so too.
    pub(super) fn on_vf(&self) -> Vec<String> {
        let believed = self.engine.vms.iter().filter(|(_, vm)| vm.on_vf());
        let both = believed
            .filter(|(name, _)| self.plugged.contains_key(*name) && self.joined.contains(*name));
        both.map(|(name, _)| name.to_string()).collect()
    }

    pub(super) fn kill_qemu(&mut self, vm: &str) {
        let vm: VmName = vm.parse().unwrap();
        self.plugged.remove(&vm);
        self.joined.remove(&vm);
        self.dead.insert(vm.clone());
        self.event(Event::Lost { vm, exited: true, reason: "QEMU ended".into() });
    }

    /// Whatever was under way in the daemon is gone; the world stays.
    pub(super) fn restart_daemon(&mut self) {
        self.due.clear();
        let settings = self.engine.settings.clone();
        self.engine = Engine::new(self.now, settings, &["default".into()], self.saved.clone());
        self.introduce();
    }

    pub(super) fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let wake = self.engine.wake_at(self.now).max(self.now + Duration::from_millis(1));
            let next_event = self.due.iter().map(|(at, n, _)| (*at, *n)).min();
            match next_event {
                Some((at, n)) if at <= wake && at <= end => {
                    self.now = self.now.max(at);
                    let index = self.due.iter().position(|(_, m, _)| *m == n).unwrap();
                    let (_, _, event) = self.due.swap_remove(index);
                    self.event(event);
                }
                _ if wake <= end => {
                    self.now = wake;
                    self.event(Event::Tick);
                }
                _ => break,
            }
        }
        self.now = end;
    }

    pub(super) fn event(&mut self, event: Event) {
        if let Event::Sampled { vm, .. } = &event {
            let (rate, count) = self.rates[vm];
            self.rates.insert(vm.clone(), (rate, count + rate * SAMPLE.as_secs_f64()));
            self.sample_later(vm.clone(), SAMPLE);
        }
        for command in self.engine.on(self.now, event) {
            match command {
                Command::Act { vm, vf, port, action } => self.act(vm, Held { vf, port }, action),
                Command::Observe(vm) => self.observe_later(vm),
                Command::Save(saved) => self.saved = Some(saved),
                Command::Tell(end) => self.ends.push(end),
                Command::Forget(_) => {}
            }
        }
        let mut held: Vec<_> = self.plugged.values().map(|held| &held.vf).collect();
        held.sort();
        assert!(
            held.windows(2).all(|pair| pair[0] != pair[1]),
            "a VF is in two places: {:?}",
            self.plugged
        );
    }

    fn introduce(&mut self) {
        let vfs = (0..self.vfs).map(|i| VfId::new(format!("vf{i}"))).collect();
        self.event(Event::Pool { pool: "default".into(), vfs, problem: None });
        let names: Vec<VmName> = self.rates.keys().cloned().collect();
        for vm in &names {
            let spec = VmSpec { pool: "default".into(), ..VmSpec::default() };
            self.event(Event::Registered { vm: vm.clone(), spec });
        }
        for vm in names {
            self.later(
                LATENCY,
                Event::Agent { vm: vm.clone(), view: AgentView::Ready { active: None } },
            );
            self.sample_later(vm.clone(), LATENCY);
            self.observe_later(vm);
        }
    }

    fn observe_later(&mut self, vm: VmName) {
        if self.dead.contains(&vm) {
            return;
        }
        let held = self.plugged.get(&vm).cloned();
        let free_port = held.is_none().then(|| "port0".to_owned());
        self.later(LATENCY, Event::Observed { vm, held, free_port });
    }

    fn sample_later(&mut self, vm: VmName, pause: Duration) {
        let (rate, count) = self.rates[&vm];
        let packets = (count + rate * SAMPLE.as_secs_f64()) as u64;
        let pv = Some(Count { epoch: 1, packets, trust: Trust::Host });
        self.later(
            pause,
            Event::Sampled { vm, sample: Sample { at: self.now + pause, pv, vf: None } },
        );
    }

    /// The effect is at once, the report a little later: the daemon may be killed between them.
    fn act(&mut self, vm: VmName, held: Held, action: Action) {
        if self.dead.contains(&vm) && action != Action::Sanitise {
            return self
                .later(LATENCY, Event::Done { vm, report: Report::Unknown("no QEMU".into()) });
        }
        let report = match action {
            Action::Prepare if self.broken_vf.as_ref() == Some(&held.vf) => {
                Report::Refused("in use by another".into())
            }
            Action::Plug if self.unpluggable_vf.as_ref() == Some(&held.vf) => {
                Report::Refused("the TAP is busy".into())
            }
            Action::Plug => {
                self.plugged.insert(vm.clone(), held);
                Report::Ok
            }
            Action::Join => Report::Vf(VfState::Ready),
            Action::Activate(Path::Vf) => {
                self.joined.insert(vm.clone());
                Report::Ok
            }
            Action::Unplug if !self.plugged.contains_key(&vm) => Report::DevicePresent(false),
            Action::Unplug => {
                if self.refuses_unplug.as_ref() != Some(&vm) {
                    self.plugged.remove(&vm);
                    self.joined.remove(&vm);
                    self.later(3 * LATENCY, Event::Deleted { vm: vm.clone(), vf: held.vf });
                }
                Report::Ok
            }
            Action::Look => Report::DevicePresent(self.plugged.contains_key(&vm)),
            _ => Report::Ok,
        };
        self.later(LATENCY, Event::Done { vm, report });
    }

    fn later(&mut self, pause: Duration, event: Event) {
        self.sequence += 1;
        self.due.push((self.now + pause, self.sequence, event));
    }
}

fn name(index: usize) -> VmName {
    format!("vm{index}").parse().unwrap()
}

fn settings(strategy: Strategy) -> Settings {
    Settings {
        strategy,
        tuning: Tuning::default(),
        tenants: Tenants::default(),
        interval: Duration::from_secs(60),
        max_concurrent_switches: 4,
        limits: Limits {
            join: Duration::from_secs(10),
            drain: Duration::from_millis(200),
            unplug: Duration::from_secs(20),
            unplug_repeat: Duration::from_secs(6),
        },
        first_look: Duration::from_secs(5),
        link_mbps: 10_000,
    }
}
