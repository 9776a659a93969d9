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

impl Sysfs {
    pub(super) fn bind_now(&self, address: PciAddress) -> Result<(), SysfsError> {
        let function = self.function(address)?;
        if function.driver.as_deref() == Some(VFIO) {
            return Ok(());
        }
        if function.iommu_group.is_none() {
            return Err(SysfsError::NoIommu(address));
        }
        if let Some(interface) = self.up_interface(address, &function.interfaces)? {
            return Err(SysfsError::InUse { address, interface });
        }
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

    fn up_interface(
        &self,
        address: PciAddress,
        interfaces: &[String],
    ) -> Result<Option<String>, SysfsError> {
        for interface in interfaces {
            let flags = text(&self.device(address).join("net").join(interface).join("flags"))?;
            let flags = flags.unwrap_or_default();
            let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).unwrap_or(0);
            if flags & IFF_UP != 0 {
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
