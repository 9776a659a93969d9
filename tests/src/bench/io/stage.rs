//! What every run has: folders, processors, and how long it lasts.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::{available_parallelism, sleep};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

use crate::bench::logic::cores::{Cores, cores_first};
use crate::bench::logic::texts::cpu_list;

/// How long things are measured.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    /// From the start of a short run until counting begins.
    pub warm_up: Duration,
    /// What is counted of a short run. Machines change their speed within seconds, above all
    /// virtual ones, so that short runs in quick succession say more than long ones.
    pub window: Duration,
    /// Warm-up of a guest's stream, whose TCP needs it.
    pub guest_warm_up: Duration,
    /// What is counted of a guest's stream.
    pub guest_window: Duration,
    /// Factor on the time for which the allocator's use of the processor is counted.
    pub allocator: f64,
}

impl Pace {
    /// For results.
    pub const FULL: Self = Self {
        warm_up: Duration::from_millis(150),
        window: Duration::from_millis(500),
        guest_warm_up: Duration::from_millis(300),
        guest_window: Duration::from_secs(1),
        allocator: 1.0,
    };
    /// To see that everything works.
    pub const QUICK: Self = Self {
        warm_up: Duration::from_millis(100),
        window: Duration::from_millis(200),
        guest_warm_up: Duration::from_millis(200),
        guest_window: Duration::from_millis(500),
        allocator: 0.3,
    };
}

/// The testbed's host as a benchmark uses it (scripts/testbed/fast-host).
#[derive(Debug)]
pub struct Stage {
    /// Logs.
    pub out: PathBuf,
    /// Sockets.
    pub run: PathBuf,
    /// How long.
    pub pace: Pace,
    /// More options for our backend.
    pub backend_options: Vec<String>,
    cpus: Vec<usize>,
    numbers: AtomicU32,
}

impl Stage {
    /// Reads the testbed's environment.
    pub fn from_environment(pace: Pace, backend_options: Vec<String>) -> Result<Self> {
        let run = PathBuf::from(variable("FLEXVF_RUN")?).join("bench");
        fs::create_dir_all(&run).with_context(|| format!("make {}", run.display()))?;
        let out = PathBuf::from(variable("FLEXVF_OUT")?);
        Ok(Self {
            out,
            run,
            pace,
            backend_options,
            cpus: allowed_cpus()?,
            numbers: AtomicU32::new(0),
        })
    }

    /// Processors for so many queue pairs.
    pub fn cores(&self, pairs: usize) -> Cores {
        Cores::deal(&self.cpus, pairs)
    }

    /// A name that nothing else of this benchmark has: the kernel may let go of an interface, and
    /// DPDK of its files, only after a while.
    pub fn new_name(&self, kind: &str) -> String {
        format!("{kind}{}", self.new_number())
    }

    /// A number that nothing else of this benchmark has.
    pub fn new_number(&self) -> u32 {
        self.numbers.fetch_add(1, Ordering::Relaxed)
    }

    /// A count's rate over this stage's window, after its warm-up, which begins with the first.
    pub fn rate(&self, mut count: impl FnMut() -> Result<u64>) -> Result<f64> {
        let before = count()?;
        until("frames flow", || Ok(count()? > before))?;
        sleep(self.pace.warm_up);
        let (from, begin) = (count()?, Instant::now());
        sleep(self.pace.window);
        let (to, took) = (count()?, begin.elapsed());
        Ok(to.saturating_sub(from) as f64 / took.as_secs_f64())
    }
}

/// A variable of the testbed's environment.
pub fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set; run this by scripts/bench"))
}

/// Runs something on these processors; what it starts stays there.
pub fn on_cpus<T>(cpus: &[usize], run: impl FnOnce() -> T) -> Result<T> {
    let this = Pid::from_raw(0);
    let before = sched_getaffinity(this).context("read this thread's processors")?;
    pin(cpus)?;
    let result = run();
    sched_setaffinity(this, &before).context("set this thread's processors back")?;
    Ok(result)
}

/// Keeps this thread on these processors.
pub fn pin(cpus: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    for cpu in cpus {
        set.set(*cpu)?;
    }
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("go to processors {cpus:?}"))
}

/// Waits for something that others do.
pub fn until(what: &str, mut holds: impl FnMut() -> Result<bool>) -> Result<()> {
    let end = Instant::now() + PATIENCE;
    while !holds()? {
        if Instant::now() > end {
            bail!("never happened within {} s: {what}", PATIENCE.as_secs());
        }
        sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Runs a command that must succeed: the words of `line`.
pub fn command(line: &str) -> Result<()> {
    let mut words = line.split_whitespace();
    let program = words.next().unwrap_or_default();
    let output = Command::new(program).args(words).output();
    let output = output.with_context(|| format!("run '{line}'"))?;
    if !output.status.success() {
        bail!("'{line}' failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// For processes to start and frames to flow; an emulated guest has its own.
const PATIENCE: Duration = Duration::from_secs(30);

fn allowed_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("read this process's processors")?;
    let allowed = (0..CpuSet::count()).filter(|cpu| set.is_set(*cpu).unwrap_or_default());
    let with_siblings = allowed.map(|cpu| {
        let file = format!("/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list");
        (cpu, cpu_list(&fs::read_to_string(file).unwrap_or_default()))
    });
    let cpus = cores_first(&with_siblings.collect::<Vec<_>>());
    if cpus.is_empty() {
        bail!("no processor to run on, of {}", available_parallelism()?);
    }
    Ok(cpus)
}
