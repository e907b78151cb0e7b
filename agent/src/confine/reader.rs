//! What the process gives up that reads a daemon's configuration again.
//!
//! It looks up users, by whatever library the machine has for that: those load others, start threads, make sockets. So no
//! list says what it may do; this one says what nobody needs for that. By Landlock it makes, writes and removes no file.

use landlock::{ABI, AccessFs, Ruleset, RulesetAttr as _};
use rustix::thread::set_no_new_privs;
use seccompiler::{SeccompAction, SeccompRule};

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
    let not_a_thread = argument(0, Is::MaskedEq(libc::CLONE_THREAD as u64), 0)?;
    refused.push((libc::SYS_clone, vec![SeccompRule::new(vec![not_a_thread])?]));
    let missing = [(libc::SYS_clone3, vec![])];
    for (calls, error) in [(missing.to_vec(), libc::ENOSYS), (refused, libc::EPERM)] {
        let error_of = SeccompAction::Errno(error as u32);
        let program = filter(calls, SeccompAction::Allow, error_of)?;
        install(&program, error == libc::EPERM)?;
    }
    Ok(Confinement { landlock })
}

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
    libc::SYS_prlimit64,
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
    libc::SYS_utimensat,
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
