//! VFIO's device nodes: whether some process holds a group, and whose the group's node is.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};

use nix::errno::Errno;

/// Whether a process has the group open, and with it (perhaps) the VF in it.
///
/// A group can be open once only (`vfio_group_fops_open` in the kernel), and not while one of its
/// devices is used through a node of its own (`vfio_device_block_group`), so trying tells. A group
/// without a node has no device on vfio-pci and nobody holds it.
pub fn is_held(group: u32) -> bool {
    held_at(&node(group))
}

/// User and group that a group's node belongs to; `None` if there is no node.
///
/// # Errors
/// The system's word.
pub fn owner(group: u32) -> io::Result<Option<(u32, u32)>> {
    owner_of(&node(group))
}

/// Gives a group's node to a user and a group. That there is no node (any more) is no error: a node
/// made anew is root's.
///
/// # Errors
/// The system's word, with the node's path.
pub fn give(group: u32, owner: (u32, u32)) -> io::Result<()> {
    give_node(&node(group), owner)
}

fn node(group: u32) -> PathBuf {
    PathBuf::from(format!("/dev/vfio/{group}"))
}

fn held_at(node: &Path) -> bool {
    let opened = OpenOptions::new().read(true).write(true).open(node);
    opened.is_err_and(|error| error.raw_os_error() == Some(Errno::EBUSY as i32))
}

fn owner_of(node: &Path) -> io::Result<Option<(u32, u32)>> {
    match fs::metadata(node) {
        Ok(metadata) => Ok(Some((metadata.uid(), metadata.gid()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn give_node(node: &Path, (user, group): (u32, u32)) -> io::Result<()> {
    match chown(node, Some(user), Some(group)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            let node = node.display();
            Err(io::Error::new(error.kind(), format!("giving {node} to {user}:{group}: {error}")))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_without_a_node_is_free() {
        assert!(!held_at(Path::new("/dev/vfio/no-such-group")));
        assert!(!held_at(Path::new("/dev/null")));
    }

    #[test]
    fn a_node_changes_hands_and_comes_back() {
        if !nix::unistd::geteuid().is_root() {
            eprintln!(
                "SKIPPED a_node_changes_hands_and_comes_back: needs root, to give files away"
            );
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let node = dir.path().join("7");
        assert_eq!(owner_of(&node).unwrap(), None);
        give_node(&node, (1, 2)).unwrap();
        fs::write(&node, "").unwrap();
        let found = owner_of(&node).unwrap().unwrap();
        give_node(&node, (4711, 4712)).unwrap();
        assert_eq!(owner_of(&node).unwrap(), Some((4711, 4712)));
        give_node(&node, found).unwrap();
        assert_eq!(owner_of(&node).unwrap(), Some(found));
    }
}
