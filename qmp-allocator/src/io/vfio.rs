//! VFIO's group nodes: whether some process holds a group.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Whether a process has the group open, and with it (perhaps) the VF in it.
///
/// A group can be open once only (`vfio_group_fops_open` in the kernel), so trying tells. A group
/// without a node has no device on vfio-pci and nobody holds it.
pub fn is_held(group: u32) -> bool {
    held_at(&PathBuf::from(format!("/dev/vfio/{group}")))
}

fn held_at(node: &Path) -> bool {
    let opened = OpenOptions::new().read(true).write(true).open(node);
    opened.is_err_and(|error| error.raw_os_error() == Some(Errno::EBUSY as i32))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_a_node_is_free() {
        assert!(!held_at(Path::new("/dev/vfio/no-such-group")));
        assert!(!held_at(Path::new("/dev/null")));
    }
}
