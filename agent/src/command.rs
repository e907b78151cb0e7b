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
        let fork = |what| move |errno: Errno| CommandError::Fork { what, errno };
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
                errno,
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

/// Closes every descriptor from 3 on except these two. A
/// kernel without `close_range` (before 5.9) or a sandbox that forbids it leaves what our caller had
/// open; our own are all close-on-exec.
pub fn close_all_but(one: i32, other: i32) {
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
    #[error("start CMD: {what}: {errno}")]
    Fork { what: &'static str, errno: Errno },
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

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::PermissionsExt as _,
        sync::atomic::{AtomicU32, Ordering},
    };

    use rustix::{
        event::{PollFd, PollFlags, Timespec, poll},
        process::{Resource, getrlimit},
    };

    use super::*;

    /// A directory that goes with its test.
    struct Folder(PathBuf);

    impl Folder {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("vortex-command-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            // For tests whose CMD is somebody else.
            fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
            Self(path)
        }

        fn file(&self, name: &str, text: &str, mode: u32) -> PathBuf {
            let path = self.0.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            path
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn program<S: Into<OsString> + Clone>(words: &[S]) -> Program {
        let words: Vec<_> = words.iter().cloned().map(Into::into).collect();
        Program::new(&words, None).unwrap()
    }

    fn hold(program: &Program) -> Child {
        program.hold(getrlimit(Resource::Core)).unwrap()
    }

    /// Bounded: a CMD that does not end is killed.
    #[track_caller]
    fn ended(child: Child) -> Ended {
        if !has_ended(&child, 10_000) {
            child.signal(Signal::KILL).unwrap();
            panic!("CMD does not end: {:?}", child.wait());
        }
        child.wait().unwrap()
    }

    fn has_ended(child: &Child, milliseconds: i64) -> bool {
        let limit = Timespec {
            tv_sec: milliseconds / 1000,
            tv_nsec: milliseconds % 1000 * 1_000_000,
        };
        let mut waiting = [PollFd::from_borrowed_fd(child.pidfd(), PollFlags::IN)];
        poll(&mut waiting, Some(&limit)).unwrap() == 1
    }

    #[track_caller]
    fn run(program: &Program) -> Ended {
        let mut child = hold(program);
        child.release();
        ended(child)
    }

    /// What a shell script of CMD's prints.
    #[track_caller]
    fn printed(script: &str, user: Option<User>) -> String {
        let folder = Folder::new();
        let out = folder.0.join("out");
        let mut program = program(&["sh", "-c", &format!("exec >\"$0\"; {script}")]);
        program
            .words
            .push(CString::new(out.as_os_str().as_bytes()).unwrap());
        program.user = user;
        assert_eq!(run(&program), Ended::Exited(0));
        fs::read_to_string(out).unwrap()
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = Ended::NotItsUser { errno: Errno::PERM }.error().unwrap();
        let said = format!("{:#}", anyhow::Error::from(error));
        assert_eq!(said.matches("(os error").count(), 1, "{said}");
    }

    #[test]
    fn status_is_the_shells() {
        for code in [0, 1, 7, 125, 126, 127, 255] {
            let ended = run(&program(&["sh", "-c", &format!("exit {code}")]));
            assert_eq!(ended, Ended::Exited(code));
            assert_eq!(ended.code(), code);
            assert!(ended.error().is_none());
        }
        for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGHUP, libc::SIGPIPE] {
            let ended = run(&program(&["sh", "-c", &format!("kill -{signal} $$")]));
            assert_eq!(ended, Ended::Killed(signal));
            assert_eq!(i32::from(ended.code()), 128 + signal);
        }
    }

    #[test]
    fn what_cannot_be_run_is_told_before_and_after_the_fork() {
        let folder = Folder::new();
        let plain = folder.file("plain", "true\n", 0o644);
        let orphan = folder.file("orphan", "#!/no/such/interpreter\n", 0o755);
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        for (name, code) in [
            ("no-such-command-here".to_owned(), 127),
            (String::new(), 127),
            ("/no/such/file".to_owned(), 127),
            (path(&plain), 126),
            (path(&folder.0), 126),
            (path(&plain) + "/below", 127),
        ] {
            let program = program(&[&name]);
            let before = program.executable().unwrap_err();
            assert_eq!(before.code(), code, "{before}");
            let after = run(&program);
            assert_eq!(after.code(), code, "{after:?}");
            assert!(
                after
                    .error()
                    .is_some_and(|error| error.to_string().contains(&name))
            );
        }
        // Only the kernel knows.
        let orphan = program(&[path(&orphan)]);
        assert!(orphan.executable().is_ok());
        assert_eq!(run(&orphan).code(), 127);
    }

    #[test]
    fn words_that_are_none() {
        let nul = Program::new(&["a\0b".into()], None).unwrap_err();
        let empty = Program::new(&[], None).unwrap_err();
        assert_eq!((nul.code(), empty.code()), (2, 2));
    }

    /// Each entry is tried; a file that may not be executed does not hide a later one, but is what
    /// is told if there is none.
    #[test]
    fn path_is_searched_as_execvp_does() {
        let folder = Folder::new();
        let first = folder.file("first/tool", "#!/bin/sh\nexit 1\n", 0o644);
        let second = folder.file("second/tool", "#!/bin/sh\nexit 2\n", 0o755);
        let third = folder.file("third/tool", "#!/bin/sh\nexit 3\n", 0o755);
        let of = |file: &Path| file.parent().unwrap().to_str().unwrap().to_owned();
        let in_path = |path: String| {
            let mut program = program(&["tool"]);
            program.env.insert("PATH".into(), path.into());
            program
        };
        let all = [&first, &second, &third].map(|file| of(file)).join(":");
        let found = in_path(format!("/no/such/folder:{all}"));
        assert_eq!(found.executable().unwrap(), second);
        assert_eq!(run(&found), Ended::Exited(2));

        let hidden = in_path(of(&first));
        assert_eq!(hidden.executable().unwrap_err().code(), 126);
        assert_eq!(run(&hidden).code(), 126);

        // Not by the directory we are in, which other tests share.
        for path in ["", ":/bin", "/bin:", "/bin::/usr/bin"] {
            let here = in_path(path.to_owned()).candidates("tool".as_ref());
            assert!(here.contains(&"tool".into()), "{path:?}: {here:?}");
        }
        let mut nowhere = program(&["sh", "-c", "exit 4"]);
        nowhere.env.remove(OsStr::new("PATH"));
        assert_eq!(run(&nowhere), Ended::Exited(4));
    }

    #[test]
    fn a_text_without_interpreter_is_the_shells() {
        let folder = Folder::new();
        let text = folder.file("text", "exit $(($1 + $#))\n", 0o755);
        let text = text.to_str().unwrap();
        assert_eq!(run(&program(&[text, "5", "a b"])), Ended::Exited(7));
    }

    #[test]
    fn waits_until_it_is_released() {
        let folder = Folder::new();
        let mark = folder.0.join("mark");
        let mut child = hold(&program(&["touch", mark.to_str().unwrap()]));
        assert!(child.is_held() && !has_ended(&child, 100));
        assert!(!mark.exists());
        child.release();
        assert!(!child.is_held());
        child.release();
        assert_eq!(ended(child), Ended::Exited(0));
        assert!(mark.exists());
    }

    /// The agent is dead: its end of the barrier closes.
    #[test]
    fn does_not_run_without_the_agent() {
        let folder = Folder::new();
        let mark = folder.0.join("mark");
        let mut child = hold(&program(&["touch", mark.to_str().unwrap()]));
        drop(child.barrier.take());
        assert_eq!(ended(child), Ended::Exited(AGENT_FAILED));
        assert!(!mark.exists());
    }

    #[test]
    fn a_signal_ends_it_also_while_it_waits() {
        let mut child = hold(&program(&["true"]));
        child.signal(Signal::TERM).unwrap();
        assert!(has_ended(&child, 10_000));
        child.release();
        assert_eq!(ended(child), Ended::Killed(libc::SIGTERM));

        let mut child = hold(&program(&["sleep", "20"]));
        child.release();
        child.signal(Signal::HUP).unwrap();
        assert_eq!(ended(child), Ended::Killed(libc::SIGHUP));
    }

    /// Also with one that is open across exec, as careless callers leave them.
    #[test]
    fn inherits_three_descriptors_and_no_restriction() {
        let careless = rustix::io::dup(rustix::stdio::stderr()).unwrap();
        let text = printed("ls /proc/$$/fd; exec cat /proc/self/status", None);
        drop(careless);
        let numbers: Vec<_> = text
            .lines()
            .map_while(|line| line.parse::<u32>().ok())
            .collect();
        assert_eq!(numbers, [0, 1, 2]);
        let field = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("{name} in {text}")).trim()
        };
        assert_eq!(field("NoNewPrivs:"), "0");
        assert_eq!(field("Seccomp:"), "0");
        assert_eq!(field("SigBlk:"), "0000000000000000");
        let ignored = u64::from_str_radix(field("SigIgn:"), 16).unwrap();
        assert_eq!(
            ignored & 1 << (libc::SIGPIPE - 1),
            0,
            "Rust ignores SIGPIPE"
        );
    }

    #[test]
    fn gets_its_core_limit_back() {
        let folder = Folder::new();
        let out = folder.0.join("out");
        let script = format!("ulimit -c >{}", out.display());
        let before = getrlimit(Resource::Core);
        let limit = Rlimit {
            current: Some(before.maximum.map_or(1024, |most| most.min(1024))),
            ..before
        };
        let mut child = program(&["sh", "-c", &script]).hold(limit).unwrap();
        child.release();
        assert_eq!(ended(child), Ended::Exited(0));
        // dash counts in blocks of 512 bytes, bash of 1024.
        let blocks: u64 = fs::read_to_string(out).unwrap().trim().parse().unwrap();
        let bytes = limit.current.unwrap();
        assert!([bytes / 512, bytes / 1024].contains(&blocks), "{blocks}");
    }

    #[test]
    fn runs_as_somebody_else() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let user = User {
            name: Some("alice".into()),
            uid: 65533,
            gid: 65532,
            groups: vec![65532, 65531],
            home: Some("/home/alice".into()),
        };
        assert_eq!(
            printed(
                "id -u; id -g; id -G; grep CapEff /proc/$$/status",
                Some(user.clone())
            ),
            "65533\n65532\n65532 65531\nCapEff:\t0000000000000000\n"
        );
        let alices = Program::new(&["true".into()], Some(user)).unwrap();
        for (name, value) in [
            ("HOME", "/home/alice"),
            ("USER", "alice"),
            ("LOGNAME", "alice"),
        ] {
            assert_eq!(alices.env.get(OsStr::new(name)), Some(&value.into()));
        }
    }
}
