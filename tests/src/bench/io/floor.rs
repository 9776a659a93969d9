//! Floors: what the kernel alone takes for the same frames, in a loop that does nothing else.
//!
//! One thread on the processor that a backend would have. It writes one frame again and again, or
//! reads what is injected, by plain system calls or by io_uring in batches. The processor of the
//! front-end is busy meanwhile, as it is when there is one: an idle neighbour makes a core faster.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use anyhow::{Context, Result, anyhow, bail};

use super::inject::Injector;
use super::stage::{Stage, pin};
use super::tap::Tap;
use crate::bench::logic::frame::{HEADER_BYTES, with_header};
use crate::sys::{Batches, Transfer};

/// How a floor reads or writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// One `read()` or `write()` a frame.
    Call,
    /// io_uring, [`BATCH`] frames at once.
    Uring,
}

/// Frames a batch of io_uring.
pub const BATCH: usize = 64;

/// Frames a second that can be written to a TAP.
pub fn write_rate(stage: &Stage, method: Method, frame_bytes: usize) -> Result<f64> {
    let tap = Tap::make(stage, 1)?;
    let file = tap.open()?;
    let stop = AtomicBool::new(false);
    let transfer = Transfers { file: &file, method, transfer: Transfer::Write, frame_bytes };
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| transfer.run(stage, &stop, &AtomicU64::new(0)));
        let neighbour = scope.spawn(|| keep_busy(stage, &stop));
        let rate = stage.rate(|| {
            check(!worker.is_finished())?;
            tap.written()
        });
        stop.store(true, Ordering::Relaxed);
        worker.join().map_err(|_| anyhow!("the floor's thread panicked"))??;
        neighbour.join().map_err(|_| anyhow!("the floor's neighbour panicked"))??;
        rate
    })
}

/// Polls on the front-end's processor until told to stop.
fn keep_busy(stage: &Stage, stop: &AtomicBool) -> Result<()> {
    pin(&stage.cores(1).front_end)?;
    while !stop.load(Ordering::Relaxed) {}
    Ok(())
}

/// Frames a second that can be read from a TAP under injection.
pub fn read_rate(stage: &Stage, method: Method, frame_bytes: usize) -> Result<f64> {
    let tap = Tap::make(stage, 1)?;
    tap.address(Some(GUEST_MAC))?;
    let file = tap.open()?;
    let injector = Injector::new(&tap, frame_bytes)?;
    let read = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let transfer = Transfers { file: &file, method, transfer: Transfer::Read, frame_bytes };
    std::thread::scope(|scope| {
        let feeder = scope.spawn(|| {
            pin(&stage.cores(1).front_end)?;
            injector.feed(&stop, || Ok(read.load(Ordering::Relaxed)))
        });
        let reader = scope.spawn(|| transfer.run(stage, &stop, &read));
        let rate = stage.rate(|| {
            check(!reader.is_finished() && !feeder.is_finished())?;
            Ok(read.load(Ordering::Relaxed))
        });
        stop.store(true, Ordering::Relaxed);
        let injected = feeder.join();
        // The reader may wait for frames, a whole batch of them, before it looks whether to stop.
        injector.burst()?;
        injector.burst()?;
        reader.join().map_err(|_| anyhow!("the floor's thread panicked"))??;
        let injected = injected.map_err(|_| anyhow!("the injector panicked"))??;
        injected.warn_if_it_was_the_bottleneck();
        rate
    })
}

/// The neighbour behind a TAP, whom frames are for.
pub const GUEST_MAC: &str = "02:00:00:00:00:02";

fn check(running: bool) -> Result<()> {
    if !running {
        bail!("a floor's thread ended early");
    }
    Ok(())
}

/// One floor's loop.
#[derive(Debug)]
struct Transfers<'t> {
    file: &'t File,
    method: Method,
    transfer: Transfer,
    frame_bytes: usize,
}

impl Transfers<'_> {
    /// Goes on until told to stop, and keeps `count` up to date.
    fn run(&self, stage: &Stage, stop: &AtomicBool, count: &AtomicU64) -> Result<()> {
        pin(&stage.cores(1).backend)?;
        let content = match self.transfer {
            Transfer::Write => with_header(self.frame_bytes),
            Transfer::Read => vec![0; HEADER_BYTES + BUFFER_BYTES],
        };
        match self.method {
            Method::Call => self.call(content, stop, count),
            Method::Uring => {
                let mut batches =
                    Batches::new(self.file.as_fd(), self.transfer, BATCH, &content)
                        .context("this kernel has no io_uring with DEFER_TASKRUN (6.1)")?;
                while !stop.load(Ordering::Relaxed) {
                    count.fetch_add(batches.run()?, Ordering::Relaxed);
                }
                Ok(())
            }
        }
    }

    fn call(&self, mut buffer: Vec<u8>, stop: &AtomicBool, count: &AtomicU64) -> Result<()> {
        let mut file = self.file;
        let mut done = 0;
        while !stop.load(Ordering::Relaxed) {
            match self.transfer {
                Transfer::Write => file.write_all(&buffer).context("write to the TAP")?,
                Transfer::Read => drop(file.read(&mut buffer).context("read from the TAP")?),
            }
            done += 1;
            // Others look at it: seldom enough not to be seen in the result.
            if done % PUBLISHED_EVERY == 0 {
                count.store(done, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

/// Frames between two looks that others may take at a floor's count.
const PUBLISHED_EVERY: u64 = 16;
/// What a guest's receive buffer has.
const BUFFER_BYTES: usize = 2048;
