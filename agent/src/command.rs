//! CMD: found, forked behind a barrier, let go, waited for.
//!
//! CMD must not make its first call before its probes are in, so its process exists early and waits.
//! `std::process::Command` can't do that: its `spawn` returns when the exec has succeeded. What it
//! does for free is therefore done here by hand.
//!
//! Once released, CMD is on its own: only `signal` and `wait` touch it.
//!
//! # What the event loop owes CMD
//! - CMD shares the agent's process group, so the terminal's Ctrl-C and Ctrl-\ reach it by
//!   themselves. Call [`leave_keyboard_to_cmd`] after [`Program::hold`] and after the half has
//!   answered; then wait.
//! - Pass SIGTERM and SIGHUP on with [`Child::signal`]; at a second one give up.
//! - Leave SIGTSTP, SIGCONT, SIGTTIN and SIGTTOU alone: by default both stop and continue.
//! - The end is [`Child::pidfd`] turning readable, also before the release: Ctrl-C reaches a CMD that
//!   waits. Never install a SIGCHLD handler that reaps.

use std::{
    collections::BTreeMap,
    ffi::{CString, OsStr, OsString},
    io, mem,
    os::{
        fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
        unix::ffi::{OsStrExt as _, OsStringExt as _},
    },
    path::{Path, PathBuf},
    ptr,
};

use libc::c_char;
use rustix::{
    io::Errno,
    pipe::{PipeFlags, pipe_with},
    process::{
        Pid, PidfdFlags, Rlimit, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal,
        waitid,
    },
};

use crate::user::User;

/// What is to be run: words, environment, user.
#[derive(Clone, Debug)]
pub struct Program {
    words: Vec<CString>,
    env: BTreeMap<OsString, OsString>,
    /// `None`: whoever we are.
    user: Option<User>,
}

impl Program {
    /// `user` is for an agent that is root on behalf of somebody ([`User::behind_sudo`]).
    pub fn new(words: &[OsString], user: Option<User>) -> Result<Self, CommandError> {
        let words: Vec<_> = words
            .iter()
            .map(|word| CString::new(word.as_bytes()))
            .collect::<Result<_, _>>()
            .map_err(|_| CommandError::Nul)?;
        if words.is_empty() {
            return Err(CommandError::Empty);
        }
        let mut env: BTreeMap<_, _> = std::env::vars_os().collect();
        if let Some(user) = &user {
            // sudo has put root's there.
            let name = user.name.as_ref();
            let home = user.home.as_ref().map(|home| home.as_os_str().to_owned());
            env.extend(home.map(|home| ("HOME".into(), home)));
            env.extend(name.map(|name| ("USER".into(), name.clone())));
            env.extend(name.map(|name| ("LOGNAME".into(), name.clone())));
        }
        Ok(Self { words, env, user })
    }

    pub fn env(&self) -> &BTreeMap<OsString, OsString> {
        &self.env
    }

    pub fn user(&self) -> Option<&User> {
        self.user.as_ref()
    }

    /// The file that will be run, as far as one can tell before it is. Ask early: a typing error
    /// should not cost a password.
    pub fn executable(&self) -> Result<PathBuf, CommandError> {
        let name = OsStr::from_bytes(self.words[0].as_bytes());
        self.find(name).map_err(|errno| CommandError::NotRun {
            name: name.to_owned(),
            errno,
        })
    }

    /// Looks `name` up as `execvp` does in CMD's environment.
    pub fn find(&self, name: &OsStr) -> Result<PathBuf, Errno> {
        let mut error = Errno::NOENT;
        for path in self.candidates(name) {
            match may_execute(&path) {
                Ok(()) => return Ok(path),
                Err(Errno::ACCESS) => error = Errno::ACCESS,
                Err(_) => {}
            }
        }
        Err(error)
    }

    /// Every path that `execvp` would try, in order. An empty entry of PATH is the directory we are
    /// in.
    fn candidates(&self, name: &OsStr) -> Vec<PathBuf> {
        if name.is_empty() {
            return vec![];
        }
        if name.as_bytes().contains(&b'/') {
            return vec![name.into()];
        }
        let path = self.env.get(OsStr::new("PATH"));
        let path = path.map_or(&b"/bin:/usr/bin"[..], |path| path.as_bytes());
        path.split(|byte| *byte == b':')
            .map(|folder| Path::new(OsStr::from_bytes(folder)).join(name))
            .collect()
    }

    /// Forks CMD's process, which waits for [`Child::release`]; it ends with 125 if this process
    /// does. `core` is the core limit from before [`crate::confine::harden`].
    ///
    /// Before the first thread: what another thread has locked stays locked in the child.
    pub fn hold(&self, core: Rlimit) -> Result<Child, CommandError> {
        let fork = |what| move |source: Errno| CommandError::Fork { what, source };
        let (gate, barrier) = pipe_with(PipeFlags::CLOEXEC).map_err(fork("make a pipe"))?;
        let (report, failure) = pipe_with(PipeFlags::CLOEXEC).map_err(fork("make a pipe"))?;
        let plan = Plan::new(self, core, gate.as_raw_fd(), failure.as_raw_fd());
        // SAFETY: the child calls `Plan::carry_out`, which keeps to async-signal-safe calls.
        let pid = match unsafe { libc::fork() } {
            -1 => return Err(fork("fork")(last_errno())),
            0 => plan.carry_out(),
            pid => Pid::from_raw(pid).expect("fork gives a positive pid"),
        };
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(fork("open a pidfd"))?;
        Ok(Child {
            pid,
            name: OsStr::from_bytes(self.words[0].as_bytes()).to_owned(),
            pidfd,
            barrier: Some(barrier),
            report,
        })
    }
}

fn may_execute(path: &Path) -> Result<(), Errno> {
    use rustix::fs::{Access, AtFlags, CWD, FileType, accessat, stat};
    let file = stat(path)?;
    if FileType::from_raw_mode(file.st_mode) != FileType::RegularFile {
        return Err(Errno::ACCESS);
    }
    accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// CMD's process.
#[derive(Debug)]
pub struct Child {
    pub pid: Pid,
    name: OsString,
    pidfd: OwnedFd,
    /// Closed without a byte, it ends the waiting child.
    barrier: Option<OwnedFd>,
    /// Says why CMD could not be run, or ends when it is.
    report: OwnedFd,
}

impl Child {
    /// Readable when CMD has ended.
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    pub fn is_held(&self) -> bool {
        self.barrier.is_some()
    }

    /// Lets CMD run. Does nothing the second time. That the child died while it waited is no error
    /// here: `wait` tells.
    pub fn release(&mut self) {
        if let Some(barrier) = self.barrier.take() {
            let _ = rustix::io::write(barrier, b"x");
        }
    }

    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        Ok(pidfd_send_signal(&self.pidfd, signal)?)
    }

    /// Waits for the end; at once if `pidfd` is readable.
    pub fn wait(self) -> io::Result<Ended> {
        let status = loop {
            let end = waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED);
            match end {
                Err(Errno::INTR) | Ok(None) => {}
                Ok(Some(status)) => break status,
                Err(error) => return Err(error.into()),
            }
        };
        let mut report = [0; mem::size_of::<Failure>()];
        // The child was the only writer and is dead: this does not block.
        if let Ok(n) = rustix::io::read(&self.report, &mut report)
            && n == report.len()
        {
            let name = self.name;
            let [stage, errno] = [&report[..4], &report[4..]]
                .map(|half| i32::from_ne_bytes(half.try_into().expect("four bytes")));
            let errno = Errno::from_raw_os_error(errno);
            return Ok(match stage {
                STAGE_EXEC => Ended::NotRun { name, errno },
                _ => Ended::NotItsUser { errno },
            });
        }
        Ok(match status.exit_status() {
            Some(code) => Ended::Exited(code as u8),
            None => Ended::Killed(status.terminating_signal().unwrap_or(0)),
        })
    }
}

/// How CMD ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    Exited(u8),
    /// By this signal.
    Killed(i32),
    /// `execve` failed.
    NotRun {
        name: OsString,
        errno: Errno,
    },
    /// The process could not become the calling user.
    NotItsUser {
        errno: Errno,
    },
}

impl Ended {
    /// The agent's exit status, as a shell would give it.
    pub fn code(&self) -> u8 {
        match self {
            Self::Exited(code) => *code,
            Self::Killed(signal) => 128 + *signal as u8,
            Self::NotRun { errno, .. } => not_run_code(*errno),
            Self::NotItsUser { .. } => AGENT_FAILED,
        }
    }

    /// The line for stderr, if CMD did not even start.
    pub fn error(&self) -> Option<CommandError> {
        match self.clone() {
            Self::Exited(_) | Self::Killed(_) => None,
            Self::NotRun { name, errno } => Some(CommandError::NotRun { name, errno }),
            Self::NotItsUser { errno } => Some(CommandError::Fork {
                what: "become the calling user",
                source: errno,
            }),
        }
    }
}

/// Exit status if the agent failed before CMD was started.
pub const AGENT_FAILED: u8 = 125;

fn not_run_code(errno: Errno) -> u8 {
    if errno == Errno::NOENT { 127 } else { 126 }
}

/// The terminal's signals are CMD's from now on. CMD's process, which exists already, keeps what the
/// caller had set.
pub fn leave_keyboard_to_cmd() {
    for signal in [libc::SIGINT, libc::SIGQUIT] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// Becomes `user` for good. Async-signal-safe: system calls and nothing else.
///
/// By the bare calls, because libc's tell every thread, and after a fork there is one.
pub(crate) fn become_user(user: &User) -> io::Result<()> {
    let User {
        uid, gid, groups, ..
    } = user;
    // SAFETY: the pointer is valid for the stated number of groups.
    let groups = unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) };
    check(groups)?;
    // SAFETY: takes three integers.
    check(unsafe { libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) })?;
    // SAFETY: takes three integers.
    check(unsafe { libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) })
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn last_errno() -> Errno {
    let error = io::Error::last_os_error();
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

/// Stage and errno.
type Failure = [i32; 2];
const STAGE_USER: i32 = 1;
const STAGE_EXEC: i32 = 2;

/// All that the child needs, allocated before the fork.
struct Plan<'a> {
    user: Option<&'a User>,
    core: libc::rlimit,
    gate: i32,
    failure: i32,
    attempts: Vec<Attempt>,
    argv: Vec<*const c_char>,
    envp: Vec<*const c_char>,
    /// What `envp` and `shell` point to.
    _strings: Vec<CString>,
}

/// One path to try, and the arguments for a shell should it be a script without `#!`.
struct Attempt {
    path: CString,
    shell: Vec<*const c_char>,
}

impl<'a> Plan<'a> {
    fn new(program: &'a Program, core: Rlimit, gate: i32, failure: i32) -> Self {
        let list = |strings: &[CString]| -> Vec<*const c_char> {
            let pointers = strings.iter().map(|string| string.as_ptr());
            pointers.chain([ptr::null()]).collect()
        };
        let strings: Vec<CString> = program
            .env
            .iter()
            .map(|(name, value)| {
                let mut entry = name.clone().into_vec();
                entry.push(b'=');
                entry.extend(value.as_bytes());
                CString::new(entry).expect("came from the environment")
            })
            .collect();
        let name = OsStr::from_bytes(program.words[0].as_bytes());
        let attempts = program.candidates(name).into_iter().map(|path| {
            let path = CString::new(path.into_os_string().into_vec()).expect("made of C strings");
            let arguments = program.words[1..].iter().map(|word| word.as_ptr());
            let shell = [c"/bin/sh".as_ptr(), path.as_ptr()]
                .into_iter()
                .chain(arguments)
                .chain([ptr::null()])
                .collect();
            Attempt { path, shell }
        });
        let limit = |value: Option<u64>| value.unwrap_or(libc::RLIM_INFINITY);
        Self {
            user: program.user.as_ref(),
            core: libc::rlimit {
                rlim_cur: limit(core.current),
                rlim_max: limit(core.maximum),
            },
            gate,
            failure,
            attempts: attempts.collect(),
            argv: list(&program.words),
            envp: list(&strings),
            _strings: strings,
        }
    }

    /// The child's whole life before CMD. Async-signal-safe: no allocation, no lock, no panic.
    fn carry_out(&self) -> ! {
        // Not the barrier's other end, or its closing would never be seen; nor the socket to the
        // half, for which CMD's user could stop and search this process.
        close_all_but(self.gate, self.failure);
        if let Some(user) = self.user
            && become_user(user).is_err()
        {
            self.fail(STAGE_USER, errno());
        }
        self.wait_for_release();
        // SAFETY: async-signal-safe calls with valid arguments. Rust's runtime ignores SIGPIPE, and
        // exec would hand that on.
        unsafe {
            libc::signal(libc::SIGPIPE, libc::SIG_DFL);
            let mut none: libc::sigset_t = mem::zeroed();
            libc::sigemptyset(&mut none);
            libc::sigprocmask(libc::SIG_SETMASK, &none, ptr::null_mut());
            libc::setrlimit(libc::RLIMIT_CORE, &self.core);
        }
        let errno = self.execute();
        self.fail(STAGE_EXEC, errno)
    }

    fn wait_for_release(&self) {
        let mut byte = 0_u8;
        loop {
            // SAFETY: `byte` has room for one byte.
            match unsafe { libc::read(self.gate, (&raw mut byte).cast(), 1) } {
                1 => return,
                -1 if errno() == libc::EINTR => {}
                // The agent is dead.
                // SAFETY: ends the process.
                _ => unsafe { libc::_exit(AGENT_FAILED.into()) },
            }
        }
    }

    /// The loop of `execvp`. Returns the error if nothing could be run.
    fn execute(&self) -> i32 {
        let mut error = libc::ENOENT;
        for attempt in &self.attempts {
            let path = attempt.path.as_ptr();
            // SAFETY: strings and lists end with NUL and null, and live in `self`.
            unsafe { libc::execve(path, self.argv.as_ptr(), self.envp.as_ptr()) };
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => error = libc::EACCES,
                libc::ENOEXEC => {
                    let (shell, argv) = (c"/bin/sh".as_ptr(), attempt.shell.as_ptr());
                    // SAFETY: as above.
                    unsafe { libc::execve(shell, argv, self.envp.as_ptr()) };
                    return libc::ENOEXEC;
                }
                other => return other,
            }
        }
        error
    }

    fn fail(&self, stage: i32, errno: i32) -> ! {
        let failure: Failure = [stage, errno];
        // SAFETY: `failure` is valid for its size; then the process ends. Eight bytes fit a pipe.
        unsafe {
            libc::write(
                self.failure,
                (&raw const failure).cast(),
                size_of::<Failure>(),
            );
            libc::_exit(AGENT_FAILED.into())
        }
    }
}

fn errno() -> i32 {
    // SAFETY: always points to this thread's errno.
    unsafe { *libc::__errno_location() }
}

/// Closes every descriptor from 3 on except these two, which close by themselves at the exec. A
/// kernel without `close_range` (before 5.9) or a sandbox that forbids it leaves what our caller had
/// open; our own are all close-on-exec.
fn close_all_but(one: i32, other: i32) {
    let (low, high) = (one.min(other), one.max(other));
    for (from, to) in [(3, low - 1), (low + 1, high - 1), (high + 1, i32::MAX)] {
        if from <= to {
            // SAFETY: nothing in this process uses the others any more: it only waits and execs.
            unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
        }
    }
}

/// CMD could not be started.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("run CMD: a NUL byte in its arguments")]
    Nul,
    #[error("run CMD: no command given after --")]
    Empty,
    #[error("run {name:?}: {errno}")]
    NotRun { name: OsString, errno: Errno },
    #[error("start CMD: {what}: {source}")]
    Fork { what: &'static str, source: Errno },
}

impl CommandError {
    pub fn code(&self) -> u8 {
        match self {
            Self::NotRun { errno, .. } => not_run_code(*errno),
            Self::Nul | Self::Empty => 2,
            Self::Fork { .. } => AGENT_FAILED,
        }
    }
}
