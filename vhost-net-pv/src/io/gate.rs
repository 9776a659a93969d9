//! The gate at work: reads the front-end's messages, answers some, hands on the others.
//!
//! The `vhost` crate's parser sits behind a socket pair and is run in this same thread, one message
//! at a time: a message goes in at one end, the parser handles it, and its reply, if any, is there.
//! Nothing blocks on the inner socket, since at most one small message is ever in it.

use std::io::{self, IoSlice, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, send, sendmsg};
use tracing::debug;
use vhost::vhost_user::message::FrontendReq;
use vhost::vhost_user::{BackendReqHandler, Error as VhostError};

use super::backend::Backend;
use super::sys::{self, Cut};
use crate::logic::gate::{Action, Gate, HEAD_BYTES, Head, MAX_FDS, MAX_PAYLOAD, Refusal};

/// A message that has begun must be whole within this, and be taken from us within this.
const MESSAGE_DEADLINE: Duration = Duration::from_secs(5);

/// How a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum End {
    /// The front-end closed it.
    #[error("front-end closed the connection")]
    Closed,
    /// We were told to stop.
    #[error("told to stop")]
    Stopped,
    /// The front-end broke the protocol.
    #[error("front-end refused: {0}")]
    Refused(#[from] Refusal),
    /// The message parser or the device refused a message.
    #[error("front-end refused at request {request}: {source}")]
    Rejected {
        /// The message's request.
        request: u32,
        /// The crate's words.
        source: VhostError,
    },
    /// More descriptors came than any message may carry.
    #[error("front-end refused: a message with more than {MAX_FDS} file descriptors")]
    Descriptors,
    /// A message began and did not end.
    #[error("front-end refused: a message was not whole within {} s", MESSAGE_DEADLINE.as_secs())]
    Slow,
    /// Replies pile up.
    #[error("front-end refused: it took no reply for {} s", MESSAGE_DEADLINE.as_secs())]
    Unread,
    /// Memory that the front-end has shared is no longer all there.
    #[error(
        "front-end refused: it cut memory short that it had shared; \
         share memory that is sealed against shrinking, and reserve huge pages"
    )]
    MemoryCut,
    /// The socket failed.
    #[error("connection to the front-end failed: {0}")]
    Socket(io::Error),
}

impl From<io::Error> for End {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A killed front-end is gone, also where it still owed us the rest of a message.
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset => Self::Closed,
            _ => Self::Socket(error),
        }
    }
}

impl End {
    /// The front-end was at fault.
    pub const fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) | Self::Rejected { .. } => true,
            Self::Descriptors | Self::Slow | Self::Unread | Self::MemoryCut => true,
            Self::Closed | Self::Stopped | Self::Socket(_) => false,
        }
    }
}

/// One front-end's connection.
pub(super) struct Connection<'s> {
    front: UnixStream,
    inner: UnixStream,
    parser: BackendReqHandler<Mutex<Backend>>,
    backend: Arc<Mutex<Backend>>,
    gate: Gate,
    cut: Arc<Cut>,
    /// Readable when the connection is to end.
    stops: [BorrowedFd<'s>; 2],
}

/// One whole message.
struct Message {
    head: Head,
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

impl<'s> Connection<'s> {
    /// Takes a front-end's socket; one of `stops` becomes readable when the connection is to end.
    pub(super) fn new(
        front: UnixStream,
        backend: Arc<Mutex<Backend>>,
        stops: [BorrowedFd<'s>; 2],
    ) -> io::Result<Self> {
        // A listening socket that does not block may hand that on.
        front.set_nonblocking(false)?;
        front.set_read_timeout(Some(MESSAGE_DEADLINE))?;
        let (inner, parser_end) = UnixStream::pair()?;
        inner.set_nonblocking(true)?;
        parser_end.set_nonblocking(true)?;
        let (rings, cut) = {
            let backend = lock(&backend);
            (backend.ring_count(), backend.cut())
        };
        // What happened to an earlier connection's memory.
        cut.take();
        Ok(Self {
            front,
            inner,
            parser: BackendReqHandler::from_stream(parser_end, Arc::clone(&backend)),
            backend,
            gate: Gate::new(rings),
            cut,
            stops,
        })
    }

    /// Serves the front-end until the connection ends.
    pub(super) fn serve(mut self) -> End {
        let end = loop {
            if let Err(end) = self.message() {
                break end;
            }
        };
        lock(&self.backend).reset();
        end
    }

    fn message(&mut self) -> Result<(), End> {
        self.wait(PollFlags::POLLIN, None)?;
        let message = self.receive(Instant::now() + MESSAGE_DEADLINE)?;
        debug!(request = ?FrontendReq::try_from(message.head.request), fds = message.fds.len());
        let payload = message.bytes.get(HEAD_BYTES..).unwrap_or_default();
        let action = self.gate.decide(&message.head, payload, message.fds.len())?;
        let mut backend = lock(&self.backend);
        let result = match action {
            Action::Pass => {
                drop(backend);
                return self.pass(message);
            }
            Action::Reply(value) => {
                return self.reply(&message.head.reply(value));
            }
            Action::Noted => Ok(()),
            Action::Enable { ring, on } => backend.enable(ring, on),
            Action::Announce(mac) => backend.announce(mac),
            Action::Mtu(mtu) => backend.mtu(mtu),
        };
        drop(backend);
        if self.gate.wants_ack(&message.head) {
            let failed = u64::from(result.is_err());
            self.reply(&message.head.reply(failed))?;
        }
        Ok(())
    }

    /// Waits until the front-end's socket can be read or written, or the connection is to end.
    fn wait(&self, what: PollFlags, deadline: Option<Instant>) -> Result<(), End> {
        let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let front = PollFd::new(self.front.as_fd(), what);
        let [stop, port_gone] = self.stops.map(watch);
        let mut fds = [stop, port_gone, watch(self.cut.as_fd()), front];
        loop {
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let timeout = left.map_or(PollTimeout::NONE, |left| {
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            });
            match poll(&mut fds, timeout) {
                Ok(0) if what == PollFlags::POLLOUT => return Err(End::Unread),
                Ok(0) => return Err(End::Slow),
                Ok(_) => break,
                Err(Errno::EINTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        let [stop, port_gone, cut, _] = fds.map(|fd| fd.any() == Some(true));
        match (stop || port_gone, cut) {
            (true, _) => Err(End::Stopped),
            (_, true) => Err(End::MemoryCut),
            _ => Ok(()),
        }
    }

    /// Reads until the buffer is full.
    fn fill(&mut self, mut buffer: &mut [u8], deadline: Instant) -> Result<(), End> {
        while !buffer.is_empty() {
            self.wait(PollFlags::POLLIN, Some(deadline))?;
            match self.front.read(buffer) {
                Ok(0) => return Err(End::Closed),
                Ok(bytes) => buffer = buffer.get_mut(bytes..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Sends a reply, as long as the front-end makes room for it.
    fn reply(&self, mut bytes: &[u8]) -> Result<(), End> {
        let deadline = Instant::now() + MESSAGE_DEADLINE;
        let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        while !bytes.is_empty() {
            self.wait(PollFlags::POLLOUT, Some(deadline))?;
            match send(self.front.as_raw_fd(), bytes, flags) {
                Ok(sent) => bytes = bytes.get(sent..).unwrap_or_default(),
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(error) => return Err(io::Error::from(error).into()),
            }
        }
        Ok(())
    }

    fn receive(&mut self, deadline: Instant) -> Result<Message, End> {
        let mut head_bytes = [0; HEAD_BYTES];
        let received = sys::receive(&self.front, &mut head_bytes)?;
        if received.bytes == 0 {
            return Err(End::Closed);
        }
        if received.truncated {
            // Those that fitted are closed here.
            return Err(End::Descriptors);
        }
        let rest = head_bytes.get_mut(received.bytes..).unwrap_or_default();
        self.fill(rest, deadline)?;
        let head = Head::parse(&head_bytes);
        self.gate.check_head(&head)?;
        let mut bytes = vec![0; HEAD_BYTES + (head.size as usize).min(MAX_PAYLOAD)];
        let (at_head, payload) = bytes.split_at_mut(HEAD_BYTES);
        at_head.copy_from_slice(&head_bytes);
        self.fill(payload, deadline)?;
        Ok(Message { head, bytes, fds: received.fds })
    }

    /// Lets the crate's parser handle a message, and passes its reply on.
    fn pass(&mut self, message: Message) -> Result<(), End> {
        let fds: Vec<_> = message.fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[_] = if fds.is_empty() { &[] } else { &rights };
        let vectors = [IoSlice::new(&message.bytes)];
        let flags = MsgFlags::MSG_NOSIGNAL;
        sendmsg::<()>(self.inner.as_raw_fd(), &vectors, control, flags, None)
            .map_err(io::Error::from)?;
        // The parser has copies of its own from here on.
        drop(message.fds);
        let handled = self.parser.handle_request();
        let mut reply = [0; MAX_PAYLOAD];
        match self.inner.read(&mut reply) {
            Ok(length) => self.reply(reply.get(..length).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        handled.map_err(|source| End::Rejected { request: message.head.request, source })
    }
}

/// A panic elsewhere does not make the device's state unusable: it is reset at the next connection.
pub(super) fn lock(backend: &Mutex<Backend>) -> std::sync::MutexGuard<'_, Backend> {
    backend.lock().unwrap_or_else(PoisonError::into_inner)
}
