//! The guest around the agent: nothing wakes it while it is idle, NetworkManager leaves VFs alone, the package is
//! installed and purged by dpkg, OpenRC starts the agent too, and a stock qemu-ga counts where it is gone.

use anyhow::Result;

use super::Run;

/// Much longer than any timer of a program that waits for events.
const IDLE_S: u64 = 30;

/// What the package brings, but for its documentation.
const FILES: &str = "/usr/sbin/qga-extension /lib/systemd/system/qga-extension.service \
    /lib/udev/rules.d/81-flexvf.rules /lib/systemd/network/10-flexvf-vf.network /etc/default/qga-extension";

impl Run {
    /// Without a host and with links that stay as they are, nothing happens in the agent.
    pub(super) fn idle(&mut self) -> Result<Vec<String>> {
        let woken = self.shell.run(&format!(
            "cd /proc/$(systemctl show -P MainPID qga-extension)/task; a=$(grep -h ^voluntary */status); sleep {IDLE_S}; \
             b=$(grep -h ^voluntary */status); [ \"$a\" = \"$b\" ] || echo from $a to $b"
        ))?;
        self.stage.say(format!("the agent idle for {IDLE_S} s: woken {:?}", woken.trim()));
        let failure = format!("the idle agent was woken: {woken}");
        Ok((!woken.trim().is_empty()).then_some(failure).into_iter().collect())
    }

    /// A guest on its VF, and a NetworkManager that looks at all that is there.
    pub(super) fn network_manager(&mut self) -> Result<Vec<String>> {
        self.shell.run("systemctl start NetworkManager || { journalctl --no-pager -u dbus -u NetworkManager | tail -n 15; false; }; \
             until nmcli -t device >/dev/null; do sleep 0.5; done")?;
        let seen = self.shell.run(
            "sleep 3; nmcli -t -f DEVICE,STATE device; echo; for p in $(ls -d /sys/class/net/*/bonding_slave | cut -d/ -f5); do \
             echo $p $(basename $(readlink /sys/class/net/$p/device/driver)); done; systemctl stop NetworkManager",
        )?;
        let (devices, ports) = seen.split_once("\n\n").unwrap_or((&seen, ""));
        let state = |port: &str| {
            let states = devices.lines().filter_map(|line| line.split_once(':'));
            states.filter(|(device, _)| *device == port).map(|(_, state)| state.to_owned()).next()
        };
        let vfs: Vec<&str> = ports
            .lines()
            .filter_map(|line| line.split_once(' '))
            .filter(|(_, driver)| *driver != "virtio_net")
            .map(|(port, _)| port)
            .collect();
        self.stage.say(format!("NetworkManager: {}", devices.trim().replace('\n', ", ")));
        let mut failures = Vec::new();
        if vfs.is_empty() {
            failures.push(format!("no VF to show NetworkManager: {ports}"));
        }
        for vf in vfs.iter().filter(|vf| state(vf).as_deref() != Some("unmanaged")) {
            failures.push(format!("NetworkManager manages {vf}: {:?}", state(vf)));
        }
        // What the rule says nothing of is NetworkManager's: else this would prove nothing.
        let managed = devices.lines().any(|line| !line.ends_with(":unmanaged"));
        failures.extend((!managed).then(|| format!("NetworkManager manages nothing: {devices}")));
        Ok(failures)
    }

    /// Installed over what is there, purged, and installed anew, by dpkg.
    pub(super) fn package(&mut self) -> Result<Vec<String>> {
        self.shell.run("dpkg --force-confold -i /flexvf/qga-extension.deb")?;
        let mut failures = self.agent_is("active", "after an installation over itself")?;
        self.shell.run("dpkg --purge qga-extension")?;
        failures.extend(self.agent_is("inactive", "after a purge")?);
        let left = self.shell.run(&format!("ls -d {FILES} 2>/dev/null || true"))?;
        failures.extend((!left.is_empty()).then(|| format!("a purge has left {left}")));
        failures.extend(self.openrc()?);
        self.shell.run("dpkg -i /flexvf/qga-extension.deb")?;
        failures.extend(self.agent_is("active", "after an installation")?);
        self.stage.say("dpkg: installed, purged, installed");
        Ok(failures)
    }

    /// OpenRC's programs, without its runlevels: systemd has started this guest.
    fn openrc(&mut self) -> Result<Vec<String>> {
        let said = self.shell.run(
            "mkdir -p /run/openrc/{daemons,exclusive,failed,inactive,options,scheduled,started,starting,stopping,tmp} /etc/conf.d && : >/run/openrc/softlevel && dpkg-deb -x /flexvf/qga-extension.deb /tmp/agent && \
             install /tmp/agent/usr/sbin/qga-extension /usr/sbin/ && install /flexvf/qga-extension.openrc /etc/init.d/qga-extension && \
             rc-service --nodeps qga-extension start; sleep 2; rc-service --nodeps qga-extension status; \
             p=$(pidof qga-extension) && grep -E 'CapEff|NoNewPrivs' /proc/$p/status; \
             rc-service --nodeps qga-extension stop; sleep 1; pidof qga-extension && echo still there; \
             rm -r /etc/init.d/qga-extension /usr/sbin/qga-extension /tmp/agent",
        )?;
        self.stage.say(format!("OpenRC: {}", said.trim().replace(['\n', '\t'], " ")));
        // Debian's OpenRC has no capabilities to take away.
        let right = said.contains("CapEff") && said.contains("status: started");
        let gone = !said.contains("still there");
        let failure = format!("OpenRC's script: {said}");
        Ok((!right || !gone).then_some(failure).into_iter().collect())
    }

    fn agent_is(&mut self, wanted: &str, when: &str) -> Result<Vec<String>> {
        let found = self.shell.run(&format!(
            "for i in $(seq 100); do s=$(systemctl is-active qga-extension || true); [ $s != {wanted} ] || break; sleep 0.2; done; echo $s"
        ))?;
        let failure = format!("the agent's unit is {} {when}", found.trim());
        Ok((found.trim() != wanted).then_some(failure).into_iter().collect())
    }

    /// The daemon with the stock agent alone: it counts, and the VM stays where it is.
    pub(super) fn stock_agent_counts(&mut self) -> Result<Vec<String>> {
        self.pin("pv")?;
        self.until("pv")?;
        let stock = self.stage.host.run.join("stock.sock");
        let vm = self.vm.clone();
        // What the host could count by itself is left out.
        self.stage.rewrite(&vm, |line| match line.split(' ').next() {
            Some("agent") => Some(format!("agent = {stock:?}")),
            Some("stats" | "pv_interface") => None,
            _ => Some(line.to_owned()),
        })?;
        // To nobody, who need not be asked for: 20 datagrams a second leave by the bond.
        self.shell.run(
            "ip address add 198.51.100.1/24 dev bond0 && \
             ip neighbour replace 198.51.100.2 lladdr 02:00:00:00:00:99 dev bond0 nud permanent && \
             { while sleep 0.05; do echo >/dev/udp/198.51.100.2/9; done >/dev/null 2>&1 & }",
        )?;
        let counted = self.stage.tick_until(120.0, |status| {
            let counts = |by: &Option<String>| by.as_deref() == Some("qemu-ga");
            let sees = |pps: Option<f64>| pps.is_some_and(|pps| pps > 2.0);
            let right = status.vms.iter().find(|it| it.agent == "stock" && sees(it.rate_pps));
            right.is_some_and(|it| counts(&it.pv_counted_by))
        })?;
        let seen = self.stage.watch.last().vms.iter().find(|it| it.vm == self.vm).cloned();
        self.stage.say(format!("with the stock agent alone: {seen:?}"));
        let failure = "the stock agent's counters do not reach the daemon".to_owned();
        Ok(counted.is_none().then_some(failure).into_iter().collect())
    }
}
