//! Binding a function to vfio-pci and back: the writes, in the order the kernel wants them.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::Path;

use flexvf_protocol::PciAddress;
use nix::errno::Errno;

use super::{Sysfs, SysfsError, failed, number, text};

const VFIO: &str = "vfio-pci";
/// What `net/*/flags` has for an interface that is set up.
const IFF_UP: u32 = 1;
/// Drivers that a function of another one's IOMMU group may have: they do no DMA of the host's.
const HARMLESS: [&str; 2] = [VFIO, "pci-stub"];

impl Sysfs {
    /// Whether a function may be given to vfio-pci, or is there already, and nobody would notice.
    ///
    /// # Errors
    /// [`SysfsError`] says who uses it, or what it lacks.
    pub fn check_unused(&self, address: PciAddress) -> Result<(), SysfsError> {
        let function = self.function(address)?;
        let Some(group) = function.iommu_group else {
            return Err(SysfsError::NoIommu(address));
        };
        for other in &function.group_others {
            // A neighbour may have gone in this moment.
            let Ok(neighbour) = self.function(*other) else { continue };
            if let Some(driver) = neighbour.driver.filter(|_| !neighbour.is_bridge)
                && !HARMLESS.contains(&driver.as_str())
            {
                return Err(SysfsError::SharedGroup { address, group, other: *other, driver });
            }
        }
        if let Some(driver) = function.driver_override.filter(|driver| driver != VFIO) {
            return Err(SysfsError::Reserved { address, driver });
        }
        match function.driver {
            None => Ok(()),
            Some(driver) if driver == VFIO => Ok(()),
            Some(driver) if function.interfaces.is_empty() => {
                Err(SysfsError::Elsewhere { address, driver })
            }
            Some(_) => match self.used_interface(address, &function.interfaces)? {
                Some(interface) => Err(SysfsError::InUse { address, interface }),
                None => Ok(()),
            },
        }
    }

    pub(super) fn bind_now(&self, address: PciAddress) -> Result<(), SysfsError> {
        let function = self.function(address)?;
        if function.driver.as_deref() == Some(VFIO) {
            return Ok(());
        }
        self.check_unused(address)?;
        let dir = self.device(address);
        self.write(&dir.join("driver_override"), VFIO)?;
        if function.driver.is_some() {
            self.unbind(address)?;
        }
        let probed = self.probe(address);
        let driver = self.function(address)?.driver;
        if driver.as_deref() == Some(VFIO) {
            return Ok(());
        }
        // Reserved for a driver that did not take it, it would be nobody's.
        self.write(&dir.join("driver_override"), "\n")?;
        probed?;
        Err(SysfsError::NotBound { address, found: driver.unwrap_or_else(|| "no driver".into()) })
    }

    pub(super) fn release_now(&self, address: PciAddress) -> Result<(), SysfsError> {
        let function = self.function(address)?;
        self.write(&self.device(address).join("driver_override"), "\n")?;
        if function.driver.as_deref() == Some(VFIO) {
            self.unbind(address)?;
        } else if function.driver.is_some() {
            return Ok(());
        }
        let pf = function.pf.unwrap_or(address);
        let autoprobe: Option<u8> = number(&self.device(pf).join("sriov_drivers_autoprobe"))?;
        match autoprobe {
            Some(0) => Ok(()),
            _ => self.probe(address),
        }
    }

    /// An interface that is up, or a port of something.
    fn used_interface(
        &self,
        address: PciAddress,
        interfaces: &[String],
    ) -> Result<Option<String>, SysfsError> {
        for interface in interfaces {
            let dir = self.device(address).join("net").join(interface);
            let flags = text(&dir.join("flags"))?;
            let flags = flags.unwrap_or_default();
            let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
            if flags & IFF_UP != 0 || dir.join("master").exists() {
                return Ok(Some(interface.clone()));
            }
        }
        Ok(None)
    }

    fn unbind(&self, address: PciAddress) -> Result<(), SysfsError> {
        let path = self.device(address).join("driver/unbind");
        match self.write(&path, &address.to_string()) {
            // Unbound by somebody else in this moment.
            Err(SysfsError::Io { cause, .. })
                if cause.raw_os_error() == Some(Errno::ENODEV as i32)
                    || cause.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            result => result,
        }
    }

    fn probe(&self, address: PciAddress) -> Result<(), SysfsError> {
        let path = self.root.join("bus/pci/drivers_probe");
        self.write(&path, &address.to_string())
    }

    fn write(&self, path: &Path, text: &str) -> Result<(), SysfsError> {
        let mut options = OpenOptions::new();
        let opened = options.write(true).truncate(true).open(path);
        let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
        written.map_err(|cause| failed(path, cause))?;
        #[cfg(test)]
        if let Some(kernel) = self.kernel {
            kernel(&self.root, path, text);
        }
        Ok(())
    }
}
