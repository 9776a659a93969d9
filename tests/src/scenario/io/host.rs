//! The machine that a scenario runs on, as the testbed made it: see scripts/README.md.

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What the testbed says in its environment.
#[derive(Debug, Clone)]
pub struct Host {
    /// `sriov` or `emulated`.
    pub pool: String,
    /// The PF's interface.
    pub pf: String,
    /// The VFs: PCI addresses, or TAPs that stand for them.
    pub vfs: Vec<String>,
    /// The guests' bridge.
    pub bridge: String,
    /// The remote peer's network namespace.
    pub peer_ns: String,
    /// `kvm` or `tcg`.
    pub accel: String,
    /// Where logs and results go.
    pub out: PathBuf,
    /// The daemon's sockets and the registrations that it reads.
    pub run: PathBuf,
    /// Where guests have their sockets and register themselves: `run`, unless a scenario stands between
    /// them and the daemon.
    pub guests_run: PathBuf,
}

impl Host {
    /// Reads the environment; `vfs` of its VFs are used, all without.
    pub fn from_environment(vfs: Option<usize>) -> Result<Self> {
        let run: PathBuf = variable("FLEXVF_RUN")?.into();
        let mut host = Self {
            pool: variable("FLEXVF_POOL")?,
            pf: variable("FLEXVF_PF")?,
            vfs: Vec::new(),
            bridge: variable("FLEXVF_BRIDGE")?,
            peer_ns: variable("FLEXVF_PEER_NS")?,
            accel: variable("FLEXVF_ACCEL")?,
            out: variable("FLEXVF_OUT")?.into(),
            guests_run: run.clone(),
            run,
        };
        host.vfs = match host.pool.as_str() {
            "sriov" => host.virtual_functions()?,
            "emulated" => {
                let taps = variable("FLEXVF_VF_TAPS")?;
                taps.split_whitespace().map(str::to_owned).collect()
            }
            other => bail!("FLEXVF_POOL is {other:?}; it must be sriov or emulated"),
        };
        if let Some(vfs) = vfs {
            if vfs > host.vfs.len() {
                bail!("--vfs {vfs}: the testbed has {} VFs", host.vfs.len());
            }
            host.vfs.truncate(vfs);
        }
        fs::create_dir_all(host.vms_dir())?;
        host.forget_earlier_run()?;
        Ok(host)
    }

    /// A file in the folder of logs and results.
    pub fn log(&self, name: &str) -> PathBuf {
        self.out.join(name)
    }

    /// Where VMs are registered.
    pub fn vms_dir(&self) -> PathBuf {
        self.run.join("vms")
    }

    /// The daemon's control socket.
    pub fn control_socket(&self) -> PathBuf {
        self.run.join("control.sock")
    }

    /// The daemon's configuration. Deadlines are long: emulation is slow, and one that passes is
    /// no test of what it guards.
    pub fn daemon_config(&self, strategy: &str, interval_s: u64) -> String {
        let sample_s = (interval_s / 10).max(1);
        let mut text = format!("strategy = \"{strategy}\"\ninterval_s = {interval_s}\n");
        let _ = writeln!(text, "sample_interval_s = {sample_s}");
        let _ = writeln!(text, "vms_dir = {:?}", self.vms_dir());
        let _ = writeln!(text, "state_file = {:?}", self.run.join("state.json"));
        let _ = writeln!(text, "control_socket = {:?}", self.control_socket());
        text.push_str(DEADLINES);
        text.push_str("\n[[pool]]\nname = \"default\"\n");
        let vfs = &self.vfs;
        let _ = if self.pool == "sriov" {
            write!(text, "kind = \"sriov\"\npf = \"{}\"\nvfs = {vfs:?}\n", self.pf)
        } else {
            write!(text, "kind = \"emulated\"\nmodel = \"e1000e\"\ntaps = {vfs:?}\n")
        };
        text
    }

    /// Keeps what `lspci -k` says: the proof of what the VFs are.
    pub fn save_lspci(&self, file: &str) -> Result<()> {
        if self.pool != "sriov" {
            return Ok(());
        }
        let output = Command::new("lspci").args(["-nnk"]).output();
        let output = output.context("run lspci")?;
        fs::write(self.log(file), output.stdout)?;
        Ok(())
    }

    /// Logs are appended to, and read by scenarios: an earlier run's must not speak for this one.
    fn forget_earlier_run(&self) -> Result<()> {
        for entry in fs::read_dir(&self.out)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            // The testbed's own are being written.
            let is_ours = name.ends_with(".log") && !name.starts_with("host-");
            if is_ours || name == "details.json" {
                fs::remove_file(&path)?;
            }
        }
        Ok(())
    }

    fn virtual_functions(&self) -> Result<Vec<String>> {
        let device = Path::new("/sys/class/net").join(&self.pf).join("device");
        let mut vfs = Vec::new();
        while let Ok(vf) = fs::read_link(device.join(format!("virtfn{}", vfs.len()))) {
            let address = vf.file_name().context("a VF without address")?;
            vfs.push(address.to_string_lossy().into_owned());
        }
        if vfs.is_empty() {
            bail!("{} has no VFs; is this the testbed's SR-IOV host?", self.pf);
        }
        Ok(vfs)
    }
}

/// See [`Host::daemon_config`].
const DEADLINES: &str = "
[deadlines]
prepare_s = 30
plug_s = 60
join_s = 60
leave_s = 30
unplug_s = 60
agent_s = 20
qmp_s = 30
";

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| {
        format!("{name} is not set; run this by scripts/testbed/fast-host or sriov-host")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_names_pool_and_vfs() {
        let mut host = Host {
            pool: "sriov".into(),
            pf: "pf0".into(),
            vfs: vec!["0000:01:10.0".into()],
            bridge: "br0".into(),
            peer_ns: "peer".into(),
            accel: "tcg".into(),
            out: "/out".into(),
            run: "/run/flexvf".into(),
            guests_run: "/run/flexvf".into(),
        };
        let text = host.daemon_config("fair", 20);
        assert!(text.contains("vms_dir = \"/run/flexvf/vms\"\n"), "{text}");
        assert!(text.ends_with("kind = \"sriov\"\npf = \"pf0\"\nvfs = [\"0000:01:10.0\"]\n"));
        host.pool = "emulated".into();
        host.vfs = vec!["vf0".into(), "vf1".into()];
        let text = host.daemon_config("fair", 20);
        assert!(text.ends_with("model = \"e1000e\"\ntaps = [\"vf0\", \"vf1\"]\n"));
    }
}
