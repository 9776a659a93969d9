//! A front-end that does what a script says.

use std::fs::File;
use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::script::{Buffer, Descriptor, Length, Message, Payload, Region, Step};

/// How guest memory shows in the list of mappings.
pub(crate) const MEMORY_NAME: &str = "memfd:fuzzed-guest";
const RINGS: usize = 4;
const MEMORIES: usize = 3;
const PAGE: u64 = 4096;
const MEMORY_BYTES: u64 = 64 * PAGE;
/// The first memory in the guest's and in the front-end's addresses.
const GUEST: u64 = 1 << 20;
const USER: u64 = 1 << 40;
/// A ring's parts lie in the first memory at multiples of this, its buffers behind all of them.
const RING_BYTES: u64 = 8 * PAGE;
const AVAILABLE: u64 = 5 * PAGE;
const USED: u64 = 6 * PAGE;
const BUFFERS: u64 = RINGS as u64 * RING_BYTES;
const HEADER: u64 = 12;
const REPLY_DEADLINE: Duration = Duration::from_secs(20);

/// Answered whatever was negotiated, and so can mark a place in the stream.
const GET_FEATURES: u32 = 1;

pub(crate) struct FrontEnd {
    stream: UnixStream,
    memories: [File; MEMORIES],
    lengths: [u64; MEMORIES],
    kicks: [EventFd; RINGS],
    calls: [EventFd; RINGS],
    others: Vec<OwnedFd>,
    available: [u16; RINGS],
    size: u16,
    /// Messages that are answered once everything before them was handled.
    markers: usize,
    answered: usize,
    /// The stream is out of step: no answers come any more.
    broken: bool,
}

impl FrontEnd {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(REPLY_DEADLINE)).unwrap();
        stream.set_write_timeout(Some(REPLY_DEADLINE)).unwrap();
        let event = || EventFd::from_flags(EfdFlags::EFD_NONBLOCK).unwrap();
        Self {
            stream,
            memories: std::array::from_fn(|_| memory()),
            lengths: [MEMORY_BYTES; MEMORIES],
            kicks: std::array::from_fn(|_| event()),
            calls: std::array::from_fn(|_| event()),
            others: Vec::new(),
            available: [0; RINGS],
            size: 16,
            markers: 0,
            answered: 0,
            broken: false,
        }
    }

    pub(crate) fn play(&mut self, step: &Step) {
        match step {
            Step::Start { features, log_size, rings } => {
                self.start(*features, *log_size, usize::from(*rings) % RINGS + 1);
            }
            Step::Message(message) => self.message(message),
            Step::Raw(bytes, descriptors) => {
                self.broken = true;
                self.send(bytes, descriptors);
            }
            Step::Flood(count) => {
                // As many as the kernel lets one message have.
                let most = usize::from(*count).min(253);
                self.send(&packet(GET_FEATURES, 1, 0, &[]), &vec![Descriptor::Memory(0); most]);
                self.broken = true;
            }
            Step::Chain { ring, buffers, kick } => {
                self.chain(usize::from(*ring) % RINGS, buffers);
                if *kick {
                    self.kick(usize::from(*ring) % RINGS);
                }
            }
            Step::Poke { memory, at, value } => {
                let memory = usize::from(*memory) % MEMORIES;
                self.poke(memory, u64::from(*at) * 4, &value.to_le_bytes());
            }
            Step::Jump { ring, by } => {
                let ring = usize::from(*ring) % RINGS;
                self.available[ring] = self.available[ring].wrapping_add(*by);
                self.show_available(ring);
            }
            Step::Kick(ring) => self.kick(usize::from(*ring) % RINGS),
            Step::Cut { memory, pages } => {
                let memory = usize::from(*memory) % MEMORIES;
                let length = (u64::from(*pages) * PAGE).min(self.lengths[memory]);
                self.memories[memory].set_len(length).unwrap();
                self.lengths[memory] = length;
            }
            Step::Fill(ring) => {
                let call = &self.calls[usize::from(*ring) % RINGS];
                let _ = call.write(u64::MAX - 1);
            }
            Step::Settle => self.settle(),
        }
    }

    /// Sends a frame that comes back, and so proves that the device is in order.
    pub(crate) fn exchange_frames(&mut self) {
        const ROOM_AT: u16 = 1 << 10;
        let room = || Buffer { at: ROOM_AT, length: Length::Long(2048), flags: 2, next: None };
        let frame = [0x5a; 60];
        // Not LOG_ALL: rings would wait for a log.
        self.start(!(1 << 26), 8, 2);
        self.poke(0, BUFFERS + HEADER, &frame);
        let sent = Buffer { at: 0, length: Length::Short(72), flags: 0, next: None };
        self.chain(1, &[sent]);
        self.kick(1);
        // What earlier front-ends had sent is still in the port, and comes first, to one place.
        let deadline = Instant::now() + REPLY_DEADLINE;
        let mut got = [0; 60];
        while got != frame {
            assert!(Instant::now() < deadline, "an honest front-end is not served");
            while self.available[0].wrapping_sub(self.peek_u16(USED + 2)) < self.size {
                self.chain(0, &[room()]);
            }
            self.kick(0);
            let at = BUFFERS + u64::from(ROOM_AT) * 4 + HEADER;
            self.memories[0].read_exact_at(&mut got, at).unwrap();
            std::thread::yield_now();
        }
    }

    /// All that makes rings run, with the features that there are of those asked for.
    fn start(&mut self, features: u64, log_size: u8, rings: usize) {
        self.size = 1 << (log_size % 9);
        let offered = self.ask(GET_FEATURES);
        let protocol = self.ask(15);
        self.tell(16, &[protocol], &[]);
        self.tell(3, &[], &[]);
        // Protocol features stay, or rings would need no enabling.
        self.tell(2, &[offered & (features | 1 << 30)], &[]);
        self.tell(37, &[0, GUEST, MEMORY_BYTES, USER, 0], &[Descriptor::Memory(0)]);
        for ring in 0..rings {
            let base = ring as u64 * RING_BYTES + USER;
            let (word, number) = (ring as u64, ring as u8);
            self.available[ring] = 0;
            self.show_available(ring);
            self.poke(0, ring as u64 * RING_BYTES + USED, &[0; 4]);
            self.tell(8, &[word | u64::from(self.size) << 32], &[]);
            self.tell(10, &[word], &[]);
            self.tell(9, &[word, base, base + USED, base + AVAILABLE, 0], &[]);
            self.tell(12, &[word], &[Descriptor::Kick(number)]);
            self.tell(13, &[word], &[Descriptor::Call(number)]);
            self.tell(18, &[word | 1 << 32], &[]);
        }
    }

    /// Asks for a number, without insisting on an answer.
    fn ask(&mut self, request: u32) -> u64 {
        self.settle();
        self.tell(request, &[], &[]);
        let mut reply = [0; 20];
        let known = !self.broken && self.stream.read_exact(&mut reply).is_ok();
        self.broken |= !known;
        let marks = usize::from(request == GET_FEATURES);
        (self.markers, self.answered) = (self.markers + marks, self.answered + marks);
        u64::from_le_bytes(reply[12..].try_into().unwrap())
    }

    fn tell(&mut self, request: u32, words: &[u64], descriptors: &[Descriptor]) {
        let payload: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        self.send(&packet(request, 1, payload.len() as u32, &payload), descriptors);
    }

    fn message(&mut self, message: &Message) {
        let payload = bytes(&message.payload);
        let flags = if message.need_reply { message.flags | 8 } else { message.flags };
        let size = message.size.unwrap_or(payload.len() as u32);
        let mut packet = packet(message.request, flags, size, &payload);
        let mut descriptors = message.descriptors.clone();
        if let (Payload::Table(regions), [Descriptor::Memory(first)]) =
            (&message.payload, &message.descriptors[..])
        {
            let memory = |at: usize| Descriptor::Memory(first.wrapping_add(at as u8));
            descriptors = (0..regions.len()).map(memory).collect();
        }
        if let Some(at) = message.cut_at {
            packet.truncate(at.into());
        }
        self.broken |= message.size.is_some() || message.cut_at.is_some();
        self.markers += usize::from(message.request == GET_FEATURES && message.flags == 1);
        self.send(&packet, &descriptors);
    }

    fn send(&mut self, bytes: &[u8], descriptors: &[Descriptor]) {
        if bytes.is_empty() {
            return;
        }
        let fds: Vec<RawFd> = descriptors.iter().map(|fd| self.descriptor(*fd)).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[_] = if fds.is_empty() { &[] } else { &rights };
        let socket = self.stream.as_raw_fd();
        let sent =
            sendmsg::<()>(socket, &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None);
        self.broken |= sent.is_err();
        self.others.clear();
    }

    fn descriptor(&mut self, which: Descriptor) -> RawFd {
        use nix::sys::{epoll, timerfd};
        let other: OwnedFd = match which {
            Descriptor::Memory(index) => {
                return self.memories[usize::from(index) % MEMORIES].as_raw_fd();
            }
            Descriptor::Kick(ring) => {
                return self.kicks[usize::from(ring) % RINGS].as_fd().as_raw_fd();
            }
            Descriptor::Call(ring) => {
                return self.calls[usize::from(ring) % RINGS].as_fd().as_raw_fd();
            }
            Descriptor::Itself => return self.stream.as_raw_fd(),
            Descriptor::Pipe => nix::unistd::pipe().unwrap().1,
            Descriptor::Socket => UnixStream::pair().unwrap().0.into(),
            Descriptor::Device => File::options().write(true).open("/dev/null").unwrap().into(),
            Descriptor::Folder => File::open("/").unwrap().into(),
            Descriptor::Epoll => epoll::Epoll::new(epoll::EpollCreateFlags::empty()).unwrap().0,
            Descriptor::Timer => {
                let clock = timerfd::ClockId::CLOCK_MONOTONIC;
                timerfd::TimerFd::new(clock, timerfd::TimerFlags::empty()).unwrap().into()
            }
            Descriptor::Fixed => File::open("/proc/self/exe").unwrap().into(),
        };
        let number = other.as_raw_fd();
        self.others.push(other);
        number
    }

    /// Waits until everything sent so far was handled, or the connection has ended.
    fn settle(&mut self) {
        if self.broken {
            return;
        }
        self.tell(GET_FEATURES, &[], &[]);
        self.markers += 1;
        while self.answered < self.markers && !self.broken {
            let mut head = [0; 12];
            self.broken |= self.stream.read_exact(&mut head).is_err();
            let word = |at: usize| u32::from_le_bytes(head[at..at + 4].try_into().unwrap());
            let mut payload = vec![0; word(8) as usize];
            self.broken |= self.stream.read_exact(&mut payload).is_err();
            self.answered += usize::from(word(0) == GET_FEATURES);
        }
    }

    fn chain(&mut self, ring: usize, buffers: &[Buffer]) {
        let base = ring as u64 * RING_BYTES;
        let size = self.size;
        // Each chain begins where its turn is, so that chains do not share descriptors at once.
        let head = self.available[ring] % size;
        for (at, buffer) in buffers.iter().enumerate().take(size.into()) {
            let index = (head + at as u16) % size;
            let length = match buffer.length {
                Length::Short(length) => length.into(),
                Length::Long(length) => length.into(),
                Length::Any(length) => length,
            };
            let more = u16::from(at + 1 < buffers.len());
            let next = buffer.next.map_or((index + 1) % size, u16::from);
            let mut descriptor = Vec::with_capacity(16);
            descriptor.extend((GUEST + BUFFERS + u64::from(buffer.at) * 4).to_le_bytes());
            descriptor.extend(length.to_le_bytes());
            descriptor.extend((u16::from(buffer.flags) | more).to_le_bytes());
            descriptor.extend(next.to_le_bytes());
            self.poke(0, base + 16 * u64::from(index), &descriptor);
        }
        let slot = base + AVAILABLE + 4 + 2 * u64::from(head);
        self.poke(0, slot, &head.to_le_bytes());
        self.available[ring] = self.available[ring].wrapping_add(1);
        self.show_available(ring);
    }

    fn show_available(&self, ring: usize) {
        let at = ring as u64 * RING_BYTES + AVAILABLE + 2;
        self.poke(0, at, &self.available[ring].to_le_bytes());
    }

    fn kick(&self, ring: usize) {
        let _ = self.kicks[ring].write(1);
    }

    /// Writes into what is left of a memory; never makes it longer.
    fn poke(&self, memory: usize, at: u64, bytes: &[u8]) {
        if at + bytes.len() as u64 <= self.lengths[memory] {
            self.memories[memory].write_all_at(bytes, at).unwrap();
        }
    }

    fn peek_u16(&self, at: u64) -> u16 {
        let mut bytes = [0; 2];
        self.memories[0].read_exact_at(&mut bytes, at).unwrap();
        u16::from_le_bytes(bytes)
    }
}

fn memory() -> File {
    let file = File::from(memfd_create(c"fuzzed-guest", MFdFlags::MFD_CLOEXEC).unwrap());
    file.set_len(MEMORY_BYTES).unwrap();
    file
}

fn packet(request: u32, flags: u32, size: u32, payload: &[u8]) -> Vec<u8> {
    let mut packet: Vec<u8> =
        [request, flags, size].iter().flat_map(|word| word.to_le_bytes()).collect();
    packet.extend(payload);
    packet
}

fn bytes(payload: &Payload) -> Vec<u8> {
    let words = match payload {
        Payload::Nothing => vec![],
        Payload::Word(word) => vec![*word],
        Payload::Ring(ring, value) => vec![u64::from(*ring % 5) | u64::from(*value) << 32],
        Payload::Addresses(ring, [descriptors, available, used], flags) => {
            let user = |offset: u16| USER + u64::from(offset) * 4;
            let first = u64::from(*ring % 5) | u64::from(*flags) << 32;
            vec![
                first,
                user(*descriptors),
                user(*used),
                user(*available),
                GUEST + u64::from(*flags) * PAGE,
            ]
        }
        Payload::Log(pages, offset) => vec![u64::from(*pages) * PAGE, u64::from(*offset) * PAGE],
        Payload::Region(region) => [0].into_iter().chain(numbers(region)).collect(),
        Payload::Table(regions) => {
            [regions.len() as u64].into_iter().chain(regions.iter().flat_map(numbers)).collect()
        }
        Payload::Words(words) => words.clone(),
        Payload::Bytes(bytes) => return bytes.clone(),
    };
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn numbers(region: &Region) -> [u64; 4] {
    let pages = |count: u8| u64::from(count) * PAGE;
    let mut numbers = [
        GUEST + pages(region.guest),
        pages(region.pages % 64),
        USER + pages(region.user),
        pages(region.offset),
    ];
    for (number, by) in numbers.iter_mut().zip(region.off_by.unwrap_or_default()) {
        *number = number.wrapping_add_signed(by);
    }
    numbers
}
