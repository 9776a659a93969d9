//! Between QEMU and the backend: passes everything on, and cuts connections when told to.
//!
//! Neither program can be asked to close a connection while both stay alive. Of vhost-user it knows the
//! length of a message. A cut may fall anywhere, also into the middle of one.

use std::io::IoSlice;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{JoinHandle, spawn};

use anyhow::{Context, Result};
use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};

use crate::sys::receive_with_fds;

/// Of a message: request, flags, and the payload's length.
const HEAD: usize = 12;
/// A memory table of vhost-user and more.
const MAX_PAYLOAD: usize = 4096;

/// Listens at one socket and connects to another; ends with this.
#[derive(Debug)]
pub struct Relay {
    listen: PathBuf,
    state: Arc<Mutex<State>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct State {
    ended: bool,
    connections: u64,
    /// Both sides of the connection that there is.
    open: Option<[UnixStream; 2]>,
}

impl Relay {
    /// Passes connections to `listen` on to `target`, one after the other.
    pub fn start(listen: &Path, target: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(listen);
        let listener = UnixListener::bind(listen);
        let listener = listener.with_context(|| format!("listen at {}", listen.display()))?;
        let state = Arc::new(Mutex::new(State::default()));
        let (shared, target) = (Arc::clone(&state), target.to_owned());
        let thread = spawn(move || {
            for stream in listener.incoming().flatten() {
                if locked(&shared).ended {
                    return;
                }
                if let Ok(other) = UnixStream::connect(&target) {
                    pass(&shared, &stream, &other);
                }
            }
        });
        Ok(Self { listen: listen.to_owned(), state, thread: Some(thread) })
    }

    /// Connections so far.
    pub fn connections(&self) -> u64 {
        locked(&self.state).connections
    }

    /// Ends the connection that there is; whether there was one.
    pub fn cut(&self) -> bool {
        locked(&self.state).open.take().is_some_and(|sides| {
            sides.iter().for_each(|side| drop(side.shutdown(Shutdown::Both)));
            true
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        locked(&self.state).ended = true;
        self.cut();
        // Its thread waits for a connection, and this is the last one.
        let woken = UnixStream::connect(&self.listen).is_ok();
        let _ = std::fs::remove_file(&self.listen);
        if let (Some(thread), true) = (self.thread.take(), woken) {
            let _ = thread.join();
        }
    }
}

/// Passes everything both ways until either side ends.
fn pass(state: &Mutex<State>, one: &UnixStream, other: &UnixStream) {
    let sides = one.try_clone().and_then(|one| Ok([one, other.try_clone()?]));
    {
        let mut state = locked(state);
        state.connections += 1;
        state.open = sides.ok().filter(|_| !state.ended);
        if state.open.is_none() {
            return;
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| copy(other, one));
        copy(one, other);
    });
    locked(state).open = None;
}

/// Passes messages on until either side ends, head and payload by themselves.
///
/// Read without regard to messages, descriptors would come with the bytes of an earlier one.
fn copy(from: &UnixStream, to: &UnixStream) {
    let mut payload = vec![0; MAX_PAYLOAD];
    while let Some(bytes) = copy_exactly(from, to, &mut [0; HEAD]) {
        let Some(payload) = payload.get_mut(..bytes) else { break };
        if copy_exactly(from, to, payload).is_none() {
            break;
        }
    }
    // What the other direction waits for is over, too.
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}

/// Fills `buffer` and passes it on. Of a head, what it returns is the payload's length.
fn copy_exactly(from: &UnixStream, to: &UnixStream, buffer: &mut [u8]) -> Option<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let (bytes @ 1.., fds) = receive_with_fds(from, rest).ok()? else { return None };
        let raw: Vec<_> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        send(to, rest.get(..bytes)?, &raw)?;
        filled += bytes;
    }
    let size = buffer.get(8..HEAD).and_then(|word| word.try_into().ok());
    Some(size.map_or(0, u32::from_ne_bytes) as usize)
}

fn send(to: &UnixStream, mut bytes: &[u8], fds: &[RawFd]) -> Option<()> {
    let rights = [ControlMessage::ScmRights(fds)];
    let mut rights = if fds.is_empty() { &[][..] } else { &rights[..] };
    while !bytes.is_empty() {
        let flags = MsgFlags::MSG_NOSIGNAL;
        let sent = sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(bytes)], rights, flags, None);
        bytes = bytes.get(sent.ok()?..)?;
        rights = &[];
    }
    Some(())
}

fn locked(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    struct Ends {
        relay: Relay,
        target: UnixListener,
        folder: tempfile::TempDir,
    }

    fn ends() -> Ends {
        let folder = tempfile::tempdir().unwrap();
        let target = UnixListener::bind(folder.path().join("target")).unwrap();
        let target_path = folder.path().join("target");
        let relay = Relay::start(&folder.path().join("listen"), &target_path).unwrap();
        Ends { relay, target, folder }
    }

    #[test]
    fn messages_pass_and_descriptors_stay_with_theirs() {
        let ends = ends();
        let mut front = UnixStream::connect(ends.folder.path().join("listen")).unwrap();
        let (mut back, _) = ends.target.accept().unwrap();
        let message = |payload: &[u8]| {
            let mut bytes = vec![1, 0, 0, 0, 5, 0, 0, 0];
            bytes.extend((payload.len() as u32).to_ne_bytes());
            bytes.extend(payload);
            bytes
        };
        back.write_all(&message(b"answer")).unwrap();
        let mut answer = [0; 18];
        front.read_exact(&mut answer).unwrap();
        assert_eq!(&answer[12..], b"answer");

        let (mut here, there) = UnixStream::pair().unwrap();
        let raw = [there.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&raw)];
        let (plain, with_fd) = (message(b"without"), message(b"with"));
        front.write_all(&plain).unwrap();
        let parts = [IoSlice::new(&with_fd)];
        sendmsg::<()>(front.as_raw_fd(), &parts, &rights, MsgFlags::empty(), None).unwrap();
        back.read_exact(&mut [0; 12 + 7]).unwrap();
        let mut head = [0; HEAD];
        let (bytes, fds) = receive_with_fds(&back, &mut head).unwrap();
        assert_eq!((bytes, &head[..], fds.len()), (HEAD, &with_fd[..HEAD], 1));
        let mut passed = UnixStream::from(fds.into_iter().next().unwrap());
        passed.write_all(b"!").unwrap();
        let mut byte = [0];
        here.read_exact(&mut byte).unwrap();
        assert_eq!(&byte, b"!");
    }

    #[test]
    fn a_cut_ends_both_sides_and_the_next_connection_passes() {
        let ends = ends();
        for number in 1..=3 {
            let mut front = UnixStream::connect(ends.folder.path().join("listen")).unwrap();
            let (mut back, _) = ends.target.accept().unwrap();
            // Something has to have passed before it is sure that there is a connection to cut.
            front.write_all(&[0; HEAD]).unwrap();
            back.read_exact(&mut [0; HEAD]).unwrap();
            assert_eq!(ends.relay.connections(), number);
            assert!(ends.relay.cut());
            assert_eq!(back.read(&mut [0]).unwrap(), 0);
            assert_eq!(front.read(&mut [0]).unwrap(), 0);
        }
    }
}
