//! Frames between a descriptor and guest memory, without a copy of ours in between.

use std::ffi::c_int;
use std::io;
use std::mem::{MaybeUninit, size_of};
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;

use crate::logic::memory::GuestSlice;
use crate::logic::net_header::{HEADER_BYTES, RawHeader};
use crate::logic::ring::MAX_PIECES;

/// Pieces of a scattered call: the guest's, and ours before and after them.
const MAX_VECTORS: usize = MAX_PIECES + 2;
/// Writes what we have of a frame, and the rest of it in guest memory, as one frame.
pub(in crate::io) fn write_frame(
    file: BorrowedFd<'_>,
    front: &[u8],
    rest: &[GuestSlice<'_>],
) -> io::Result<usize> {
    if rest.is_empty() {
        return Ok(nix::unistd::write(file, front)?);
    }
    let mut vectors = Vectors::new();
    vectors.push(front.as_ptr().cast_mut(), front.len());
    vectors.push_guest(rest)?;
    // SAFETY: the vectors are initialised up to `count` and name memory that stays mapped for the
    // borrows of `front` and `rest`; writev only reads it. The guest may change its part
    // meanwhile, which the kernel, unlike Rust code, is built to take.
    let done = unsafe { libc::writev(file.as_raw_fd(), vectors.as_ptr(), vectors.count()) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// Reads one frame: its header to us, the rest to guest memory and, where that is too small, to
/// `spill`, behind the room there for a header. Without guest memory that is where the header is read to.
pub(in crate::io) fn read_frame(
    file: BorrowedFd<'_>,
    header: &mut RawHeader,
    frame: &[GuestSlice<'_>],
    spill: &mut [u8],
) -> io::Result<usize> {
    if frame.is_empty() {
        let bytes = nix::unistd::read(file, spill)?;
        *header = spill.first_chunk().copied().unwrap_or_default();
        return Ok(bytes);
    }
    let spill = spill.get_mut(HEADER_BYTES..).unwrap_or_default();
    let mut vectors = Vectors::new();
    vectors.push(header.as_mut_ptr(), header.len());
    vectors.push_guest(frame)?;
    vectors.push(spill.as_mut_ptr(), spill.len());
    // SAFETY: the vectors are initialised up to `count` and name memory that stays mapped for the
    // borrows of `header`, `frame` and `spill`; ours is borrowed mutably, and guest memory is
    // never turned into a Rust reference, so the kernel's writes alias nothing.
    let done = unsafe { libc::readv(file.as_raw_fd(), vectors.as_ptr(), vectors.count()) };
    usize::try_from(done).map_err(|_| io::Error::last_os_error())
}

/// Asks the processor for the front of a piece that is read soon: a header and some of the frame.
pub(in crate::io) fn prefetch(piece: &GuestSlice<'_>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = piece.ptr_guard().as_ptr();
        // SAFETY: a prefetch is a hint that reads nothing into the program and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
        if piece.len() > CACHE_LINE {
            // SAFETY: as above; the address is within the piece.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(address.add(CACHE_LINE).cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = piece;
}

/// Asks the processor for the front of a buffer that a frame comes into: a header, which mostly stands
/// there already, to read, and some of the frame's place to have for itself. Without, each write
/// waits until the guest's processor has given the line up, one after the other.
pub(in crate::io) fn prefetch_buffer(piece: &GuestSlice<'_>) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let address = piece.ptr_guard().as_ptr();
        // SAFETY: a prefetch is a hint that reads nothing into the program and never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(address.cast()) };
        if piece.len() > CACHE_LINE {
            // SAFETY: as above, and it changes nothing; the address is within the piece. Processors
            // that have no such prefetch do nothing at all.
            unsafe {
                std::arch::asm!(
                    "prefetchw [{}]",
                    in(reg) address.add(CACHE_LINE),
                    options(nostack, preserves_flags, readonly)
                );
            }
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = piece;
}

#[cfg(target_arch = "x86_64")]
const CACHE_LINE: usize = 64;

/// An array of iovecs of which only the used part is ever touched.
struct Vectors {
    entries: [MaybeUninit<libc::iovec>; MAX_VECTORS],
    used: usize,
}

impl Vectors {
    const fn new() -> Self {
        Self { entries: [const { MaybeUninit::uninit() }; MAX_VECTORS], used: 0 }
    }

    fn push(&mut self, base: *mut u8, length: usize) {
        if let Some(entry) = self.entries.get_mut(self.used) {
            entry.write(libc::iovec { iov_base: base.cast(), iov_len: length });
            self.used += 1;
        }
    }

    fn push_guest(&mut self, slices: &[GuestSlice<'_>]) -> io::Result<()> {
        if slices.len() > MAX_PIECES {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for slice in slices {
            // The guard does nothing for memory that is mapped throughout, which ours is.
            self.push(slice.ptr_guard_mut().as_ptr(), slice.len());
        }
        Ok(())
    }

    const fn as_ptr(&self) -> *const libc::iovec {
        self.entries.as_ptr().cast()
    }

    const fn count(&self) -> c_int {
        self.used as c_int
    }
}
const _: () = assert!(size_of::<libc::iovec>() == 16);
