//! A guest as people have them: Debian with systemd, udev and networkd, the agent from its package, and a
//! stock qemu-ga beside it.
//!
//! `scripts/testbed/debian-image` makes it. The guest has a wish for NICs of the VFs' kinds (an address for
//! each), which must not get hold of a VF; the agent must run as its unit says; both agents answer; the guest
//! goes to its VF and back; an agent that is started anew is noticed, and the guest still switches. What is
//! around the agent is in `hygiene`.

mod hygiene;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use flexvf_protocol::VmName;
use serde_json::Value;

use super::Options;
use super::io::guests::{identity, shell_options, shell_socket};
use super::io::host::Host;
use super::io::shell::Shell;
use super::logic::result::Outcome;
use super::stage::Stage;

/// For one switch, under emulation.
const SWITCH_S: f64 = 120.0;
/// For an answer of an agent.
const ANSWER: Duration = Duration::from_secs(20);
/// Samples are a tenth of it apart. The VM is pinned, so that a decision changes nothing.
const INTERVAL_S: u64 = 200;

/// What the unit promises, in the words of `systemctl show`.
const PROMISED: [&str; 4] = [
    "ActiveState=active",
    "CapabilityBoundingSet=cap_net_admin",
    "NoNewPrivileges=yes",
    "ProtectSystem=strict",
];

/// Plays it.
pub fn play(options: &Options, host: &Host) -> Result<Outcome> {
    ensure!(
        options.guest_initrd.is_some(),
        "this scenario needs the image of scripts/testbed/debian-image: give --guest-initrd FILE"
    );
    let options = Options { guests: 1, ..options.clone() };
    let config = host.daemon_config("activity", INTERVAL_S);
    let stage = Stage::build_with(&options, host, &config, |number| {
        let stock = host.run.join("stock.sock");
        let mut more = shell_options(host, number);
        more.extend(
            [
                "-chardev",
                &format!("socket,id=stock,path={},server=on,wait=off", stock.display()),
                "-device",
                "virtserialport,chardev=stock,name=org.qemu.guest_agent.0",
                "-chardev",
                "null,id=second",
                "-device",
                "virtserialport,chardev=second,name=io.flexvf.agent.1",
            ]
            .map(str::to_owned),
        );
        more
    })?;
    let (vm, _) = identity(1)?;
    let shell = Shell::connect(&shell_socket(&stage.host, vm.as_str()))?;
    let mut run = Run { stage, vm, shell };
    let mut failures = run.unit()?;
    failures.extend(run.stock_agent(host)?);
    failures.extend(run.idle()?);
    run.stage.start_daemon()?;
    failures.extend(run.on_vf()?);
    failures.extend(run.agent_started_anew()?);
    if run.shell.run("test -e /usr/sbin/NetworkManager && echo there || true")?.is_empty() {
        run.stage.say("NOT TRIED: dpkg, NetworkManager, OpenRC, a stock agent that counts: debian-image --hygiene");
    } else {
        failures.extend(run.network_manager()?);
        failures.extend(run.package()?);
        failures.extend(run.stock_agent_counts()?);
    }
    let (mut stage, switches) = (run.stage, run.vm);
    let undone = stage.watch.switches().filter(|it| it.switch.outcome != "done");
    failures.extend(undone.map(|it| format!("{switches}: a switch ended so: {:?}", it.switch)));
    failures.extend(stage.end_daemon());
    Ok(stage.outcome(&options, failures))
}

struct Run {
    stage: Stage,
    vm: VmName,
    shell: Shell,
}

impl Run {
    /// The package's unit at work.
    fn unit(&mut self) -> Result<Vec<String>> {
        self.shell.run(
            "until systemctl is-system-running | grep -q 'running\\|degraded'; do sleep 1; done",
        )?;
        let state = self
            .shell
            .run("systemctl is-system-running; systemctl --failed --plain --no-legend")?;
        self.stage.say(format!("systemd: {}", state.trim().replace('\n', "; ")));
        let shown = self.shell.run(
            "systemctl show qga-extension -p ActiveState -p CapabilityBoundingSet -p NoNewPrivileges -p ProtectSystem",
        )?;
        let process = self.shell.run(
            "grep -E 'VmRSS|CapEff|CapBnd|Seccomp:' /proc/$(systemctl show -P MainPID qga-extension)/status",
        )?;
        self.stage.say(format!("the agent: {}", process.trim().replace(['\n', '\t'], " ")));
        // Of a second pair, if there were one.
        let second = self
            .shell
            .run("systemctl is-active qga-extension@io.flexvf.agent.1.service || true")?;
        ensure!(second.trim() == "active", "the second agent's unit is {}", second.trim());
        let missing =
            PROMISED.iter().filter(|promise| !shown.lines().any(|line| line == **promise));
        Ok(missing
            .map(|promise| format!("the agent's unit has not {promise}, but: {shown}"))
            .collect())
    }

    /// Debian's qemu-ga on its own port.
    fn stock_agent(&mut self, host: &Host) -> Result<Vec<String>> {
        let stream = UnixStream::connect(host.run.join("stock.sock"))?;
        stream.set_read_timeout(Some(ANSWER))?;
        (&stream).write_all(b"\xff{\"execute\":\"guest-ping\"}\n{\"execute\":\"guest-info\"}\n")?;
        let mut lines = BufReader::new(&stream).split(b'\n');
        let info = loop {
            let line = lines.next().context("the stock agent's port was closed")?;
            let line = line.context("the stock agent does not answer")?;
            let answer: Value = serde_json::from_slice(&line).unwrap_or_default();
            if answer["return"]["version"].is_string() {
                break answer["return"].clone();
            }
        };
        self.stage.say(format!("beside it: qemu-ga {}", info["version"]));
        let ours = info["supported_commands"].to_string().contains("io.flexvf");
        Ok(ours
            .then(|| "our agent answers on the stock agent's port".to_owned())
            .into_iter()
            .collect())
    }

    /// What udev and networkd make of a VF.
    fn on_vf(&mut self) -> Result<Vec<String>> {
        self.until_on_vf()?;
        let vf = self.shell.run("ls -d /sys/class/net/*/bonding_slave | cut -d/ -f5")?;
        let mut failures = Vec::new();
        let mut seen = 0;
        for port in vf.split_whitespace() {
            let driver = self
                .shell
                .run(&format!("basename $(readlink /sys/class/net/{port}/device/driver)"))?;
            if driver.trim() == "virtio_net" {
                continue;
            }
            seen += 1;
            let properties =
                self.shell.run(&format!("udevadm info -q property /sys/class/net/{port}"))?;
            let state = self.shell.run(&format!(
                "grep ADMIN_STATE /run/systemd/netif/links/$(cat /sys/class/net/{port}/ifindex)"
            ))?;
            let addresses = self.shell.run(&format!("ip -br addr show dev {port}"))?;
            self.stage.say(format!(
                "{port}, {}: {}; {}",
                driver.trim(),
                state.trim(),
                addresses.trim()
            ));
            for property in ["FLEXVF_VF=1", "NM_UNMANAGED=1"] {
                if !properties.lines().any(|line| line == property) {
                    failures.push(format!("{port} lacks {property}"));
                }
            }
            if state.trim() != "ADMIN_STATE=unmanaged" || addresses.contains("192.0.2.7") {
                failures.push(format!("networkd has got hold of {port}: {state} {addresses}"));
            }
        }
        if seen != 1 {
            failures.push(format!("{seen} VFs are in the bond: {vf}"));
        }
        Ok(failures)
    }

    /// The daemon's log tells of it, and the next switches work.
    fn agent_started_anew(&mut self) -> Result<Vec<String>> {
        self.shell.run("systemctl restart qga-extension")?;
        let log = self.stage.host.log("flexvf.log");
        let mut told = false;
        for _ in 0..60 {
            self.stage.tick()?;
            let text = std::fs::read_to_string(&log).context("read the daemon's log")?;
            told = text.contains("the guest's agent was started anew");
            if told {
                break;
            }
        }
        self.pin("pv")?;
        self.until("pv")?;
        self.until_on_vf()?;
        let silent = "the agent's restart was not noticed within 30 s";
        Ok((!told).then(|| silent.to_owned()).into_iter().collect())
    }

    fn until_on_vf(&mut self) -> Result<()> {
        self.pin("vf")?;
        self.until("vf")
    }

    fn pin(&mut self, path: &str) -> Result<()> {
        let vm = self.vm.clone();
        self.stage.pin(&vm, path)
    }

    fn until(&mut self, path: &str) -> Result<()> {
        let vm = self.vm.clone();
        let there = self.stage.tick_until(SWITCH_S, |status| {
            status.vms.iter().any(|it| it.vm == vm && it.path == path)
        })?;
        let said = self.stage.watch.last().complaints().join("; ");
        there.map(drop).with_context(|| {
            format!("{} is not on {path} within {SWITCH_S} s; the daemon: {said}", self.vm)
        })
    }
}
