//! Guest memory that is cut short while it is mapped here.
//!
//! A guest's memory is a file of its front-end, which can shorten it at any time; whoever then
//! touches a page behind the new end gets SIGBUS. A program that has called [`survive_cut_memory`]
//! lives on: the handler puts zeroes in the place of the whole mapping and tells the connection
//! that the memory belongs to, which ends. Until it does, its workers walk rings of zeroes. The
//! whole mapping is replaced, since a part of a huge page cannot be. The same happens when a file
//! system has no page left for memory that it promised.
//!
//! | the handler meets | why that is sound |
//! |---|---|
//! | a table that changes | a slot has a version, and one that changes is passed over; the slot of the memory just touched does not change, since whoever touches memory keeps its [`Watched`] |
//! | memory being unmapped | it is taken off the table first, and nobody touches it any more |
//! | several devices | each slot names its own device's descriptor |
//! | a fault anywhere else | it has the effect that it had before |
//!
//! The stats page is watched in the same way, and tells nobody at once. Left out is what a system
//! call finds missing, which is an error there and no signal.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::null_mut;
use std::sync::atomic::{AtomicI32, AtomicPtr, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use nix::errno::Errno;
use nix::libc;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Keeps this process alive when a front-end cuts the memory that it has shared: its connection
/// ends with an error instead, and the next front-end is served.
///
/// This installs a handler for SIGBUS for the whole process, which is why the library does not do
/// it by itself. Faults outside of guest memory go to the handler that was there before. Call it
/// once, at any time, but after installing a handler of your own.
///
/// # Errors
/// The system refuses, which it has no reason to.
pub fn survive_cut_memory() -> io::Result<()> {
    let _one_at_a_time = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
    if FORMER.get().is_some() {
        return Ok(());
    }
    // SAFETY: sigaction is plain data, for which all zeroes is a valid value.
    let mut former: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills in one sigaction that we own.
    if unsafe { libc::sigaction(libc::SIGBUS, std::ptr::null(), &raw mut former) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // Before the handler is in place, which needs it.
    let _ = FORMER.set(former);
    act_on_sigbus(on_sigbus as *const () as usize, libc::SA_SIGINFO | libc::SA_ONSTACK)
}

/// Tells a connection that the memory it uses was cut.
#[derive(Debug)]
pub(in crate::io) struct Cut(EventFd);

impl Cut {
    pub(in crate::io) fn new() -> io::Result<Self> {
        let flags = EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC;
        Ok(Self(EventFd::from_flags(flags)?))
    }

    /// It has happened since the last question, or since it was made.
    pub(in crate::io) fn take(&self) -> bool {
        self.0.read().is_ok()
    }
}

impl AsFd for Cut {
    /// Readable once memory was cut.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// A mapping of guest memory that the handler knows of.
///
/// To be dropped before the memory is unmapped, and after its last use.
#[derive(Debug)]
pub(in crate::io) struct Watched {
    slot: &'static Slot,
    /// The slot names its descriptor.
    _cut: Arc<Cut>,
}

impl Watched {
    /// Makes the handler care for `bytes` bytes from `start` on, and tell `cut`.
    pub(in crate::io) fn new(start: *const u8, bytes: usize, cut: &Arc<Cut>) -> Self {
        let _one_at_a_time = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        let free = slots().find(|slot| slot.bytes.load(Ordering::Relaxed) == 0);
        let slot = free.unwrap_or_else(Slot::add);
        slot.change(start as usize, bytes, cut.0.as_fd().as_raw_fd());
        Self { slot, _cut: Arc::clone(cut) }
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        let _one_at_a_time = CHANGES.lock().unwrap_or_else(PoisonError::into_inner);
        self.slot.change(0, 0, -1);
    }
}

/// A mapping's entry in the table. Slots are used again, and never freed.
#[derive(Debug, Default)]
struct Slot {
    /// Odd while the slot changes.
    version: AtomicUsize,
    start: AtomicUsize,
    /// 0: free.
    bytes: AtomicUsize,
    descriptor: AtomicI32,
    next: Option<&'static Self>,
}

/// The table: a list that only grows, as long as the most mappings there ever were at once.
static NEWEST: AtomicPtr<Slot> = AtomicPtr::new(null_mut());
/// Held while the table or the handler changes; never by the handler.
static CHANGES: Mutex<()> = Mutex::new(());
/// What SIGBUS did before; set once the handler is installed.
static FORMER: OnceLock<libc::sigaction> = OnceLock::new();

impl Slot {
    /// Adds a slot to the table; the caller holds [`CHANGES`].
    fn add() -> &'static Self {
        let slot: &'static Self = Box::leak(Box::new(Self { next: newest(), ..Self::default() }));
        NEWEST.store(std::ptr::from_ref(slot).cast_mut(), Ordering::Release);
        slot
    }

    /// Gives the slot new contents; the caller holds [`CHANGES`].
    fn change(&self, start: usize, bytes: usize, descriptor: c_int) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // No new content may be seen with the old version.
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.descriptor.store(descriptor, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// Start, length and descriptor, if the slot holds this address.
    fn around(&self, address: usize) -> Option<(usize, usize, c_int)> {
        let version = self.version.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Relaxed);
        let bytes = self.bytes.load(Ordering::Relaxed);
        let descriptor = self.descriptor.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        let whole = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        let inside = address.checked_sub(start).is_some_and(|offset| offset < bytes);
        (whole && inside).then_some((start, bytes, descriptor))
    }
}

fn newest() -> Option<&'static Slot> {
    // SAFETY: it is null or a slot that was leaked before it was stored.
    unsafe { NEWEST.load(Ordering::Acquire).as_ref() }
}

fn slots() -> impl Iterator<Item = &'static Slot> {
    std::iter::successors(newest(), |slot| slot.next)
}

/// The handler. Whatever it does may be done in one: atomics, mmap, write, sigaction, raise.
extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let errno = Errno::last_raw();
    // SAFETY: the kernel hands the handler a whole siginfo.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr() as usize) };
    // Only these are this thread's own touch of an address; others come from elsewhere and later.
    let is_fault = (libc::BUS_ADRALN..=libc::BUS_MCEERR_AR).contains(&code);
    if !(is_fault && replace(address)) {
        former_action(signal, info, context, is_fault);
    }
    Errno::set_raw(errno);
}

/// Puts zeroes in the place of the guest memory around an address; false if there is none.
fn replace(address: usize) -> bool {
    let Some((start, bytes, descriptor)) = slots().find_map(|slot| slot.around(address)) else {
        return false;
    };
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
    // SAFETY: the range is one mapping of guest memory or of counters. It stays mapped during the call, since the
    // thread that was interrupted is using it. Nothing but such memory is replaced, whose contents
    // may change at any moment and are never seen through a Rust reference.
    let made = unsafe { libc::mmap(start as *mut _, bytes, protection, flags, -1, 0) };
    if made == libc::MAP_FAILED {
        return false;
    }
    let one = 1u64.to_ne_bytes();
    // SAFETY: write reads eight bytes of ours. The descriptor is open, since the slot's `Watched`
    // keeps it; it does not block, and what is full need not be told twice.
    unsafe { libc::write(descriptor, one.as_ptr().cast(), one.len()) };
    true
}

/// Does what would have been done without us.
fn former_action(
    signal: c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
    is_fault: bool,
) {
    let former = FORMER.get();
    let (action, flags) = former.map_or((libc::SIG_DFL, 0), |f| (f.sa_sigaction, f.sa_flags));
    match action {
        libc::SIG_IGN if !is_fault => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // It is delivered when the handler returns, and ends the process as it should.
            let _ = act_on_sigbus(libc::SIG_DFL, 0);
            // SAFETY: raise touches no memory.
            unsafe { libc::raise(signal) };
        }
        handler if flags & libc::SA_SIGINFO != 0 => {
            type Handler = extern "C" fn(c_int, *mut libc::siginfo_t, *mut libc::c_void);
            // SAFETY: with SA_SIGINFO this is a function of that type; it gets what we got.
            unsafe { std::mem::transmute::<usize, Handler>(handler)(signal, info, context) };
        }
        handler => {
            // SAFETY: without SA_SIGINFO this is a function of that type.
            unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler)(signal) };
        }
    }
}

fn act_on_sigbus(handler: usize, flags: c_int) -> io::Result<()> {
    // SAFETY: sigaction is plain data, for which all zeroes, an empty mask, is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = handler;
    action.sa_flags = flags;
    // SAFETY: the kernel reads one sigaction; the handler is a function that lives for ever and
    // keeps to what a handler may do, or SIG_DFL.
    match unsafe { libc::sigaction(libc::SIGBUS, &raw const action, null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::os::unix::process::ExitStatusExt;
    use std::process::Command;

    use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory};

    const BYTES: usize = 1 << 16;

    fn memory() -> (File, MmapRegion<()>) {
        let file = tempfile::tempfile().unwrap();
        file.set_len(BYTES as u64).unwrap();
        let mapped = FileOffset::new(file.try_clone().unwrap(), 0);
        (file, MmapRegion::from_file(mapped, BYTES).unwrap())
    }

    fn byte(memory: &MmapRegion<()>, at: usize) -> u8 {
        memory.as_volatile_slice().read_obj(at).unwrap()
    }

    fn is_told(cut: &Cut) -> bool {
        cut.0.read().is_ok()
    }

    #[test]
    fn cut_memory_is_zeroes_for_all_who_use_it_and_is_told_to_its_own_device() {
        survive_cut_memory().unwrap();
        let cuts = [(); 2].map(|()| Arc::new(Cut::new().unwrap()));
        let (file, memory) = self::memory();
        let _watched = Watched::new(memory.as_ptr(), memory.size(), &cuts[0]);
        let (_other_file, other) = self::memory();
        let _other_watched = Watched::new(other.as_ptr(), other.size(), &cuts[1]);
        other.as_volatile_slice().write_obj(7u8, 5).unwrap();
        memory.as_volatile_slice().write_obj(7u8, 5).unwrap();
        assert!(!is_told(&cuts[0]));
        file.set_len(4096).unwrap();
        std::thread::scope(|scope| {
            for at in [BYTES - 1, 9000] {
                let memory = &memory;
                scope.spawn(move || assert_eq!(byte(memory, at), 0));
            }
        });
        assert_eq!(byte(&memory, 5), 0, "a part of the old mapping is left");
        memory.as_volatile_slice().write_obj(8u8, BYTES - 1).unwrap();
        assert_eq!(byte(&memory, BYTES - 1), 8);
        assert!(is_told(&cuts[0]));
        assert!(!is_told(&cuts[1]));
        assert_eq!(byte(&other, 5), 7);
    }

    #[test]
    fn places_in_the_table_are_used_again() {
        let cut = Arc::new(Cut::new().unwrap());
        let (_file, memory) = self::memory();
        for _ in 0..1000 {
            drop(Watched::new(memory.as_ptr(), memory.size(), &cut));
        }
        // Other tests of this process have a few places of their own.
        assert!(slots().count() < 500);
        assert!(slots().all(|slot| slot.around(memory.as_ptr() as usize).is_none()));
    }

    const IN_CHILD: &str = "FLEXVF_TEST_SIGBUS";

    #[test]
    fn a_fault_outside_of_guest_memory_ends_the_process_as_ever() {
        let Some(how) = std::env::var_os(IN_CHILD) else {
            for how in ["touch", "raise"] {
                let test = "a_fault_outside_of_guest_memory_ends_the_process_as_ever";
                let mut child = Command::new(std::env::current_exe().unwrap());
                child.args([test, "--test-threads=1"]).env(IN_CHILD, how);
                let output = child.output().unwrap();
                assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{how}: {output:?}");
            }
            return;
        };
        survive_cut_memory().unwrap();
        let cut = Arc::new(Cut::new().unwrap());
        let (file, memory) = self::memory();
        drop(Watched::new(memory.as_ptr(), memory.size(), &cut));
        file.set_len(0).unwrap();
        if how == "touch" {
            byte(&memory, 0);
        } else {
            // At the first one, the handler of Rust's library only gives up its place.
            for _ in 0..2 {
                nix::sys::signal::raise(nix::sys::signal::Signal::SIGBUS).unwrap();
            }
        }
    }
}
