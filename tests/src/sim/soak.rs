//! `flexvf-soak`: seed after seed on all processors, and a count at the end.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;

use super::judge::Violation;
use super::play;
use super::trace::Trace;

/// The allocator's engine against simulated VMs, guests, hosts and faults, seed after seed
#[derive(Debug, Clone, Parser)]
#[command(name = "soak", version)]
pub struct Options {
    /// The first seed; alone, the only one, replayed with all that happens in it
    #[arg(long)]
    pub seed: Option<u64>,
    /// Go on until this many events were taken by the engine
    #[arg(long)]
    pub steps: Option<u64>,
    /// Go on until this many seeds were played
    #[arg(long)]
    pub seeds: Option<u64>,
    /// Stop after so many seconds in any case
    #[arg(long)]
    pub seconds: Option<u64>,
    /// Stop after so many violations
    #[arg(long, default_value_t = 1)]
    pub max_violations: usize,
    /// Seeds played at a time (default: one a processor)
    #[arg(long)]
    pub threads: Option<usize>,
    /// Print violations, one a line, and nothing else
    #[arg(long)]
    pub terse: bool,
}

/// Played when nothing else is asked for: about a minute on two processors.
const DEFAULT_SEEDS: u64 = 3000;

struct Soak {
    options: Options,
    next: AtomicU64,
    first: u64,
    seeds: u64,
    begin: Instant,
    steps: AtomicU64,
    played: AtomicU64,
    violations: Mutex<Vec<(u64, Violation)>>,
}

/// Runs; whether there was no violation.
pub fn run(options: Options) -> bool {
    match options.seed {
        Some(seed) if options.steps.is_none() && options.seeds.is_none() && !options.terse => {
            replay(seed)
        }
        _ => Soak::new(options).run(),
    }
}

fn replay(seed: u64) -> bool {
    let played = play(seed, Trace::Print);
    if let Some(Violation { rule, what }) = &played.violation {
        println!("VIOLATION: {rule}: {what}");
    }
    println!(
        "soak: {} steps, 1 seed, {} violations",
        played.steps,
        u8::from(played.violation.is_some())
    );
    played.violation.is_none()
}

impl Soak {
    fn new(options: Options) -> Self {
        let first = options.seed.unwrap_or(1);
        let seeds = match (options.seeds, options.steps) {
            (Some(seeds), _) => seeds,
            (None, Some(_)) => u64::MAX,
            (None, None) => DEFAULT_SEEDS,
        };
        Self {
            next: AtomicU64::new(first),
            first,
            seeds,
            options,
            begin: Instant::now(),
            steps: AtomicU64::new(0),
            played: AtomicU64::new(0),
            violations: Mutex::default(),
        }
    }

    fn run(self) -> bool {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = self.options.threads.unwrap_or(processors).max(1);
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..threads).map(|_| scope.spawn(|| self.work())).collect();
            while workers.iter().any(|worker| !worker.is_finished()) {
                std::thread::sleep(Duration::from_millis(200));
                self.tell_progress();
            }
        });
        self.conclude()
    }

    fn work(&self) {
        while !self.is_over() {
            let seed = self.next.fetch_add(1, Ordering::Relaxed);
            if seed - self.first >= self.seeds {
                return;
            }
            let played = play(seed, Trace::Off);
            self.steps.fetch_add(played.steps, Ordering::Relaxed);
            self.played.fetch_add(1, Ordering::Relaxed);
            if let Some(violation) = played.violation {
                self.tell_violation(seed, violation);
            }
        }
    }

    fn is_over(&self) -> bool {
        let steps = self.steps.load(Ordering::Relaxed);
        let enough = self.options.steps.is_some_and(|wanted| steps >= wanted);
        let late = self.options.seconds.is_some_and(|most| self.begin.elapsed().as_secs() >= most);
        let found = self.violations.lock().map_or(0, |violations| violations.len());
        enough || late || found >= self.options.max_violations
    }

    fn tell_violation(&self, seed: u64, violation: Violation) {
        let Violation { rule, what } = &violation;
        if self.options.terse {
            println!("{seed}\t{rule}\t{what}");
        } else {
            println!("\nsoak: VIOLATION in seed {seed}: {rule}: {what}");
            for line in play(seed, Trace::Keep(Default::default())).trace {
                println!("    {line}");
            }
            println!("soak: replay it: scripts/soak --seed {seed}");
        }
        if let Ok(mut violations) = self.violations.lock() {
            violations.push((seed, violation));
        }
    }

    fn tell_progress(&self) {
        if self.options.terse || !std::io::stderr().is_terminal() {
            return;
        }
        eprint!("\rsoak: {} ", self.counts());
    }

    fn counts(&self) -> String {
        let violations = self.violations.lock().map_or(0, |violations| violations.len());
        let (steps, seeds) =
            (self.steps.load(Ordering::Relaxed), self.played.load(Ordering::Relaxed));
        let seconds = self.begin.elapsed().as_secs_f64();
        format!("{steps} steps, {seeds} seeds, {violations} violations, {seconds:.1} s")
    }

    fn conclude(self) -> bool {
        if !self.options.terse {
            println!("soak: {}", self.counts());
        }
        self.violations.into_inner().is_ok_and(|violations| violations.is_empty())
    }
}
