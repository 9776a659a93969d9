//! The guest's other processors: a thread that changes memory all the time.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread::Thread;

use vhost_net_pv::logic::memory::Memory;
use vm_memory::{Bytes, GuestAddress};

use crate::memory;

/// An address, and two values that it has in turn.
type Scribble = ((u64, u64), u64);

/// Without it the thread would take the lock again before anybody else comes to it.
static WANTED: AtomicBool = AtomicBool::new(false);
static SCRIBBLES: Mutex<Vec<Scribble>> = Mutex::new(Vec::new());

/// Ends the scribbling.
pub(crate) struct Scribbling(());

/// Lets memory be changed until what is returned is dropped.
pub(crate) fn scribble(scribbles: Vec<Scribble>) -> Option<Scribbling> {
    static THREAD: OnceLock<Thread> = OnceLock::new();
    if scribbles.is_empty() {
        return None;
    }
    *SCRIBBLES.lock().unwrap() = scribbles;
    WANTED.store(true, Ordering::SeqCst);
    THREAD.get_or_init(|| std::thread::spawn(work).thread().clone()).unpark();
    Some(Scribbling(()))
}

impl Drop for Scribbling {
    fn drop(&mut self) {
        WANTED.store(false, Ordering::SeqCst);
        // Once the lock was had, nothing is written any more.
        SCRIBBLES.lock().unwrap().clear();
    }
}

fn work() {
    loop {
        while !WANTED.load(Ordering::SeqCst) {
            std::thread::park();
        }
        let scribbles = SCRIBBLES.lock().unwrap();
        while WANTED.load(Ordering::SeqCst) {
            write(memory::memory(), &scribbles);
        }
    }
}

fn write(memory: &Memory, scribbles: &[Scribble]) {
    for ((at, one), other) in scribbles {
        for value in [one, other] {
            let _ = memory.write(&value.to_le_bytes(), GuestAddress(*at));
        }
    }
}
