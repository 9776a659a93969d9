//! A gate between the daemon and one VM: its QMP and agent connections pass through it line by line,
//! and at a named one it does what it was told to, before that line goes any further.
//!
//! So the daemon dies after exactly the step that is meant, without a line for tests in the daemon: a
//! hook in the product could die elsewhere than a process that is killed from outside, and a log that
//! is watched comes too late.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::spawn;

use anyhow::{Context, Result};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, shutdown, socket};
use serde_json::Value;

use super::child::Child;
use crate::scenario::logic::moments::{Passing, Sign};
use crate::sys::listen_as;

/// See the module's text.
#[derive(Debug)]
pub struct Gate {
    /// Where the daemon is to connect.
    pub sockets: Sockets,
    trap: Arc<Mutex<Option<Trap>>>,
    listeners: [OwnedFd; 2],
    /// The daemon believes that a VM lives as long as the process that listens on its QMP socket.
    stand_in: Child,
}

/// A VM's two sockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sockets {
    /// QMP.
    pub qmp: PathBuf,
    /// The guest's agent.
    pub agent: PathBuf,
}

/// What becomes of the line at which a trap has sprung.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Then {
    /// It goes on its way.
    Pass,
    /// It is lost, and its connection with it.
    Cut,
}

struct Trap {
    sign: Sign,
    act: Box<dyn FnOnce() + Send>,
    then: Then,
}

impl std::fmt::Debug for Trap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trap").field("sign", &self.sign).field("then", &self.then).finish()
    }
}

impl Gate {
    /// Opens `ours` in front of `theirs`.
    pub fn open(ours: Sockets, theirs: &Sockets, log: &Path) -> Result<Self> {
        let trap = Arc::new(Mutex::new(None));
        let qmp = bound(&ours.qmp)?;
        let mut stand_in = Command::new("sleep");
        listen_as(stand_in.arg("infinity"), qmp.as_fd());
        let stand_in = Child::start("a VM's stand-in", &mut stand_in, log)?;
        let qmp = UnixListener::from(qmp);
        let _ = fs::remove_file(&ours.agent);
        let agent = UnixListener::bind(&ours.agent);
        let agent = agent.with_context(|| format!("listen at {}", ours.agent.display()))?;
        let listeners = [OwnedFd::from(qmp.try_clone()?), OwnedFd::from(agent.try_clone()?)];
        for (listener, to) in [(qmp, &theirs.qmp), (agent, &theirs.agent)] {
            let (to, trap) = (to.clone(), Arc::clone(&trap));
            spawn(move || take_in(&listener, &to, &trap));
        }
        Ok(Self { sockets: ours, trap, listeners, stand_in })
    }

    /// At the first line that is `sign`, `act` is done by whoever carries it.
    pub fn set_trap(&self, sign: Sign, then: Then, act: impl FnOnce() + Send + 'static) {
        *lock(&self.trap) = Some(Trap { sign, act: Box::new(act), then });
    }

    /// Nothing will happen any more; whether something would have.
    pub fn unset_trap(&self) -> bool {
        lock(&self.trap).take().is_some()
    }

    /// What has to die with the VM's QEMU.
    pub fn stand_in(&self) -> u32 {
        self.stand_in.pid()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        for listener in &self.listeners {
            // Whoever accepts there ends; the connections end with QEMU or the daemon.
            let _ = shutdown(listener.as_raw_fd(), nix::sys::socket::Shutdown::Both);
        }
    }
}

fn bound(path: &Path) -> Result<OwnedFd> {
    // One of an earlier gate.
    let _ = fs::remove_file(path);
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let bound = bind(socket.as_raw_fd(), &UnixAddr::new(path)?);
    bound.with_context(|| format!("bind {}", path.display()))?;
    Ok(socket)
}

fn take_in(listener: &UnixListener, to: &Path, trap: &Arc<Mutex<Option<Trap>>>) {
    while let Ok((near, _)) = listener.accept() {
        // Nobody there any more: the daemon finds a closed connection.
        let Ok(far) = UnixStream::connect(to) else { continue };
        let link = Arc::new(Link { trap: Arc::clone(trap), asked: Mutex::default() });
        for (from, to, requests) in
            [(near.try_clone(), far.try_clone(), true), (Ok(far), Ok(near), false)]
        {
            let (Ok(from), Ok(to)) = (from, to) else { break };
            let link = Arc::clone(&link);
            spawn(move || link.carry(from, to, requests));
        }
    }
}

/// One connection.
struct Link {
    trap: Arc<Mutex<Option<Trap>>>,
    /// Commands without an answer so far, by id, with their arguments.
    asked: Mutex<HashMap<u64, (String, Value)>>,
}

impl Link {
    /// Carries lines one way until either end closes.
    fn carry(&self, from: UnixStream, mut to: UnixStream, requests: bool) {
        let mut lines = BufReader::new(from);
        let mut line = Vec::new();
        while matches!(lines.read_until(b'\n', &mut line), Ok(length) if length > 0) {
            if self.springs(&line, requests) == Some(Then::Cut) || to.write_all(&line).is_err() {
                break;
            }
            line.clear();
        }
        let _ = to.shutdown(Shutdown::Both);
        let _ = lines.get_ref().shutdown(Shutdown::Both);
    }

    fn springs(&self, line: &[u8], requests: bool) -> Option<Then> {
        // The agent's lines begin anew at this byte.
        let begin = line.iter().rposition(|byte| *byte == 0xff).map_or(0, |at| at + 1);
        let line: Value = serde_json::from_slice(line.get(begin..)?).ok()?;
        let id = line["id"].as_u64();
        let trap = if requests {
            let command = line["execute"].as_str()?.to_owned();
            let trap = self.trap_at(Passing::Request(&command, &line["arguments"]));
            if let Some(id) = id {
                lock(&self.asked).insert(id, (command, line["arguments"].clone()));
            }
            trap
        } else if let Some(event) = line["event"].as_str() {
            self.trap_at(Passing::Event(event))
        } else {
            let (command, arguments) = lock(&self.asked).remove(&id?)?;
            self.trap_at(Passing::Answer(&command, &arguments, line.get("return")?))
        };
        let trap = trap?;
        (trap.act)();
        Some(trap.then)
    }

    fn trap_at(&self, passing: Passing<'_>) -> Option<Trap> {
        let mut trap = lock(&self.trap);
        trap.take_if(|trap| trap.sign.is(passing))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::logic::moments::MOMENTS;
    use std::io::Read;
    use std::sync::mpsc;

    fn sockets(folder: &Path, side: &str) -> Sockets {
        let path = |name| folder.join(format!("{side}-{name}"));
        Sockets { qmp: path("qmp"), agent: path("agent") }
    }

    #[test]
    fn a_line_goes_through_until_the_trap_springs_and_the_peer_is_the_stand_in() {
        let folder = tempfile::tempdir().unwrap();
        let (ours, theirs) = (sockets(folder.path(), "near"), sockets(folder.path(), "far"));
        let qemu = UnixListener::bind(&theirs.qmp).unwrap();
        let gate = Gate::open(ours, &theirs, &folder.path().join("log")).unwrap();
        let mut near = UnixStream::connect(&gate.sockets.qmp).unwrap();
        let peer = nix::sys::socket::getsockopt(&near, nix::sys::socket::sockopt::PeerCredentials)
            .unwrap();
        assert_eq!(peer.pid().cast_unsigned(), gate.stand_in());
        let mut far = BufReader::new(qemu.accept().unwrap().0);
        let (sprung, springs) = mpsc::channel();
        let plugged = MOMENTS.iter().find(|moment| moment.name == "plugged").unwrap();
        gate.set_trap(plugged.sign, Then::Cut, move || sprung.send(()).unwrap());
        let mut line = String::new();
        for (command, id) in [("qom-list", 1), ("device_add", 2)] {
            writeln!(near, r#"{{"execute": "{command}", "arguments": {{}}, "id": {id}}}"#).unwrap();
            line.clear();
            far.read_line(&mut line).unwrap();
            assert!(line.contains(command), "{line}");
            writeln!(far.get_mut(), r#"{{"return": {{}}, "id": {id}}}"#).unwrap();
        }
        springs.recv().unwrap();
        let mut heard = String::new();
        near.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "{\"return\": {}, \"id\": 1}\n");
        assert!(!gate.unset_trap());
    }
}
