//! The control socket: QMP's own dialect, so that the tools QMP users have work on it.
//!
//! Greeting, `qmp_capabilities`, then `execute`; ended switches come as events. Commands:
//!
//! | command | answer |
//! |---|---|
//! | `query-status` | [`Status`] |
//! | `query-plan` | [`Plan`](crate::logic::explain::Plan): what would change if it were decided now |
//! | `explain`, argument `vm` | [`Explanation`](crate::logic::explain::Explanation): why it has a VF or none |
//! | `clear-quarantine`, argument `vf` | `{}`: the VF is looked at now; `query-status` tells what came of it |
//! | `query-version` | `{"flexvf": "0.1.0"}` |
//! | `query-commands` | their names |

mod session;

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::warn;

use crate::logic::explain::Asked;
use crate::logic::status::Status;
use crate::logic::vf::VfId;

/// A question to the daemon.
#[derive(Debug)]
pub enum Query {
    /// Everything, as it is now.
    Status(oneshot::Sender<Status>),
    /// All that a plan or an explanation is made of.
    Ask(oneshot::Sender<Asked>),
    /// Look now at a VF that is quarantined or rests; or why there is nothing to do.
    Clear(VfId, oneshot::Sender<Result<(), String>>),
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// Somebody answers there already.
    #[error(
        "control socket {0}: another flexvf daemon answers there; end it first, or set `control_socket`"
    )]
    Busy(PathBuf),
    /// Something else is there.
    #[error("control socket {0}: that is not a socket; remove it, or set `control_socket`")]
    NotASocket(PathBuf),
    /// The system's word.
    #[error("control socket {path}: {cause}; is its folder there and writable?")]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's word.
        cause: io::Error,
    },
}

/// Clients at one time; more wait in the backlog.
const MAX_CLIENTS: usize = 64;
/// After a failed accept: it fails again until descriptors are free.
const ACCEPT_PAUSE: Duration = Duration::from_secs(10);
/// Questions and events on their way.
const MAX_WAITING: usize = 64;

/// The listening end.
#[derive(Debug)]
pub struct ControlServer {
    path: PathBuf,
    listener: UnixListener,
    queries: mpsc::Receiver<Query>,
    to_daemon: mpsc::Sender<Query>,
    events: broadcast::Sender<Arc<str>>,
    places: Arc<Semaphore>,
    /// No client is taken in before: the process had no descriptors left.
    pause_until: Option<Instant>,
}

impl ControlServer {
    /// Listens at `path`; a dead daemon's socket is replaced, a living one's is not.
    ///
    /// # Errors
    /// [`ControlError`].
    pub async fn bind(path: &Path) -> Result<Self, ControlError> {
        let failed = |cause| ControlError::Io { path: path.to_owned(), cause };
        let nobody = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
        match UnixStream::connect(path).await {
            Err(error) if nobody.contains(&error.kind()) => {}
            // Also when it does not answer just now: whoever listens there lives.
            _ => return Err(ControlError::Busy(path.to_owned())),
        }
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(failed)?;
        }
        match std::fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                std::fs::remove_file(path).map_err(failed)?
            }
            Ok(_) => return Err(ControlError::NotASocket(path.to_owned())),
            Err(_) => {}
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        // Who may ask may see every VM's traffic.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o660)).map_err(failed)?;
        let (to_daemon, queries) = mpsc::channel(MAX_WAITING);
        let (events, _) = broadcast::channel(MAX_WAITING);
        let places = Arc::new(Semaphore::new(MAX_CLIENTS));
        Ok(Self {
            path: path.to_owned(),
            listener,
            queries,
            to_daemon,
            events,
            places,
            pause_until: None,
        })
    }

    /// The next question; takes in clients meanwhile.
    pub async fn next(&mut self) -> Query {
        loop {
            let open = self.pause_until.is_none() && self.places.available_permits() > 0;
            let pause = self.pause_until;
            tokio::select! {
                Some(query) = self.queries.recv() => return query,
                () = sleep_until(pause.unwrap_or_else(Instant::now)), if pause.is_some() => {
                    self.pause_until = None;
                }
                accepted = self.listener.accept(), if open => match accepted {
                    Ok((stream, _)) => self.welcome(stream),
                    Err(error) => {
                        warn!(%error, "control socket: no client is taken in for a while");
                        self.pause_until = Some(Instant::now() + ACCEPT_PAUSE);
                    }
                }
            }
        }
    }

    /// Sends an event to every client that has negotiated.
    pub fn tell(&self, name: &str, data: &impl Serialize) {
        if self.events.receiver_count() == 0 {
            return;
        }
        let event =
            serde_json::json!({"event": name, "data": data, "timestamp": session::timestamp()});
        // The last one may have gone just now.
        let _ = self.events.send(event.to_string().into());
    }

    fn welcome(&self, stream: UnixStream) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else {
            return;
        };
        let session = session::Session::new(self.to_daemon.clone(), self.events.subscribe());
        tokio::spawn(async move {
            session.run(stream).await;
            drop(place);
        });
    }
}

impl Drop for ControlServer {
    fn drop(&mut self) {
        // A socket left behind does no harm: the next daemon finds that nobody answers.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_a_dead_daemons_socket_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("control.sock");
        let living = ControlServer::bind(&path).await.unwrap();
        assert!(matches!(ControlServer::bind(&path).await, Err(ControlError::Busy(_))));
        // A daemon that was killed leaves its socket, and nobody who listens.
        drop(living);
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        drop(ControlServer::bind(&path).await.unwrap());
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(ControlServer::bind(&path).await, Err(ControlError::NotASocket(_))));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
