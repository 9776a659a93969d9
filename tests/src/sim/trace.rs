//! What happened, line by line, for whoever replays a seed.

use std::collections::VecDeque;
use std::time::Duration;

/// Where lines go.
#[derive(Debug, Default)]
pub enum Trace {
    /// Nowhere: thousands of seeds have nothing to tell.
    #[default]
    Off,
    /// To stdout.
    Print,
    /// The last ones are kept.
    Keep(VecDeque<String>),
}

/// Kept of a run that ends badly.
const KEPT: usize = 60;

impl Trace {
    /// Takes a line.
    pub fn line(&mut self, now: Duration, text: impl FnOnce() -> String) {
        match self {
            Self::Off => {}
            Self::Print => println!("{:12.6} {}", now.as_secs_f64(), text()),
            Self::Keep(lines) => {
                if lines.len() == KEPT {
                    lines.pop_front();
                }
                lines.push_back(format!("{:12.6} {}", now.as_secs_f64(), text()));
            }
        }
    }

    /// What was kept.
    pub fn kept(self) -> Vec<String> {
        match self {
            Self::Keep(lines) => lines.into(),
            Self::Off | Self::Print => Vec::new(),
        }
    }
}
