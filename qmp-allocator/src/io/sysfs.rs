//! PCI functions of the host: a PF's VFs, their drivers and IOMMU groups.
//!
//! Which VF serves whom is decided elsewhere; here a function is looked at, bound to vfio-pci and
//! given back. Reading is quick and done in place; a bind may wait in the kernel, so it is done
//! on another thread and waited for within a deadline.

mod bind;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use flexvf_protocol::PciAddress;

/// The `/sys` tree.
#[derive(Debug, Clone)]
pub struct Sysfs {
    root: PathBuf,
    /// Does what the kernel would, after each write to a tree of a test's.
    #[cfg(test)]
    kernel: Option<fn(&Path, &Path, &str)>,
}

/// A physical function.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pf {
    /// Its interface.
    pub interface: String,
    /// Its address.
    pub address: PciAddress,
    /// Its driver.
    pub driver: Option<String>,
    /// VFs that it can have.
    pub total_vfs: u32,
    /// VFs that it has.
    pub num_vfs: u32,
    /// Whether the kernel binds new VFs to the NIC's own driver.
    pub autoprobe: Option<bool>,
    /// NUMA node, where the host has several.
    pub numa_node: Option<u32>,
}

/// A virtual function of a PF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vf {
    /// Its number, as netlink counts.
    pub index: u32,
    /// Its address.
    pub address: PciAddress,
}

/// A PCI function's present state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its driver.
    pub driver: Option<String>,
    /// The driver it is reserved for.
    pub driver_override: Option<String>,
    /// Its IOMMU group.
    pub iommu_group: Option<u32>,
    /// Other functions of the same group.
    pub group_others: Vec<PciAddress>,
    /// Interfaces that the host has on it.
    pub interfaces: Vec<String>,
    /// A PCI bridge, which passes through no data of its own.
    pub is_bridge: bool,
    /// The PF, if it is a VF.
    pub pf: Option<PciAddress>,
    /// NUMA node, where the host has several.
    pub numa_node: Option<u32>,
}

/// Why a function is not as wished.
#[derive(Debug, thiserror::Error)]
pub enum SysfsError {
    /// Not an interface of this host.
    #[error("there is no interface {0}; give the PF's interface as `ip link` shows it")]
    NoInterface(String),
    /// The interface has no PCI function behind it.
    #[error("interface {0} is no PCI device; give the interface of a NIC's PF")]
    NotPci(String),
    /// The NIC (or its driver, or the firmware's settings) has no SR-IOV.
    #[error(
        "{0} has no SR-IOV; enable it in NIC and firmware, or use a pool with kind = \"emulated\""
    )]
    NoSriov(String),
    /// SR-IOV, but no VF has been created.
    #[error(
        "{0} has no VFs yet; `echo 0 > /sys/class/net/{0}/device/sriov_drivers_autoprobe`, then `echo N > /sys/class/net/{0}/device/sriov_numvfs` (N up to {1})"
    )]
    NoVfs(String, u32),
    /// No such function.
    #[error("there is no PCI function {0}; see `ls /sys/bus/pci/devices`")]
    NoFunction(PciAddress),
    /// The host itself uses the function.
    #[error(
        "VF {address} is in use: the host's interface {interface} on it is up or a port of another; `ip link set {interface} down nomaster`, or leave this VF out of the pool's `vfs`"
    )]
    InUse {
        /// The function.
        address: PciAddress,
        /// The interface.
        interface: String,
    },
    /// A driver has it, and shows no interface here.
    #[error(
        "VF {address} is in use: driver {driver} has it and no interface of this host (another network namespace has it, or a program); leave this VF out of the pool's `vfs`, or unbind it"
    )]
    Elsewhere {
        /// The function.
        address: PciAddress,
        /// Its driver.
        driver: String,
    },
    /// Somebody has reserved the function for another driver.
    #[error(
        "VF {address} is reserved for driver {driver} (its driver_override); `echo > /sys/bus/pci/devices/{address}/driver_override`, or leave this VF out of the pool's `vfs`"
    )]
    Reserved {
        /// The function.
        address: PciAddress,
        /// The driver it is reserved for.
        driver: String,
    },
    /// A neighbour that the host uses could be reached through the VF.
    #[error(
        "VF {address} shares its IOMMU group {group} with {other}, which driver {driver} has; all of a group go to one VM or none: bind {other} to vfio-pci, or leave this VF out of the pool's `vfs`"
    )]
    SharedGroup {
        /// The function.
        address: PciAddress,
        /// The group.
        group: u32,
        /// The neighbour.
        other: PciAddress,
        /// The neighbour's driver.
        driver: String,
    },
    /// No IOMMU group: no passthrough.
    #[error(
        "{0} has no IOMMU group; boot the host with the IOMMU on (intel_iommu=on or the firmware's AMD-Vi)"
    )]
    NoIommu(PciAddress),
    /// A driver did not take the function.
    #[error(
        "{address} is bound to {found} instead of vfio-pci; `modprobe vfio-pci`, and see the kernel's log"
    )]
    NotBound {
        /// The function.
        address: PciAddress,
        /// What has it.
        found: String,
    },
    /// A file of sysfs.
    #[error("{path}: {cause}; FlexVF runs as root, with /sys writable")]
    Io {
        /// The file.
        path: String,
        /// The system's word.
        cause: std::io::Error,
    },
    /// The kernel has not come back.
    #[error("the kernel has not finished with {address} within {deadline:?}; see its log")]
    Timeout {
        /// The function.
        address: PciAddress,
        /// The time it had.
        deadline: Duration,
    },
}

impl Sysfs {
    /// The host's own, `/sys`.
    pub fn host() -> Self {
        Self::at("/sys".into())
    }

    /// A tree elsewhere, for tests.
    pub fn at(root: PathBuf) -> Self {
        Self {
            root,
            #[cfg(test)]
            kernel: None,
        }
    }

    /// The PF behind an interface; an error unless it has VFs.
    ///
    /// # Errors
    /// [`SysfsError`] says what is missing.
    pub fn pf(&self, interface: &str) -> Result<Pf, SysfsError> {
        let name = || interface.to_owned();
        let link = self.root.join("class/net").join(interface);
        if interface.is_empty() || interface.contains('/') || !link.exists() {
            return Err(SysfsError::NoInterface(name()));
        }
        let address = target(&link.join("device"))?.and_then(|device| device.parse().ok());
        let address: PciAddress = address.ok_or_else(|| SysfsError::NotPci(name()))?;
        let dir = self.device(address);
        let total_vfs: u32 = number(&dir.join("sriov_totalvfs"))?.unwrap_or(0);
        if total_vfs == 0 {
            return Err(SysfsError::NoSriov(name()));
        }
        let num_vfs: u32 = number(&dir.join("sriov_numvfs"))?.unwrap_or(0);
        if num_vfs == 0 {
            return Err(SysfsError::NoVfs(name(), total_vfs));
        }
        let autoprobe: Option<u8> = number(&dir.join("sriov_drivers_autoprobe"))?;
        Ok(Pf {
            interface: name(),
            address,
            driver: target(&dir.join("driver"))?,
            total_vfs,
            num_vfs,
            autoprobe: autoprobe.map(|flag| flag != 0),
            numa_node: number(&dir.join("numa_node"))?,
        })
    }

    /// A PF's VFs, by index.
    ///
    /// # Errors
    /// [`SysfsError::Io`].
    pub fn vfs(&self, pf: PciAddress) -> Result<Vec<Vf>, SysfsError> {
        let dir = self.device(pf);
        let mut vfs = Vec::new();
        for name in names(&dir)? {
            let index = name.strip_prefix("virtfn").and_then(|index| index.parse().ok());
            let Some(index) = index else { continue };
            let address = target(&dir.join(&name))?.and_then(|device| device.parse().ok());
            vfs.extend(address.map(|address| Vf { index, address }));
        }
        vfs.sort_by_key(|vf| vf.index);
        Ok(vfs)
    }

    /// The VFIO node of a function that vfio-pci has, where the kernel makes one for each function.
    pub fn vfio_node(&self, address: PciAddress) -> Option<PathBuf> {
        let nodes = names(&self.device(address).join("vfio-dev")).ok()?;
        Some(Path::new("/dev/vfio/devices").join(nodes.first()?))
    }

    /// The bridge or bond that an interface is a port of, and what that is a port of.
    pub fn masters(&self, interface: &str) -> Vec<String> {
        let mut masters = Vec::new();
        let mut below = interface.to_owned();
        while masters.len() < MAX_MASTERS {
            let link = self.root.join("class/net").join(&below).join("master");
            let Ok(Some(master)) = target(&link) else { break };
            below.clone_from(&master);
            masters.push(master);
        }
        masters
    }

    /// Whether the host has several NUMA nodes.
    pub fn has_several_nodes(&self) -> bool {
        // A range or a list, such as `0-1`; absent where the kernel knows no nodes.
        let online = fs::read_to_string(self.root.join("devices/system/node/online"));
        online.is_ok_and(|nodes| nodes.trim().parse::<u32>().is_err())
    }

    /// A function's present state.
    ///
    /// # Errors
    /// [`SysfsError::NoFunction`], [`SysfsError::Io`].
    pub fn function(&self, address: PciAddress) -> Result<Function, SysfsError> {
        let dir = self.device(address);
        if !dir.exists() {
            return Err(SysfsError::NoFunction(address));
        }
        let group = target(&dir.join("iommu_group"))?;
        let members = match group {
            Some(_) => names(&dir.join("iommu_group/devices"))?,
            None => Vec::new(),
        };
        let members = members.iter().filter_map(|member| member.parse().ok());
        let pf = target(&dir.join("physfn"))?;
        let reserved = text(&dir.join("driver_override"))?;
        Ok(Function {
            driver: target(&dir.join("driver"))?,
            driver_override: reserved.filter(|driver| driver != "(null)" && !driver.is_empty()),
            iommu_group: group.and_then(|group| group.parse().ok()),
            group_others: members.filter(|member| *member != address).collect(),
            interfaces: names(&dir.join("net"))?,
            is_bridge: text(&dir.join("class"))?.is_some_and(|class| class.starts_with("0x0604")),
            pf: pf.and_then(|pf| pf.parse().ok()),
            numa_node: number(&dir.join("numa_node"))?,
        })
    }

    /// Gives a function to vfio-pci, unless the host uses it. Nothing is done when vfio-pci has it.
    ///
    /// # Errors
    /// [`SysfsError`] says who has it instead.
    pub async fn bind_vfio(
        &self,
        address: PciAddress,
        deadline: Duration,
    ) -> Result<(), SysfsError> {
        self.elsewhere(address, deadline, Self::bind_now).await
    }

    /// Takes a function from vfio-pci and ends its reservation; the NIC's own driver gets it back
    /// where the PF's `sriov_drivers_autoprobe` says so. Only after the last user has let go: the
    /// kernel waits for that otherwise.
    ///
    /// # Errors
    /// [`SysfsError::Io`], [`SysfsError::Timeout`].
    pub async fn release(&self, address: PciAddress, deadline: Duration) -> Result<(), SysfsError> {
        self.elsewhere(address, deadline, Self::release_now).await
    }

    /// Runs on a thread that may wait in the kernel without holding up anybody. If the deadline
    /// passes, what was begun goes on there.
    async fn elsewhere(
        &self,
        address: PciAddress,
        deadline: Duration,
        work: fn(&Self, PciAddress) -> Result<(), SysfsError>,
    ) -> Result<(), SysfsError> {
        let sysfs = self.clone();
        let task = tokio::task::spawn_blocking(move || work(&sysfs, address));
        match tokio::time::timeout(deadline, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(cause)) => Err(SysfsError::Io {
                path: self.device(address).display().to_string(),
                cause: io::Error::other(cause),
            }),
            Err(_) => Err(SysfsError::Timeout { address, deadline }),
        }
    }

    fn device(&self, address: PciAddress) -> PathBuf {
        self.root.join("bus/pci/devices").join(address.to_string())
    }
}

/// A PF in a bond in a bridge.
const MAX_MASTERS: usize = 2;

/// A file that is not there is `None`; any other trouble is an error.
fn present<T>(path: &Path, result: io::Result<T>) -> Result<Option<T>, SysfsError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(cause) => Err(failed(path, cause)),
    }
}

fn failed(path: &Path, cause: io::Error) -> SysfsError {
    SysfsError::Io { path: path.display().to_string(), cause }
}

/// The last part of where a symbolic link leads.
fn target(link: &Path) -> Result<Option<String>, SysfsError> {
    let target = present(link, fs::read_link(link))?;
    let name = target.as_deref().and_then(Path::file_name);
    Ok(name.map(|name| name.to_string_lossy().into_owned()))
}

fn text(path: &Path) -> Result<Option<String>, SysfsError> {
    let text = present(path, fs::read_to_string(path))?;
    Ok(text.map(|text| text.trim().to_owned()))
}

/// A number; what is none (such as NUMA node −1) counts as absent.
fn number<T: std::str::FromStr>(path: &Path) -> Result<Option<T>, SysfsError> {
    Ok(text(path)?.and_then(|text| text.parse().ok()))
}

/// Names in a folder, sorted; none if there is no such folder.
fn names(dir: &Path) -> Result<Vec<String>, SysfsError> {
    let Some(entries) = present(dir, fs::read_dir(dir))? else {
        return Ok(Vec::new());
    };
    let name = |entry: fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let mut names: Vec<_> = entries.flatten().map(name).collect();
    names.sort();
    Ok(names)
}
