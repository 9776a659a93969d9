//! A TAP interface's queue: frames go to and from the kernel with a virtio-net header in front.
//!
//! Guest buffers are read and written in place, a batch in one call through io_uring where the
//! kernel has it, a frame in one `readv` or `writev` otherwise.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use nix::libc;
use tracing::{info, warn};

use super::{Batch, Port, Slots, Spills};
use crate::io::{netdev, sys};
use crate::logic::features::Offloads;
use crate::logic::net_header::HEADER_BYTES;

const TUN_DEVICE: &str = "/dev/net/tun";
/// Of an interface made elsewhere we need: whole Ethernet frames, no packet information, headers.
const NEEDED_FLAGS: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
/// `TUN_F_USO4 | TUN_F_USO6` (linux/if_tun.h, since 6.2).
const TUN_F_USO: u32 = 0x20 | 0x40;
/// The kernel gives a queue free a little after the end of a program that used it with io_uring.
const RELEASE_TRIES: u32 = 40;
const RELEASE_PAUSE: Duration = Duration::from_millis(25);

/// Why a TAP cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// `/dev/net/tun` cannot be opened.
    #[error("cannot open {TUN_DEVICE}: {0}; is the tun module there, and are you root?")]
    Device(io::Error),
    /// The kernel does not let us have the interface.
    #[error("cannot attach to TAP {name}: {cause}{}", hint(.cause))]
    Attach {
        /// Name of the interface.
        name: String,
        /// The kernel's words.
        cause: io::Error,
    },
    /// A descriptor given is no TAP, or one of the wrong kind.
    #[error("descriptor given as TAP is not one with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR")]
    Kind,
    /// io_uring was asked for and is not to be had.
    #[error("TAP {name}: no io_uring here: {cause}")]
    Uring {
        /// Name of the interface.
        name: String,
        /// The kernel's words.
        cause: io::Error,
    },
    /// The interface cannot be set up.
    #[error("cannot set up TAP {name}: {cause}")]
    SetUp {
        /// Name of the interface.
        name: String,
        /// The kernel's words.
        cause: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "; another program holds it",
        Some(libc::EPERM) => "; CAP_NET_ADMIN is needed, or an interface that belongs to you",
        Some(libc::EINVAL) => {
            "; it exists as another kind of interface (several queues need a \
                               TAP made with multi_queue)"
        }
        _ => "",
    }
}

/// How to come by a TAP.
#[derive(Debug, Clone)]
pub struct TapOptions {
    /// Name of the interface; made if it is not there.
    pub name: String,
    /// Queues to open.
    pub queues: usize,
    /// How frames are read and written.
    pub io: IoMethod,
}

/// How frames are read and written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IoMethod {
    /// io_uring where the kernel allows it.
    #[default]
    Auto,
    /// io_uring, or there is no port.
    Uring,
    /// `readv` and `writev`.
    Plain,
}

/// One queue of a TAP.
pub struct Tap {
    file: File,
    name: String,
    multi_queue: bool,
    active: bool,
    io: IoMethod,
    /// Made by the thread that uses the queue.
    uring: Option<sys::Uring>,
}

impl Tap {
    /// Opens all queues of a TAP by its name.
    ///
    /// # Errors
    /// [`TapError`] when the interface cannot be had as asked.
    pub fn open(options: &TapOptions) -> Result<Vec<Self>, TapError> {
        let mut tries = 0;
        loop {
            let taps = Self::open_all(options)?;
            // The kernel would share the frames out among all who have a queue.
            let in_use = netdev::queues_in_use(&options.name).unwrap_or_default();
            if in_use <= taps.len() {
                return Ok(taps);
            }
            drop(taps);
            if tries == RELEASE_TRIES {
                let (name, cause) =
                    (options.name.clone(), io::Error::from_raw_os_error(libc::EBUSY));
                return Err(TapError::Attach { name, cause });
            }
            tries += 1;
            std::thread::sleep(RELEASE_PAUSE);
        }
    }

    fn open_all(options: &TapOptions) -> Result<Vec<Self>, TapError> {
        let mut multi_queue = options.queues > 1;
        let first = match Self::attach_soon(options, multi_queue) {
            // A TAP that was made with multi_queue takes no single-queue user, even for one queue.
            Err(TapError::Attach { cause, .. })
                if !multi_queue && cause.raw_os_error() == Some(libc::EINVAL) =>
            {
                multi_queue = true;
                Self::attach_soon(options, true)?
            }
            attached => attached?,
        };
        let mut taps = vec![first];
        while taps.len() < options.queues {
            taps.push(Self::attach_soon(options, multi_queue)?);
        }
        Ok(taps)
    }

    /// Attaches, and waits a little if the kernel has not given the interface free yet.
    fn attach_soon(options: &TapOptions, multi_queue: bool) -> Result<Self, TapError> {
        let mut tries = 0;
        loop {
            match Self::attach(options, multi_queue) {
                Err(TapError::Attach { cause, .. })
                    if cause.raw_os_error() == Some(libc::EBUSY) && tries < RELEASE_TRIES =>
                {
                    tries += 1;
                    std::thread::sleep(RELEASE_PAUSE);
                }
                attached => return attached,
            }
        }
    }

    fn attach(options: &TapOptions, multi_queue: bool) -> Result<Self, TapError> {
        let name = &options.name;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(TUN_DEVICE)
            .map_err(TapError::Device)?;
        let extra = if multi_queue { libc::IFF_MULTI_QUEUE } else { 0 };
        sys::tun_attach(file.as_fd(), name, NEEDED_FLAGS | extra)
            .map_err(|cause| TapError::Attach { name: name.clone(), cause })?;
        Self::set_up(file, name.clone(), multi_queue, options.io)
    }

    /// Takes over one queue of a TAP that somebody else has opened.
    ///
    /// # Errors
    /// [`TapError`] when it is not a TAP of the kind needed.
    pub fn from_fd(fd: OwnedFd, io: IoMethod) -> Result<Self, TapError> {
        let file = File::from(fd);
        let (name, flags) = sys::tun_interface(file.as_fd()).map_err(|_| TapError::Kind)?;
        // The kernel reports flags as a short; the ones we need fit.
        if flags & NEEDED_FLAGS != NEEDED_FLAGS {
            return Err(TapError::Kind);
        }
        netdev::set_nonblocking(file.as_fd())
            .map_err(|cause| TapError::SetUp { name: name.clone(), cause })?;
        Self::set_up(file, name, flags & libc::IFF_MULTI_QUEUE != 0, io)
    }

    fn set_up(file: File, name: String, multi_queue: bool, io: IoMethod) -> Result<Self, TapError> {
        // The one in use is made by its thread, which cannot say no any more.
        if io == IoMethod::Uring
            && let Err(cause) = sys::Uring::new(file.as_fd())
        {
            return Err(TapError::Uring { name, cause });
        }
        match sys::tun_set_header_bytes(file.as_fd(), HEADER_BYTES) {
            Ok(()) => Ok(Self { file, name, multi_queue, active: true, io, uring: None }),
            Err(cause) => Err(TapError::SetUp { name, cause }),
        }
    }

    /// Name of the interface.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The interface may have several queues.
    pub const fn is_multi_queue(&self) -> bool {
        self.multi_queue
    }

    /// What this kernel can hand out unfinished.
    pub fn supported_offloads(&self) -> Offloads {
        [Offloads::ALL, Offloads { uso: false, ..Offloads::ALL }]
            .into_iter()
            .find(|offloads| self.apply(*offloads).is_ok())
            .unwrap_or_default()
    }

    /// A ring that failed may hold operations that it was never to run: it is not used again.
    fn keep_if(&mut self, done: io::Result<()>) {
        if let Err(error) = done {
            warn!(tap = self.name, %error, "io_uring failed: frames go one by one from now on");
            self.uring = None;
        }
    }

    fn write_each(&self, batch: &mut Batch<'_>) {
        for frame in batch.frames() {
            *frame.taken = loop {
                match sys::write_frame(self.file.as_fd(), frame.front, frame.pieces) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    result => break result.is_ok(),
                }
            };
        }
    }

    fn read_each(&self, slots: &mut Slots<'_>, spills: &mut Spills) {
        let mut more = true;
        for ((slot, pieces), spill) in slots.each().zip(spills.with_headers()) {
            // An error is such as an interface that is down or deleted: nothing waits there.
            let bytes = match more {
                true => sys::read_frame(self.file.as_fd(), &mut slot.header, pieces, spill).ok(),
                false => None,
            };
            more = bytes.is_some();
            slot.take(bytes);
        }
    }

    fn apply(&self, offloads: Offloads) -> io::Result<()> {
        let flag = |on: bool, flag: u32| if on { flag } else { 0 };
        let flags = flag(offloads.csum, libc::TUN_F_CSUM)
            | flag(offloads.tso4, libc::TUN_F_TSO4)
            | flag(offloads.tso6, libc::TUN_F_TSO6)
            | flag(offloads.ecn, libc::TUN_F_TSO_ECN)
            | flag(offloads.uso, TUN_F_USO);
        sys::tun_set_offload(self.file.as_fd(), flags)
    }
}

impl Port for Tap {
    fn adopt(&mut self) {
        if self.io == IoMethod::Plain {
            return;
        }
        match sys::Uring::new(self.file.as_fd()) {
            Ok(uring) => {
                self.uring = Some(uring);
                info!(tap = self.name, "frames go through io_uring");
            }
            Err(error) => info!(tap = self.name, %error, "no io_uring: frames go one by one"),
        }
    }

    fn readiness(&self) -> Option<BorrowedFd<'_>> {
        Some(self.file.as_fd())
    }

    fn wants_one_piece(&self) -> bool {
        true
    }

    fn send(&mut self, batch: &mut Batch<'_>) {
        // A single frame gains nothing from a ring.
        match &mut self.uring {
            Some(uring) if batch.len() > 1 => {
                let written = uring.write(batch);
                self.keep_if(written);
            }
            _ => self.write_each(batch),
        }
    }

    fn receive(&mut self, slots: &mut Slots<'_>, spills: &mut Spills) {
        match &mut self.uring {
            _ if !self.active => slots.each().for_each(|(slot, _)| slot.take(None)),
            Some(uring) if slots.len() > 1 => {
                let read = uring.read(slots, spills);
                self.keep_if(read);
            }
            _ => self.read_each(slots, spills),
        }
    }

    fn set_offloads(&mut self, offloads: Offloads) -> io::Result<()> {
        self.apply(offloads)
    }

    fn set_active(&mut self, active: bool) -> io::Result<()> {
        if self.multi_queue && active != self.active {
            sys::tun_set_queue(self.file.as_fd(), active)?;
            self.active = active;
        }
        Ok(())
    }
}
