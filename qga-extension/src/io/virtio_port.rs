//! A virtio-serial port.
//!
//! The kernel's port has its own manners. While no host is connected, a read gives 0 bytes at once,
//! a write would block, and poll says "hang-up" all the time: waiting on the level would spin, and
//! tokio never forgets a hang-up. What can be waited on is the edge: the port wakes its waiters when
//! the host comes, goes, sends, or has taken something. So the port sits edge-triggered in an epoll
//! of its own, and tokio waits on that one. It needs no timer and no wake-up while nothing happens.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::io::unix::AsyncFd;

use super::channel::Channel;

/// An open virtio-serial port.
#[derive(Debug)]
pub struct VirtioPort {
    path: PathBuf,
    file: File,
    edges: AsyncFd<Edges>,
    host: Host,
}

/// Who is at the other end, as far as the last read told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Host {
    Connected,
    Gone,
}

/// The port cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenPortError {
    /// QEMU has no such port.
    #[error("port {0} does not exist: does QEMU have '-device virtserialport,name={1}'?")]
    Missing(PathBuf, String),
    /// A port opens once.
    #[error("port {0} is in use by another agent")]
    InUse(PathBuf),
    /// Anything else.
    #[error("open port {0}: {1}")]
    Other(PathBuf, #[source] io::Error),
}

impl VirtioPort {
    /// Opens a port by path, or by its name where no udev makes such paths.
    pub fn open(path: &Path) -> Result<Self, OpenPortError> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let device = match path.exists() {
            true => path.to_owned(),
            false => find_device(&name, Path::new(CLASS_FOLDER))
                .ok_or_else(|| OpenPortError::Missing(path.to_owned(), name.to_string()))?,
        };
        let failed = |error: io::Error| match error.raw_os_error() {
            Some(code) if code == nix::errno::Errno::EBUSY as i32 => {
                OpenPortError::InUse(device.clone())
            }
            _ => OpenPortError::Other(device.clone(), error),
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(&device)
            .map_err(failed)?;
        let edges = Edges::of(&file).map_err(failed)?;
        Ok(Self { path: device, file, edges, host: Host::Connected })
    }

    /// Waits until something has happened at the port since the last call.
    async fn edge(&self) -> io::Result<()> {
        loop {
            let mut guard = self.edges.readable().await?;
            // Cleared before the look, so that an edge right after it is not lost.
            guard.clear_ready();
            if self.edges.get_ref().take()? {
                return Ok(());
            }
        }
    }
}

impl Channel for VirtioPort {
    async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.file.read(buffer) {
                Ok(0) if self.host == Host::Connected => {
                    self.host = Host::Gone;
                    return Ok(0);
                }
                // Still nobody there.
                Ok(0) => {}
                Ok(count) => {
                    self.host = Host::Connected;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.host = Host::Connected;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            }
            self.edge().await?;
        }
    }

    /// Waits for a host when none is connected: bytes arrive by another way than the word that the
    /// host has come, so a request may be here first, and its answer must not be lost. Should the
    /// host have gone instead, the next one gets the answer, and drops it as it synchronises.
    async fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.file.write(bytes) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.edge().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl fmt::Display for VirtioPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.path.display().fmt(f)
    }
}

/// An epoll with one edge-triggered file in it.
#[derive(Debug)]
struct Edges(Epoll);

impl Edges {
    fn of(file: &File) -> io::Result<AsyncFd<Self>> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(file, EpollEvent::new(events, 0))?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe: the descriptor must stay the same and open, as ours does, since the epoll is owned and never replaced"
        )]
        AsyncFd::new(Self(epoll))
    }

    /// Takes what has happened; says whether something has.
    fn take(&self) -> io::Result<bool> {
        let mut events = [EpollEvent::empty()];
        Ok(self.0.wait(&mut events, EpollTimeout::ZERO)? > 0)
    }
}

impl AsRawFd for Edges {
    fn as_raw_fd(&self) -> RawFd {
        self.0.0.as_raw_fd()
    }
}

/// `/dev/vportNpM` of the port with this name.
fn find_device(name: &str, class_folder: &Path) -> Option<PathBuf> {
    let ports = fs::read_dir(class_folder).ok()?;
    ports.flatten().find_map(|port| {
        let found = fs::read_to_string(port.path().join("name")).ok()?;
        (!name.is_empty() && found.trim_end() == name)
            .then(|| Path::new("/dev").join(port.file_name()))
    })
}

const CLASS_FOLDER: &str = "/sys/class/virtio-ports";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_is_found_by_name_where_udev_made_no_link() {
        let folder = tempfile::tempdir().unwrap();
        for (device, name) in [("vport1p1", "org.other\n"), ("vport1p2", "io.flexvf.x\n")] {
            fs::create_dir(folder.path().join(device)).unwrap();
            fs::write(folder.path().join(device).join("name"), name).unwrap();
        }
        assert_eq!(find_device("io.flexvf.x", folder.path()), Some("/dev/vport1p2".into()));
        assert_eq!(find_device("io.flexvf.y", folder.path()), None);
        assert_eq!(find_device("", folder.path()), None);
    }

    #[test]
    fn a_missing_port_says_what_qemu_lacks() {
        let error = VirtioPort::open(Path::new("/nonexistent/io.flexvf.x")).unwrap_err();
        assert!(error.to_string().contains("name=io.flexvf.x"), "{error}");
    }
}
