//! What a switch leaves behind for people: its direction, reason, steps with their times, outcome.

use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

/// Which way a switch went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// From PV to a VF.
    ToVf,
    /// From the VF back to PV.
    ToPv,
}

/// How a switch ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "outcome", content = "detail", rename_all = "kebab-case")]
pub enum Outcome {
    /// As planned.
    Done,
    /// It failed for this reason; all was put back.
    Undone(String),
    /// QEMU or the host did not let go of the VF, for this reason.
    Quarantined(String),
}

/// A switch that has ended.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Record {
    /// Which way.
    pub direction: Direction,
    /// Why it was begun.
    pub reason: String,
    /// How it ended.
    #[serde(flatten)]
    pub outcome: Outcome,
    /// Each step's name and its milliseconds, in their order.
    #[serde(serialize_with = "as_map")]
    pub steps_ms: Vec<(&'static str, f64)>,
    /// From the first step to the last, milliseconds.
    pub total_ms: f64,
}

impl Record {
    /// From the first step to the last.
    pub fn took(&self) -> Duration {
        Duration::try_from_secs_f64(self.total_ms / 1e3).unwrap_or_default()
    }
}

/// Writes a [`Record`] as the switch goes on.
#[derive(Debug, Clone)]
pub(super) struct Recorder {
    direction: Direction,
    reason: String,
    began: Duration,
    current: Option<(&'static str, Duration)>,
    steps: Vec<(&'static str, f64)>,
    undoing: Option<String>,
    finished: Option<Record>,
    closed: bool,
}

impl Recorder {
    pub(super) fn begin(now: Duration, direction: Direction, reason: String) -> Self {
        Self {
            direction,
            reason,
            began: now,
            current: None,
            steps: Vec::new(),
            undoing: None,
            finished: None,
            closed: false,
        }
    }

    pub(super) const fn direction(&self) -> Direction {
        self.direction
    }

    pub(super) fn undoing(&self) -> Option<&str> {
        self.undoing.as_deref()
    }

    /// The first reason stays: what follows from it is no news.
    pub(super) fn undo(&mut self, reason: String) {
        self.undoing.get_or_insert(reason);
    }

    pub(super) fn step(&mut self, now: Duration, next: Option<&'static str>) {
        if let Some((name, since)) = self.current.take() {
            self.steps.push((name, ms(now.saturating_sub(since))));
        }
        self.current = next.map(|name| (name, now));
    }

    pub(super) fn finish(&mut self, now: Duration, outcome: Outcome) {
        self.step(now, None);
        if self.closed {
            return;
        }
        self.closed = true;
        self.finished = Some(Record {
            direction: self.direction,
            reason: self.reason.clone(),
            outcome,
            steps_ms: std::mem::take(&mut self.steps),
            total_ms: ms(now.saturating_sub(self.began)),
        });
    }

    /// Nothing to tell of this one.
    pub(super) const fn close(&mut self) {
        self.closed = true;
    }

    pub(super) const fn take_finished(&mut self) -> Option<Record> {
        self.finished.take()
    }
}

fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

fn as_map<S: Serializer>(steps: &[(&'static str, f64)], serializer: S) -> Result<S::Ok, S::Error> {
    let mut map = serializer.serialize_map(Some(steps.len()))?;
    for (name, ms) in steps {
        map.serialize_entry(name, ms)?;
    }
    map.end()
}
