//! Against a tree in a temporary folder, with a function in the kernel's place.

use super::*;
use std::os::unix::fs::symlink;
use tempfile::TempDir;

const PF: &str = "0000:01:00.0";
const VF: &str = "0000:01:10.0";
const SECOND: &str = "0000:01:10.2";

/// A PF `eth0` with two VFs, the first of them at igbvf with an interface, and no vfio-pci.
fn tree() -> (TempDir, Sysfs) {
    let dir = tempfile::tempdir().unwrap();
    let devices = dir.path().join("bus/pci/devices");
    for (address, group) in [(PF, 1), (VF, 2), (SECOND, 3)] {
        let device = devices.join(address);
        let members = dir.path().join(format!("kernel/iommu_groups/{group}/devices"));
        fs::create_dir_all(&device).unwrap();
        fs::create_dir_all(&members).unwrap();
        symlink(&device, members.join(address)).unwrap();
        symlink(members.parent().unwrap(), device.join("iommu_group")).unwrap();
        fs::write(device.join("driver_override"), "(null)\n").unwrap();
        fs::write(device.join("numa_node"), "-1\n").unwrap();
    }
    let pf = devices.join(PF);
    fs::write(pf.join("sriov_totalvfs"), "7\n").unwrap();
    fs::write(pf.join("sriov_numvfs"), "2\n").unwrap();
    fs::write(pf.join("sriov_drivers_autoprobe"), "0\n").unwrap();
    for (index, vf) in [(0, VF), (1, SECOND)] {
        symlink(format!("../{vf}"), pf.join(format!("virtfn{index}"))).unwrap();
        symlink(format!("../{PF}"), devices.join(vf).join("physfn")).unwrap();
    }
    let driver = dir.path().join("bus/pci/drivers/igbvf");
    fs::create_dir_all(&driver).unwrap();
    fs::write(driver.join("unbind"), "").unwrap();
    symlink(&driver, devices.join(VF).join("driver")).unwrap();
    fs::create_dir_all(devices.join(VF).join("net/eth1")).unwrap();
    fs::write(devices.join(VF).join("net/eth1/flags"), "0x1002\n").unwrap();
    fs::write(dir.path().join("bus/pci/drivers_probe"), "").unwrap();
    fs::create_dir_all(dir.path().join("class/net/eth0")).unwrap();
    symlink(&pf, dir.path().join("class/net/eth0/device")).unwrap();
    let mut sysfs = Sysfs::at(dir.path().into());
    sysfs.kernel = Some(kernel);
    (dir, sysfs)
}

#[test]
fn several_nodes_are_told_from_one_and_from_none() {
    let (dir, sysfs) = tree();
    assert!(!sysfs.has_several_nodes());
    let nodes = dir.path().join("devices/system/node");
    fs::create_dir_all(&nodes).unwrap();
    for (online, several) in [("0\n", false), ("0-1\n", true), ("0,2\n", true)] {
        fs::write(nodes.join("online"), online).unwrap();
        assert_eq!(sysfs.has_several_nodes(), several, "{online:?}");
    }
}

fn load_vfio(root: &Path) {
    let driver = root.join("bus/pci/drivers/vfio-pci");
    fs::create_dir_all(&driver).unwrap();
    fs::write(driver.join("unbind"), "").unwrap();
}

/// What Linux does after a write.
fn kernel(root: &Path, path: &Path, written: &str) {
    let device = root.join("bus/pci/devices").join(written);
    if path.ends_with("unbind") {
        fs::remove_file(device.join("driver")).unwrap();
        let _ = fs::remove_dir_all(device.join("net"));
    } else if path.ends_with("drivers_probe") {
        let reserved = fs::read_to_string(device.join("driver_override")).unwrap();
        let name = match reserved.trim() {
            "" | "(null)" => "igbvf",
            name => name,
        };
        let driver = root.join("bus/pci/drivers").join(name);
        if driver.exists() {
            symlink(driver, device.join("driver")).unwrap();
        }
    }
}

fn at(text: &str) -> PciAddress {
    text.parse().unwrap()
}

#[test]
fn a_pf_and_its_vfs_are_found() {
    let (_dir, sysfs) = tree();
    let pf = sysfs.pf("eth0").unwrap();
    assert_eq!((pf.address, pf.total_vfs, pf.num_vfs), (at(PF), 7, 2));
    assert_eq!((pf.autoprobe, pf.numa_node), (Some(false), None));
    let vfs: Vec<_> = sysfs.vfs(pf.address).unwrap();
    let vfs: Vec<_> = vfs.iter().map(|vf| (vf.index, vf.address)).collect();
    assert_eq!(vfs, [(0, at(VF)), (1, at(SECOND))]);
    let vf = sysfs.function(at(VF)).unwrap();
    assert_eq!((vf.driver.as_deref(), vf.pf), (Some("igbvf"), Some(at(PF))));
    assert_eq!((vf.iommu_group, vf.group_others.len()), (Some(2), 0));
    assert_eq!((vf.interfaces, vf.driver_override), (vec!["eth1".into()], None));
}

#[test]
fn an_interface_is_followed_to_its_bridge() {
    let (dir, sysfs) = tree();
    let net = dir.path().join("class/net");
    for name in ["bond0", "br0", "ring"] {
        fs::create_dir(net.join(name)).unwrap();
    }
    symlink("../bond0", net.join("eth0/master")).unwrap();
    symlink("../br0", net.join("bond0/master")).unwrap();
    symlink("../ring", net.join("ring/master")).unwrap();
    assert_eq!(sysfs.masters("eth0"), ["bond0", "br0"]);
    assert_eq!(sysfs.masters("br0"), [""; 0]);
    assert_eq!(sysfs.masters("ring").len(), 2);
}

#[test]
fn what_is_missing_is_said_with_what_to_do() {
    let (dir, sysfs) = tree();
    let error = |interface| sysfs.pf(interface).unwrap_err().to_string();
    assert_eq!(
        error("eth9"),
        "there is no interface eth9; give the PF's interface as `ip link` shows it"
    );
    fs::create_dir(dir.path().join("class/net/br0")).unwrap();
    assert_eq!(error("br0"), "interface br0 is no PCI device; give the interface of a NIC's PF");
    let pf = dir.path().join("bus/pci/devices").join(PF);
    fs::write(pf.join("sriov_numvfs"), "0\n").unwrap();
    assert_eq!(
        error("eth0"),
        "eth0 has no VFs yet; `echo 0 > /sys/class/net/eth0/device/sriov_drivers_autoprobe`, then `echo N > /sys/class/net/eth0/device/sriov_numvfs` (N up to 7)"
    );
    fs::remove_file(pf.join("sriov_totalvfs")).unwrap();
    assert_eq!(
        error("eth0"),
        "eth0 has no SR-IOV; enable it in NIC and firmware, or use a pool with kind = \"emulated\""
    );
    let absent = sysfs.function(at("0000:09:00.0")).unwrap_err().to_string();
    assert_eq!(absent, "there is no PCI function 0000:09:00.0; see `ls /sys/bus/pci/devices`");
}

#[test]
fn a_vf_is_bound_and_released() {
    let (dir, sysfs) = tree();
    load_vfio(dir.path());
    for address in [at(VF), at(SECOND)] {
        for _ in 0..2 {
            sysfs.bind_now(address).unwrap();
            let function = sysfs.function(address).unwrap();
            assert_eq!(function.driver.as_deref(), Some("vfio-pci"));
            assert_eq!(function.driver_override.as_deref(), Some("vfio-pci"));
        }
        for _ in 0..2 {
            sysfs.release_now(address).unwrap();
            let function = sysfs.function(address).unwrap();
            assert_eq!((function.driver, function.driver_override), (None, None));
        }
    }
}

#[test]
fn a_released_vf_goes_to_the_nics_driver_where_the_host_wants_it() {
    let (dir, sysfs) = tree();
    load_vfio(dir.path());
    let pf = dir.path().join("bus/pci/devices").join(PF);
    fs::write(pf.join("sriov_drivers_autoprobe"), "1\n").unwrap();
    sysfs.bind_now(at(VF)).unwrap();
    sysfs.release_now(at(VF)).unwrap();
    let driver = sysfs.function(at(VF)).unwrap().driver;
    assert_eq!(driver.as_deref(), Some("igbvf"));
}

#[test]
fn a_vf_whose_interface_is_up_is_left_alone() {
    let (dir, sysfs) = tree();
    load_vfio(dir.path());
    let device = dir.path().join("bus/pci/devices").join(VF);
    fs::write(device.join("net/eth1/flags"), "0x1003\n").unwrap();
    let error = sysfs.bind_now(at(VF)).unwrap_err().to_string();
    assert_eq!(
        error,
        "VF 0000:01:10.0 is in use: the host's interface eth1 on it is up or a port of another; `ip link set eth1 down nomaster`, or leave this VF out of the pool's `vfs`"
    );
    let function = sysfs.function(at(VF)).unwrap();
    assert_eq!(function.driver.as_deref(), Some("igbvf"));
    assert_eq!(function.driver_override, None);
}

fn refused(sysfs: &Sysfs, address: &str) -> String {
    let error = sysfs.check_unused(at(address)).unwrap_err().to_string();
    assert_eq!(sysfs.bind_now(at(address)).unwrap_err().to_string(), error);
    error
}

#[test]
fn a_vf_whose_interface_is_down_in_a_bridge_is_left_alone() {
    let (dir, sysfs) = tree();
    load_vfio(dir.path());
    sysfs.check_unused(at(VF)).unwrap();
    let net = dir.path().join("bus/pci/devices").join(VF).join("net/eth1");
    fs::create_dir(net.join("master")).unwrap();
    assert!(refused(&sysfs, VF).contains("eth1 on it is up or a port of another"));
}

#[test]
fn a_vf_of_another_network_namespace_is_left_alone() {
    let (dir, sysfs) = tree();
    load_vfio(dir.path());
    fs::remove_dir_all(dir.path().join("bus/pci/devices").join(VF).join("net/eth1")).unwrap();
    assert_eq!(
        refused(&sysfs, VF),
        "VF 0000:01:10.0 is in use: driver igbvf has it and no interface of this host (another network namespace has it, or a program); leave this VF out of the pool's `vfs`, or unbind it"
    );
}

#[test]
fn a_vf_reserved_for_another_driver_is_left_alone() {
    let (dir, sysfs) = tree();
    load_vfio(dir.path());
    let device = dir.path().join("bus/pci/devices").join(SECOND);
    fs::write(device.join("driver_override"), "uio_pci_generic\n").unwrap();
    assert_eq!(
        refused(&sysfs, SECOND),
        "VF 0000:01:10.2 is reserved for driver uio_pci_generic (its driver_override); `echo > /sys/bus/pci/devices/0000:01:10.2/driver_override`, or leave this VF out of the pool's `vfs`"
    );
}

#[test]
fn a_vf_in_a_group_with_what_the_host_uses_is_refused() {
    let (dir, sysfs) = tree();
    load_vfio(dir.path());
    let devices = dir.path().join("bus/pci/devices");
    let group = dir.path().join("kernel/iommu_groups/3/devices");
    symlink(devices.join(VF), group.join(VF)).unwrap();
    assert_eq!(
        refused(&sysfs, SECOND),
        "VF 0000:01:10.2 shares its IOMMU group 3 with 0000:01:10.0, which driver igbvf has; all of a group go to one VM or none: bind 0000:01:10.0 to vfio-pci, or leave this VF out of the pool's `vfs`"
    );
    // With vfio-pci, and at a bridge, nothing of the host's is within its reach.
    fs::write(devices.join(VF).join("class"), "0x060400\n").unwrap();
    sysfs.check_unused(at(SECOND)).unwrap();
    fs::write(devices.join(VF).join("class"), "0x020000\n").unwrap();
    sysfs.bind_now(at(VF)).unwrap();
    sysfs.check_unused(at(SECOND)).unwrap();
}

#[test]
fn without_vfio_pci_the_reservation_is_taken_back() {
    let (_dir, sysfs) = tree();
    let error = sysfs.bind_now(at(SECOND)).unwrap_err().to_string();
    assert_eq!(
        error,
        "0000:01:10.2 is bound to no driver instead of vfio-pci; `modprobe vfio-pci`, and see the kernel's log"
    );
    assert_eq!(sysfs.function(at(SECOND)).unwrap().driver_override, None);
}

#[test]
fn without_an_iommu_nothing_is_touched() {
    let (dir, sysfs) = tree();
    load_vfio(dir.path());
    let device = dir.path().join("bus/pci/devices").join(VF);
    fs::remove_file(device.join("iommu_group")).unwrap();
    let error = sysfs.bind_now(at(VF)).unwrap_err();
    assert!(matches!(error, SysfsError::NoIommu(_)), "{error}");
    assert_eq!(sysfs.function(at(VF)).unwrap().driver.as_deref(), Some("igbvf"));
}

#[tokio::test]
async fn a_kernel_that_does_not_come_back_holds_up_nobody() {
    let (_dir, sysfs) = tree();
    let stuck = |_: &Sysfs, _| {
        std::thread::sleep(Duration::from_millis(300));
        Ok(())
    };
    let deadline = Duration::from_millis(10);
    let error = sysfs.elsewhere(at(VF), deadline, stuck).await.unwrap_err();
    assert!(matches!(error, SysfsError::Timeout { .. }), "{error}");
}
