//! An agent with nothing to do, as the kernel has seen it.

#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a test that fails")]

use std::fs::read_to_string;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);
/// Long against any timer that a program may have by mistake.
const IDLE: Duration = Duration::from_secs(3);

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How often the threads of a process have gone to sleep: each time, something had woken them.
fn sleeps(process: u32) -> u64 {
    let threads = Path::new("/proc").join(process.to_string()).join("task").read_dir().unwrap();
    threads
        .map(|thread| {
            let status = read_to_string(thread.unwrap().path().join("status")).unwrap();
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"));
            line.unwrap().split_whitespace().last().unwrap().parse::<u64>().unwrap()
        })
        .sum()
}

#[test]
fn an_agent_with_nothing_to_do_is_never_woken() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("agent.sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_qga-extension"));
    command.arg("--listen-unix").arg(&socket).args(["--bond", "no-such-bond"]);
    let agent = Running(command.stderr(Stdio::null()).spawn().unwrap());
    let end = Instant::now() + DEADLINE;
    while !socket.exists() {
        assert!(Instant::now() < end, "the agent does not listen");
        sleep(Duration::from_millis(20));
    }
    let mut host = BufReader::new(UnixStream::connect(&socket).unwrap());
    let mut ask = || {
        host.get_mut().write_all(b"{\"execute\":\"__io.flexvf_counters\"}\n").unwrap();
        let mut answer = String::new();
        host.read_line(&mut answer).unwrap();
        assert!(answer.contains("boottime-ns"), "{answer}");
    };
    ask();
    let process = agent.0.id();
    let before = sleeps(process);
    ask();
    // It answers first and goes to sleep then.
    let end = Instant::now() + DEADLINE;
    while sleeps(process) == before {
        assert!(Instant::now() < end, "an answer is a wake-up");
        sleep(Duration::from_millis(20));
    }
    // The machine's own links may change meanwhile, which the agent hears of; a timer would tick each time.
    let quiet = (0..3).any(|_| {
        sleep(Duration::from_millis(200));
        let before = sleeps(process);
        sleep(IDLE);
        sleeps(process) == before
    });
    assert!(quiet, "the agent was woken within each {IDLE:?} of three");
}
