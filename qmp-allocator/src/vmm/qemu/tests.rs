//! A session with QEMU 10.0.2, recorded once and replayed since; and the same against a real QEMU
//! where `FLEXVF_TEST_QEMU` names one.
//!
//! To record anew, run the real one with `FLEXVF_TEST_RECORD=FILE` as well.

use super::*;
use crate::vmm::VmmEvent;
use flexvf_protocol::MacAddr;
use std::ffi::OsStr;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};

const RECORDED: &str = include_str!("qemu-10.0.2.txt");
const LONG: Duration = Duration::from_secs(20);

fn nic(tap: &str, port: &str) -> Plug {
    let backend = Backend::Nic {
        model: "e1000e".into(),
        tap: tap.into(),
        mac: MacAddr::new([2, 0xf1, 0, 0, 0, 1]),
    };
    Plug { device_id: backend.device_id(), port: port.into(), backend, failover: None }
}

fn ports(states: [(&str, PortState); 3]) -> Vec<Port> {
    let port = |(id, state): (&str, PortState)| Port { id: id.to_owned(), state };
    states.map(port).into()
}

fn occupied(by: &str) -> PortState {
    PortState::Occupied { by: by.to_owned() }
}

/// A guest that never runs: `rp1` is empty, `rp2` has a NIC without id, there is no `rp9`.
async fn session(vmm: &QmpVmm, events: &mut VmmEvents) {
    let asked = ["rp1", "rp2", "rp9"].map(String::from);
    let foreign = occupied("virtio-net-pci at /machine/peripheral-anon/device[0]");
    let empty = Observation {
        devices: Vec::new(),
        ports: ports([
            ("rp1", PortState::Empty),
            ("rp2", foreign.clone()),
            ("rp9", PortState::Missing),
        ]),
    };
    assert_eq!(vmm.observe(&asked).await.unwrap(), empty);

    let plug = nic("fvtest0", "rp1");
    let id = "flexvf-tap-fvtest0";
    assert_eq!(plug.device_id, id);
    vmm.plug(&plug).await.unwrap();
    let full = Observation {
        devices: vec![PluggedDevice {
            id: id.into(),
            port: Some("rp1".into()),
            kind: PluggedKind::Nic {
                model: "e1000e".into(),
                tap: Some("fvtest0".into()),
                mac: Some(MacAddr::new([2, 0xf1, 0, 0, 0, 1])),
            },
        }],
        ports: ports([("rp1", occupied(id)), ("rp2", foreign), ("rp9", PortState::Missing)]),
    };
    assert_eq!(vmm.observe(&asked).await.unwrap(), full);
    refusals(vmm, &plug).await;

    assert_eq!(vmm.unplug(id).await.unwrap(), Unplug::Asked);
    assert_eq!(vmm.unplug(id).await.unwrap(), Unplug::Pending);
    // Until QEMU says it is gone, it is there.
    assert_eq!(vmm.observe(&asked).await.unwrap(), full);
    let reset = vmm.qmp.execute_value("system_reset", json!({}), LONG);
    reset.await.unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&VmmEvent::DeviceDeleted(id.into())) {
        seen.push(events.next().await);
        assert_ne!(seen.last(), Some(&VmmEvent::Closed));
    }
    assert!(seen.contains(&VmmEvent::Reset), "{seen:?}");
    assert_eq!(vmm.observe(&asked).await.unwrap(), empty);
    assert_eq!(vmm.unplug(id).await.unwrap(), Unplug::Gone);
    for _ in 0..2 {
        vmm.forget(id).await.unwrap();
    }
}

async fn refusals(vmm: &QmpVmm, plugged: &Plug) {
    let vfio = Backend::Vfio { host: "0000:ff:1f.7".parse().unwrap(), node: None };
    let vfio =
        Plug { device_id: vfio.device_id(), port: "rp3".into(), backend: vfio, failover: None };
    let mut model = nic("fvtest1", "rp3");
    model.backend = Backend::Nic {
        model: "nosuch".into(),
        tap: "fvtest1".into(),
        mac: MacAddr::new([2, 0xf1, 0, 0, 0, 2]),
    };
    for (plug, error) in [
        (plugged, "device flexvf-tap-fvtest0 is in the VM already; wait until it is unplugged"),
        (
            &nic("fvtest1", "rp1"),
            "root port rp1 is occupied by flexvf-tap-fvtest0; unplug that, or list another port in the VM's `ports`",
        ),
        (
            &nic("fvtest1", "rp2"),
            "root port rp2 is occupied by virtio-net-pci at /machine/peripheral-anon/device[0]; unplug that, or list another port in the VM's `ports`",
        ),
        (
            &nic("fvtest1", "rp9"),
            "there is no root port rp9; start QEMU with `-device pcie-root-port,id=rp9,chassis=N`, or correct the VM's `ports`",
        ),
        (
            &vfio,
            "QEMU refused device_add: vfio /sys/bus/pci/devices/0000:ff:1f.7: no such host device: No such file or directory",
        ),
        (&model, "QEMU refused device_add: 'nosuch' is not a valid device model name"),
    ] {
        assert_eq!(vmm.plug(plug).await.unwrap_err().to_string(), error);
    }
    let forgotten = vmm.forget(&plugged.device_id).await;
    assert!(matches!(forgotten, Err(VmmError::AlreadyThere(_))), "{forgotten:?}");
}

/// Sends QEMU's recorded lines, and insists on the recorded requests in between.
async fn replay(listener: UnixListener) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut stream = BufReader::new(stream);
    for line in RECORDED.lines().filter(|line| !line.starts_with('#')) {
        let (direction, recorded) = line.split_at(2);
        if direction == "< " {
            let line = format!("{recorded}\r\n");
            stream.get_mut().write_all(line.as_bytes()).await.unwrap();
        } else {
            let mut asked = String::new();
            stream.read_line(&mut asked).await.unwrap();
            let asked: Value = serde_json::from_str(&asked).unwrap();
            let recorded: Value = serde_json::from_str(recorded).unwrap();
            assert_eq!(asked, recorded);
        }
    }
}

#[tokio::test]
async fn a_recorded_session_with_qemu_10_replays() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let listener = UnixListener::bind(&socket).unwrap();
    let calls = async {
        let (vmm, mut events) = QmpVmm::connect(&socket, LONG, LONG).await.unwrap();
        assert_eq!(vmm.version(), "10.0.2");
        session(&vmm, &mut events).await;
    };
    tokio::join!(calls, replay(listener));
}

#[tokio::test]
async fn a_vfio_device_is_seen_with_its_host_function() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let listener = UnixListener::bind(&socket).unwrap();
    // QEMU's answers to the same questions, from a host with VFs; see TESTBED runs.
    let serve = async {
        let (stream, _) = listener.accept().await.unwrap();
        let mut stream = BufReader::new(stream);
        let greeting = RECORDED.lines().find(|line| line.starts_with("< ")).unwrap();
        let greeting = format!("{}\n", &greeting[2..]);
        stream.get_mut().write_all(greeting.as_bytes()).await.unwrap();
        let id = "flexvf-0000-01-10-0";
        for answer in [
            json!({}),
            json!([{"name": "type", "type": "string"},
                {"name": id, "type": "child<vfio-pci>"},
                {"name": "vf-of-another", "type": "child<vfio-pci>"},
                {"name": "rp1", "type": "child<pcie-root-port>"}]),
            json!("/machine/peripheral/rp1/rp1"),
            json!("0000:01:10.0"),
        ] {
            let mut asked = String::new();
            stream.read_line(&mut asked).await.unwrap();
            let asked: Value = serde_json::from_str(&asked).unwrap();
            let line = format!("{}\n", json!({"return": answer, "id": asked["id"]}));
            stream.get_mut().write_all(line.as_bytes()).await.unwrap();
        }
        stream
    };
    let calls = async {
        let (vmm, _events) = QmpVmm::connect(&socket, LONG, LONG).await.unwrap();
        vmm.observe(&[]).await.unwrap()
    };
    let (observation, _stream) = tokio::join!(calls, serve);
    let host: flexvf_protocol::PciAddress = "0000:01:10.0".parse().unwrap();
    assert_eq!(
        observation.devices,
        [PluggedDevice {
            id: Backend::Vfio { host, node: None }.device_id(),
            port: Some("rp1".into()),
            kind: PluggedKind::Vfio { host: Some(host) },
        }]
    );
}

#[tokio::test]
async fn the_same_session_with_a_real_qemu() {
    let Some(qemu) = std::env::var_os("FLEXVF_TEST_QEMU") else {
        eprintln!("SKIPPED the_same_session_with_a_real_qemu: FLEXVF_TEST_QEMU names no QEMU");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let (socket, proxy) = (dir.path().join("qmp"), dir.path().join("proxy"));
    let (_qemu, qemu) = start(&qemu, &socket).await;
    let listener = UnixListener::bind(&proxy).unwrap();
    let calls = async {
        let (vmm, mut events) = QmpVmm::connect(&proxy, LONG, LONG).await.unwrap();
        session(&vmm, &mut events).await;
    };
    tokio::select! {
        () = calls => {}
        () = record(qemu, listener) => panic!("QEMU has closed the connection"),
    }
}

/// A QEMU with a guest that never runs, and a connection to it.
async fn start(qemu: &OsStr, socket: &Path) -> (Killed, UnixStream) {
    let child = Command::new(qemu)
        .args("-machine q35 -m 64 -S -display none -nodefaults -netdev user,id=n0".split(' '))
        .args("-device pcie-root-port,id=rp1,chassis=1".split(' '))
        .args("-device pcie-root-port,id=rp2,chassis=2".split(' '))
        .args("-device pcie-root-port,id=rp3,chassis=3".split(' '))
        .args("-device virtio-net-pci,netdev=n0,bus=rp2,romfile=".split(' '))
        .arg("-qmp")
        .arg(format!("unix:{},server=on,wait=off", socket.display()))
        .stdin(Stdio::null())
        .spawn();
    let mut child = Killed(child.unwrap());
    let stream = loop {
        assert!(child.0.try_wait().unwrap().is_none(), "QEMU has ended");
        match UnixStream::connect(&socket).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    (child, stream)
}

#[test]
fn a_device_tells_its_function_by_its_id() {
    let host: PciAddress = "0000:01:10.7".parse().unwrap();
    assert_eq!(host_in(&Backend::Vfio { host, node: None }.device_id()), Some(host));
    for id in ["flexvf-tap-vf0", "flexvf-0000-01-10", "0000-01-10-7", "flexvf-"] {
        assert_eq!(host_in(id), None);
    }
}

/// How far this goes without a kernel that has iommufd: QEMU takes both files by their names, and
/// then finds that they are not what they should be.
#[tokio::test]
async fn a_real_qemu_takes_a_vf_by_its_node() {
    let Some(qemu) = std::env::var_os("FLEXVF_TEST_QEMU") else {
        eprintln!("SKIPPED a_real_qemu_takes_a_vf_by_its_node: FLEXVF_TEST_QEMU names no QEMU");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("qmp");
    let (_qemu, stream) = start(&qemu, &socket).await;
    drop(stream);
    let (vmm, _events) = QmpVmm::connect(&socket, LONG, LONG).await.unwrap();
    assert_eq!(vmm.memory_bytes().await.unwrap(), 64 << 20);
    assert!(vmm.has_iommufd().await.unwrap());
    let backend = Backend::Vfio { host: "0000:ff:1f.7".parse().unwrap(), node: None };
    let plug = Plug { device_id: backend.device_id(), port: "rp3".into(), backend, failover: None };
    let null = Path::new("/dev/null");
    for _ in 0..2 {
        let error = vmm.plug_by_node(&plug, null, null).await.unwrap_err().to_string();
        assert!(error.starts_with("QEMU refused device_add: "), "{error}");
        assert!(error.contains("ioctl"), "it must come from the kernel: {error}");
    }
    // Neither is left behind for the next one.
    let name = format!("{}-node", plug.device_id);
    let close = vmm.qmp.execute_value("closefd", json!({"fdname": name}), LONG).await;
    assert!(close.is_err(), "{close:?}");
    let objects = vmm.list("/objects").await.unwrap().unwrap();
    assert_eq!(objects.iter().filter(|(name, _)| name == "flexvf-iommufd").count(), 1);
    let gone = vmm.plug_by_node(&plug, Path::new("/dev/vfio/no-such"), null).await.unwrap_err();
    assert!(gone.to_string().starts_with("/dev/vfio/no-such: No such file"), "{gone}");
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Stands between client and QEMU, and writes down what both say.
async fn record(mut qemu: UnixStream, listener: UnixListener) {
    let file = std::env::var_os("FLEXVF_TEST_RECORD");
    let mut file = file.map(|path| std::fs::File::create(path).unwrap());
    let (mut client, _) = listener.accept().await.unwrap();
    let (from_client, mut to_client) = client.split();
    let (from_qemu, mut to_qemu) = qemu.split();
    let mut from_client = BufReader::new(from_client).lines();
    let mut from_qemu = BufReader::new(from_qemu).lines();
    loop {
        let (mark, line) = tokio::select! {
            line = from_client.next_line() => ("> ", line),
            line = from_qemu.next_line() => ("< ", line),
        };
        let Ok(Some(line)) = line else { return };
        if let Some(file) = &mut file {
            writeln!(file, "{mark}{line}").unwrap();
        }
        let line = format!("{line}\n");
        let sent = match mark {
            "> " => to_qemu.write_all(line.as_bytes()).await,
            _ => to_client.write_all(line.as_bytes()).await,
        };
        sent.unwrap();
    }
}
