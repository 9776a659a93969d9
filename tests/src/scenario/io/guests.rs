//! Guests, each started by the testbed's `guest`, which is `launch-vm` with the testbed's kernel.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use flexvf_protocol::{MacAddr, VmName};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::child::Child;
use super::host::Host;
use super::jsonline::{QmpClient, plugged_devices};

/// A guest that runs.
#[derive(Debug)]
pub struct Guest {
    /// Its name.
    pub vm: VmName,
    /// Where it is reached.
    pub address: Ipv4Addr,
    launcher: Child,
    registration: PathBuf,
    qmp: PathBuf,
    /// Where launch-vm has its logs, and where they are kept.
    logs: (PathBuf, PathBuf),
}

/// How guests are started.
#[derive(Debug, Clone)]
pub struct Launch {
    /// The script.
    pub script: PathBuf,
    /// Memory, MiB.
    pub memory_mib: u32,
    /// For its kernel's command line.
    pub append: String,
    /// What it boots instead of the testbed's own image.
    pub initrd: Option<PathBuf>,
    /// With net_failover instead of bond and agent.
    pub failover: bool,
}

/// The guests' command line, as the testbed has it.
const GUEST_APPEND: &str = "FLEXVF_GUEST_APPEND";

/// The `number`th guest's name and address, from 1.
pub fn identity(number: u8) -> Result<(VmName, Ipv4Addr)> {
    let vm = format!("vm{number}").parse()?;
    Ok((vm, Ipv4Addr::new(10, 77, 0, 10 + number)))
}

/// More options for a guest's QEMU: a way into it, past its network.
pub fn shell_options(host: &Host, number: u8) -> Vec<String> {
    let socket = shell_socket(host, &format!("vm{number}"));
    vec![
        "-chardev".into(),
        format!("socket,id=shell,path={},server=on,wait=off", socket.display()),
        "-device".into(),
        "virtserialport,chardev=shell,name=flexvf.shell".into(),
    ]
}

/// The host's end of it.
pub fn shell_socket(host: &Host, vm: &str) -> PathBuf {
    host.run.join(format!("{vm}-shell.sock"))
}

impl Guest {
    /// Starts the `number`th guest, with more options for its QEMU.
    ///
    /// It gets a second QMP socket, since FlexVF's own serves one client: through it a scenario
    /// sees what is plugged without asking FlexVF.
    pub fn start(host: &Host, launch: &Launch, number: u8, more: &[String]) -> Result<Self> {
        let (vm, address) = identity(number)?;
        let qmp = host.run.join(format!("{vm}-second.sock"));
        let mut command = Command::new(&launch.script);
        command
            .arg(vm.as_str())
            .arg(format!("{address}/24"))
            .args(["--memory", &launch.memory_mib.to_string()])
            .arg("--run-dir")
            .arg(&host.guests_run)
            .args(launch.failover.then_some("--failover"))
            .args(["--", "-qmp"])
            .arg(format!("unix:{},server=on,wait=off", qmp.display()))
            .args(more);
        let bond = if launch.failover { " flexvf.bond=failover" } else { "" };
        let append = std::env::var(GUEST_APPEND).unwrap_or_default();
        command.env(GUEST_APPEND, format!("{append} {}{bond}", launch.append));
        if let Some(initrd) = &launch.initrd {
            command.env("FLEXVF_GUEST_INITRD", initrd);
        }
        let log = host.log(&format!("{vm}-launch.log"));
        let launcher = Child::start(vm.as_str(), &mut command, &log)?;
        let registration = host.guests_run.join("vms").join(format!("{vm}.toml"));
        Ok(Self {
            address,
            launcher,
            registration,
            qmp,
            logs: (host.guests_run.join(vm.as_str()), host.out.clone()),
            vm,
        })
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.launcher.check()
    }

    /// Its MAC address, as registered.
    pub fn mac(&self) -> Result<MacAddr> {
        let file = self.registration.display();
        let text = fs::read_to_string(&self.registration);
        let text = text.with_context(|| format!("read {file}"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("mac = "));
        let mac = line.with_context(|| format!("{file} has no mac"))?;
        Ok(mac.trim_matches('"').parse()?)
    }

    /// Ids of FlexVF's devices in it, by QEMU's own account.
    pub fn plugged(&self) -> Result<Vec<String>> {
        plugged_devices(&self.qmp)
    }

    /// What it registered itself with; nothing before its QEMU runs.
    pub fn registration(&self) -> Option<String> {
        fs::read_to_string(&self.registration).ok()
    }

    /// The QMP socket that is not FlexVF's.
    pub fn monitor(&self) -> &Path {
        &self.qmp
    }

    /// Runs a command of QMP's at its QEMU, past FlexVF.
    pub fn qmp(&self, command: &str) -> Result<()> {
        QmpClient::connect(&self.qmp)?.execute::<Value>(command, &json!({})).map(drop)
    }

    /// Its QEMU.
    pub fn qemu(&self) -> Result<Pid> {
        let pid = qemu_of(self.launcher.pid());
        Ok(Pid::from_raw(pid.with_context(|| format!("{}: launch-vm has no QEMU", self.vm))?))
    }

    /// SIGKILL to its QEMU, as the kernel does when memory runs out.
    pub fn kill_qemu(&self) -> Result<()> {
        let pid = self.qemu()?;
        kill(pid, Signal::SIGKILL).with_context(|| format!("kill QEMU {pid}"))
    }

    /// Ends it in order, and keeps the logs of its QEMU and its vhost-net-pv.
    pub fn end(&mut self) {
        self.launcher.end();
        let (folder, out) = &self.logs;
        for log in ["qemu.log", "pv.log"] {
            // Missing, if it never came that far.
            let _ = fs::copy(folder.join(log), out.join(format!("{}-{log}", self.vm)));
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.end();
    }
}

/// The QEMU among a process's children.
fn qemu_of(launcher: u32) -> Option<i32> {
    let processes = fs::read_dir("/proc").ok()?;
    processes.flatten().find_map(|process| {
        let folder = process.path();
        let stat = fs::read_to_string(folder.join("stat")).ok()?;
        let parent = parent_in(&stat)?;
        (parent == launcher && is_qemu(&folder)).then_some(())?;
        process.file_name().to_str()?.parse().ok()
    })
}

fn is_qemu(process: &Path) -> bool {
    let command = fs::read(process.join("cmdline")).unwrap_or_default();
    let text = String::from_utf8_lossy(&command);
    // By its options: the program itself may be run by a loader.
    text.contains("qemu-system") && text.contains("\0-qmp\0")
}

/// The parent in a line of /proc/PID/stat; the name before it may contain anything.
fn parent_in(stat: &str) -> Option<u32> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_is_found_behind_any_name() {
        assert_eq!(parent_in("12 (a) b (c) S 7 12 12"), Some(7));
        assert_eq!(parent_in("12"), None);
    }
}
