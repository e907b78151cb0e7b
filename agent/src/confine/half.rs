//! What the privileged half gives up before it takes the first order: all that it never does with its rights.
//!
//! It keeps what it is for, and that is a lot: it loads programs that read memory, it opens what others map. What it
//! loses are the ways from there to more: starting a program, becoming somebody, writing into other processes, sockets,
//! mounts, modules, and leaving something of the kernel's behind (`BPF_OBJ_PIN`).
//!
//! A call that is on no list gets EPERM, and the kernel logs it. It does not end the process, as in the pipeline: the half
//! has stopped processes of others and has probes in their files, so it goes on and fails at that one thing, which it says.
//!
//! No Landlock: who is in such a domain may not look at processes outside of it, whatever its rules say.

use std::process;

use rustix::thread::set_no_new_privs;
use seccompiler::{SeccompAction, SeccompRule};

use super::{
    ConfineError, Is, Rules, argument, check_threads, filter, install, step, use_up_first_times,
};

/// Call it while there is one thread, after the last fork.
pub fn lock_in_half() -> Result<(), ConfineError> {
    check_threads()?;
    use_up_first_times();
    set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    let missing = filter(
        // Its flags are behind a pointer, where no filter can look. libc falls back to `clone`.
        [(libc::SYS_clone3, vec![])],
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
    )?;
    let error = || SeccompAction::Errno(libc::EPERM as u32);
    let rules = refused()?;
    let refused_calls = rules.iter().map(|(call, _)| (*call, vec![]));
    let fallbacks = FALLBACKS.iter().map(|call| (*call, vec![]));
    let known = ALLOWED.iter().map(|call| (*call, vec![]));
    let known = known
        .chain(refused_calls)
        .chain(fallbacks.clone())
        .chain([(libc::SYS_clone3, vec![])]);
    let known = filter(known, error(), SeccompAction::Allow)?;
    let refused = filter(rules, SeccompAction::Allow, error())?;
    let fallbacks = filter(fallbacks, SeccompAction::Allow, error())?;
    // The strict one last: it allows no further one.
    for (program, logs) in [
        (missing, false),
        (fallbacks, false),
        (refused, true),
        (known, true),
    ] {
        install(&program, logs)?;
    }
    Ok(())
}

/// Which arguments are refused of calls that pass.
fn refused() -> Result<Rules, ConfineError> {
    let own = u64::from(process::id());
    let rule = SeccompRule::new;
    let holds = |index, bits: i32| {
        rule(vec![argument(
            index,
            Is::MaskedEq(bits as u64),
            bits as u64,
        )?])
        .map_err(ConfineError::from)
    };
    let not_one_of = |index, values: &[u64]| {
        let conditions = values.iter().map(|value| argument(index, Is::Ne, *value));
        rule(conditions.collect::<Result<_, _>>()?).map_err(ConfineError::from)
    };
    // `O_WRONLY` and `O_RDWR` are values of two bits, 0 is to read.
    let writing = |index| -> Result<Vec<SeccompRule>, ConfineError> {
        let flags = [libc::O_WRONLY, libc::O_RDWR, libc::O_CREAT, libc::O_TRUNC];
        flags.into_iter().map(|flag| holds(index, flag)).collect()
    };
    let executable = holds(2, libc::PROT_EXEC)?;
    let not_a_thread = rule(vec![argument(
        0,
        Is::MaskedEq(libc::CLONE_THREAD as u64),
        0,
    )?])?;
    let mut clones = vec![not_a_thread];
    for space in SPACES {
        clones.push(holds(0, space)?);
    }
    // Whom the kernel signals about a lease.
    let owner = |command: i32, more| {
        let command = argument(1, Is::Eq, command as u64)?;
        rule([vec![command], more].concat()).map_err(ConfineError::from)
    };
    Ok(vec![
        (libc::SYS_openat, writing(2)?),
        #[cfg(target_arch = "x86_64")]
        (libc::SYS_open, writing(1)?),
        (libc::SYS_bpf, vec![not_one_of(0, &COMMANDS)?]),
        (libc::SYS_ioctl, vec![not_one_of(1, &REQUESTS)?]),
        (libc::SYS_mmap, vec![executable.clone()]),
        (libc::SYS_mprotect, vec![executable]),
        (libc::SYS_clone, clones),
        (
            libc::SYS_prctl,
            vec![not_one_of(
                0,
                &[libc::PR_SET_NAME as u64, libc::PR_SET_NO_NEW_PRIVS as u64],
            )?],
        ),
        (
            libc::SYS_fcntl,
            vec![
                owner(libc::F_SETOWN, vec![argument(2, Is::Ne, own)?])?,
                owner(F_SETOWN_EX, vec![])?,
            ],
        ),
        // Held, and let go.
        (
            libc::SYS_pidfd_send_signal,
            vec![not_one_of(
                1,
                &[libc::SIGSTOP as u64, libc::SIGCONT as u64],
            )?],
        ),
        // `abort` of glibc. That of musl calls `tkill`, which names no process: it may not, and ends by a trap.
        (libc::SYS_tgkill, vec![not_one_of(0, &[own])?]),
        // Its own limits.
        (libc::SYS_prlimit64, vec![not_one_of(0, &[0])?]),
        (libc::SYS_sched_setscheduler, vec![not_one_of(0, &[0])?]),
    ])
}

const F_SETOWN_EX: i32 = 15;

/// A thread may be born into new namespaces.
const SPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

/// `enum bpf_cmd` (linux/bpf.h). Nothing is pinned, nothing of others is opened or detached, no token is made.
const COMMANDS: [u64; 15] = [
    0,  // MAP_CREATE
    1,  // MAP_LOOKUP_ELEM
    2,  // MAP_UPDATE_ELEM
    3,  // MAP_DELETE_ELEM
    4,  // MAP_GET_NEXT_KEY
    5,  // PROG_LOAD
    10, // PROG_TEST_RUN
    11, // PROG_GET_NEXT_ID: aya gets a program that we loaded by its number
    13, // PROG_GET_FD_BY_ID
    15, // OBJ_GET_INFO_BY_FD
    17, // RAW_TRACEPOINT_OPEN
    18, // BTF_LOAD
    22, // MAP_FREEZE
    28, // LINK_CREATE
    33, // ITER_CREATE
];

/// Of perf events (linux/perf_event.h): enable, disable, set the program. Of the others: is it a terminal?
const REQUESTS: [u64; 4] = [0x2400, 0x2401, 0x4004_2408, libc::TCGETS as u32 as u64];

/// std tries these when it copies a file, and a panic asks for the directory: an error, and no word about it.
const FALLBACKS: &[libc::c_long] = &[
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_getcwd,
];

/// What the half does, and what libc, std and aya do for it. No `lseek` and no `pwrite64`: what it writes are an event's
/// counter, a copy of a file in memory and its last words, all from their beginning.
const ALLOWED: &[libc::c_long] = &[
    // Files, by name and held.
    // Its flags are behind a pointer, too, and no other call opens what is in the kernel's cache only.
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_getdents64,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fstat,
    libc::SYS_fstatfs,
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_close,
    libc::SYS_memfd_create,
    libc::SYS_inotify_init1,
    libc::SYS_inotify_add_watch,
    libc::SYS_inotify_rm_watch,
    // Programs, and what they hang on.
    libc::SYS_perf_event_open,
    libc::SYS_uname,
    // Processes, and copies of their sockets for a question.
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_getsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_setpriority,
    // The socket to the other half.
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_eventfd2,
    libc::SYS_signalfd4,
    libc::SYS_nanosleep,
    libc::SYS_clock_nanosleep,
    libc::SYS_clock_gettime,
    libc::SYS_clock_getres,
    libc::SYS_gettimeofday,
    // Memory.
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_brk,
    // Threads.
    libc::SYS_futex,
    libc::SYS_rseq,
    libc::SYS_set_robust_list,
    libc::SYS_sched_yield,
    libc::SYS_sched_getaffinity,
    libc::SYS_membarrier,
    libc::SYS_exit,
    libc::SYS_exit_group,
    // Signals.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    // Facts about ourselves.
    libc::SYS_getpid,
    libc::SYS_getppid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    // The older names of some of the above.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

#[cfg(test)]
mod tests {
    use std::{
        fs::{self, File},
        io::{self, Write as _},
        os::fd::AsRawFd as _,
        thread,
    };

    use super::{
        super::tests::{check, system_call},
        *,
    };

    const PATH: &std::ffi::CStr = c"/proc/self/status";

    const THREAD_IN_A_NET: libc::c_long =
        (libc::CLONE_THREAD | libc::CLONE_SIGHAND | libc::CLONE_VM | libc::CLONE_NEWNET)
            as libc::c_long;

    fn name() -> libc::c_long {
        PATH.as_ptr() as libc::c_long
    }

    #[test]
    fn the_half_can_do_no_more_than_it_does() {
        check(|| {
            lock_in_half()?;
            let at = libc::c_long::from(libc::AT_FDCWD);
            let name = name();
            let own = libc::c_long::from(process::id());
            for (number, arguments) in [
                (libc::SYS_execve, [name, 0, 0, 0]),
                (libc::SYS_execveat, [at, name, 0, 0]),
                (libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0]),
                (libc::SYS_ptrace, [16, 1, 0, 0]),
                (libc::SYS_process_vm_writev, [0; 4]),
                (libc::SYS_socket, [libc::AF_INET.into(), 1, 0, 0]),
                (libc::SYS_socket, [libc::AF_UNIX.into(), 1, 0, 0]),
                (libc::SYS_socket, [libc::AF_NETLINK.into(), 3, 0, 0]),
                (libc::SYS_connect, [0; 4]),
                (libc::SYS_mount, [0; 4]),
                (libc::SYS_setns, [0; 4]),
                (libc::SYS_unshare, [0; 4]),
                (libc::SYS_init_module, [0; 4]),
                (libc::SYS_finit_module, [0; 4]),
                (libc::SYS_kexec_load, [0; 4]),
                (libc::SYS_io_uring_setup, [0; 4]),
                (libc::SYS_setresuid, [0; 4]),
                (libc::SYS_capset, [0; 4]),
                (libc::SYS_unlinkat, [at, name, 0, 0]),
                (libc::SYS_fchmodat, [at, name, 0, 0]),
                (libc::SYS_lseek, [0; 4]),
                (libc::SYS_pwrite64, [0; 4]),
                (libc::SYS_kill, [own, 0, 0, 0]),
                (libc::SYS_tgkill, [1, 1, 0, 0]),
                (libc::SYS_tkill, [1, libc::SIGABRT.into(), 0, 0]),
                (libc::SYS_clone, [THREAD_IN_A_NET, 0, 0, 0]),
                (libc::SYS_pidfd_send_signal, [0, libc::SIGKILL.into(), 0, 0]),
                (libc::SYS_prlimit64, [1, 0, 0, 0]),
                (libc::SYS_sched_setscheduler, [1, 0, 0, 0]),
                (libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0, 0]),
                (libc::SYS_mmap, [0, 4096, libc::PROT_EXEC.into(), 0x22]),
                (libc::SYS_mprotect, [0, 4096, libc::PROT_EXEC.into(), 0]),
                (libc::SYS_ioctl, [0, 0x5412, 0, 0]), // TIOCSTI
                (libc::SYS_fcntl, [0, libc::F_SETOWN.into(), 1, 0]),
                (libc::SYS_fcntl, [0, F_SETOWN_EX.into(), 0, 0]),
                (libc::SYS_bpf, [6, 0, 0, 0]),  // OBJ_PIN
                (libc::SYS_bpf, [7, 0, 0, 0]),  // OBJ_GET
                (libc::SYS_bpf, [14, 0, 0, 0]), // MAP_GET_FD_BY_ID
                (libc::SYS_bpf, [34, 0, 0, 0]), // LINK_DETACH
            ] {
                let error = system_call(number, arguments);
                anyhow::ensure!(
                    error == libc::EPERM,
                    "system call {number} {arguments:x?} gave {error}"
                );
            }
            for flags in [
                libc::O_WRONLY,
                libc::O_RDWR,
                libc::O_RDONLY | libc::O_CREAT,
                libc::O_RDONLY | libc::O_TRUNC,
                libc::O_RDONLY | libc::O_TMPFILE | libc::O_RDWR,
            ] {
                let error = system_call(libc::SYS_openat, [at, name, flags.into(), 0]);
                anyhow::ensure!(error == libc::EPERM, "openat with {flags:o} gave {error}");
                #[cfg(target_arch = "x86_64")]
                {
                    let error = system_call(libc::SYS_open, [name, flags.into(), 0, 0]);
                    anyhow::ensure!(error == libc::EPERM, "open with {flags:o} gave {error}");
                }
            }
            anyhow::ensure!(system_call(libc::SYS_clone3, [0; 4]) == libc::ENOSYS);
            Ok(())
        });
    }

    #[test]
    fn what_the_half_does_goes_on_working() {
        check(|| {
            lock_in_half()?;
            let status = fs::read_to_string("/proc/self/status")?;
            for line in ["Seccomp:\t2", "NoNewPrivs:\t1"] {
                anyhow::ensure!(status.lines().any(|one| one == line), "{line} in {status}");
            }
            fs::read_link("/proc/self/exe")?;
            anyhow::ensure!(fs::read_dir("/proc/self/fd")?.count() > 2);
            anyhow::ensure!(fs::exists("/proc/self")?);
            // A file that does not seem to be local is copied.
            let copy = rustix::fs::memfd_create("copy", rustix::fs::MemfdFlags::CLOEXEC)?;
            let copied = io::copy(&mut File::open("/proc/self/exe")?, &mut File::from(copy))?;
            anyhow::ensure!(copied > 0);
            let worker = thread::Builder::new()
                .name("file".into())
                .spawn(|| vec![1_u8; 8 << 20].len())?;
            anyhow::ensure!(worker.join().is_ok_and(|n| n == 8 << 20));
            // Of its own processes too: held, and let go.
            let number = libc::c_long::from(process::id());
            // SAFETY: takes numbers.
            let own = unsafe { libc::syscall(libc::SYS_pidfd_open, number, 0) };
            anyhow::ensure!(own >= 0);
            anyhow::ensure!(
                system_call(
                    libc::SYS_pidfd_send_signal,
                    [own, libc::SIGCONT.into(), 0, 0]
                ) == 0
            );
            // It passes, and fails by its arguments; or by a right that who runs this has not.
            let is_root = rustix::process::geteuid().is_root();
            anyhow::ensure!(!is_root || system_call(libc::SYS_bpf, [0; 4]) != libc::EPERM);
            let stderr = libc::c_long::from(io::stderr().as_raw_fd());
            anyhow::ensure!(
                system_call(libc::SYS_fcntl, [stderr, libc::F_SETOWN.into(), number, 0]) == 0
            );
            io::stderr().write_all(b"")?;
            Ok(())
        });
    }
}
