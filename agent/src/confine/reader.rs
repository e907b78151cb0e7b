//! What the process gives up that reads a daemon's configuration again.
//!
//! It looks up users, by whatever library the machine has for that: those load others, start threads, make sockets. So no
//! list says what it may do; this one says what nobody needs for that. By Landlock it makes, writes and removes no file.

use std::process;

use landlock::{ABI, AccessFs, Ruleset, RulesetAttr as _};
use rustix::thread::set_no_new_privs;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCondition, SeccompRule,
    sock_filter,
};

use super::{
    ConfineError, Confinement, Is, NO_CAPABILITIES, argument, filter, install, set_capabilities,
    stay, step, use_up_first_times,
};

/// Call it while there is one thread.
pub fn lock_in_reader() -> Result<Confinement, ConfineError> {
    stay()?;
    use_up_first_times();
    set_capabilities(None, NO_CAPABILITIES).map_err(step("drop all capabilities"))?;
    set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    let rules = Ruleset::default().handle_access(AccessFs::from_write(ABI::V5))?;
    let landlock = rules.create()?.restrict_self()?.ruleset.into();
    let mut refused: Vec<_> = REFUSED.iter().map(|call| (*call, vec![])).collect();
    let one = |condition| SeccompRule::new(vec![condition]);
    let not_a_thread = one(argument(0, Is::MaskedEq(libc::CLONE_THREAD as u64), 0)?)?;
    let others = one(argument(0, Is::Ne, process::id().into())?)?;
    // Libraries ask for their own limits, and `abort` is a signal to oneself.
    let sets = one(SeccompCondition::new(2, Width::Qword, Is::Ne, 0)?)?;
    let of_others = one(argument(0, Is::Ne, 0)?)?;
    refused.extend([
        (libc::SYS_clone, vec![not_a_thread]),
        (libc::SYS_tgkill, vec![others]),
        (libc::SYS_prlimit64, vec![sets, of_others]),
    ]);
    let missing = [(libc::SYS_clone3, vec![])];
    install(&numbers_of_x32(), true)?;
    for (calls, error) in [(missing.to_vec(), libc::ENOSYS), (refused, libc::EPERM)] {
        let error_of = SeccompAction::Errno(error as u32);
        let program = filter(calls, SeccompAction::Allow, error_of)?;
        install(&program, error == libc::EPERM)?;
    }
    Ok(Confinement { landlock })
}

/// By these x86-64 has every call a second time (`__X32_SYSCALL_BIT`), where a list would have to name it again.
fn numbers_of_x32() -> BpfProgram {
    const BIT: u32 = 0x4000_0000;
    let step = |code: u32, jt, jf, k| sock_filter {
        code: code as u16,
        jt,
        jf,
        k,
    };
    vec![
        // The number, at the beginning of `struct seccomp_data`.
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0),
        step(libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K, 0, 1, BIT),
        step(
            libc::BPF_RET | libc::BPF_K,
            0,
            0,
            libc::SECCOMP_RET_ERRNO | libc::EPERM as u32,
        ),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

/// Newer than the list of libc: the same on every architecture.
const FCHMODAT2: libc::c_long = 452;
const SETXATTRAT: libc::c_long = 463;
const REMOVEXATTRAT: libc::c_long = 466;

const REFUSED: &[libc::c_long] = &[
    // Programs and other processes.
    libc::SYS_execve,
    libc::SYS_execveat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_process_madvise,
    libc::SYS_kcmp,
    libc::SYS_kill,
    libc::SYS_rt_sigqueueinfo,
    libc::SYS_rt_tgsigqueueinfo,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_pidfd_send_signal,
    libc::SYS_setrlimit,
    libc::SYS_tkill,
    // Becoming somebody, being somewhere else.
    libc::SYS_setuid,
    libc::SYS_setgid,
    libc::SYS_setreuid,
    libc::SYS_setregid,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    libc::SYS_setgroups,
    libc::SYS_capset,
    libc::SYS_unshare,
    libc::SYS_setns,
    libc::SYS_chroot,
    libc::SYS_pivot_root,
    libc::SYS_mount,
    libc::SYS_umount2,
    libc::SYS_open_tree,
    libc::SYS_move_mount,
    libc::SYS_fsopen,
    libc::SYS_open_by_handle_at,
    // The kernel.
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
    libc::SYS_init_module,
    libc::SYS_finit_module,
    libc::SYS_delete_module,
    libc::SYS_kexec_load,
    libc::SYS_reboot,
    libc::SYS_syslog,
    libc::SYS_acct,
    libc::SYS_swapon,
    libc::SYS_swapoff,
    libc::SYS_settimeofday,
    libc::SYS_clock_settime,
    libc::SYS_quotactl,
    // Being asked by others.
    libc::SYS_listen,
    libc::SYS_accept,
    libc::SYS_accept4,
    // What Landlock knows nothing of: who a file belongs to, and who may read it.
    libc::SYS_fchmodat,
    libc::SYS_fchmod,
    libc::SYS_fchownat,
    libc::SYS_fchown,
    libc::SYS_setxattr,
    libc::SYS_lsetxattr,
    libc::SYS_fsetxattr,
    SETXATTRAT,
    libc::SYS_removexattr,
    libc::SYS_lremovexattr,
    libc::SYS_fremovexattr,
    REMOVEXATTRAT,
    libc::SYS_utimensat,
    FCHMODAT2,
    // Before its third version (Linux 6.2) it does not know of this either.
    libc::SYS_truncate,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utime,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_utimes,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_futimesat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chmod,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_chown,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lchown,
];

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{
        super::{
            Landlock,
            tests::{check, system_call},
        },
        *,
    };

    #[test]
    fn the_reader_reads_and_looks_up_users() {
        check(|| {
            lock_in_reader()?;
            let status = fs::read_to_string("/proc/self/status")?;
            for line in ["Seccomp:\t2", "NoNewPrivs:\t1", "CapPrm:\t0000000000000000"] {
                anyhow::ensure!(status.lines().any(|one| one == line), "{line} in {status}");
            }
            // SAFETY: a name; the result is only compared.
            let root = unsafe { libc::getpwnam(c"root".as_ptr()) };
            anyhow::ensure!(!root.is_null());
            // SAFETY: the kernel writes into `limit`, which is as long as it wants.
            let asked = unsafe {
                let mut limit = std::mem::zeroed::<libc::rlimit>();
                libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit)
            };
            anyhow::ensure!(asked == 0);
            let own = libc::c_long::from(process::id());
            anyhow::ensure!(system_call(libc::SYS_tgkill, [own, own, 0, 0]) == 0);
            let thread = std::thread::spawn(|| fs::read("/etc/passwd").is_ok());
            anyhow::ensure!(thread.join().is_ok_and(|is_read| is_read));
            std::os::unix::net::UnixStream::pair()?;
            Ok(())
        });
    }

    #[test]
    fn the_reader_does_nothing_else() {
        let path = std::env::temp_dir().join(format!("vortex-reader-{}", std::process::id()));
        fs::write(&path, "x").unwrap();
        check(|| {
            let confinement = lock_in_reader()?;
            let name = c"/bin/true".as_ptr() as libc::c_long;
            let clone = [libc::SIGCHLD.into(), 0, 0, 0];
            anyhow::ensure!(system_call(libc::SYS_clone, clone) == libc::EPERM);
            anyhow::ensure!(system_call(libc::SYS_clone3, [0; 4]) == libc::ENOSYS);
            let limit = [0_u64; 2];
            let limit = limit.as_ptr() as libc::c_long;
            for (call, arguments) in [
                (libc::SYS_tgkill, [1, 1, 0, 0]),
                (libc::SYS_prlimit64, [0, 7, limit, 0]),
                (libc::SYS_prlimit64, [1, 7, 0, 0]),
                // `getpid`, by its other number.
                (0x4000_0000 + 39, [0; 4]),
            ] {
                let error = system_call(call, arguments);
                anyhow::ensure!(error == libc::EPERM, "system call {call} gave {error}");
            }
            for call in REFUSED {
                let error = system_call(*call, [name, 0, 0, 0]);
                anyhow::ensure!(error == libc::EPERM, "system call {call} gave {error}");
            }
            if confinement.landlock != Landlock::None {
                for refused in [
                    fs::write(&path, "y"),
                    fs::remove_file(&path),
                    fs::create_dir(path.with_extension("new")),
                ] {
                    let kind = refused.err().map(|error| error.kind());
                    anyhow::ensure!(
                        kind == Some(std::io::ErrorKind::PermissionDenied),
                        "{kind:?}"
                    );
                }
            }
            Ok(())
        });
        fs::remove_file(path).unwrap();
    }
}
