//! A small vhost-user front-end that speaks as QEMU 10 does, for tests over a real socket.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(dead_code, reason = "each test program uses its part of it")]

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use vhost::vhost_user::message::{FrontendReq, VhostUserVirtioFeatures};
pub(crate) use vhost_net_pv::logic::{memory, ring};
use virtio_bindings::virtio_config::VIRTIO_F_IN_ORDER;
use vm_memory::{Bytes, FileOffset, GuestAddress};

use memory::Memory;
use testing::{BASE, Driver, WRITE};

pub(crate) mod log;

#[path = "../../src/logic/testing.rs"]
#[allow(dead_code, reason = "shared with the unit tests, which use the rest of it")]
pub(crate) mod testing;

/// Bytes of guest memory.
pub(crate) const MEMORY: u64 = 1 << 20;
/// Where the front-end claims to have mapped it: ring addresses are given in these terms.
pub(crate) const USER_ADDRESS: u64 = 0x7f00_0000_0000;
/// Frames come and go within this, or a test fails.
const DEADLINE: Duration = Duration::from_secs(10);
const NEED_REPLY: u32 = 8;
/// The front-end wants writes to guest memory marked in its log.
pub(crate) const LOG_ALL: u64 = VhostUserVirtioFeatures::LOG_ALL.bits();
pub(crate) const RING_SIZE: u16 = 64;
pub(crate) const IN_ORDER: u64 = 1 << VIRTIO_F_IN_ORDER;
/// Buffers of the receive ring.
pub(crate) const RX_BUFFERS: u64 = BASE + 0x2_0000;
pub(crate) const RX_BUFFER: u64 = 2048;
/// Room for frames to send.
pub(crate) const TX_BUFFERS: u64 = BASE + 0x8_0000;
pub(crate) const TX_BUFFER: u64 = 4096;
pub(crate) const VIRTIO_NET_HEADER: usize = 12;

/// Memory that is shared with the backend.
pub(crate) struct Shared {
    pub(crate) memory: Memory,
    file: OwnedFd,
}

impl Shared {
    pub(crate) fn new() -> Self {
        let file = memfd_create(c"guest", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, MEMORY.cast_signed()).unwrap();
        let map = FileOffset::new(file.try_clone().unwrap().into(), 0);
        let ranges = [(GuestAddress(BASE), MEMORY as usize, Some(map))];
        let memory = Memory::from_ranges_with_files(ranges).unwrap();
        Self { memory, file }
    }

    /// Leaves only so many bytes of the file. What is behind them must not be touched any more.
    pub(crate) fn cut(&self, bytes: u64) {
        nix::unistd::ftruncate(&self.file, bytes.cast_signed()).unwrap();
    }

    pub(crate) fn descriptor(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    pub(crate) fn get(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// A connected front-end with one queue pair.
pub(crate) struct FrontEnd<'m> {
    /// The features that it has accepted.
    pub(crate) accepted: u64,
    /// Features that it does not accept.
    pub(crate) refused: u64,
    pub(crate) stream: UnixStream,
    shared: &'m Shared,
    pub(crate) rx: Driver<'m>,
    pub(crate) tx: Driver<'m>,
    kicks: [EventFd; 2],
    pub(crate) calls: [EventFd; 2],
}

impl<'m> FrontEnd<'m> {
    pub(crate) fn connect(path: &Path, shared: &'m Shared) -> Self {
        Self::new(connect(path), shared)
    }

    /// Goes on with another backend where the last one was when it died: at the used indices.
    pub(crate) fn reconnect(&mut self, path: &Path) {
        self.stream = connect(path);
        self.stream.set_read_timeout(Some(DEADLINE)).unwrap();
        self.negotiate();
        self.share_memory();
        self.start_rings([self.rx.used_index().into(), self.tx.used_index().into()]);
    }

    pub(crate) fn new(stream: UnixStream, shared: &'m Shared) -> Self {
        Self::with_rings(stream, shared, RING_SIZE)
    }

    /// A front-end whose rings have so many entries, 256 at most.
    pub(crate) fn with_rings(stream: UnixStream, shared: &'m Shared, size: u16) -> Self {
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let event = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        let mut front_end = Self {
            accepted: 0,
            // As Linux up to 6.18: every chain has an entry of its own in the used ring. Logging is
            // asked for when a migration begins, not before.
            refused: IN_ORDER | LOG_ALL,
            stream,
            shared,
            rx: Driver::at(&shared.memory, size, BASE),
            tx: Driver::at(&shared.memory, size, BASE + 0x8000),
            kicks: [event(), event()],
            calls: [event(), event()],
        };
        front_end.rx.restart();
        front_end.tx.restart();
        front_end
    }

    /// Sends a message as it is.
    pub(crate) fn send(
        &self,
        request: u32,
        flags: u32,
        payload: &[u8],
        fds: &[RawFd],
    ) -> io::Result<()> {
        let mut message = Vec::new();
        message.extend(request.to_ne_bytes());
        message.extend((1 | flags).to_ne_bytes());
        message.extend(u32::try_from(payload.len()).unwrap().to_ne_bytes());
        message.extend(payload);
        let rights = [ControlMessage::ScmRights(fds)];
        let control: &[_] = if fds.is_empty() { &[] } else { &rights };
        let vectors = [IoSlice::new(&message)];
        let socket = self.stream.as_raw_fd();
        sendmsg::<()>(socket, &vectors, control, MsgFlags::MSG_NOSIGNAL, None)?;
        Ok(())
    }

    /// Reads a reply that carries a number.
    pub(crate) fn reply(&mut self) -> io::Result<u64> {
        let mut reply = [0; 20];
        self.stream.read_exact(&mut reply)?;
        Ok(u64::from_ne_bytes(reply[12..].try_into().unwrap()))
    }

    /// Asks for a number.
    pub(crate) fn get(&mut self, request: FrontendReq) -> u64 {
        self.send(request.into(), 0, &[], &[]).unwrap();
        self.reply().unwrap()
    }

    /// Sends numbers and wants no answer.
    pub(crate) fn tell(&self, request: FrontendReq, words: &[u64], fds: &[RawFd]) {
        self.try_tell(request, words, fds).unwrap();
    }

    /// Sends numbers to a backend that may have hung up.
    pub(crate) fn try_tell(
        &self,
        request: FrontendReq,
        words: &[u64],
        fds: &[RawFd],
    ) -> io::Result<()> {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.send(request.into(), 0, &payload, fds)
    }

    /// Sends numbers and wants to know whether it worked: 0 is yes.
    pub(crate) fn ask(
        &mut self,
        request: FrontendReq,
        words: &[u64],
        fds: &[RawFd],
    ) -> io::Result<u64> {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.send(request.into(), NEED_REPLY, &payload, fds)?;
        self.reply()
    }

    /// All that QEMU 10 says up to a running device, in its order. Returns the features.
    pub(crate) fn start(&mut self) -> u64 {
        let features = self.negotiate();
        self.share_memory();
        self.start_rings([0, 0]);
        features
    }

    /// Up to the features; rings are enabled before those, as QEMU does it.
    pub(crate) fn negotiate(&mut self) -> u64 {
        let features = self.get(FrontendReq::GET_FEATURES);
        let protocol = self.get(FrontendReq::GET_PROTOCOL_FEATURES);
        self.tell(FrontendReq::SET_PROTOCOL_FEATURES, &[protocol], &[]);
        assert!(self.get(FrontendReq::GET_QUEUE_NUM) >= 1);
        self.tell(FrontendReq::SET_OWNER, &[], &[]);
        assert_eq!(self.get(FrontendReq::GET_FEATURES), features);
        for ring in 0..2u32 {
            let call = self.calls[ring as usize].as_raw_fd();
            self.tell(FrontendReq::SET_VRING_CALL, &[ring.into()], &[call]);
            let enable = [u64::from(ring) | 1 << 32];
            let early = self.ask(FrontendReq::SET_VRING_ENABLE, &enable, &[]);
            assert_eq!(early.unwrap(), 0, "ring {ring} could not be enabled early");
        }
        self.accepted = features & !self.refused;
        self.tell(FrontendReq::SET_FEATURES, &[self.accepted], &[]);
        features
    }

    pub(crate) fn share_memory(&mut self) {
        let region = [0, BASE, MEMORY, USER_ADDRESS, 0];
        let file = self.shared.file.as_raw_fd();
        let added = self.ask(FrontendReq::ADD_MEM_REG, &region, &[file]);
        assert_eq!(added.unwrap(), 0);
    }

    pub(crate) fn share_memory_as_table(&mut self) {
        let table = [1, BASE, MEMORY, USER_ADDRESS, 0];
        let file = self.shared.file.as_raw_fd();
        let taken = self.ask(FrontendReq::SET_MEM_TABLE, &table, &[file]);
        assert_eq!(taken.unwrap(), 0);
    }

    pub(crate) fn start_rings(&mut self, bases: [u64; 2]) {
        self.try_start_rings(bases).unwrap();
    }

    /// Starts the rings of a backend that may hang up meanwhile.
    pub(crate) fn try_start_rings(&mut self, bases: [u64; 2]) -> io::Result<()> {
        for (ring, base) in bases.into_iter().enumerate() {
            let ring_word = ring as u64;
            let in_high = |value: u64| ring_word | value << 32;
            let size = [self.rx.layout, self.tx.layout][ring].size;
            self.try_tell(FrontendReq::SET_VRING_NUM, &[in_high(size.into())], &[])?;
            self.try_tell(FrontendReq::SET_VRING_BASE, &[in_high(base)], &[])?;
            let logs = self.accepted & LOG_ALL != 0;
            self.try_tell(FrontendReq::SET_VRING_ADDR, &self.addresses(ring, logs), &[])?;
            let kick = self.kicks[ring].as_raw_fd();
            self.try_tell(FrontendReq::SET_VRING_KICK, &[ring_word], &[kick])?;
            let call = self.calls[ring].as_raw_fd();
            self.try_tell(FrontendReq::SET_VRING_CALL, &[ring_word], &[call])?;
        }
        Ok(())
    }

    /// What SET_VRING_ADDR says of a ring.
    fn addresses(&self, ring: usize, logs: bool) -> [u64; 5] {
        let layout = [self.rx.layout, self.tx.layout][ring];
        let user = |guest: u64| guest - BASE + USER_ADDRESS;
        let ring_word = ring as u64 | u64::from(logs) << 32;
        let log = if logs { log::USED_LOGS[ring] } else { 0 };
        [ring_word, user(layout.descriptors), user(layout.used), user(layout.available), log]
    }

    /// Says by what to interrupt, and waits until that is so.
    pub(crate) fn set_call(&mut self, ring: usize) {
        let call = self.calls[ring].as_raw_fd();
        let answer = self.ask(FrontendReq::SET_VRING_CALL, &[ring as u64], &[call]);
        assert_eq!(answer.unwrap(), 0);
    }

    /// Stops a ring and returns the index it has come to.
    pub(crate) fn stop_ring(&mut self, ring: u64) -> u64 {
        self.tell(FrontendReq::GET_VRING_BASE, &[ring], &[]);
        self.reply().unwrap() >> 32
    }

    /// Gives the backend receive buffers.
    pub(crate) fn give_buffers(&mut self, count: u64) {
        for at in 0..count {
            let address = RX_BUFFERS + at * RX_BUFFER;
            self.rx.offer(&[(address, RX_BUFFER as usize)], WRITE);
        }
        self.kick(0);
    }

    /// Sends a frame that lies in one buffer behind an empty header.
    pub(crate) fn send_frame(&mut self, frame: &[u8]) {
        self.send_frame_in(0, frame);
    }

    /// Sends a frame that lies in one buffer out of many.
    pub(crate) fn send_frame_in(&mut self, buffer: usize, frame: &[u8]) {
        let address = TX_BUFFERS + TX_BUFFER * buffer as u64;
        self.tx.put(address, &[0; VIRTIO_NET_HEADER]);
        self.tx.put(address + VIRTIO_NET_HEADER as u64, frame);
        self.tx.offer(&[(address, VIRTIO_NET_HEADER + frame.len())], 0);
        self.kick(1);
    }

    pub(crate) fn kick(&self, ring: usize) {
        self.kicks[ring].write(1).unwrap();
    }

    /// Waits for a frame of one buffer.
    pub(crate) fn receive_frame(&mut self) -> Vec<u8> {
        let (head, written) = self.wait_returned(0);
        let address = RX_BUFFERS + u64::from(head) * RX_BUFFER;
        self.rx.get(address, written as usize).split_off(VIRTIO_NET_HEADER)
    }

    /// Gives the backend receive buffers, whose memory is used again after [`RING_SIZE`] of them.
    pub(crate) fn give_buffers_at(&mut self, first: u64, count: u64) {
        for turn in first..first + count {
            self.rx.offer(&[(buffer_of(turn), RX_BUFFER as usize)], WRITE);
        }
        self.kick(0);
    }

    /// Waits for a frame in the buffer of a turn, given by [`Self::give_buffers_at`].
    pub(crate) fn receive_frame_of(&mut self, turn: u64) -> Vec<u8> {
        self.receive_chain_of(turn).split_off(VIRTIO_NET_HEADER)
    }

    /// The same, with the header, or of a chain that goes on with another one's frame.
    pub(crate) fn receive_chain_of(&mut self, turn: u64) -> Vec<u8> {
        let (head, written) = self.wait_returned(0);
        assert_eq!(u64::from(head), turn % u64::from(RING_SIZE));
        self.rx.get(buffer_of(turn), written as usize)
    }

    /// Waits for the frame in the receive buffer that was given `turn` buffers after the first.
    pub(crate) fn receive_frame_at(&mut self, turn: u64) -> Vec<u8> {
        let (head, written) = self.wait_returned(0);
        assert_eq!(u64::from(head), turn);
        // Each call of give_buffers starts with the first buffer's memory.
        self.rx.get(RX_BUFFERS, written as usize).split_off(VIRTIO_NET_HEADER)
    }

    /// Waits until a ring gives a chain back.
    pub(crate) fn wait_returned(&mut self, ring: usize) -> (u32, u32) {
        let deadline = Instant::now() + DEADLINE;
        loop {
            let driver = if ring == 0 { &mut self.rx } else { &mut self.tx };
            if let Some(chain) = driver.returned_one() {
                return chain;
            }
            assert!(Instant::now() < deadline, "ring {ring} returned nothing");
            std::thread::yield_now();
        }
    }
}

pub(crate) fn connect(path: &Path) -> UnixStream {
    let deadline = Instant::now() + DEADLINE;
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return stream,
            Err(error) => assert!(Instant::now() < deadline, "no backend: {error}"),
        }
        std::thread::yield_now();
    }
}

fn buffer_of(turn: u64) -> u64 {
    RX_BUFFERS + turn % u64::from(RING_SIZE) * RX_BUFFER
}

/// Sends a frame through a port that gives it back.
pub(crate) fn exchange(front_end: &mut FrontEnd<'_>, seed: u8) {
    let frame: Vec<u8> = (0..100).map(|at| at ^ seed).collect();
    front_end.rx.offer(&[(RX_BUFFERS, RX_BUFFER as usize)], WRITE);
    front_end.kick(0);
    front_end.send_frame(&frame);
    let (_, written) = front_end.wait_returned(0);
    let received = front_end.rx.get(RX_BUFFERS, written as usize).split_off(VIRTIO_NET_HEADER);
    assert_eq!(received, frame);
    front_end.wait_returned(1);
}

/// Raises a flag when it goes.
pub(crate) struct Raise<'f>(pub(crate) &'f AtomicBool);

impl Drop for Raise<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}
