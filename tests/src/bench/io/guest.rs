//! A Linux guest with one NIC on a TAP: through our backend, or through QEMU's own device.
//!
//! Both get the same machine, the same memory and the same features; what differs is who moves
//! frames between the guest's rings and the TAP.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::backend::{Backend, Port};
use super::stage::{Stage, variable};
use super::tap::{PREFIX, Tap};
use crate::bench::drive::Side;
use crate::blast::{PORT, ask};
use crate::scenario::io::child::{Child, last_line};

/// A guest that takes jobs ([`crate::blast`]).
#[derive(Debug)]
pub struct Guest {
    /// Where it takes them.
    pub jobs: SocketAddr,
    // In the order in which they are to end.
    _qemu: Child,
    _backend: Option<Backend>,
    _tap: Tap,
}

impl Guest {
    /// Boots one, and waits until it takes jobs; `options` are for our backend.
    pub fn boot(stage: &Stage, side: Side, options: &[&str]) -> Result<Self> {
        let tap = Tap::make(stage, 1)?;
        tap.address(None)?;
        let backend = match side {
            Side::Ours => Some(Backend::start_unpinned(stage, Port::Tap(tap.name()), options)?),
            Side::Peer => None,
        };
        let name = stage.new_name("guest");
        let console = stage.out.join(format!("{name}.log"));
        let mut command = qemu(&console, &tap)?;
        match &backend {
            Some(backend) => {
                let socket = backend.socket().display();
                command.args(["-chardev", &format!("socket,id=c0,path={socket}")]);
                command.args(["-netdev", "vhost-user,id=n0,chardev=c0"])
            }
            None => {
                let tap = tap.name();
                let netdev = format!("tap,id=n0,ifname={tap},script=no,downscript=no,vhost=off");
                command.args(["-netdev", &netdev])
            }
        };
        let mut qemu =
            Child::start(&name, &mut command, &stage.out.join(format!("{name}-qemu.log")))?;
        let jobs = SocketAddr::from((tap.guest(), PORT));
        let end = Instant::now() + BOOT;
        while !ask::is_ready(jobs) {
            qemu.check()?;
            if Instant::now() > end {
                let last = last_line(&console);
                bail!("the guest is not up after {} s; its last words: {last}", BOOT.as_secs());
            }
        }
        Ok(Self { jobs, _qemu: qemu, _backend: backend, _tap: tap })
    }
}

/// Emulated guests take 5 to 10 s, on a quiet machine.
const BOOT: Duration = Duration::from_secs(120);

/// The machine: all but the NIC's way out.
fn qemu(console: &Path, tap: &Tap) -> Result<Command> {
    let accel = variable("FLEXVF_ACCEL")?;
    let processor = if accel == "kvm" { "host" } else { "max" };
    let append = format!(
        "{} flexvf.name=bench flexvf.bond=off flexvf.ip={}/{PREFIX} \
         flexvf.run=\"/flexvf/flexvf-traffic blast\"",
        variable("FLEXVF_GUEST_APPEND")?,
        tap.guest()
    );
    let mut command = Command::new("qemu-system-x86_64");
    command
        .args(["-nodefaults", "-display", "none", "-accel", &accel, "-cpu", processor])
        .args([
            "-machine",
            "q35,memory-backend=ram,sata=off,smbus=off,i8042=off,hpet=off,vmport=off",
        ])
        .args(["-m", "256", "-object"])
        .arg("memory-backend-memfd,id=ram,size=256M,share=on,prealloc=on")
        .args(["-chardev", &format!("file,id=console,path={}", console.display())])
        .args(["-device", "virtio-serial-pci", "-device", "virtconsole,chardev=console"])
        .args(["-device", "virtio-net-pci,netdev=n0,mac=02:00:00:00:00:02,romfile="])
        .args(["-kernel", &variable("FLEXVF_GUEST_KERNEL")?])
        .args(["-initrd", &variable("FLEXVF_GUEST_INITRD")?])
        .args(["-append", &append]);
    Ok(command)
}
