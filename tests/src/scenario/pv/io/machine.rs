//! A guest's QEMU, without launch-vm, which starts backends by itself and does not migrate.
//!
//! One virtio-net over vhost-user, a console, and a shell port; nothing else.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::backend::{Nic, resources};
use crate::scenario::io::child::Child;
use crate::scenario::io::host::Host;
use crate::scenario::io::jsonline::QmpClient;
use crate::scenario::io::shell::Shell;
use crate::scenario::pv::logic::result::Resources;

/// The NIC's id in QEMU.
pub const NIC: &str = "pv";
/// The address of the NIC of [`GUEST`].
pub const MAC: &str = "52:54:00:77:01:01";
/// QEMU tries to reach a backend that has gone this often.
pub const RECONNECT_MS: u64 = 10;

const MEMORY_MIB: u32 = 192;
/// Under emulation, processors that nobody has to spare only make a boot longer.
const MAX_CPUS: u8 = 4;
const START: Duration = Duration::from_secs(60);

/// A running QEMU; it ends with this.
#[derive(Debug)]
pub struct Machine {
    child: Child,
    qmp: QmpClient,
    shell: Option<Shell>,
    shell_socket: PathBuf,
}

/// A guest, as its QEMU is told of it.
#[derive(Debug, Clone, Copy)]
pub struct Guest {
    /// Its name.
    pub name: &'static str,
    /// The address that it gives to its NIC.
    pub address: &'static str,
    /// The NIC's own.
    pub mac: &'static str,
    /// More properties of the NIC, each behind a comma.
    pub properties: &'static str,
}

/// The one that everything happens to.
pub const GUEST: Guest = Guest { name: "pv1", address: "10.77.0.11", mac: MAC, properties: "" };

/// What a QEMU is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Start {
    /// A guest that boots.
    Boot,
    /// A guest that comes from another QEMU.
    Incoming,
}

impl Machine {
    /// Starts a QEMU with its files named after `name`.
    pub fn start(host: &Host, name: &str, nic: &Nic, guest: &Guest, how: Start) -> Result<Self> {
        let path = |end: &str| host.run.join(format!("{name}-{end}.sock"));
        let (qmp, shell_socket) = (path("qmp"), path("shell"));
        for socket in [&qmp, &shell_socket] {
            let _ = std::fs::remove_file(socket);
        }
        let mut command = Command::new("qemu-system-x86_64");
        let console = host.log(&format!("{name}-console.log"));
        command.args(arguments(host, name, nic, guest, [&qmp, &shell_socket, &console]));
        command.args(["-kernel", &variable("FLEXVF_GUEST_KERNEL")?]);
        command.args(["-initrd", &variable("FLEXVF_GUEST_INITRD")?, "-append"]);
        // As the guest image reads it; see scripts/testbed/guest-init.
        let Guest { name: called, address, .. } = guest;
        let who = format!("flexvf.name={called} flexvf.ip={address}/24 flexvf.bond=off");
        command.arg(variable("FLEXVF_GUEST_APPEND")? + " " + &who);
        if how == Start::Incoming {
            command.args(["-incoming", "defer"]);
        }
        let log = host.log(&format!("{name}-qemu.log"));
        let mut child = Child::start(&format!("QEMU {name}"), &mut command, &log)?;
        let end = Instant::now() + START;
        let qmp = loop {
            child.check()?;
            match QmpClient::connect(&qmp) {
                Ok(client) => break client,
                Err(error) if Instant::now() > end => return Err(error),
                Err(_) => sleep(Duration::from_millis(50)),
            }
        };
        Ok(Self { child, qmp, shell: None, shell_socket })
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        self.child.check()
    }

    /// Runs a QMP command.
    pub fn execute(&mut self, command: &str, arguments: &Value) -> Result<Value> {
        self.qmp.execute(command, arguments)
    }

    /// The guest's shell.
    pub fn shell(&mut self) -> Result<&mut Shell> {
        let shell = match self.shell.take() {
            Some(shell) => shell,
            None => Shell::connect(&self.shell_socket)?,
        };
        Ok(self.shell.insert(shell))
    }

    /// What this QEMU has taken so far.
    pub fn resources(&self) -> Result<Resources> {
        resources(self.child.pid())
    }

    /// Ends it, guest and all.
    pub fn quit(mut self) -> Result<()> {
        self.execute("quit", &json!({}))?;
        match self.child.wait(START) {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("QEMU ended with {status} when asked to end"),
            None => bail!("QEMU did not end when asked to"),
        }
    }
}

fn arguments(
    host: &Host,
    name: &str,
    nic: &Nic,
    guest: &Guest,
    [qmp, shell, console]: [&Path; 3],
) -> Vec<String> {
    let cpu = if host.accel == "kvm" { "host" } else { "max" };
    // Devices that the guest has no use for cost exits when they are probed.
    let machine = "q35,memory-backend=ram,sata=off,smbus=off,i8042=off,hpet=off,vmport=off";
    let memory = format!("memory-backend-memfd,id=ram,size={MEMORY_MIB}M,share=on");
    let (queues, path) = (nic.queues, nic.socket.display());
    let (mq, vectors) = (if queues > 1 { "on" } else { "off" }, 2 * queues + 2);
    let backend = format!("socket,id={NIC},path={path},reconnect-ms={RECONNECT_MS}");
    let netdev = format!("vhost-user,id={NIC},chardev={NIC},queues={queues}");
    let Guest { mac, properties, .. } = guest;
    let device = format!(
        "virtio-net-pci,id={NIC},netdev={NIC},mac={mac},romfile=,mq={mq},vectors={vectors}{properties}"
    );
    let cpus = queues.min(MAX_CPUS);
    let shell = format!("socket,id=shell,path={},server=on,wait=off", shell.display());
    let lines = [
        format!("-name {name} -nodefaults -display none -machine {machine}"),
        format!("-accel {} -cpu {cpu} -m {MEMORY_MIB} -object {memory}", host.accel),
        format!("-qmp unix:{},server=on,wait=off", qmp.display()),
        format!("-chardev file,id=console,append=on,path={}", console.display()),
        "-device virtio-serial-pci -device virtconsole,chardev=console".into(),
        format!("-chardev {shell} -device virtserialport,chardev=shell,name=flexvf.shell"),
        format!("-smp {cpus} -chardev {backend} -netdev {netdev} -device {device}"),
    ];
    let words = lines.iter().flat_map(|line| line.split(' '));
    words.map(str::to_owned).collect()
}

fn variable(name: &str) -> Result<String> {
    std::env::var(name).with_context(|| format!("{name} is not set; run this by fast-host"))
}
