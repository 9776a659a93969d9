//! Logs go to standard error, as verbose as the environment says, and no faster than a disk or a
//! journal can take for ever: a front-end that connects and is refused ten thousand times a second
//! gets no ten thousand lines.

use std::io::{IsTerminal, Write, stderr};
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::OptionalWriter;

/// Lines that may come at once: all of a start with every detail.
const BURST_LINES: u32 = 2000;
/// Pause after which one more may come: 20 a second, some 250 MB a day.
const LINE_PAUSE: Duration = Duration::from_millis(50);

/// Starts logging.
pub(crate) fn start() {
    let level = std::env::var("RUST_LOG").unwrap_or_else(|_| "info".to_owned());
    let budget = Mutex::new(Budget::new(Instant::now()));
    let writer = move || {
        let mut budget = budget.lock().unwrap_or_else(PoisonError::into_inner);
        match budget.line(Instant::now(), takes_a_line()) {
            Line::Written(0) => OptionalWriter::some(stderr()),
            Line::Written(lost) => {
                let told = "lines were not logged: too many, or nobody read them";
                let _ = writeln!(stderr(), "vhost-net-pv: {lost} {told}");
                OptionalWriter::some(stderr())
            }
            Line::Lost => OptionalWriter::none(),
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::new(level))
        .with_writer(writer)
        .with_ansi(stderr().is_terminal())
        // They would go to standard error, and that it is gone is what they would say.
        .log_internal_errors(false)
        .init();
}

/// Standard error takes a line without making us wait: a pipe that nobody reads must stop nothing.
fn takes_a_line() -> bool {
    let stderr = stderr();
    let mut fds = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
    poll(&mut fds, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Lines that may still be written.
struct Budget {
    left: u32,
    /// Time up to which pauses were turned into lines.
    counted: Instant,
    lost: u64,
}

/// What becomes of a line.
#[derive(Debug, PartialEq, Eq)]
enum Line {
    /// It is written; so many before it were not.
    Written(u64),
    Lost,
}

impl Budget {
    const fn new(now: Instant) -> Self {
        Self { left: BURST_LINES, counted: now, lost: 0 }
    }

    fn line(&mut self, now: Instant, taken: bool) -> Line {
        let pauses = now.saturating_duration_since(self.counted).as_nanos() / LINE_PAUSE.as_nanos();
        let pauses = u32::try_from(pauses).unwrap_or(u32::MAX);
        self.counted = match pauses >= BURST_LINES {
            true => now,
            false => self.counted + LINE_PAUSE * pauses,
        };
        self.left = self.left.saturating_add(pauses).min(BURST_LINES);
        match self.left.checked_sub(1).filter(|_| taken) {
            Some(left) => {
                self.left = left;
                Line::Written(std::mem::take(&mut self.lost))
            }
            None => {
                self.lost += 1;
                Line::Lost
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_becomes_a_trickle_that_says_so() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let mut written = 0;
        for milli in 0..60_000 {
            let line = budget.line(start + Duration::from_millis(milli), true);
            written += u32::from(line != Line::Lost);
        }
        assert_eq!(written, BURST_LINES + 60_000 / 50 - 1);
        let later = start + Duration::from_secs(61);
        assert!(matches!(budget.line(later, true), Line::Written(lost) if lost > 0));
        assert_eq!(budget.line(later, true), Line::Written(0));
    }

    #[test]
    fn lines_that_nobody_reads_are_counted_and_not_waited_for() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        assert!((0..5).all(|_| budget.line(start, false) == Line::Lost));
        assert_eq!(budget.line(start, true), Line::Written(5));
    }

    #[test]
    fn silence_saves_up_a_burst_and_no_more() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let tomorrow = start + Duration::from_secs(86_400);
        let written = (0..3000).filter(|_| budget.line(tomorrow, true) != Line::Lost).count();
        assert_eq!(written, BURST_LINES as usize);
    }
}
