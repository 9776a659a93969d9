//! A batch of frames in one system call: io_uring on one descriptor.
//!
//! Every operation is one that cannot wait (`RWF_NOWAIT`), so the kernel runs them in their order
//! while it takes them, and all of them are done when the call returns. Nothing is ever left with
//! the kernel between two calls; that is what makes it sound to name borrowed memory here.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use io_uring::register::Restriction;
use io_uring::{IoUring, opcode, squeue, types};
use nix::libc;

use crate::io::port::{Batch, Slots, Spills};
use crate::logic::memory::GuestSlice;
use crate::logic::net_header::HEADER_BYTES;

/// Operations in one call.
pub(in crate::io) const DEPTH: usize = 64;

/// The only registered descriptor.
const FILE: types::Fixed = types::Fixed(0);

/// `IOSQE_FIXED_FILE` (linux/io_uring.h).
const ON_REGISTERED_FILE: u8 = 1;
/// `IORING_UNREGISTER_FILES` (linux/io_uring.h).
pub(in crate::io) const UNREGISTER_FILES: u8 = 3;

/// A ring of one thread's, for one descriptor.
pub(in crate::io) struct Uring {
    ring: IoUring,
    vectors: Vec<Vector>,
    results: Vec<i32>,
}

/// An `iovec`, as a number, since pointers do not move between threads.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Vector {
    base: usize,
    length: usize,
}

const _: () = assert!(size_of::<Vector>() == size_of::<libc::iovec>());

impl Uring {
    /// A ring for the thread that calls this, and for no other one.
    ///
    /// # Errors
    /// The kernel has no io_uring, or does not allow it, or the descriptor cannot be used with it.
    pub(in crate::io) fn new(file: BorrowedFd<'_>) -> io::Result<Self> {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_submit_all()
            .setup_r_disabled()
            .build(DEPTH as u32)?;
        let submitter = ring.submitter();
        submitter.register_files(&[file.as_raw_fd()])?;
        // No system call filter sees what goes through a ring: it can do this and no more.
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Read::CODE),
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Write::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_flags_required(ON_REGISTERED_FILE),
            Restriction::register_op(UNREGISTER_FILES),
        ])?;
        submitter.register_enable_rings()?;
        let mut uring = Self { ring, vectors: Vec::new(), results: Vec::new() };
        uring.try_out()?;
        Ok(uring)
    }

    /// A frame too short to be one shows whether the descriptor knows operations that cannot wait.
    fn try_out(&mut self) -> io::Result<()> {
        let byte = [0u8];
        self.vectors.push(Vector { base: byte.as_ptr() as usize, length: byte.len() });
        let ranges = [(0, 1)];
        self.run(&ranges, write)?;
        match self.results.first().map(|result| -result) {
            Some(libc::EINVAL) => Ok(()),
            Some(error) if error > 0 => Err(io::Error::from_raw_os_error(error)),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Writes the frames of a batch, and notes which of them were taken.
    ///
    /// # Errors
    /// The ring is of no use any more; frames not noted as taken were not written.
    pub(in crate::io) fn write(&mut self, batch: &mut Batch<'_>) -> io::Result<()> {
        let mut from = 0;
        while from < batch.len() {
            let mut ranges = [(0, 0); DEPTH];
            let mut count = 0;
            self.vectors.clear();
            for (frame, range) in batch.frames().skip(from).zip(&mut ranges) {
                let first = self.vectors.len();
                self.push(frame.front.as_ptr() as usize, frame.front.len());
                self.push_guest(frame.pieces);
                *range = (first, self.vectors.len() - first);
                count += 1;
            }
            let written = self.run(ranges.get(..count).unwrap_or_default(), write);
            for (frame, result) in batch.frames().skip(from).zip(&self.results) {
                *frame.taken = *result >= 0;
            }
            written?;
            from += count;
        }
        Ok(())
    }

    /// Reads a frame into each slot, as far as there are frames.
    ///
    /// # Errors
    /// The ring is of no use any more; slots not noted as filled were not.
    pub(in crate::io) fn read(
        &mut self,
        slots: &mut Slots<'_>,
        spills: &mut Spills,
    ) -> io::Result<()> {
        let mut ranges = [(0, 0); DEPTH];
        let mut count = 0;
        self.vectors.clear();
        for (((slot, pieces), spill), range) in
            slots.each().zip(spills.with_headers()).zip(&mut ranges)
        {
            let first = self.vectors.len();
            if pieces.is_empty() {
                self.push(spill.as_mut_ptr() as usize, spill.len());
            } else {
                let rest = spill.get_mut(HEADER_BYTES..).unwrap_or_default();
                self.push(slot.header.as_mut_ptr() as usize, slot.header.len());
                self.push_guest(pieces);
                self.push(rest.as_mut_ptr() as usize, rest.len());
            }
            *range = (first, self.vectors.len() - first);
            count += 1;
        }
        let done = self.run(ranges.get(..count).unwrap_or_default(), read);
        for (((slot, pieces), spill), result) in
            slots.each().zip(spills.with_headers()).zip(&self.results)
        {
            if pieces.is_empty() {
                slot.header = spill.first_chunk().copied().unwrap_or_default();
            }
            slot.take(usize::try_from(*result).ok());
        }
        done
    }

    fn push(&mut self, base: usize, length: usize) {
        self.vectors.push(Vector { base, length });
    }

    fn push_guest(&mut self, pieces: &[GuestSlice<'_>]) {
        for piece in pieces {
            // The guard does nothing for memory that is mapped throughout, which ours is.
            self.push(piece.ptr_guard_mut().as_ptr() as usize, piece.len());
        }
    }

    /// Runs one operation for each range of vectors, and leaves the results in their order.
    fn run(
        &mut self,
        ranges: &[(usize, usize)],
        operation: impl Fn(&[Vector]) -> squeue::Entry,
    ) -> io::Result<()> {
        self.results.clear();
        // What the kernel never gets to is as if there had been no room for it.
        self.results.resize(ranges.len(), -libc::EAGAIN);
        let mut queue = self.ring.submission();
        for (index, (first, count)) in ranges.iter().enumerate() {
            let vectors = self.vectors.get(*first..).and_then(|rest| rest.get(..*count));
            let entry = operation(vectors.unwrap_or_default()).user_data(index as u64);
            // SAFETY: the vectors, and the memory that they name, are borrowed by the caller or
            // owned by this ring until `finish` returns, and nothing is in flight after that. The
            // guest may change its memory meanwhile, which the kernel is built to take.
            let pushed = unsafe { queue.push(&entry) };
            pushed.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        }
        drop(queue);
        self.finish(ranges.len())
    }

    /// Submits what was pushed and waits until all of it is done.
    fn finish(&mut self, count: usize) -> io::Result<()> {
        let (mut taken, mut done) = (0, 0);
        let mut failure = None;
        while done < count {
            match self.ring.submit_and_wait(count - done) {
                Ok(more) => taken += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What the kernel has taken must come back before anything is given up.
                Err(error) => failure = Some(error),
            }
            for completion in self.ring.completion() {
                let index = usize::try_from(completion.user_data()).unwrap_or(usize::MAX);
                if let Some(result) = self.results.get_mut(index) {
                    *result = completion.result();
                }
                done += 1;
            }
            if done >= taken
                && let Some(error) = failure
            {
                return Err(error);
            }
        }
        Ok(())
    }
}

fn write(vectors: &[Vector]) -> squeue::Entry {
    match vectors {
        [only] => opcode::Write::new(FILE, only.base as *const u8, only.length as u32)
            .rw_flags(libc::RWF_NOWAIT)
            .build(),
        several => opcode::Writev::new(FILE, several.as_ptr().cast(), several.len() as u32)
            .rw_flags(libc::RWF_NOWAIT)
            .build(),
    }
}

fn read(vectors: &[Vector]) -> squeue::Entry {
    match vectors {
        [only] => opcode::Read::new(FILE, only.base as *mut u8, only.length as u32)
            .rw_flags(libc::RWF_NOWAIT)
            .build(),
        several => opcode::Readv::new(FILE, several.as_ptr().cast(), several.len() as u32)
            .rw_flags(libc::RWF_NOWAIT)
            .build(),
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        // The kernel takes a ring apart some time later; the interface shall be free at once.
        let _ = self.ring.submitter().unregister_files();
    }
}
