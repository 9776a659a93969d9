//! The agent and clients that others wrote for qemu-ga: the QEMU project's Python library and its `qmp-shell`.
//! `FLEXVF_TEST_PYTHON_CLIENT` names the package's folder, which `scripts/testbed/python-client` prints.

#![expect(clippy::unwrap_used, reason = "a helper of a test that fails is a test that fails")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

const DEADLINE: Duration = Duration::from_secs(20);

/// The agent, until the test ends.
struct Agent {
    child: Child,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

impl Agent {
    fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("agent.sock");
        let mut command = Command::new(env!("CARGO_BIN_EXE_qga-extension"));
        command.arg("--listen-unix").arg(&socket).args(["--bond", "no-such-bond"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let end = Instant::now() + DEADLINE;
        while !socket.exists() {
            assert!(Instant::now() < end, "the agent does not listen");
            sleep(Duration::from_millis(20));
        }
        Self { child, socket, _folder: folder }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Python with the package; none where it is not to be had.
fn python(test: &str) -> Option<Command> {
    let Ok(package) = std::env::var("FLEXVF_TEST_PYTHON_CLIENT") else {
        eprintln!(
            "SKIPPED {test}: FLEXVF_TEST_PYTHON_CLIENT names no package (scripts/testbed/python-client prints one)"
        );
        return None;
    };
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", package);
    Some(command)
}

fn shown(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn the_library_of_qemu_ga_client_finds_all_that_it_asks_for() {
    let Some(mut python) = python("the_library_of_qemu_ga_client_finds_all_that_it_asks_for")
    else {
        return;
    };
    let agent = Agent::start();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/client.py");
    let said = shown(&python.arg(script).arg(&agent.socket).output().unwrap());
    assert_eq!(said.trim(), concat!("version ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn qmp_shell_talks_to_the_agent_as_to_a_qemu_ga() {
    let Some(mut python) = python("qmp_shell_talks_to_the_agent_as_to_a_qemu_ga") else { return };
    let agent = Agent::start();
    // No history file of a test's.
    let home = tempfile::tempdir().unwrap();
    python.args(["-m", "qemu.qmp.qmp_shell", "-N"]).arg(&agent.socket).env("HOME", home.path());
    let piped = python.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut shell = piped.spawn().unwrap();
    let lines = b"guest-sync id=7\n__io.flexvf_status\nguest-exec path=/bin/sh\n";
    shell.stdin.take().unwrap().write_all(lines).unwrap();
    let said = shown(&shell.wait_with_output().unwrap());
    for answer in ["{\"return\": 7", "\"protocol\": 1", "\"class\": \"CommandNotFound\""] {
        assert!(said.contains(answer), "{answer} is not in: {said}");
    }
}
