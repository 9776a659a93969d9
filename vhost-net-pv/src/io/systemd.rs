//! What systemd passes and wants to hear: sockets by descriptor, the service's state by datagram.
//!
//! The protocols are sd_listen_fds(3)'s and sd_notify(3)'s. Not by a crate: those we know open a
//! socket for each message, which a sandboxed process can no longer do.

use std::env;
use std::io;
use std::os::fd::RawFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// The first descriptor that systemd passes.
const FIRST_FD: RawFd = 3;

/// The sockets passed are not what we can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActivationError {
    /// Several, and no telling which is meant.
    #[error("systemd passed {0} sockets; give the .socket unit one ListenStream= only")]
    Several(u32),
    /// The environment is not systemd's.
    #[error("LISTEN_FDS is {0:?}, which is no number")]
    Count(String),
}

/// The descriptor of the socket that systemd has opened for this process, if it did.
///
/// # Errors
/// [`ActivationError`] when it opened more than one.
pub fn activation_socket() -> Result<Option<RawFd>, ActivationError> {
    let variable = |name: &str| env::var(name).ok();
    activated(variable("LISTEN_PID"), variable("LISTEN_FDS"), std::process::id())
}

fn activated(
    for_pid: Option<String>,
    count: Option<String>,
    pid: u32,
) -> Result<Option<RawFd>, ActivationError> {
    // Variables that somebody inherited and handed on are not for us.
    let (Some(for_pid), Some(count)) = (for_pid, count) else { return Ok(None) };
    if for_pid.parse() != Ok(pid) {
        return Ok(None);
    }
    match count.parse() {
        Ok(0) => Ok(None),
        Ok(1) => Ok(Some(FIRST_FD)),
        Ok(several) => Err(ActivationError::Several(several)),
        Err(_) => Err(ActivationError::Count(count)),
    }
}

/// A line to the service manager, or to nobody.
#[derive(Debug, Default)]
pub struct Notifier(Option<UnixDatagram>);

impl Notifier {
    /// Connects to the manager that the environment names.
    ///
    /// # Errors
    /// It names one that is not there.
    pub fn from_environment() -> io::Result<Self> {
        match env::var("NOTIFY_SOCKET") {
            Ok(name) if !name.is_empty() => Self::connect(&name),
            _ => Ok(Self(None)),
        }
    }

    fn connect(name: &str) -> io::Result<Self> {
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.connect_addr(&address)?;
        // A manager that does not read must not hold us up.
        socket.set_nonblocking(true)?;
        Ok(Self(Some(socket)))
    }

    /// Everything is there; front-ends can come.
    pub fn ready(&self) {
        self.send("READY=1\nSTATUS=no front-end");
    }

    /// A front-end came or went.
    pub fn front_end(&self, connected: bool) {
        self.send(match connected {
            true => "STATUS=front-end connected",
            false => "STATUS=no front-end",
        });
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, text: &str) {
        if let Some(socket) = &self.0 {
            // Nobody can be told that nobody can be told.
            let _ = socket.send(text.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(number: u32) -> Option<String> {
        Some(number.to_string())
    }

    #[test]
    fn only_sockets_for_this_process_are_taken() {
        assert_eq!(activated(text(7), text(1), 7), Ok(Some(3)));
        assert_eq!(activated(text(8), text(1), 7), Ok(None));
        assert_eq!(activated(None, text(1), 7), Ok(None));
        assert_eq!(activated(text(7), text(0), 7), Ok(None));
        assert_eq!(activated(text(7), text(2), 7), Err(ActivationError::Several(2)));
        assert!(activated(text(7), Some("x".into()), 7).is_err());
    }

    #[test]
    fn the_manager_hears_each_line_by_either_kind_of_address() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify").display().to_string();
        let hidden = format!("@vhost-net-pv-test-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&hidden[1..]).unwrap();
        let managers = [
            (UnixDatagram::bind(&path).unwrap(), path),
            (UnixDatagram::bind_addr(&abstract_address).unwrap(), hidden),
        ];
        for (manager, name) in managers {
            let notifier = Notifier::connect(&name).unwrap();
            notifier.ready();
            notifier.front_end(true);
            notifier.stopping();
            let mut said = Vec::new();
            for _ in 0..3 {
                let mut bytes = [0; 64];
                let length = manager.recv(&mut bytes).unwrap();
                said.push(String::from_utf8_lossy(&bytes[..length]).into_owned());
            }
            assert_eq!(
                said,
                ["READY=1\nSTATUS=no front-end", "STATUS=front-end connected", "STOPPING=1"]
            );
        }
    }

    #[test]
    fn a_manager_that_is_not_there_is_told_of() {
        assert!(Notifier::connect("/nonexistent/notify").is_err());
    }
}
