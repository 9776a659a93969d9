//! Landlock: no file, TCP port or foreign abstract socket can be opened any more.
//!
//! As far as the kernel goes: each release of landlock covers more. What this kernel's does not
//! cover is told by name.

use std::fmt;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, LandlockStatus, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};

use super::{Needs, SandboxError, folder};

/// What we ask for; the kernel gives as much of it as it has.
const WANTED: ABI = ABI::V10;

/// First version that covers something, and what.
const COVERED: [(u8, &str); 6] = [
    (3, "truncating files"),
    (4, "TCP"),
    (5, "ioctls on devices"),
    (6, "signals and abstract sockets"),
    (9, "connecting to sockets by path"),
    (10, "UDP"),
];

/// How far paths and the like are out of reach. Its text is part of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathRules {
    /// The kernel has landlock of this version.
    Enforced {
        /// Version of landlock's interface, as far as we use it.
        version: u8,
    },
    /// The kernel has it, but it was not switched on at boot.
    SwitchedOff,
    /// The kernel does not have it.
    Missing,
}

impl fmt::Display for PathRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Enforced { version } => {
                write!(f, "landlock {version}")?;
                let lacking: Vec<_> =
                    COVERED.iter().filter(|(since, _)| since > version).map(|(_, w)| *w).collect();
                match lacking.is_empty() {
                    true => Ok(()),
                    false => write!(f, " (which on this kernel leaves {})", lacking.join(", ")),
                }
            }
            Self::SwitchedOff => write!(
                f,
                "but files stay reachable: landlock is not switched on (add it to the kernel's \
                 lsm= option)"
            ),
            Self::Missing => {
                write!(f, "but files stay reachable: this kernel has no landlock (5.13 or newer)")
            }
        }
    }
}

/// Restricts this thread and those that it starts; also gives up new privileges.
pub(super) fn restrict(needs: &Needs) -> Result<PathRules, SandboxError> {
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(WANTED))?
        .handle_access(AccessNet::from_all(WANTED))?
        .scope(Scope::from_all(WANTED))?
        .create()?;
    // Landlock knows folders only: files beside the socket can be removed, too.
    let allowed = [(&needs.remove, AccessFs::RemoveFile), (&needs.connect, AccessFs::ResolveUnix)];
    for (path, access) in allowed {
        if let Some(path) = path {
            rules = rules.add_rule(PathBeneath::new(PathFd::new(folder(path))?, access))?;
        }
    }
    let status = rules.restrict_self()?;
    Ok(match (status.landlock, status.ruleset) {
        (LandlockStatus::NotEnabled, _) => PathRules::SwitchedOff,
        (LandlockStatus::NotImplemented, _) | (_, RulesetStatus::NotEnforced) => PathRules::Missing,
        (LandlockStatus::Available { effective_abi, .. }, _) => {
            PathRules::Enforced { version: effective_abi as u8 }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Landlock belongs to a thread, so each test has one of its own.
    fn restricted<T: Send + 'static>(needs: Needs, then: impl FnOnce() -> T + Send + 'static) -> T {
        let thread = std::thread::spawn(move || {
            let rules = restrict(&needs).unwrap();
            assert!(matches!(rules, PathRules::Enforced { .. }), "the kernel of tests has {rules}");
            then()
        });
        thread.join().unwrap()
    }

    #[test]
    fn no_file_can_be_opened_or_made() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "text").unwrap();
        let tried = restricted(Needs::default(), move || {
            [
                std::fs::read(&file).err(),
                std::fs::write(file.with_extension("new"), "").err(),
                std::fs::remove_file(&file).err(),
                std::fs::File::open("/dev/net/tun").err(),
                std::net::TcpListener::bind("127.0.0.1:0").err(),
            ]
        });
        for error in tried {
            let kind = error.map(|error| error.kind());
            assert_eq!(kind, Some(std::io::ErrorKind::PermissionDenied));
        }
    }

    #[test]
    fn the_sockets_file_can_still_be_removed() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let needs = Needs { remove: Some(socket.clone()), connect: None };
        restricted(needs, move || std::fs::remove_file(&socket).unwrap());
    }

    #[test]
    fn a_listening_front_end_can_be_connected_to() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let needs = Needs { remove: None, connect: Some(socket.clone()) };
        restricted(needs, move || std::os::unix::net::UnixStream::connect(&socket).unwrap());
    }

    #[test]
    fn what_the_kernel_lacks_is_told_by_name() {
        assert_eq!(PathRules::Enforced { version: 10 }.to_string(), "landlock 10");
        assert_eq!(
            PathRules::Enforced { version: 7 }.to_string(),
            "landlock 7 (which on this kernel leaves connecting to sockets by path, UDP)"
        );
        assert!(PathRules::Missing.to_string().contains("no landlock"));
    }
}
