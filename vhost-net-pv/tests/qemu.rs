//! QEMU (of the testbed's sysroot) starts with a NIC on the backend.
//!
//! Only as far as QEMU goes by itself: guests that boot are the end-to-end runs' business.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Stdio};

use flexvf_protocol::stats_page::Header;
use nix::sys::signal::Signal;

use program::{Backend, Program, sysroot};

mod program;

fn qemu(sysroot: &Path, backend: &Backend, queues: u16) -> Program {
    let chardev = format!("socket,id=net0,path={},reconnect-ms=200", backend.socket().display());
    let child = Command::new(sysroot.join("flexvf-bin/qemu-system-x86_64"))
        .args(["-nodefaults", "-display", "none", "-accel", "tcg", "-S"])
        .args(["-M", "q35,memory-backend=mem", "-m", "64"])
        .args(["-object", "memory-backend-memfd,id=mem,size=64M,share=on"])
        .args(["-chardev", &chardev, "-netdev"])
        .arg(format!("vhost-user,id=net0,chardev=net0,queues={queues}"))
        .args(["-device"])
        .arg("virtio-net-pci,netdev=net0,mq=on,host_mtu=1500,romfile=")
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    Program(child)
}

#[test]
fn qemu_starts_is_killed_and_starts_again() {
    let Some(sysroot) = sysroot() else { return };
    for queues in [1, 4] {
        let backend = Backend::start("null", queues);
        for connection in 1..=3 {
            let mut child = qemu(&sysroot, &backend, queues);
            backend.until("QEMU connects", || {
                backend.page().header(Header::Connections) == connection
            });
            // The handshake is over when QEMU has stayed connected through all of it.
            std::thread::sleep(std::time::Duration::from_millis(500));
            let page = backend.page();
            let ended = child.0.try_wait().unwrap();
            assert!(ended.is_none(), "QEMU ended: {ended:?}");
            assert_eq!(page.header(Header::Connected), 1);
            assert_eq!(page.header(Header::Refused), 0);
            child.end(Signal::SIGKILL);
            backend.until("QEMU is gone", || backend.page().header(Header::Connected) == 0);
        }
        assert!(backend.end());
    }
}
