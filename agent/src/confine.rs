//! Lock-in: what the pipeline gives up before it reads the first byte that a stranger wrote.
//!
//! Afterwards it holds what it holds: descriptors, mappings, memory. It opens no file, makes no
//! socket, starts no program, traces nobody and cannot become anybody else, not even by a bug. Sudo
//! and CMD must have been started before, for they would inherit it.

mod half;
mod reader;

use std::{collections::BTreeMap, fs, io, os::fd::BorrowedFd};

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, BitFlags, NetPort, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreatedAttr as _, RulesetError, RulesetStatus, make_bitflags,
};
use rustix::{
    process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit},
    thread::{
        CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set,
        set_capabilities, set_no_new_privs,
    },
};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen as Width, SeccompCmpOp as Is, SeccompCondition,
    SeccompFilter, SeccompRule, sock_filter,
};
use serde::{Deserialize, Serialize};

pub use self::{half::lock_in_half, reader::lock_in_reader};

/// The user and group `nobody`, on every distribution.
pub const NOBODY: u32 = 65534;

/// First statement of both halves: nobody may look into this process, and it leaves no core file.
///
/// CMD has the pipeline's uid where sudo starts the half. Whoever may trace the pipeline owns the
/// socket by which root's half takes its orders.
///
/// Returns the core limit that CMD is to get back.
pub fn harden() -> io::Result<Rlimit> {
    use_up_first_times();
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let before = getrlimit(Resource::Core);
    let none = Rlimit {
        current: Some(0),
        ..before
    };
    setrlimit(Resource::Core, none)?;
    Ok(before)
}

/// Whom a pipeline that was started by root becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Files are accessed as this user, and nothing is.
    pub uid: u32,
    pub gid: u32,
    /// Real uid. CMD's: a process may signal those whose uid is its real one, so SIGTERM can be
    /// passed on to a CMD that somebody else owns, root included. No other right comes from it.
    pub signals_as: u32,
}

impl Default for Identity {
    fn default() -> Self {
        Self {
            uid: NOBODY,
            gid: NOBODY,
            signals_as: NOBODY,
        }
    }
}

/// What a process that root started needs to become nobody. Without one of them it would stay root.
const NEEDED: [(&str, CapabilitySet); 3] = [
    ("CAP_SETUID", CapabilitySet::SETUID),
    ("CAP_SETGID", CapabilitySet::SETGID),
    ("CAP_SETPCAP", CapabilitySet::SETPCAP),
];

/// The capabilities of root that [`lock_in`] will miss.
pub fn missing() -> Vec<&'static str> {
    let held = capabilities(None).map_or(CapabilitySet::empty(), |sets| sets.effective);
    let missing = NEEDED.iter().filter(|(_, one)| !held.contains(*one));
    missing.map(|(name, _)| *name).collect()
}

/// What happens at a system call that is on no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It ends the process: nothing that we do needs it, so something else is doing it.
    Enforce,
    /// The kernel logs and allows it. For tests: the whole suite must leave no line.
    Log,
}

/// What could be had on this kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Confinement {
    pub landlock: Landlock,
}

/// How far our Landlock rules are enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Landlock {
    Full,
    Partial,
    /// The kernel has none (before 5.13, or switched off).
    None,
}

impl Landlock {
    pub const fn name(self) -> &'static str {
        match self {
            Landlock::Full => "full",
            Landlock::Partial => "partial",
            Landlock::None => "none",
        }
    }
}

impl From<RulesetStatus> for Landlock {
    fn from(status: RulesetStatus) -> Landlock {
        match status {
            RulesetStatus::FullyEnforced => Landlock::Full,
            RulesetStatus::PartiallyEnforced => Landlock::Partial,
            RulesetStatus::NotEnforced => Landlock::None,
        }
    }
}

/// Locks this process in. The order matters: each step needs a right that a later one takes.
///
/// Call it while there is one thread. Capabilities and Landlock belong to threads; one that exists
/// already would keep its own. Those started later inherit everything.
pub fn lock_in(identity: Identity, mode: Mode) -> Result<Confinement, ConfineError> {
    become_nobody(identity)?;
    give_up(mode, Reach::Held)
}

/// For who starts the process that delivers, and reads nothing: another user, and no right of root's. It may still
/// fork; who is forked can lock itself in and connect, and what neither of the two has a use for neither can do.
pub fn resign(identity: Identity, mode: Mode) -> Result<(), ConfineError> {
    become_nobody(identity)?;
    use_up_first_times();
    give_up_rights()?;
    forbid_system_calls(mode, Reach::Forked)
}

/// Locks in who was forked by that: it may make connections, and nothing else that the pipeline may not.
pub fn lock_in_with_network(mode: Mode, network: &Network) -> Result<Confinement, ConfineError> {
    check_threads()?;
    give_up(mode, Reach::Network(network))
}

/// Locks the process in that asks container runtimes. Their sockets are root's, so it keeps that name, without a
/// single capability; it makes sockets of this machine and connects them, and reaches nothing else.
pub fn lock_in_asking(mode: Mode) -> Result<Confinement, ConfineError> {
    stay()?;
    give_up(mode, Reach::UnixSockets)
}

/// Locks a process in that keeps the files of one directory: it stays who it is, and there it may make, rename and
/// remove them.
pub fn keep_to(directory: BorrowedFd<'_>, mode: Mode) -> Result<Confinement, ConfineError> {
    stay()?;
    give_up(mode, Reach::Directory(directory))
}

fn become_nobody(identity: Identity) -> Result<(), ConfineError> {
    check_threads()?;
    if rustix::process::geteuid().is_root() {
        if let Some(name) = missing().first() {
            return Err(ConfineError::Right(name));
        }
        empty_bounding_set()?;
        become_user(identity)?;
    }
    Ok(())
}

/// Who is root remains it by name.
fn stay() -> Result<(), ConfineError> {
    check_threads()?;
    if rustix::process::geteuid().is_root() {
        empty_bounding_set()?;
    }
    Ok(())
}

/// Every right but those of `reach`.
fn give_up(mode: Mode, reach: Reach<'_>) -> Result<Confinement, ConfineError> {
    use_up_first_times();
    give_up_rights()?;
    let landlock = forbid_files(reach)?;
    forbid_system_calls(mode, reach)?;
    Ok(Confinement { landlock })
}

fn give_up_rights() -> Result<(), ConfineError> {
    set_capabilities(None, NO_CAPABILITIES).map_err(step("drop all capabilities"))?;
    set_no_new_privs(true).map_err(step("set no_new_privs"))?;
    // Once more: a change of uid sets it to what the sysctl fs.suid_dumpable says.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("make the process undumpable"))
}

/// What a locked-in process may get beside what it holds.
#[derive(Clone, Copy)]
enum Reach<'a> {
    Held,
    /// Whoever listens on a socket of this machine.
    UnixSockets,
    /// Collectors of records.
    Network(&'a Network),
    /// Its files.
    Directory(BorrowedFd<'a>),
    /// Whoever it forks gets [`Reach::Network`], by its own will.
    Forked,
}

/// What the process that delivers keeps: connections, and what the search for an address reads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// It connects to these and to no other, where Landlock knows TCP (6.7).
    pub ports: Vec<u16>,
}

/// Where names are asked for, should an answer be too long for UDP.
const DNS: u16 = 53;
/// What says how a name becomes an address: `hosts`, `resolv.conf`, `nsswitch.conf`, `gai.conf`. They are replaced when
/// a network comes or goes, so their directories are named; the first may be a link into one of the others.
const NAMES: [&str; 3] = ["/etc", "/run/systemd/resolve", "/run/NetworkManager"];

const NO_CAPABILITIES: CapabilitySets = CapabilitySets {
    effective: CapabilitySet::empty(),
    permitted: CapabilitySet::empty(),
    inheritable: CapabilitySet::empty(),
};

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> ConfineError {
    move |source| ConfineError::Step {
        what,
        source: source.into(),
    }
}

fn check_threads() -> Result<(), ConfineError> {
    match fs::read_dir("/proc/self/task").map_or(1, Iterator::count) {
        1 => Ok(()),
        threads => Err(ConfineError::Threads(threads)),
    }
}

/// Some calls ask the kernel once and remember: rustix reads the auxiliary vector by `prctl`, which is forbidden later,
/// and before Linux 6.4 from /proc/self/auxv, which an ordinary user's undumpable process may not open.
fn use_up_first_times() {
    rustix::param::page_size();
    rustix::param::clock_ticks_per_second();
}

fn empty_bounding_set() -> Result<(), ConfineError> {
    for number in 0..64 {
        let one = CapabilitySet::from_bits_retain(1 << number);
        match remove_capability_from_bounding_set(one) {
            Ok(()) => {}
            // The first number that this kernel does not know.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(step("empty the bounding set")(error)),
        }
    }
    Ok(())
}

fn become_user(identity: Identity) -> Result<(), ConfineError> {
    let Identity {
        uid,
        gid,
        signals_as,
    } = identity;
    let check = |result, what| match result {
        0 => Ok(()),
        _ => Err(step(what)(io::Error::last_os_error())),
    };
    // libc's, not rustix's: those change one thread.
    // SAFETY: an empty list is not read.
    check(unsafe { libc::setgroups(0, std::ptr::null()) }, "setgroups")?;
    // SAFETY: takes three integers.
    check(unsafe { libc::setresgid(gid, gid, gid) }, "setresgid")?;
    // SAFETY: takes three integers.
    check(
        unsafe { libc::setresuid(signals_as, uid, uid) },
        "setresuid",
    )
}

/// Every right on files is handled and none is given, likewise for TCP; but for what is reached. Signals are not scoped:
/// the pipeline has to pass SIGTERM on to CMD.
fn forbid_files(reach: Reach<'_>) -> Result<Landlock, ConfineError> {
    const NEWEST: ABI = ABI::V5;
    let kept: BitFlags<AccessFs> =
        make_bitflags!(AccessFs::{ReadFile | WriteFile | MakeReg | RemoveFile});
    let ruleset = || -> Result<_, RulesetError> {
        let mut rules = Ruleset::default()
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .create()?;
        if let Reach::Network(Network { ports }) = reach {
            for port in ports.iter().chain(&[DNS]) {
                rules = rules.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
            }
            // One that is not there is asked by nobody.
            for names in NAMES.iter().filter_map(|path| PathFd::new(path).ok()) {
                rules = rules.add_rule(PathBeneath::new(names, AccessFs::ReadFile))?;
            }
        }
        if let Reach::Directory(directory) = reach {
            rules = rules.add_rule(PathBeneath::new(directory, kept))?;
        }
        rules.restrict_self()
    };
    Ok(ruleset()?.ruleset.into())
}

/// Three filters, since each knows two answers. The kernel takes the strictest: a call passes if
/// all of them let it.
fn forbid_system_calls(mode: Mode, reach: Reach<'_>) -> Result<(), ConfineError> {
    let missing = filter(
        // Its flags are behind a pointer, where no filter can look. libc falls back to `clone`.
        [(libc::SYS_clone3, vec![])],
        SeccompAction::Allow,
        SeccompAction::Errno(libc::ENOSYS as u32),
    )?;
    let refused = filter(
        refused(reach)?,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
    )?;
    let known = filter(
        known(reach)?,
        match mode {
            Mode::Enforce => SeccompAction::KillProcess,
            Mode::Log => SeccompAction::Log,
        },
        SeccompAction::Allow,
    )?;
    // The strict one last: it allows no further one.
    for program in [missing, refused, known] {
        seccompiler::apply_filter_all_threads(&program)?;
    }
    Ok(())
}

type Rules = Vec<(libc::c_long, Vec<SeccompRule>)>;

/// Of 32 bits; those above are the caller's, and the kernel ignores them where an argument is an `int`.
fn argument(index: u8, is: Is, value: u64) -> Result<SeccompCondition, seccompiler::BackendError> {
    SeccompCondition::new(index, Width::Dword, is, value)
}

fn filter(
    rules: impl IntoIterator<Item = (libc::c_long, Vec<SeccompRule>)>,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> Result<BpfProgram, ConfineError> {
    let rules = rules.into_iter().collect::<BTreeMap<_, _>>();
    let arch = std::env::consts::ARCH.try_into()?;
    let filter = SeccompFilter::new(rules, otherwise, then, arch)?;
    Ok(filter.try_into()?)
}

/// seccompiler can't ask for the line in the kernel's log.
fn install(program: &BpfProgram, logs: bool) -> Result<(), ConfineError> {
    #[repr(C)]
    struct Program {
        length: u16,
        filter: *const sock_filter,
    }
    let length = u16::try_from(program.len()).map_err(io::Error::other);
    let program = Program {
        length: length.map_err(step("make a seccomp filter"))?,
        filter: program.as_ptr(),
    };
    let flags = if logs {
        libc::SECCOMP_FILTER_FLAG_LOG
    } else {
        0
    };
    // SAFETY: `struct sock_fprog`, whose instructions outlive the call; the kernel copies them.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    if result == 0 {
        return Ok(());
    }
    Err(step("install a seccomp filter")(io::Error::last_os_error()))
}

/// An error for these: libraries try them and go on without. A panic's backtrace wants to open our
/// own executable; the message must come all the same.
fn refused(reach: Reach<'_>) -> Result<Rules, ConfineError> {
    let one = |condition| SeccompRule::new(vec![condition]);
    let masked = |mask: i32| Is::MaskedEq(mask as u64);
    let executable = one(argument(
        2,
        masked(libc::PROT_EXEC),
        libc::PROT_EXEC as u64,
    )?)?;
    let not_a_thread = one(argument(0, masked(libc::CLONE_THREAD), 0)?)?;
    let not_unix = one(argument(0, Is::Ne, libc::AF_UNIX as u64)?)?;
    let not_about_itself = SeccompRule::new(vec![
        argument(0, Is::Ne, libc::PR_SET_NAME as u64)?,
        argument(0, Is::Ne, libc::PR_SET_NO_NEW_PRIVS as u64)?,
    ])?;
    let not_continue = SeccompRule::new(vec![
        argument(1, Is::Ne, libc::SIGCONT as u64)?,
        argument(1, Is::Ne, 0)?,
    ])?;
    // The question whether it is a terminal, its size, and non-blocking sockets. Requests have 32 bits, and another
    // type with each libc.
    let mut asking = vec![
        argument(1, Is::Ne, u64::from(libc::TCGETS as u32))?,
        argument(1, Is::Ne, u64::from(libc::TIOCGWINSZ as u32))?,
        argument(1, Is::Ne, u64::from(libc::FIONBIO as u32))?,
    ];
    if let Reach::Network(_) | Reach::Forked = reach {
        // How long the answer of a name server is.
        asking.push(argument(1, Is::Ne, u64::from(libc::FIONREAD as u32))?);
    }
    let not_asking = SeccompRule::new(asking)?;

    let more = reach.calls();
    let refused = REFUSED.iter().filter(|call| !more.contains(call));
    let mut rules: Rules = refused.map(|call| (*call, vec![])).collect();
    if !matches!(reach, Reach::Forked) {
        rules.extend([
            // Threads, but no processes.
            (libc::SYS_clone, vec![not_a_thread]),
            (libc::SYS_prctl, vec![not_about_itself]),
        ]);
    }
    rules.extend([
        (libc::SYS_mmap, vec![executable.clone()]),
        (libc::SYS_mprotect, vec![executable]),
        (libc::SYS_socketpair, vec![not_unix.clone()]),
        // By number only to continue what was held for a probe, should the half have died. CMD gets
        // its signals through its descriptor.
        (libc::SYS_kill, vec![not_continue]),
        (libc::SYS_ioctl, vec![not_asking]),
    ]);
    match reach {
        Reach::Held | Reach::Directory(_) => {
            rules.extend([(libc::SYS_socket, vec![]), (libc::SYS_connect, vec![])]);
        }
        Reach::UnixSockets => rules.push((libc::SYS_socket, vec![not_unix])),
        Reach::Network(_) | Reach::Forked => {
            // Two conditions of one rule hold together: neither IPv4 nor IPv6.
            let no_internet = SeccompRule::new(vec![
                argument(0, Is::Ne, libc::AF_INET as u64)?,
                argument(0, Is::Ne, libc::AF_INET6 as u64)?,
            ])?;
            rules.push((libc::SYS_socket, vec![no_internet]));
        }
    }
    Ok(rules)
}

impl Reach<'_> {
    /// System calls beside [`ALLOWED`].
    fn calls(self) -> Vec<libc::c_long> {
        match self {
            Reach::Held => Vec::new(),
            Reach::UnixSockets => vec![libc::SYS_connect],
            Reach::Network(_) => NETWORK.to_vec(),
            Reach::Directory(_) => FILES.to_vec(),
            Reach::Forked => [NETWORK, LOCKING_IN].concat(),
        }
    }
}

fn known(reach: Reach<'_>) -> Result<Rules, ConfineError> {
    let refused = refused(reach)?.into_iter().map(|(call, _)| call);
    let known = ALLOWED.iter().copied().chain(refused);
    let known = known.chain(reach.calls());
    Ok(known
        .chain([libc::SYS_clone3])
        .map(|call| (call, vec![]))
        .collect())
}

/// What the process that delivers does more: connections, and files that say where a name is. Landlock says which.
const NETWORK: &[libc::c_long] = &[
    libc::SYS_connect,
    // Of UDP, by one of the C libraries when it asks for a name.
    libc::SYS_bind,
    libc::SYS_setsockopt,
    libc::SYS_getsockname,
    libc::SYS_getpeername,
    libc::SYS_sendmmsg,
    libc::SYS_openat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
];

/// What a fork does, and the lock-in of who was forked.
const LOCKING_IN: &[libc::c_long] = &[
    libc::SYS_clone,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    libc::SYS_set_tid_address,
    libc::SYS_prctl,
    // Is there one thread?
    libc::SYS_getdents64,
    libc::SYS_capget,
    libc::SYS_capset,
    libc::SYS_landlock_create_ruleset,
    libc::SYS_landlock_add_rule,
    libc::SYS_landlock_restrict_self,
    libc::SYS_seccomp,
];

/// For who keeps the files of a directory, Landlock says of which one, and compresses them when others rest.
const FILES: &[libc::c_long] = &[
    libc::SYS_setpriority,
    libc::SYS_openat,
    libc::SYS_unlinkat,
    libc::SYS_renameat,
    libc::SYS_renameat2,
];

/// What the pipeline does, and what libc, std and tokio do for it.
const ALLOWED: &[libc::c_long] = &[
    // Held descriptors.
    libc::SYS_read,
    libc::SYS_readv,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_fcntl,
    libc::SYS_fsync,
    libc::SYS_fdatasync,
    libc::SYS_dup,
    libc::SYS_close,
    // The socket to the other half.
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_sendto,
    libc::SYS_recvfrom,
    libc::SYS_shutdown,
    libc::SYS_getsockopt,
    // A daemon's own socket, whose listener it holds: none can be made.
    libc::SYS_accept4,
    // Waiting.
    libc::SYS_ppoll,
    libc::SYS_epoll_create1,
    libc::SYS_epoll_ctl,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_pwait2,
    libc::SYS_eventfd2,
    libc::SYS_timerfd_create,
    libc::SYS_timerfd_settime,
    libc::SYS_timerfd_gettime,
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
    // Signals: own handlers, `abort`, and CMD's.
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_tgkill,
    // musl's `raise`, so also its `abort`.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_tkill,
    libc::SYS_pidfd_send_signal,
    libc::SYS_wait4,
    libc::SYS_waitid,
    // Facts about ourselves; the first use of a `HashMap`.
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_getuid,
    libc::SYS_geteuid,
    libc::SYS_getrusage,
    libc::SYS_getrandom,
    // The older names of some of the above.
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_epoll_wait,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_time,
];

/// EPERM, whatever the arguments. Everything else that Linux has ends the process.
const REFUSED: &[libc::c_long] = &[
    // Files by name.
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_readlinkat,
    libc::SYS_faccessat,
    libc::SYS_faccessat2,
    libc::SYS_getdents64,
    libc::SYS_getcwd,
    libc::SYS_unlinkat,
    libc::SYS_renameat2,
    libc::SYS_mkdirat,
    libc::SYS_memfd_create,
    libc::SYS_statfs,
    // Other people's sockets.
    libc::SYS_bind,
    libc::SYS_listen,
    // Programs, other processes, the kernel.
    libc::SYS_execve,
    libc::SYS_execveat,
    libc::SYS_ptrace,
    libc::SYS_process_vm_readv,
    libc::SYS_process_vm_writev,
    libc::SYS_pidfd_open,
    libc::SYS_pidfd_getfd,
    libc::SYS_bpf,
    libc::SYS_perf_event_open,
    libc::SYS_io_uring_setup,
    libc::SYS_userfaultfd,
    libc::SYS_setresuid,
    libc::SYS_setresgid,
    // Fallbacks exist: in std's copying and in libc's start of a thread.
    libc::SYS_copy_file_range,
    libc::SYS_sendfile,
    libc::SYS_splice,
    libc::SYS_pipe2,
    libc::SYS_prlimit64,
    libc::SYS_uname,
    libc::SYS_sysinfo,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_open,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_stat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_lstat,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_access,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_readlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_unlink,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_rename,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_fork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_vfork,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pipe,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_getrlimit,
];

/// Without their causes, which their chain has.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    #[error("lock in: {what}")]
    Step {
        what: &'static str,
        source: io::Error,
    },
    #[error("lock in: no {0} (to stop being root); `vortex-agent doctor` says how to give it")]
    Right(&'static str),
    #[error("lock in: {0} threads run already, they would keep their rights")]
    Threads(usize),
    #[error("lock in: Landlock")]
    Landlock(#[from] RulesetError),
    #[error("lock in: make a seccomp filter")]
    Filter(#[from] seccompiler::BackendError),
    #[error("lock in: install a seccomp filter")]
    Seccomp(#[from] seccompiler::Error),
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        fs::File,
        io::{PipeReader, Read as _, Write as _, pipe},
        os::{
            fd::AsFd as _,
            unix::{fs::FileExt as _, process::ExitStatusExt as _},
        },
        process::{Command, ExitStatus},
        thread,
        time::Duration,
    };

    use rustix::{
        event::{PollFd, PollFlags, poll},
        io::Errno,
        process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
    };

    use super::*;

    /// Runs `test` in a process of its own, with one thread and an end in any case.
    fn in_child(test: impl FnOnce() -> anyhow::Result<()>) -> (ExitStatus, String) {
        let (mut reader, mut writer) = pipe().unwrap();
        // SAFETY: glibc makes its allocator usable in the child; of std's locks, none is taken there
        // that another test might hold.
        let pid = match unsafe { libc::fork() } {
            0 => {
                drop::<PipeReader>(reader);
                // SAFETY: both take integers.
                unsafe {
                    libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                    libc::alarm(20);
                }
                let result = test();
                let failed = result.is_err();
                if let Err(error) = result {
                    let _ = writer.write_all(format!("{error:#}").as_bytes());
                }
                // SAFETY: ends the process, without the test harness' own ending.
                unsafe { libc::_exit(failed.into()) }
            }
            pid => pid,
        };
        assert!(pid > 0, "fork");
        drop(writer);
        let mut message = String::new();
        reader.read_to_string(&mut message).unwrap();
        let mut status = 0;
        // SAFETY: `status` is valid for writing.
        assert_eq!(unsafe { libc::waitpid(pid, &mut status, 0) }, pid);
        (ExitStatus::from_raw(status), message)
    }

    #[track_caller]
    pub(super) fn check(test: impl FnOnce() -> anyhow::Result<()>) {
        let (status, message) = in_child(test);
        assert!(status.success(), "{status}: {message}");
    }

    pub(super) fn system_call(number: libc::c_long, arguments: [libc::c_long; 4]) -> i32 {
        let [a, b, c, d] = arguments;
        // SAFETY: the callers give harmless arguments.
        match unsafe { libc::syscall(number, a, b, c, d) } {
            -1 => io::Error::last_os_error().raw_os_error().unwrap_or(0),
            _ => 0,
        }
    }

    #[test]
    fn nothing_new_can_be_reached() {
        check(|| {
            lock_in(Identity::default(), Mode::Enforce)?;
            let path = c"/etc/passwd".as_ptr() as libc::c_long;
            let at = libc::c_long::from(libc::AT_FDCWD);
            for (number, arguments) in [
                (libc::SYS_openat, [at, path, 0, 0]),
                (libc::SYS_socket, [2, 1, 0, 0]),
                (libc::SYS_socketpair, [2, 1, 0, 0]),
                (libc::SYS_connect, [0; 4]),
                (libc::SYS_execve, [path, 0, 0, 0]),
                (libc::SYS_ptrace, [16, 1, 0, 0]),
                (libc::SYS_bpf, [0; 4]),
                (libc::SYS_perf_event_open, [0; 4]),
                (libc::SYS_pidfd_open, [1, 0, 0, 0]),
                (libc::SYS_setresuid, [0; 4]),
                (libc::SYS_kill, [1, 15, 0, 0]),
                (libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0]),
                (libc::SYS_mmap, [0, 4096, libc::PROT_EXEC.into(), 0x22]),
                (libc::SYS_prctl, [libc::PR_SET_DUMPABLE.into(), 1, 0, 0]),
                (libc::SYS_ioctl, [0, 0x5412, 0, 0]), // TIOCSTI
            ] {
                let error = system_call(number, arguments);
                anyhow::ensure!(error == libc::EPERM, "system call {number} gave {error}");
            }
            anyhow::ensure!(system_call(libc::SYS_clone3, [0; 4]) == libc::ENOSYS);
            let file = File::open("/etc/passwd");
            anyhow::ensure!(file.is_err(), "a file was opened");
            Ok(())
        });
    }

    #[test]
    fn what_is_held_goes_on_working() {
        check(|| {
            let file = File::open("/proc/self/exe")?;
            let (mut reader, mut writer) = pipe()?;
            lock_in(Identity::default(), Mode::Enforce)?;

            let mut magic = [0; 4];
            file.read_exact_at(&mut magic, 0)?;
            anyhow::ensure!(&magic == b"\x7fELF");
            anyhow::ensure!(file.metadata()?.len() > 4);
            writer.write_all(b"x")?;
            let mut waiting = [PollFd::new(&reader, PollFlags::IN)];
            anyhow::ensure!(poll(&mut waiting, None)? == 1);
            reader.read_exact(&mut [0])?;
            // SAFETY: a new private mapping, of which the first byte is read.
            let first = unsafe {
                use rustix::mm::{MapFlags, ProtFlags, mmap};
                let at = mmap(
                    std::ptr::null_mut(),
                    4096,
                    ProtFlags::READ,
                    MapFlags::PRIVATE,
                    &file,
                    0,
                )?;
                *at.cast::<u8>()
            };
            anyhow::ensure!(first == 0x7f);
            // The allocator's large and small ways, and the first HashMap.
            let large = vec![1_u8; 64 << 20];
            let map: HashMap<_, _> = (0..10_000).map(|n| (n, vec![0_u8; 100])).collect();
            anyhow::ensure!(large.len() + map.len() > 0);
            let mut usage = [0_u8; size_of::<libc::rusage>()];
            let usage_at = usage.as_mut_ptr() as libc::c_long;
            anyhow::ensure!(system_call(libc::SYS_getrusage, [0, usage_at, 0, 0]) == 0);
            Ok(())
        });
    }

    #[test]
    fn threads_and_tokio_can_be_started_afterwards() {
        check(|| {
            lock_in(Identity::default(), Mode::Enforce)?;
            let writer = thread::Builder::new()
                .name("writer".into())
                .spawn(|| vec![0_u8; 1 << 20].len())?;
            anyhow::ensure!(writer.join().is_ok_and(|n| n == 1 << 20));
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                use tokio::signal::unix::{SignalKind, signal};
                let mut hangup = signal(SignalKind::hangup())?;
                let (socket, other) = tokio::net::UnixStream::pair()?;
                other.writable().await?;
                other.try_write(b"x")?;
                socket.readable().await?;
                tokio::time::sleep(Duration::from_millis(5)).await;
                let copy = socket.as_fd().try_clone_to_owned()?;
                // SAFETY: the descriptor is open as long as `held` owns it.
                let held = unsafe { tokio::io::unix::AsyncFd::register(copy) }?;
                drop(held.readable().await?);
                rustix::process::kill_process(rustix::process::getpid(), Signal::HUP)
                    .expect_err("by number only SIGCONT");
                // SAFETY: raises SIGHUP, for which there is a handler.
                unsafe { libc::raise(libc::SIGHUP) };
                hangup.recv().await;
                anyhow::Ok(())
            })
        });
    }

    #[test]
    fn who_asks_runtimes_reaches_their_sockets_only() {
        use std::os::unix::net::{UnixListener, UnixStream};
        let path = std::env::temp_dir().join(format!("vortex-confine-{}", std::process::id()));
        let _ = fs::remove_file(&path);
        let _listener = UnixListener::bind(&path).unwrap();
        check(|| {
            let status = File::open("/proc/thread-self/status")?;
            lock_in_asking(Mode::Enforce)?;
            UnixStream::connect(&path)?;
            let file = c"/etc/passwd".as_ptr() as libc::c_long;
            for (number, arguments) in [
                (libc::SYS_openat, [libc::AT_FDCWD.into(), file, 0, 0]),
                (libc::SYS_socket, [libc::AF_INET.into(), 1, 0, 0]),
                (libc::SYS_socket, [libc::AF_NETLINK.into(), 3, 0, 0]),
                (libc::SYS_execve, [file, 0, 0, 0]),
                (libc::SYS_kill, [1, 15, 0, 0]),
                (libc::SYS_bpf, [0; 4]),
            ] {
                let error = system_call(number, arguments);
                anyhow::ensure!(error == libc::EPERM, "system call {number} gave {error}");
            }
            for name in ["CapPrm:", "CapEff:", "CapAmb:"] {
                anyhow::ensure!(field(&status, name)? == ["0000000000000000"], "{name}");
            }
            Ok(())
        });
        let _ = fs::remove_file(&path);
    }

    /// `Name: value` of our own status, from a descriptor that was opened before.
    fn field(status: &File, name: &str) -> anyhow::Result<Vec<String>> {
        let mut text = vec![0; 8192];
        let n = status.read_at(&mut text, 0)?;
        let text = String::from_utf8_lossy(&text[..n]).into_owned();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let values = line.map(|values| values.split_whitespace().map(str::to_owned).collect());
        values.ok_or_else(|| anyhow::anyhow!("{name} in {text}"))
    }

    #[test]
    fn no_privilege_is_left() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        check(|| {
            harden()?;
            let status = File::open("/proc/thread-self/status")?;
            let identity = Identity {
                uid: 65533,
                gid: 65532,
                signals_as: 0,
            };
            lock_in(identity, Mode::Enforce)?;
            for (name, expected) in [
                ("Uid:", &["0", "65533", "65533", "65533"][..]),
                ("Gid:", &["65532"; 4]),
                ("Groups:", &[]),
                ("CapInh:", &["0000000000000000"]),
                ("CapPrm:", &["0000000000000000"]),
                ("CapEff:", &["0000000000000000"]),
                ("CapBnd:", &["0000000000000000"]),
                ("CapAmb:", &["0000000000000000"]),
                ("NoNewPrivs:", &["1"]),
                ("Seccomp:", &["2"]),
            ] {
                let found = field(&status, name)?;
                anyhow::ensure!(found == expected, "{name} {found:?}");
            }
            Ok(())
        });
    }

    #[test]
    fn roots_command_can_be_signalled() {
        let mut command = Command::new("sleep").arg("20").spawn().unwrap();
        let pid = Pid::from_child(&command);
        check(|| {
            let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
            let identity = Identity {
                signals_as: rustix::process::getuid().as_raw(),
                ..Identity::default()
            };
            lock_in(identity, Mode::Enforce)?;
            Ok(pidfd_send_signal(&pidfd, Signal::TERM)?)
        });
        assert_eq!(command.wait().unwrap().signal(), Some(libc::SIGTERM));
    }

    #[test]
    fn nobody_signals_root() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        check(|| {
            // SAFETY: takes no arguments.
            let parent = Pid::from_raw(unsafe { libc::getppid() }).expect("a parent");
            lock_in(Identity::default(), Mode::Enforce)?;
            // No signal, only the question. (SIGCONT is allowed within a session.)
            let refused = rustix::process::test_kill_process(parent);
            anyhow::ensure!(refused == Err(Errno::PERM), "{refused:?}");
            Ok(())
        });
    }

    /// `getpriority`: harmless, and nothing of ours calls it.
    const UNKNOWN: libc::c_long = libc::SYS_getpriority;

    #[test]
    fn an_unknown_call_is_the_end() {
        let (status, _) = in_child(|| {
            lock_in(Identity::default(), Mode::Enforce)?;
            system_call(UNKNOWN, [0; 4]);
            Ok(())
        });
        assert_eq!(status.signal(), Some(libc::SIGSYS));
    }

    #[test]
    fn an_unknown_call_is_logged() {
        check(|| {
            lock_in(Identity::default(), Mode::Log)?;
            anyhow::ensure!(system_call(UNKNOWN, [0; 4]) == 0);
            anyhow::ensure!(system_call(libc::SYS_socket, [2, 1, 0, 0]) == libc::EPERM);
            Ok(())
        });
    }

    #[test]
    fn a_second_thread_is_refused() {
        check(|| {
            let (reader, writer) = pipe()?;
            let other = thread::spawn(move || (&reader).read(&mut [0]));
            let refused = lock_in(Identity::default(), Mode::Enforce);
            anyhow::ensure!(matches!(refused, Err(ConfineError::Threads(2))));
            drop(writer);
            let _ = other.join();
            Ok(())
        });
    }

    #[test]
    fn a_hard_process_cannot_be_looked_into() {
        check(|| {
            let before = harden()?;
            let now = getrlimit(Resource::Core);
            anyhow::ensure!(now.current == Some(0) && now.maximum == before.maximum);
            // SAFETY: asks for one integer.
            let dumpable = unsafe { libc::prctl(libc::PR_GET_DUMPABLE) };
            anyhow::ensure!(dumpable == 0);
            Ok(())
        });
    }

    /// std's own hook, uncaptured: it opens our executable, asks for the directory, takes locks.
    #[test]
    #[ignore = "run by the test below"]
    fn panics_confined() {
        let (status, _) = in_child(|| {
            lock_in(Identity::default(), Mode::Enforce)?;
            let thread = thread::spawn(|| panic!("first words"));
            let _ = thread.join();
            let caught = std::panic::catch_unwind(|| panic!("last words"));
            std::process::exit(if caught.is_err() { 101 } else { 1 })
        });
        std::process::exit(status.code().unwrap_or(128));
    }

    #[test]
    fn a_panic_is_told() {
        for backtrace in ["0", "1", "full"] {
            let output = Command::new(std::env::current_exe().unwrap())
                .args(["--ignored", "--exact", "--nocapture"])
                .arg("confine::tests::panics_confined")
                .env("RUST_BACKTRACE", backtrace)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.code(), Some(101), "{text}");
            assert!(text.contains("first words"), "{text}");
            assert!(text.contains("last words"), "{text}");
        }
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = step("drop all capabilities")(Errno::PERM);
        let said = format!("{:#}", anyhow::Error::from(error));
        let expected = "lock in: drop all capabilities: Operation not permitted (os error 1)";
        assert_eq!(said, expected);
        let filter = SeccompFilter::new(
            BTreeMap::new(),
            SeccompAction::Allow,
            SeccompAction::Allow,
            std::env::consts::ARCH.try_into().unwrap(),
        );
        let cause = filter.unwrap_err();
        let said = cause.to_string();
        let error = anyhow::Error::from(ConfineError::from(cause));
        assert_eq!(format!("{error:#}").matches(&said).count(), 1, "{error:#}");
        // And it can still be looked for.
        let error = anyhow::Error::from(step("x")(Errno::PERM));
        assert!(error.chain().any(|cause| cause.is::<io::Error>()));
    }

    #[test]
    fn who_delivers_reaches_its_collectors_and_no_other() {
        use std::net::{TcpListener, TcpStream, ToSocketAddrs as _};
        let listeners = [(); 2].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
        let [known, other] = listeners.each_ref().map(|one| one.local_addr().unwrap());
        check(|| {
            let ports = vec![known.port()];
            let network = Network { ports };
            let confined = lock_in_with_network(Mode::Enforce, &network)?;
            TcpStream::connect(known)?;
            anyhow::ensure!(("localhost", 1).to_socket_addrs()?.count() > 0);
            File::open("/etc/hosts")?;
            if confined.landlock != Landlock::None {
                anyhow::ensure!(
                    File::open("/proc/self/status").is_err(),
                    "a file was opened"
                );
                anyhow::ensure!(File::create("/tmp/vortex-confined").is_err());
            }
            if confined.landlock == Landlock::Full {
                anyhow::ensure!(TcpStream::connect(other).is_err(), "another port");
                anyhow::ensure!(
                    TcpListener::bind("127.0.0.1:0").is_err(),
                    "a port to listen on"
                );
            }
            let path = c"/etc/passwd".as_ptr() as libc::c_long;
            for (number, arguments) in [
                (libc::SYS_socket, [libc::AF_UNIX.into(), 1, 0, 0]),
                (libc::SYS_socket, [libc::AF_NETLINK.into(), 3, 0, 0]),
                (libc::SYS_listen, [0; 4]),
                (libc::SYS_execve, [path, 0, 0, 0]),
                (libc::SYS_ptrace, [16, 1, 0, 0]),
                (libc::SYS_bpf, [0; 4]),
                (libc::SYS_perf_event_open, [0; 4]),
                (libc::SYS_kill, [1, 15, 0, 0]),
                (libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0]),
            ] {
                let error = system_call(number, arguments);
                anyhow::ensure!(error == libc::EPERM, "system call {number} gave {error}");
            }
            Ok(())
        });
    }

    /// It forks one that is locked in as always, and nothing else is to be had from it.
    #[test]
    fn who_starts_who_delivers_can_do_no_more() {
        use std::net::{TcpListener, TcpStream};
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let known = listener.local_addr().unwrap();
        check(|| {
            resign(Identity::default(), Mode::Enforce)?;
            let deliver = || {
                let ports = vec![known.port()];
                lock_in_with_network(Mode::Enforce, &Network { ports })?;
                TcpStream::connect(known)?;
                let clone = [libc::SIGCHLD.into(), 0, 0, 0];
                anyhow::ensure!(system_call(libc::SYS_clone, clone) == libc::EPERM);
                Ok(())
            };
            // SAFETY: this process has one thread, so the child may do anything.
            let pid = match unsafe { libc::fork() } {
                0 => {
                    // SAFETY: takes integers.
                    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
                    let failed = deliver().inspect_err(|error| eprintln!("{error:#}"));
                    // SAFETY: ends the process, without the test harness' own ending.
                    unsafe { libc::_exit(failed.is_err().into()) }
                }
                pid => pid,
            };
            let mut status = 0;
            // SAFETY: `status` is valid for writing.
            anyhow::ensure!(pid > 0 && unsafe { libc::waitpid(pid, &mut status, 0) } == pid);
            let status = ExitStatus::from_raw(status);
            anyhow::ensure!(status.success(), "who was forked: {status}");
            let path = c"/bin/true".as_ptr() as libc::c_long;
            for (number, arguments) in [
                (libc::SYS_execve, [path, 0, 0, 0]),
                (libc::SYS_socket, [libc::AF_UNIX.into(), 1, 0, 0]),
                (libc::SYS_socket, [libc::AF_NETLINK.into(), 3, 0, 0]),
                (libc::SYS_listen, [0; 4]),
                (libc::SYS_kill, [1, 15, 0, 0]),
                (libc::SYS_ptrace, [16, 1, 0, 0]),
                (libc::SYS_bpf, [0; 4]),
                (libc::SYS_setresuid, [0; 4]),
                (libc::SYS_unlinkat, [0; 4]),
                (libc::SYS_mmap, [0, 4096, libc::PROT_EXEC.into(), 0x22]),
            ] {
                let error = system_call(number, arguments);
                anyhow::ensure!(error == libc::EPERM, "system call {number} gave {error}");
            }
            Ok(())
        });
        let (status, _) = in_child(|| {
            resign(Identity::default(), Mode::Enforce)?;
            system_call(UNKNOWN, [0; 4]);
            Ok(())
        });
        assert_eq!(status.signal(), Some(libc::SIGSYS));
    }

    #[test]
    fn files_are_kept_in_one_directory() {
        let directory = std::env::temp_dir().join(format!("vortex-keep-{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        check(|| {
            use rustix::fs::{AtFlags, CWD, Mode as Bits, OFlags, openat, renameat, unlinkat};
            let held = File::open(&directory)?;
            let outside = directory.join("../vortex-keep-outside");
            let confinement = keep_to(held.as_fd(), Mode::Enforce)?;
            let new = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL;
            openat(&held, "one", new, Bits::RUSR | Bits::WUSR)?;
            renameat(&held, "one", &held, "two")?;
            openat(&held, "two", OFlags::RDONLY, Bits::empty())?;
            unlinkat(&held, "two", AtFlags::empty())?;
            if confinement.landlock != Landlock::None {
                let refused = openat(CWD, "/etc/passwd", OFlags::RDONLY, Bits::empty());
                anyhow::ensure!(refused.err() == Some(Errno::ACCESS), "a file was opened");
                let refused = openat(CWD, &outside, new, Bits::RUSR);
                anyhow::ensure!(refused.err() == Some(Errno::ACCESS), "a file was made");
            }
            for call in [
                libc::SYS_socket,
                libc::SYS_execve,
                libc::SYS_bpf,
                libc::SYS_mkdirat,
            ] {
                anyhow::ensure!(
                    system_call(call, [0; 4]) == libc::EPERM,
                    "system call {call}"
                );
            }
            Ok(())
        });
        fs::remove_dir(directory).unwrap();
    }
}
