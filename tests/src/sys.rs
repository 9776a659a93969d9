//! The few calls that need `unsafe`: being told to stop, not leaving children behind, owning
//! descriptors that come through a socket, and what a benchmark's floors ask of the kernel.

#![expect(unsafe_code, reason = "signal handlers, pre-exec hooks, descriptors, ioctls, io_uring")]

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use io_uring::{IoUring, opcode, types};
use nix::libc;
use nix::sys::prctl;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::time::{ClockId, clock_gettime};
use vm_memory::VolatileSlice;

static STOP: AtomicBool = AtomicBool::new(false);

extern "C" fn note_stop(_signal: i32) {
    STOP.store(true, Ordering::Relaxed);
}

/// From now on SIGINT, SIGTERM and SIGHUP only set what [`stop_requested`] says.
pub fn catch_stop_signals() -> nix::Result<()> {
    let action = SigAction::new(SigHandler::Handler(note_stop), SaFlags::empty(), SigSet::empty());
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        // SAFETY: the handler does one relaxed atomic store, which is async-signal-safe.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

/// Somebody asked this program to stop.
pub fn stop_requested() -> bool {
    STOP.load(Ordering::Relaxed)
}

/// The child gets SIGTERM when the thread that starts it ends, however that happens, and is the
/// leader of a process group of its own, so that a Ctrl-C reaches it only through us.
pub fn tie_to_this_thread(command: &mut Command) -> &mut Command {
    command.process_group(0);
    // SAFETY: prctl(PR_SET_PDEATHSIG) is a plain system call: no allocation, no lock.
    unsafe { command.pre_exec(|| Ok(prctl::set_pdeathsig(Signal::SIGTERM)?)) }
}

/// The child calls listen(2) on this bound socket, so that SO_PEERCRED names the child to whoever
/// connects, whoever accepts. The socket has to stay open until the child runs.
pub fn listen_as<'a>(command: &'a mut Command, socket: BorrowedFd<'_>) -> &'a mut Command {
    let socket = socket.as_raw_fd();
    let listen = move || match listen_on(socket) {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: listen(2) is a plain system call: no allocation, no lock.
    unsafe { command.pre_exec(listen) }
}

fn listen_on(socket: RawFd) -> i32 {
    const BACKLOG: i32 = 16;
    // SAFETY: it takes no memory; a descriptor that is none is an error.
    unsafe { libc::listen(socket, BACKLOG) }
}

/// CLOCK_MONOTONIC in microseconds; the same for every process of a machine.
pub fn monotonic_us() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map_or(0, |time| time.tv_sec() as u64 * 1_000_000 + time.tv_nsec() as u64 / 1000)
}

/// More than any message of vhost-user carries.
const MAX_FDS: usize = 64;

/// Reads from a Unix socket into `buffer`, with the descriptors that came along; 0 bytes: its end.
pub fn receive_with_fds(
    stream: &UnixStream,
    buffer: &mut [u8],
) -> nix::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; MAX_FDS]);
    let mut parts = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut control), flags)?;
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = part {
            // SAFETY: the kernel has just made these descriptors for us, and nobody else knows them.
            fds.extend(received.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

/// Attaches `/dev/net/tun`'s descriptor to a TAP whose frames have a virtio-net header, and of which
/// nothing but a checksum is left to finish.
pub fn attach_tap(tun: BorrowedFd<'_>, name: &str, header_bytes: usize) -> io::Result<()> {
    let mut request = libc::ifreq {
        ifr_name: [0; libc::IFNAMSIZ],
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_flags: (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short,
        },
    };
    // The last byte stays zero.
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes().take(libc::IFNAMSIZ - 1)) {
        *to = from as libc::c_char;
    }
    // SAFETY: the descriptor is open and the kernel only reads the ifreq, which outlives the call.
    unsafe { ioctls::attach(tun.as_raw_fd(), &raw const request) }?;
    // SAFETY: the argument is a number; no memory is involved.
    unsafe { ioctls::set_offload(tun.as_raw_fd(), libc::TUN_F_CSUM as libc::c_int) }?;
    let header_bytes = libc::c_int::try_from(header_bytes).map_err(io::Error::other)?;
    // SAFETY: the kernel reads one int that outlives the call.
    unsafe { ioctls::set_header(tun.as_raw_fd(), &raw const header_bytes) }?;
    Ok(())
}

mod ioctls {
    use nix::libc;
    nix::ioctl_write_ptr_bad!(attach, libc::TUNSETIFF, libc::ifreq);
    nix::ioctl_write_int_bad!(set_offload, libc::TUNSETOFFLOAD);
    nix::ioctl_write_ptr_bad!(set_header, libc::TUNSETVNETHDRSZ, libc::c_int);
}

/// Asks the processor for the cache line at the front of some guest memory, to write to them.
pub fn prefetch_to_write(memory: &VolatileSlice<'_>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _mm_prefetch};
        let first = memory.ptr_guard().as_ptr().cast::<i8>();
        // SAFETY: a prefetch is a hint that reads nothing into the program and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_ET0>(first) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = memory;
}

/// What [`Batches`] do with their buffers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// Fill them from the descriptor.
    Read,
    /// Write them to it.
    Write,
}

/// Reads or writes of one descriptor by io_uring, as many at once as there are buffers.
pub struct Batches {
    ring: IoUring,
    /// Leaked, so that no request that is under way ever finds them gone.
    buffers: Vec<*mut [u8]>,
    transfer: Transfer,
}

impl Batches {
    /// For one thread: only the one that makes it may run it.
    pub fn new(
        file: BorrowedFd<'_>,
        transfer: Transfer,
        count: usize,
        content: &[u8],
    ) -> io::Result<Self> {
        let entries = u32::try_from(count).map_err(io::Error::other)?;
        let ring = IoUring::builder().setup_single_issuer().setup_defer_taskrun().build(entries)?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let buffer = || Box::into_raw(content.to_vec().into_boxed_slice());
        Ok(Self { ring, buffers: (0..count).map(|_| buffer()).collect(), transfer })
    }

    /// One batch; returns how many of its transfers succeeded, once all have ended.
    pub fn run(&mut self) -> io::Result<u64> {
        let file = types::Fixed(0);
        for buffer in &self.buffers {
            let (at, length) = (buffer.cast::<u8>(), buffer.len() as u32);
            let entry = match self.transfer {
                Transfer::Read => opcode::Read::new(file, at, length).build(),
                Transfer::Write => opcode::Write::new(file, at, length).build(),
            };
            // SAFETY: the buffer is never freed, is as long as said, and only the kernel uses it
            // from here on; the file's index is the one that was registered.
            unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        }
        let (mut ended, mut good) = (0, 0);
        while ended < self.buffers.len() {
            match self.ring.submit_and_wait(self.buffers.len() - ended) {
                Err(error) if error.kind() != io::ErrorKind::Interrupted => return Err(error),
                _ => {}
            }
            for completion in self.ring.completion() {
                ended += 1;
                good += u64::from(completion.result() > 0);
            }
        }
        Ok(good)
    }
}
