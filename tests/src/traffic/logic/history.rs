//! A count over time, so that "how many between these two moments" has an answer afterwards.

use std::collections::VecDeque;

/// Points closer together than this are merged.
pub const RESOLUTION_MS: u64 = 50;

/// Points kept: two hours at [`RESOLUTION_MS`], 2.3 MiB a guest.
const MAX_POINTS: usize = 144_000;

/// A growing count and when it had which value.
#[derive(Debug, Default)]
pub struct History {
    points: VecDeque<(u64, u64)>,
}

impl History {
    /// Notes that the count was `count` at `now_ms`; neither ever shrinks.
    pub fn note(&mut self, now_ms: u64, count: u64) {
        if let Some(&(last_ms, _)) = self.points.back()
            && now_ms < last_ms + RESOLUTION_MS
        {
            return;
        }
        if self.points.len() == MAX_POINTS {
            self.points.pop_front();
        }
        self.points.push_back((now_ms, count));
    }

    /// How much the count grew between two moments, if both lie within what was noted.
    pub fn between(&self, from_ms: u64, to_ms: u64) -> Option<f64> {
        (from_ms <= to_ms).then_some(())?;
        Some(self.at(to_ms)? - self.at(from_ms)?)
    }

    fn at(&self, at_ms: u64) -> Option<f64> {
        let after = self.points.partition_point(|&(ms, _)| ms < at_ms);
        let &(after_ms, after_count) = self.points.get(after)?;
        if after_ms == at_ms {
            return Some(after_count as f64);
        }
        let &(before_ms, before_count) = self.points.get(after.checked_sub(1)?)?;
        let share = (at_ms - before_ms) as f64 / (after_ms - before_ms) as f64;
        Some(before_count as f64 + share * (after_count - before_count) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_between_points_is_interpolated() {
        let mut history = History::default();
        for (ms, count) in [(1000, 0), (2000, 100), (3000, 300)] {
            history.note(ms, count);
        }
        assert_eq!(history.between(1500, 2500), Some(150.0));
        assert_eq!(history.between(1000, 3000), Some(300.0));
    }

    #[test]
    fn a_window_that_was_not_watched_has_no_answer() {
        let mut history = History::default();
        assert_eq!(history.between(0, 1), None);
        history.note(1000, 5);
        history.note(2000, 9);
        assert_eq!(history.between(999, 1500), None);
        assert_eq!(history.between(1500, 2001), None);
        assert_eq!(history.between(1600, 1500), None);
    }

    #[test]
    fn memory_is_bounded() {
        let mut history = History::default();
        for turn in 0..(MAX_POINTS as u64 + 10) {
            history.note(turn * RESOLUTION_MS, turn);
        }
        assert_eq!(history.points.len(), MAX_POINTS);
    }
}
