//! The device and its front-ends: one connection after the other, until told to stop.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flexvf_protocol::stats_page::Header;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::socket::{
    self, AddressFamily, SockFlag, SockType, UnixAddr, getsockname, getsockopt, sockopt,
};
use tracing::{info, warn};

use super::backend::Backend;
use super::gate::{Connection, End};
use super::order::WorkerHandle;
use super::port::Port;
use super::stats::{StatsPage, hint};
use crate::logic::features::{self, Offloads};
use crate::logic::tuning::Tuning;

/// Pause between two attempts to connect to a front-end that listens, or to accept one while the
/// system has no descriptor or memory for it.
const PAUSE: Duration = Duration::from_millis(200);

/// Why a socket cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Somebody listens there already.
    #[error("socket {0} is in use by another program")]
    InUse(PathBuf),
    /// Something that is no socket has that name.
    #[error("{0} exists and is not a socket; remove it or choose another path")]
    NotASocket(PathBuf),
    /// A descriptor is no socket of the kind that front-ends use.
    #[error("not a stream socket of the Unix domain; pass one that listens or is connected")]
    Kind,
    /// The system refuses.
    #[error("socket {path}: {cause}{}", hint(.cause))]
    System {
        /// Path of the socket.
        path: PathBuf,
        /// What went wrong.
        cause: io::Error,
    },
}

/// How front-ends are found.
#[derive(Debug)]
pub enum FrontEnds {
    /// They connect to us; the socket is removed in the end if it has a path.
    Listen(UnixListener, Option<PathBuf>),
    /// They listen; we connect, again and again.
    Connect(PathBuf),
    /// There is just this one.
    One(UnixStream),
}

impl FrontEnds {
    /// Listens at a path; a socket that a dead program has left there is replaced.
    ///
    /// # Errors
    /// [`SocketError`] when the path is taken or unusable.
    pub fn listen(path: &Path) -> Result<Self, SocketError> {
        let failed = |cause| SocketError::System { path: path.to_owned(), cause };
        if let Ok(metadata) = fs::symlink_metadata(path) {
            if !metadata.file_type().is_socket() {
                return Err(SocketError::NotASocket(path.to_owned()));
            }
            // Only this says that nobody has it: it may be of another kind, or its backlog full.
            match connect(path) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                    fs::remove_file(path).map_err(failed)?;
                }
                _ => return Err(SocketError::InUse(path.to_owned())),
            }
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        Ok(Self::Listen(listener, Some(path.to_owned())))
    }

    /// Connects to whoever listens at a path, again and again; nobody need listen there yet.
    ///
    /// # Errors
    /// [`SocketError`] when nobody ever could: no address is that long, there is no such folder.
    pub fn connecting(path: &Path) -> Result<Self, SocketError> {
        let failed = |cause| SocketError::System { path: path.to_owned(), cause };
        UnixAddr::new(path).map_err(|error| failed(error.into()))?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        fs::metadata(folder.unwrap_or(Path::new("."))).map_err(failed)?;
        Ok(Self::Connect(path.to_owned()))
    }

    /// Uses a descriptor from elsewhere: a listening socket, or a connected one.
    ///
    /// # Errors
    /// [`SocketError::Kind`] when it is something else.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, SocketError> {
        let is_stream = getsockopt(&fd, sockopt::SockType) == Ok(SockType::Stream)
            && getsockname::<UnixAddr>(fd.as_raw_fd()).is_ok();
        if !is_stream {
            return Err(SocketError::Kind);
        }
        if getsockopt(&fd, sockopt::AcceptConn) == Ok(true) {
            let listener = UnixListener::from(fd);
            listener.set_nonblocking(true).map_err(|_| SocketError::Kind)?;
            return Ok(Self::Listen(listener, None));
        }
        let stream = UnixStream::from(fd);
        match stream.peer_addr() {
            Ok(_) => Ok(Self::One(stream)),
            Err(_neither) => Err(SocketError::Kind),
        }
    }
}

/// Ends [`Device::serve`] from any thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<EventFd>);

impl Stopper {
    /// One that has not been used yet.
    ///
    /// # Errors
    /// The system has no descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(Arc::new(event()?)))
    }

    /// Ends serving, for good.
    pub fn stop(&self) {
        // It fails only when it was used very often, and then it is readable anyway.
        let _ = self.0.write(1);
    }
}

/// What a device is made of.
pub struct DeviceParts {
    /// One port a queue pair.
    pub ports: Vec<Box<dyn Port>>,
    /// What those ports can hand out unfinished.
    pub offloads: Offloads,
    /// Virtio features that a guest may be offered, as a mask: [`features::DEFAULT_MASK`] for all
    /// that make sense unasked.
    pub features: u64,
    /// How the queues are served.
    pub tuning: Tuning,
    /// Where counters go.
    pub stats: StatsPage,
    /// Makes the interface carry frames of an MTU that a guest was promised.
    pub set_mtu: Box<dyn FnMut(u16) -> io::Result<()> + Send>,
}

/// A virtual NIC: its queue pairs' threads and counters.
pub struct Device {
    backend: Arc<Mutex<Backend>>,
    stats: StatsPage,
    observer: Box<dyn FnMut(bool) + Send>,
    /// Readable once a port has gone for good.
    port_gone: Arc<EventFd>,
}

impl Device {
    /// Starts the threads of a device; frames flow once a front-end is served.
    ///
    /// # Errors
    /// The system gives no thread or descriptor.
    pub fn new(parts: DeviceParts) -> io::Result<Self> {
        let DeviceParts { stats, tuning, .. } = parts;
        let mask = parts.features | features::BACKEND_ONLY;
        let offered = features::offered(parts.ports.len(), parts.offloads) & mask;
        let port_gone = Arc::new(event()?);
        let spawn = |(pair, port)| WorkerHandle::spawn(pair, port, &stats, &tuning, &port_gone);
        let workers: Arc<[WorkerHandle]> =
            parts.ports.into_iter().enumerate().map(spawn).collect::<io::Result<_>>()?;
        let backend = Backend::new(workers, offered, parts.set_mtu)?;
        let backend = Arc::new(Mutex::new(backend));
        Ok(Self { backend, stats, observer: Box::new(drop), port_gone })
    }

    /// Has `observer` told whenever a front-end has come (true) or gone (false).
    pub fn on_front_end(&mut self, observer: impl FnMut(bool) + Send + 'static) {
        self.observer = Box::new(observer);
    }

    /// Serves front-ends until stopped, or until the only one has gone.
    ///
    /// # Errors
    /// The listening socket fails, or a port is gone for good (a TAP that was deleted); a front-end's
    /// failure ends only its own connection.
    pub fn serve(&mut self, front_ends: FrontEnds, stopper: &Stopper) -> io::Result<()> {
        let served = match front_ends {
            FrontEnds::Listen(listener, path) => {
                let ours = path.as_deref().and_then(identity);
                let served = self.serve_listener(&listener, stopper);
                if let Some(path) = path
                    && identity(&path) == ours
                    && let Err(error) = fs::remove_file(&path)
                {
                    warn!(%error, "the socket's file {} stays behind", path.display());
                }
                served
            }
            FrontEnds::Connect(path) => {
                self.serve_connecting(&path, stopper);
                Ok(())
            }
            FrontEnds::One(stream) => {
                self.serve_one(stream, stopper);
                Ok(())
            }
        };
        self.stats.set(Header::Pid, 0);
        match self.port_gone.read() {
            Ok(_) => Err(io::Error::other("the interface that frames go to was deleted")),
            Err(_) => served,
        }
    }

    fn serve_listener(&mut self, listener: &UnixListener, stopper: &Stopper) -> io::Result<()> {
        loop {
            if self.wait(stopper, Some(listener.as_fd()), PollTimeout::NONE) {
                return Ok(());
            }
            match listener.accept() {
                Ok((stream, _)) => {
                    if matches!(self.serve_one(stream, stopper), End::Stopped) {
                        return Ok(());
                    }
                }
                Err(error) if is_passing(&error) => {}
                // The system may have room for it soon; the device and its counters stay.
                Err(error) if is_shortage(&error) => {
                    warn!(%error, "a front-end has to wait");
                    if self.wait(stopper, None, pause()) {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn serve_connecting(&mut self, path: &Path, stopper: &Stopper) {
        let mut told = None;
        loop {
            match connect(path) {
                Ok(stream) => {
                    told = None;
                    if matches!(self.serve_one(stream, stopper), End::Stopped) {
                        return;
                    }
                }
                Err(error) if told == Some(error.kind()) => {}
                Err(error) => {
                    told = Some(error.kind());
                    info!(%error, "no front-end at {} yet; still trying", path.display());
                }
            }
            if self.wait(stopper, None, pause()) {
                return;
            }
        }
    }

    /// Serves one front-end to its end.
    fn serve_one(&mut self, stream: UnixStream, stopper: &Stopper) -> End {
        if self.stats.was_cut() {
            warn!("the stats page was cut: nobody sees the counters until the next start");
        }
        self.stats.increment(Header::Connections);
        self.stats.set(Header::Connected, 1);
        (self.observer)(true);
        info!("front-end connected");
        let backend = Arc::clone(&self.backend);
        let stops = [stopper.0.as_fd(), self.port_gone.as_fd()];
        let end = match Connection::new(stream, backend, stops) {
            Ok(connection) => connection.serve(),
            Err(error) => End::Socket(error),
        };
        self.stats.set(Header::Connected, 0);
        (self.observer)(false);
        if end.is_refusal() {
            self.stats.increment(Header::Refused);
            warn!("{end}");
        } else {
            info!("{end}");
        }
        end
    }

    /// Waits for a socket, a stop, a port's end or a timeout. True: nothing more is to be served.
    fn wait(
        &self,
        stopper: &Stopper,
        socket: Option<BorrowedFd<'_>>,
        timeout: PollTimeout,
    ) -> bool {
        let watch = |fd| PollFd::new(fd, PollFlags::POLLIN);
        let mut fds = vec![watch(stopper.0.as_fd()), watch(self.port_gone.as_fd())];
        fds.extend(socket.map(watch));
        let _ = poll(&mut fds, timeout);
        fds.iter().take(2).any(|fd| fd.any() == Some(true))
    }
}

fn event() -> io::Result<EventFd> {
    Ok(EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?)
}

/// Connects without waiting for a place in the listener's queue, which nobody may ever empty.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Which file stands at a path: another program may put its own in the place of ours.
fn identity(path: &Path) -> Option<(u64, u64)> {
    fs::symlink_metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

fn pause() -> PollTimeout {
    PollTimeout::try_from(PAUSE).unwrap_or(PollTimeout::MAX)
}

/// Errors of `accept` that are the system's, and may be over soon.
fn is_shortage(error: &io::Error) -> bool {
    let shortages = [libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM];
    error.raw_os_error().is_some_and(|error| shortages.contains(&error))
}

/// Errors of `accept` that the next connection need not have.
fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, Interrupted, WouldBlock};
    matches!(error.kind(), WouldBlock | Interrupted | ConnectionAborted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_in_use_stay_whatever_they_are_and_however_busy() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("datagrams");
        let _datagrams = std::os::unix::net::UnixDatagram::bind(&path).unwrap();
        assert!(matches!(FrontEnds::listen(&path), Err(SocketError::InUse(_))));
        assert!(path.exists());
        let path = folder.path().join("full");
        let listener = UnixListener::bind(&path).unwrap();
        let waiting: Vec<_> = std::iter::repeat_with(|| connect(&path)).take(5000).collect();
        assert!(waiting.iter().any(Result::is_err), "the queue never was full");
        assert!(matches!(FrontEnds::listen(&path), Err(SocketError::InUse(_))));
        drop(listener);
    }

    #[test]
    fn a_socket_left_by_a_dead_program_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nic.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(FrontEnds::listen(&path).is_ok());
    }

    #[test]
    fn a_socket_in_use_and_a_plain_file_are_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nic.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(matches!(FrontEnds::listen(&path), Err(SocketError::InUse(_))));
        let file = folder.path().join("file");
        fs::write(&file, "kept").unwrap();
        assert!(matches!(FrontEnds::listen(&file), Err(SocketError::NotASocket(_))));
        assert_eq!(fs::read(&file).unwrap(), b"kept");
    }
}
