//! What of all that happens the flight recorder is told.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tracing::warn;

use super::clock::now;
use super::state::boot_id;
use crate::config::Config;
use crate::io::recorder::Recorder;
use crate::logic::engine::{Engine, Event};
use crate::logic::recording::{Entry, Head};

/// The recorder, if there is to be one.
pub(super) fn start(config: &Config) -> Option<Recorder> {
    let since_boot = now();
    let today = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let head = Head {
        boot_id: boot_id(),
        booted_at_ms: ms(today.saturating_sub(since_boot)),
        began_at_ms: ms(since_boot),
        interval: config.interval,
        strategy: config.strategy,
        tuning: config.tuning,
        tenants: config.tenants.clone(),
    };
    let started = Recorder::start(config.recorder.clone()?, head);
    started.inspect_err(|error| warn!(%error, "nothing is recorded: no thread for it")).ok()
}

pub(super) fn event(recorder: &mut Recorder, event: &Event) {
    match event {
        Event::Registered { vm, spec } => recorder.add(Entry::Vm(vm.clone(), spec.into())),
        Event::Unregistered(vm) => recorder.add(Entry::Gone(vm.clone())),
        Event::Sampled { vm, sample } => recorder.add(Entry::Sample(vm.clone(), *sample)),
        _ => {}
    }
}

/// What policies remember, for a replay to begin with.
pub(super) fn memories(recorder: &mut Recorder, engine: &Engine) {
    for (pool, memory) in engine.memories() {
        recorder.add(Entry::Memory(pool.to_owned(), memory.clone()));
    }
}

/// A round was decided: what was gathered is handed over with it.
pub(super) fn round(recorder: &mut Recorder, engine: &Engine) {
    for decision in engine.decisions() {
        recorder.add(Entry::Decision(decision));
    }
    memories(recorder, engine);
    recorder.flush();
}

fn ms(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
