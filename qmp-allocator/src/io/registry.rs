//! The folder of VM registration files.
//!
//! Scanned, not watched: it has no notifications to lose, and works on every file system. Files that
//! come, go or are renamed change their folder's time, and are seen by the next scan; one that is
//! written in place does not, and all files are looked at only now and then.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use flexvf_protocol::{MacAddr, VmName};

use crate::config::VmConfig;
use crate::logic::policy::tenant::Tenants;

/// What the folder holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scan {
    /// The VMs whose files are in order.
    pub vms: BTreeMap<VmName, Arc<VmConfig>>,
    /// One line for each file (or the folder) that is not, naming the file and what to do.
    pub problems: Vec<(PathBuf, String)>,
    /// Whether anything is other than in the scan before.
    pub changed: bool,
}

/// The folder, and what was read of it so far.
#[derive(Debug)]
pub struct Registry {
    dir: PathBuf,
    /// Those that a VM may be of.
    tenants: Tenants,
    read: BTreeMap<PathBuf, Entry>,
    /// Whether `read` has changed since it was sorted out.
    fresh: bool,
    dir_problems: Vec<(PathBuf, String)>,
    scan: Scan,
    /// The folder as it was, and when, at the last look at all files.
    looked: Option<(Stamp, Instant)>,
}

/// What was read of one file.
#[derive(Debug)]
struct Entry {
    stamp: Stamp,
    /// The last content that was in order: a VM does not lose its VF to a slip of an editor.
    good: Option<Arc<VmConfig>>,
    problem: Option<String>,
}

/// Changes whenever a file's content may have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Registry {
    /// For a folder, which need not exist yet.
    pub fn new(dir: PathBuf, tenants: Tenants) -> Self {
        Self {
            dir,
            tenants,
            read: BTreeMap::new(),
            fresh: false,
            dir_problems: Vec::new(),
            scan: Scan::default(),
            looked: None,
        }
    }

    /// Looks at every file, if the folder has changed or it is time again, and reads those that
    /// changed. A VM is gone when its file is; a file that cannot be read any more is a problem, and
    /// its VM stays as it was.
    pub fn scan(&mut self) -> &Scan {
        if self.is_settled() {
            self.scan.changed = false;
            return &self.scan;
        }
        let mut problems = Vec::new();
        match files(&self.dir) {
            Ok(paths) => {
                if paths.len() > MAX_FILES {
                    let dir = self.dir.display();
                    let line =
                        format!("{dir}: more than {MAX_FILES} files; the last by name are ignored");
                    problems.push((self.dir.clone(), line));
                }
                let paths: Vec<_> = paths.into_iter().take(MAX_FILES).collect();
                let known = self.read.len();
                self.read.retain(|path, _| paths.binary_search(path).is_ok());
                self.fresh |= self.read.len() != known;
                for path in paths {
                    self.look_at(path);
                }
            }
            Err(cause) => {
                let dir = self.dir.display();
                let line = format!("{dir}: {cause}; create it, or correct `vms_dir`");
                problems.push((self.dir.clone(), line));
                if cause.kind() == io::ErrorKind::NotFound {
                    self.read.clear();
                    self.fresh = true;
                }
            }
        }
        if !std::mem::take(&mut self.fresh) && problems == self.dir_problems {
            self.scan.changed = false;
            return &self.scan;
        }
        self.dir_problems.clone_from(&problems);
        let scan = self.sorted(problems);
        self.scan = Scan {
            changed: scan.vms != self.scan.vms || scan.problems != self.scan.problems,
            ..scan
        };
        &self.scan
    }

    /// Nothing can have come or gone since the last look at all files.
    fn is_settled(&mut self) -> bool {
        let metadata = fs::metadata(&self.dir).ok();
        let before = self.looked.take();
        let Some(stamp) = metadata.as_ref().map(Stamp::of) else { return false };
        let age = metadata.and_then(|dir| dir.modified().ok()?.elapsed().ok());
        // Two changes within one tick of the file system's clock leave one time.
        let settled = age.is_some_and(|age| age >= CLOCK_TICK)
            && before.is_some_and(|(known, at)| known == stamp && at.elapsed() < LOOK_PERIOD);
        self.looked = if settled { before } else { Some((stamp, Instant::now())) };
        settled
    }

    fn look_at(&mut self, path: PathBuf) {
        let stamp = match fs::metadata(&path) {
            Ok(metadata) => Stamp::of(&metadata),
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => {
                self.fresh |= self.read.remove(&path).is_some();
                return;
            }
            // Reading it tells why.
            Err(_) => Stamp::default(),
        };
        let known = self.read.get(&path);
        if known.is_some_and(|entry| entry.stamp == stamp && stamp != Stamp::default()) {
            return;
        }
        let before = known.and_then(|entry| entry.good.clone());
        let loaded = VmConfig::load(&path).and_then(|vm| vm.of_known_tenant(&self.tenants));
        let (good, problem) = match loaded {
            Ok(vm) => (Some(Arc::new(vm)), None),
            Err(error) if before.is_some() => {
                let line = format!("{error} (what it said before stays in force)");
                (before, Some(line))
            }
            Err(error) => (None, Some(error.to_string())),
        };
        let entry = Entry { stamp, good, problem };
        self.read.insert(path, entry);
        self.fresh = true;
    }

    /// Of two that want the same thing, the one that had it keeps it; else the first by name.
    fn sorted(&self, problems: Vec<(PathBuf, String)>) -> Scan {
        let mut scan = Scan { problems, ..Scan::default() };
        let mut macs: BTreeMap<MacAddr, &Path> = BTreeMap::new();
        let mut sockets: BTreeMap<&Path, &Path> = BTreeMap::new();
        let served: BTreeSet<&Path> = self.scan.vms.values().map(|vm| vm.file.as_path()).collect();
        let had_it = |path: &&PathBuf| served.contains(path.as_path());
        let (old, new): (Vec<_>, Vec<_>) = self.read.keys().partition(had_it);
        for path in old.into_iter().chain(new) {
            let Some(entry) = self.read.get(path) else { continue };
            if let Some(line) = &entry.problem {
                scan.problems.push((path.clone(), line.clone()));
            }
            let Some(vm) = &entry.good else { continue };
            let taken = [
                (macs.get(&vm.mac), format!("MAC address {}", vm.mac)),
                (sockets.get(vm.qmp.as_path()), format!("QMP socket {}", vm.qmp.display())),
            ];
            let taken = taken.into_iter().find_map(|(other, what)| Some((*other?, what)));
            if let Some((other, what)) = taken {
                let (file, other) = (path.display(), other.display());
                let line =
                    format!("{file}: {what} is registered by {other} too; change one of them");
                scan.problems.push((path.clone(), line));
                continue;
            }
            macs.insert(vm.mac, path);
            sockets.insert(&vm.qmp, path);
            scan.vms.insert(vm.name.clone(), Arc::clone(vm));
        }
        scan
    }
}

/// The folder's `.toml` files. Names with a dot first are other programs' half-written ones.
fn files(dir: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut paths = BTreeSet::new();
    for entry in fs::read_dir(dir)?.take(MAX_ENTRIES) {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(".toml") && !name.starts_with('.') {
            paths.insert(path);
        }
    }
    Ok(paths)
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        Self {
            inode: metadata.ino(),
            length: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }
}

/// Between two looks at all files: how long a change in place may go unseen.
const LOOK_PERIOD: Duration = Duration::from_secs(10);
/// Coarser than the clock of any file system that such a folder is on.
const CLOCK_TICK: Duration = Duration::from_secs(2);
/// Files taken: four times the VMs that a host is planned for.
const MAX_FILES: usize = 4096;
/// Names looked at, whatever they are.
const MAX_ENTRIES: usize = 4 * MAX_FILES;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logic::policy::tenant::Tenant;

    fn vm(number: u8) -> String {
        format!(
            "qmp = \"/run/{number}/qmp\"\nmac = \"52:54:00:00:00:{number:02x}\"\nports = [\"rp1\"]\n"
        )
    }

    fn names(scan: &Scan) -> Vec<&str> {
        scan.vms.keys().map(VmName::as_str).collect()
    }

    #[test]
    fn files_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut registry = Registry::new(dir.path().into(), Tenants::default());
        assert!(!registry.scan().changed);
        fs::write(dir.path().join("a.toml"), vm(1)).unwrap();
        fs::write(dir.path().join("b.toml"), vm(2)).unwrap();
        fs::write(dir.path().join(".c.toml.tmp"), vm(3)).unwrap();
        fs::write(dir.path().join("notes.txt"), "hello").unwrap();
        let scan = registry.scan();
        assert_eq!((names(scan), scan.problems.len()), (vec!["a", "b"], 0));
        assert!(scan.changed);
        assert!(!registry.scan().changed);
        fs::remove_file(dir.path().join("a.toml")).unwrap();
        let scan = registry.scan();
        assert_eq!((names(scan), scan.changed), (vec!["b"], true));
    }

    #[test]
    fn a_file_is_read_again_only_when_it_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        fs::write(&path, vm(1)).unwrap();
        let mut registry = Registry::new(dir.path().into(), Tenants::default());
        let first = Arc::clone(registry.scan().vms.values().next().unwrap());
        let again = Arc::clone(registry.scan().vms.values().next().unwrap());
        assert!(Arc::ptr_eq(&first, &again));
        fs::write(&path, vm(1) + "weight = 7\n").unwrap();
        assert_eq!(registry.scan().vms.values().next().unwrap().words.weight, 7);
    }

    #[test]
    fn a_change_in_place_is_seen_by_the_next_look_at_all_files_and_a_new_file_at_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.toml"), vm(1)).unwrap();
        let an_hour_ago = std::time::SystemTime::now() - Duration::from_secs(3600);
        fs::File::open(dir.path()).unwrap().set_modified(an_hour_ago).unwrap();
        let mut registry = Registry::new(dir.path().into(), Tenants::default());
        assert!(registry.scan().changed);
        fs::write(dir.path().join("a.toml"), vm(1) + "weight = 7\n").unwrap();
        assert!(!registry.scan().changed);
        let (stamp, looked) = registry.looked.unwrap();
        registry.looked = Some((stamp, looked.checked_sub(LOOK_PERIOD).unwrap()));
        assert!(registry.scan().changed);
        assert_eq!(registry.scan.vms.values().next().unwrap().words.weight, 7);
        assert!(!registry.scan().changed);
        fs::write(dir.path().join("b.toml"), vm(2)).unwrap();
        assert_eq!(names(registry.scan()), ["a", "b"]);
    }

    #[test]
    fn a_bad_file_is_a_problem_and_the_others_are_served() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.toml"), "qmp = 1\n").unwrap();
        fs::write(dir.path().join("b.toml"), vm(2)).unwrap();
        fs::create_dir(dir.path().join("c.toml")).unwrap();
        let mut registry = Registry::new(dir.path().into(), Tenants::default());
        let scan = registry.scan();
        assert_eq!(names(scan), ["b"]);
        let [(_, a), (_, c)] = &scan.problems[..] else {
            panic!("{:?}", scan.problems);
        };
        assert!(a.contains("a.toml:1: "), "{a}");
        assert!(c.ends_with("c.toml: not a regular file; give a file that can be read"), "{c}");
    }

    #[test]
    fn a_tenant_must_be_known_and_of_the_vm_s_pool() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.toml"), vm(1) + "tenant = \"acme\"\n").unwrap();
        fs::write(dir.path().join("b.toml"), vm(2) + "tenant = \"acme\"\npool = \"b\"\n").unwrap();
        fs::write(dir.path().join("c.toml"), vm(3) + "tenant = \"acne\"\n").unwrap();
        let acme = Tenant {
            name: "acme".parse().unwrap(),
            pool: "default".into(),
            weight: 1,
            min_vfs: 0,
            max_vfs: None,
            reserved_vfs: 0,
        };
        let mut registry = Registry::new(dir.path().into(), vec![acme].into());
        let scan = registry.scan();
        assert_eq!(names(scan), ["a"]);
        let lines: Vec<_> = scan.problems.iter().map(|(_, line)| line.as_str()).collect();
        assert!(lines[0].ends_with("b.toml: tenant acme is of pool \"default\", the VM of \"b\"; make them the same, or make a tenant for each pool"), "{lines:?}");
        assert!(lines[1].ends_with("c.toml: tenant acne is not in the daemon's configuration; correct `tenant`, or add a section [tenant.NAME] there"), "{lines:?}");
    }

    #[test]
    fn a_slip_in_a_file_does_not_take_the_vm_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.toml");
        fs::write(&path, vm(1)).unwrap();
        let mut registry = Registry::new(dir.path().into(), Tenants::default());
        registry.scan();
        fs::write(&path, vm(1) + "weight = \n").unwrap();
        let scan = registry.scan();
        assert_eq!((names(scan), scan.problems.len()), (vec!["a"], 1));
        let line = &scan.problems[0].1;
        assert!(line.ends_with("(what it said before stays in force)"), "{line}");
        fs::write(&path, vm(1)).unwrap();
        assert_eq!(registry.scan().problems, []);
    }

    #[test]
    fn of_two_vms_with_one_mac_the_later_is_a_problem_naming_both() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.toml"), vm(1)).unwrap();
        fs::write(dir.path().join("b.toml"), vm(1).replace("/run/1", "/run/2")).unwrap();
        fs::write(dir.path().join("c.toml"), vm(3).replace("/run/3", "/run/1")).unwrap();
        let mut registry = Registry::new(dir.path().into(), Tenants::default());
        let scan = registry.scan();
        assert_eq!(names(scan), ["a"]);
        let lines: Vec<_> = scan.problems.iter().map(|(_, line)| line.clone()).collect();
        let dir = dir.path().display();
        assert_eq!(
            lines,
            [
                format!(
                    "{dir}/b.toml: MAC address 52:54:00:00:00:01 is registered by {dir}/a.toml too; change one of them"
                ),
                format!(
                    "{dir}/c.toml: QMP socket /run/1/qmp is registered by {dir}/a.toml too; change one of them"
                ),
            ]
        );
    }

    #[test]
    fn a_newcomer_does_not_take_the_mac_of_a_vm_that_has_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("b.toml"), vm(1)).unwrap();
        let mut registry = Registry::new(dir.path().into(), Tenants::default());
        assert_eq!(names(registry.scan()), ["b"]);
        fs::write(dir.path().join("a.toml"), vm(1).replace("/run/1", "/run/2")).unwrap();
        let scan = registry.scan();
        assert_eq!((names(scan), scan.problems.len()), (vec!["b"], 1));
    }

    #[test]
    fn a_fifo_is_a_problem_and_does_not_keep_the_scan_waiting() {
        let dir = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&dir.path().join("f.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let mut registry = Registry::new(dir.path().into(), Tenants::default());
        let scan = registry.scan();
        assert!(scan.problems[0].1.contains("not a regular file"), "{:?}", scan.problems);
    }

    #[test]
    fn a_missing_folder_is_a_problem_and_heals() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vms");
        let mut registry = Registry::new(path.clone(), Tenants::default());
        assert_eq!(registry.scan().problems.len(), 1);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("a.toml"), vm(1)).unwrap();
        let scan = registry.scan();
        assert_eq!((names(scan), scan.problems.len()), (vec!["a"], 0));
    }
}
