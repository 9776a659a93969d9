//! Which system calls a running device makes.
//!
//! Two filters, of which the kernel obeys the stricter:
//! - what only an intruder has a use for (other programs, other processes, the kernel itself) ends
//!   the process; the service manager starts a new one, and the guest's NIC goes on;
//! - anything else that is not listed fails with `EPERM`. A daemon that serves a machine must not
//!   die because a newer C library asks for something harmless in a way that we have not seen.
//!
//! The calls of the data path are allowed whatever their arguments are, since the kernel then knows
//! the answer from a table and runs no filter.

use std::collections::BTreeMap;

use nix::libc;
use seccompiler::SeccompCmpArgLen::Dword;
use seccompiler::SeccompCmpOp::{Eq, MaskedEq};
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Needs;
use crate::io::sys;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: TargetArch = TargetArch::x86_64;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: TargetArch = TargetArch::aarch64;

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Both filters, in the order of installing: the second forbids installing more.
pub(super) fn programs(needs: &Needs) -> Result<[BpfProgram; 2], BackendError> {
    let fatal = FATAL.iter().map(|call| (*call, Vec::new())).collect();
    let allow = SeccompAction::Allow;
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    Ok([
        SeccompFilter::new(fatal, allow.clone(), SeccompAction::KillProcess, ARCHITECTURE)?
            .try_into()?,
        SeccompFilter::new(allowed(needs)?, refuse, allow, ARCHITECTURE)?.try_into()?,
    ])
}

fn allowed(needs: &Needs) -> Result<Rules, BackendError> {
    let mut rules: Rules = ANY_ARGUMENTS.iter().map(|call| (*call, Vec::new())).collect();
    // Neither new code, nor code out of data.
    only(&mut rules, libc::SYS_mmap, 2, MaskedEq(PROT_EXEC), &[0])?;
    only(&mut rules, libc::SYS_mprotect, 2, MaskedEq(PROT_EXEC), &[0])?;
    only(&mut rules, libc::SYS_ioctl, 1, Eq, &IOCTLS)?;
    only(&mut rules, libc::SYS_fcntl, 1, Eq, &FCNTLS.map(i64::from))?;
    only(&mut rules, libc::SYS_socketpair, 0, Eq, &[libc::AF_UNIX.into()])?;
    only(&mut rules, libc::SYS_setsockopt, 1, Eq, &[libc::SOL_SOCKET.into()])?;
    only(&mut rules, libc::SYS_getsockopt, 1, Eq, &[libc::SOL_SOCKET.into()])?;
    // A thread names itself.
    only(&mut rules, libc::SYS_prctl, 0, Eq, &[libc::PR_SET_NAME.into()])?;
    // abort() signals itself, and nobody else.
    only(&mut rules, libc::SYS_tgkill, 0, Eq, &[std::process::id().into()])?;
    // Lets go of a TAP at once; rings cannot be made or changed any more.
    let unregister = i64::from(sys::UNREGISTER_FILES);
    only(&mut rules, libc::SYS_io_uring_register, 1, Eq, &[unregister])?;
    if needs.connect.is_some() {
        only(&mut rules, libc::SYS_socket, 0, Eq, &[libc::AF_UNIX.into()])?;
        rules.insert(libc::SYS_connect, Vec::new());
    }
    if needs.remove.is_some() {
        rules.extend(REMOVING.iter().map(|call| (*call, Vec::new())));
    }
    Ok(rules)
}

/// Allows a call if one of its arguments has one of these values.
fn only(
    rules: &mut Rules,
    call: i64,
    argument: u8,
    compare: SeccompCmpOp,
    values: &[i64],
) -> Result<(), BackendError> {
    let rule = |value: &i64| {
        let value = value.cast_unsigned();
        SeccompRule::new(vec![SeccompCondition::new(argument, Dword, compare.clone(), value)?])
    };
    rules.insert(call, values.iter().map(rule).collect::<Result<_, _>>()?);
    Ok(())
}

const PROT_EXEC: u64 = libc::PROT_EXEC as u64;

/// TAP queues and offloads, an interface's MTU, and what the standard library makes sockets
/// non-blocking with.
const IOCTLS: [i64; 5] = [
    libc::TUNSETOFFLOAD as i64,
    libc::TUNSETQUEUE as i64,
    libc::SIOCGIFMTU as i64,
    libc::SIOCSIFMTU as i64,
    libc::FIONBIO as i64,
];

const FCNTLS: [i32; 5] =
    [libc::F_GETFD, libc::F_SETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];

#[cfg(target_arch = "x86_64")]
const REMOVING: [i64; 2] = [libc::SYS_unlink, libc::SYS_unlinkat];
#[cfg(not(target_arch = "x86_64"))]
const REMOVING: [i64; 1] = [libc::SYS_unlinkat];

const ANY_ARGUMENTS: &[i64] = &[
    // Frames, kicks, interrupts, messages. Rings of io_uring are made before; none can be made now.
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_readv,
    libc::SYS_preadv2,
    libc::SYS_writev,
    libc::SYS_io_uring_enter,
    libc::SYS_recvmsg,
    libc::SYS_recvfrom,
    libc::SYS_sendmsg,
    libc::SYS_sendto,
    libc::SYS_epoll_pwait,
    libc::SYS_ppoll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    // Connections and what comes with them.
    libc::SYS_accept4,
    libc::SYS_shutdown,
    libc::SYS_close,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    // Kind and length of a file that stands for memory; the stats page's lock.
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_lseek,
    libc::SYS_flock,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads that are there, and time.
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_set_robust_list,
    libc::SYS_rseq,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigtimedwait,
    libc::SYS_rt_sigreturn,
    libc::SYS_restart_syscall,
    libc::SYS_clock_gettime,
    libc::SYS_clock_nanosleep,
    libc::SYS_nanosleep,
    libc::SYS_gettimeofday,
    libc::SYS_getrandom,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What ends the process: no C library does it on the way to something else.
const FATAL: &[i64] = &[
    // Other programs.
    libc::SYS_execve,
    libc::SYS_execveat,
    // Other processes.
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_getfd,
    libc::SYS_kcmp,
    // Other views of the file system and the network.
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_move_mount,
    libc::SYS_open_tree,
    libc::SYS_fsopen,
    libc::SYS_pivot_root,
    libc::SYS_chroot,
    libc::SYS_setns,
    libc::SYS_unshare,
    libc::SYS_open_by_handle_at,
    // The kernel itself.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_add_key,
    libc::SYS_request_key,
    libc::SYS_keyctl,
];

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket, socketpair};

    const CHILD: &str = "VHOST_NET_PV_TEST_CHILD";

    fn filter_this_thread(needs: &Needs) {
        for program in programs(needs).unwrap() {
            seccompiler::apply_filter(&program).unwrap();
        }
    }

    /// Tries something in a thread that has the filters.
    fn filtered<T: Send + 'static>(
        needs: Needs,
        attempt: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let thread = std::thread::spawn(move || {
            filter_this_thread(&needs);
            attempt()
        });
        thread.join().unwrap()
    }

    fn socket_of(family: AddressFamily) -> Result<(), Errno> {
        socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).map(drop)
    }

    #[test]
    fn what_a_device_does_not_do_is_refused() {
        let denied = filtered(Needs::default(), || {
            [
                std::fs::File::open("/dev/null").err(),
                std::fs::write("/dev/null", "x").err(),
                std::fs::remove_file("/nonexistent").err(),
                std::thread::Builder::new().spawn(|| ()).err(),
                std::os::unix::net::UnixStream::connect("/nonexistent").err(),
                std::net::UdpSocket::bind("127.0.0.1:0").err(),
                nix::sys::signal::kill(nix::unistd::getpid(), None).err().map(Into::into),
            ]
        });
        for (at, error) in denied.into_iter().enumerate() {
            let error = error.and_then(|error| error.raw_os_error());
            assert_eq!(error, Some(libc::EPERM), "attempt {at} was not refused");
        }
    }

    #[test]
    fn only_a_connecting_device_may_connect_and_only_to_unix_sockets() {
        let needs = Needs { connect: Some("/x".into()), remove: None };
        let [unix, inet, netlink] = filtered(needs, || {
            [AddressFamily::Unix, AddressFamily::Inet, AddressFamily::Netlink].map(socket_of)
        });
        assert_eq!((unix, inet, netlink), (Ok(()), Err(Errno::EPERM), Err(Errno::EPERM)));
        let unix = filtered(Needs::default(), || socket_of(AddressFamily::Unix));
        assert_eq!(unix, Err(Errno::EPERM));
        let pair = filtered(Needs::default(), || {
            let flags = SockFlag::SOCK_CLOEXEC;
            socketpair(AddressFamily::Unix, SockType::Stream, None, flags).map(drop)
        });
        assert_eq!(pair, Ok(()));
    }

    #[test]
    fn memory_cannot_be_made_executable() {
        use vm_memory::mmap::MmapRegionBuilder;
        let map = |protection| {
            filtered(Needs::default(), move || {
                let builder = MmapRegionBuilder::<()>::new(4096);
                let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
                builder.with_mmap_prot(protection).with_mmap_flags(flags).build().map(drop)
            })
        };
        assert!(map(libc::PROT_READ | libc::PROT_WRITE).is_ok());
        assert!(map(libc::PROT_READ | libc::PROT_EXEC).is_err());
    }

    #[test]
    fn memory_threads_and_clocks_go_on_working() {
        let sum = filtered(Needs::default(), || {
            let began = std::time::Instant::now();
            let large: Vec<u64> = (0..1 << 20).collect();
            std::thread::sleep(std::time::Duration::from_millis(1));
            assert!(began.elapsed() >= std::time::Duration::from_millis(1));
            large.iter().sum::<u64>()
        });
        assert_eq!(sum, ((1 << 20) - 1) << 19);
    }

    #[test]
    fn another_program_ends_the_process() {
        use std::os::unix::process::ExitStatusExt;
        if std::env::var_os(CHILD).is_some() {
            filter_this_thread(&Needs::default());
            let _ = nix::unistd::execv(c"/bin/true", &[c"true"]);
            return;
        }
        let name = "io::sandbox::seccomp::tests::another_program_ends_the_process";
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", name])
            .env(CHILD, "1")
            .stdout(std::process::Stdio::null())
            .status()
            .unwrap();
        assert_eq!(status.signal(), Some(libc::SIGSYS), "the child ended with {status}");
    }
}
