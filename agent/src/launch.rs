//! Starts the privileged half, and is started as it.
//!
//! The halves talk through one `SOCK_SEQPACKET` pair. The half's end is its stdin: the one descriptor
//! that sudo hands on. A sudo that records its input puts a pipe there instead; then the half dials
//! an address that the pipeline listens on. Under sudo both ways are offered and the half chooses.
//!
//! The user can't signal a half that sudo runs. Closing the socket is the off switch, and it is
//! enough: so both ends are close-on-exec, and nobody keeps a copy.

use std::{
    env, io,
    io::{IsTerminal as _, Read as _},
    os::{
        fd::{AsFd as _, BorrowedFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    process::{Child, Command, ExitStatus, Stdio},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    fs::{Mode, OFlags, open},
    io::{Errno, fcntl_dupfd_cloexec},
    net::{
        AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
        connect, listen, recv, socket_with, socketpair,
        sockopt::{socket_peercred, socket_type},
    },
    process::{Pid, PidfdFlags, pidfd_open},
    rand::{GetRandomFlags, getrandom},
    stdio::{dup2_stdin, stdin},
    thread::no_new_privs,
};

use crate::{cli::Attach, confine::harden};

/// Starts the half with these options: directly if we are root, else by sudo. It loads its programs
/// while the caller goes on.
pub fn start(options: &Attach) -> Result<Starting, LaunchError> {
    if rustix::process::geteuid().is_root() {
        // Not by path: an upgrade may have replaced the file.
        let mut half = Command::new("/proc/self/exe");
        half.arg0("vortex-agent").args(options.to_args());
        // The terminal's Ctrl-C is not for it.
        half.process_group(0);
        return spawn(half, None);
    }
    if no_new_privs().map_err(step("ask for no_new_privs"))? {
        return Err(LaunchError::NoNewPrivs);
    }
    let this = env::current_exe().map_err(step("find our own executable"))?;
    let listener = Listener::new().map_err(step("listen for the privileged half"))?;
    let options = Attach {
        connect: Some(listener.name.clone()),
        ..options.clone()
    };
    let mut sudo = Command::new("sudo");
    if !io::stdin().is_terminal() {
        sudo.arg("-n");
        // Its one line becomes part of ours.
        sudo.stderr(Stdio::piped());
    }
    sudo.arg("--").arg(this).args(options.to_args());
    spawn(sudo, Some(listener))
}

/// The half's process exists; with sudo, a person may have to type a password first.
#[derive(Debug)]
pub struct Starting {
    child: Child,
    socket: OwnedFd,
    /// With sudo only.
    listener: Option<Listener>,
}

/// Takes the `Command` by value: it holds the other end of the socket, and while it lives the half's
/// end is never seen.
fn spawn(mut command: Command, listener: Option<Listener>) -> Result<Starting, LaunchError> {
    let (socket, theirs) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
    .map_err(step("make a socket pair"))?;
    let program = command.get_program().to_string_lossy().into_owned();
    command.stdin(Stdio::from(theirs)).stdout(Stdio::null());
    match command.spawn() {
        Ok(child) => Ok(Starting {
            child,
            socket,
            listener,
        }),
        Err(error) => Err(LaunchError::Spawn { program, error }),
    }
}

impl Starting {
    /// Waits until the half has shown which way it came, and so for a person at sudo's prompt. As
    /// root there is one way and nothing to wait for.
    ///
    /// Before the lock-in, and while SIGINT still has its default: Ctrl-C at the prompt ends all.
    pub fn meet(self) -> Result<Half, LaunchError> {
        let Self {
            mut child,
            socket,
            listener,
        } = self;
        let Some(listener) = listener else {
            return Ok(Half { child, socket });
        };
        let pid = Pid::from_child(&child);
        let end = pidfd_open(pid, PidfdFlags::empty()).map_err(step("open sudo's pidfd"))?;
        // Closed by a sudo that put a pipe in its place: then the half dials.
        let mut pair = Some(socket);
        loop {
            let mut waiting = vec![
                PollFd::new(&listener.socket, PollFlags::IN),
                PollFd::new(&end, PollFlags::IN),
            ];
            waiting.extend(pair.iter().map(|pair| PollFd::new(pair, PollFlags::IN)));
            match poll(&mut waiting, None) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(error) => return Err(step("wait for the privileged half")(error)),
            }
            let dialed = waiting[0].revents();
            let ended = waiting[1].revents();
            let spoke = waiting.get(2).map_or(PollFlags::empty(), PollFd::revents);
            if dialed.contains(PollFlags::IN)
                && let Some(socket) = listener.accept()
            {
                return Ok(Half { child, socket });
            }
            match pair.take_if(|_| !spoke.is_empty()) {
                // It may have ended since: what it said last tells why.
                Some(socket) if has_message(&socket) => return Ok(Half { child, socket }),
                // Woken for nothing, or closed.
                other => pair = other.filter(|_| !spoke.contains(PollFlags::HUP)).or(pair),
            }
            if !ended.is_empty() {
                let status = child.wait().map_err(step("wait for sudo"))?;
                return Err(LaunchError::Refused {
                    status,
                    said: last_words(&mut child),
                });
            }
        }
    }
}

/// What a process that ended wrote to its stderr, in one line and in brackets; nothing if it wrote to
/// ours.
fn last_words(child: &mut Child) -> String {
    let Some(stderr) = child.stderr.take() else {
        return String::new();
    };
    let mut text = String::new();
    let _ = stderr.take(1024).read_to_string(&mut text);
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.is_empty() {
        line
    } else {
        format!(" ({line})")
    }
}

fn has_message(socket: &OwnedFd) -> bool {
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    recv(socket, &mut [0; 1], flags).is_ok_and(|(_, length)| length > 0)
}

/// The privileged half, seen from the pipeline.
#[derive(Debug)]
pub struct Half {
    /// One packet is one message. End of file: the half is gone.
    pub socket: OwnedFd,
    child: Child,
}

impl Half {
    /// How it ended, if it has: for the message. It outlives the agent by the time that detaching
    /// takes, so nobody waits for it.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

/// The address that a half dials whose stdin is not the socket.
#[derive(Debug)]
struct Listener {
    socket: OwnedFd,
    name: String,
}

impl Listener {
    fn new() -> rustix::io::Result<Self> {
        let mut random = [0; 16];
        getrandom(&mut random, GetRandomFlags::empty())?;
        let name = format!("vortex-{:032x}", u128::from_ne_bytes(random));
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
        bind(
            &socket,
            &SocketAddrUnix::new_abstract_name(name.as_bytes())?,
        )?;
        listen(&socket, 1)?;
        Ok(Self { socket, name })
    }

    /// Root's connection. Somebody else's is closed: the name can be read in `ps`.
    fn accept(&self) -> Option<OwnedFd> {
        let socket = accept_with(&self.socket, SocketFlags::CLOEXEC).ok()?;
        let peer = socket_peercred(&socket).ok()?;
        peer.uid.is_root().then_some(socket)
    }
}

/// The pipeline, seen from the half.
#[derive(Debug)]
pub struct Pipeline {
    pub socket: OwnedFd,
    /// Who made the socket: the user for whom we work. From the kernel, not from the environment.
    pub pid: u32,
    pub uid: u32,
}

/// First call of `attach`. The half ends when its socket does, and by nothing that a terminal, an
/// init or a closed pipe sends: it has probes to take out.
pub fn become_half() -> Result<(), LaunchError> {
    harden().map_err(step("make the process undumpable"))?;
    ignore_signals();
    Ok(())
}

/// Whoever sends these means the pipeline, and that tells what to do.
pub fn ignore_signals() {
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGTSTP,
        libc::SIGPIPE,
    ] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

/// The way to the pipeline: stdin if it is a socket, else the address that sudo's caller listens on.
pub fn inherit_or_dial(name: Option<&str>) -> Result<Pipeline, LaunchError> {
    let sudo_uid = env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
    let pipeline = answer(stdin(), name, sudo_uid)?;
    // Else stdin is a copy of the socket that nobody would think of.
    let null = open("/dev/null", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(step("open /dev/null"))?;
    dup2_stdin(null).map_err(step("replace stdin"))?;
    Ok(pipeline)
}

fn answer(
    stdin: BorrowedFd<'_>,
    name: Option<&str>,
    sudo_uid: Option<u32>,
) -> Result<Pipeline, LaunchError> {
    if socket_type(stdin) == Ok(SocketType::SEQPACKET) {
        let socket = fcntl_dupfd_cloexec(stdin, 3).map_err(step("keep the socket"))?;
        return Pipeline::on(socket);
    }
    let name = name.ok_or(LaunchError::Internal)?;
    let pipeline = Pipeline::on(dial(name).map_err(step("connect to the agent"))?);
    // Anybody may have taken the name; orders come from the user who called sudo.
    pipeline.and_then(|pipeline| match sudo_uid {
        Some(uid) if uid == pipeline.uid => Ok(pipeline),
        _ => Err(LaunchError::Stranger(pipeline.uid)),
    })
}

fn dial(name: &str) -> rustix::io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let address = SocketAddrUnix::new_abstract_name(name.as_bytes())?;
    connect(&socket, &address)?;
    Ok(socket)
}

impl Pipeline {
    fn on(socket: OwnedFd) -> Result<Self, LaunchError> {
        let peer = socket_peercred(socket.as_fd()).map_err(step("ask who the agent is"))?;
        Ok(Self {
            socket,
            pid: peer.pid.as_raw_nonzero().get() as u32,
            uid: peer.uid.as_raw(),
        })
    }
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> LaunchError {
    move |error| LaunchError::Step {
        what,
        error: error.into(),
    }
}

/// The cause stands inside of the line, before the way out; as a `source` it would be told once more behind it.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("start the privileged half: {what}: {error}")]
    Step {
        what: &'static str,
        error: io::Error,
    },
    #[error(
        "start the privileged half: run {program}: {error}{}",
        way_out(program)
    )]
    Spawn { program: String, error: io::Error },
    #[error(
        "start the privileged half: sudo can't work here, no_new_privs is set (by a container or a \
         sandbox): run vortex-agent as root outside of it"
    )]
    NoNewPrivs,
    #[error(
        "start the privileged half: sudo ended with {status}{said}: run `sudo -v` first, or \
         vortex-agent as root"
    )]
    Refused { status: ExitStatus, said: String },
    #[error("`attach` is started by `vortex-agent run`: stdin is no socket of an agent")]
    Internal,
    #[error("who listens is uid {0} and not who called sudo: no orders are taken from there")]
    Stranger(u32),
}

fn way_out(program: &str) -> &'static str {
    match program {
        "sudo" => ": install sudo, or run vortex-agent as root",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use rustix::{
        net::{RecvFlags, SendFlags, recv, send},
        pipe::pipe,
    };

    use super::*;

    /// The other side of the tests below, in a process of its own.
    #[test]
    #[ignore = "run by the tests beside it"]
    fn half() {
        become_half().unwrap();
        let name = env::var("TEST_CONNECT").ok();
        let pipeline = inherit_or_dial(name.as_deref()).unwrap();
        assert_eq!(pipeline.uid, rustix::process::getuid().as_raw());
        send(&pipeline.socket, b"hello", SendFlags::NOSIGNAL).unwrap();
        let mut order = [0; 16];
        let (n, _) = recv(&pipeline.socket, &mut order, RecvFlags::empty()).unwrap();
        send(&pipeline.socket, &order[..n], SendFlags::NOSIGNAL).unwrap();
        let (end, _) = recv(&pipeline.socket, &mut order, RecvFlags::empty()).unwrap();
        assert_eq!(end, 0, "a packet of no bytes is the end");
    }

    fn this_test_as_half() -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--ignored", "--exact", "launch::tests::half"]);
        command
    }

    fn converse(half: &Half) {
        let receive = || {
            let mut packet = [0; 16];
            let (n, _) = recv(&half.socket, &mut packet, RecvFlags::empty()).unwrap();
            packet[..n].to_vec()
        };
        assert_eq!(receive(), b"hello");
        send(&half.socket, b"order", SendFlags::NOSIGNAL).unwrap();
        assert_eq!(receive(), b"order");
    }

    fn ends_well(half: Half) {
        let Half { socket, mut child } = half;
        drop(socket);
        assert!(child.wait().unwrap().success());
    }

    #[test]
    fn by_stdin() {
        let half = spawn(this_test_as_half(), None).unwrap().meet().unwrap();
        converse(&half);
        ends_well(half);
    }

    #[test]
    fn by_stdin_although_it_could_dial() {
        let listener = Listener::new().unwrap();
        let mut command = this_test_as_half();
        command.env("TEST_CONNECT", &listener.name);
        let half = spawn(command, Some(listener)).unwrap().meet().unwrap();
        converse(&half);
        ends_well(half);
    }

    /// As under a sudo that records its input: stdin is a pipe.
    #[test]
    fn by_dialing() {
        if !rustix::process::getuid().is_root() {
            eprintln!("skipped: only root's connection is accepted");
            return;
        }
        let listener = Listener::new().unwrap();
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec </dev/null; \"$0\" \"$@\""])
            .arg(env::current_exe().unwrap())
            .args(this_test_as_half().get_args())
            .env("TEST_CONNECT", &listener.name)
            .env("SUDO_UID", "0");
        let half = spawn(command, Some(listener)).unwrap().meet().unwrap();
        converse(&half);
        ends_well(half);
    }

    #[test]
    fn a_refusing_sudo_is_told() {
        let listener = Listener::new().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "exit 1"]);
        let refused = spawn(command, Some(listener)).unwrap().meet();
        let error = refused.unwrap_err().to_string();
        assert!(
            error.contains("exit status: 1") && error.contains("sudo -v"),
            "{error}"
        );
    }

    #[test]
    fn a_missing_sudo_is_told() {
        let missing = Command::new("no-such-sudo-here");
        let error = anyhow::Error::from(spawn(missing, None).unwrap_err());
        assert_eq!(
            format!("{error:#}"),
            "start the privileged half: run no-such-sudo-here: No such file or directory (os error 2)"
        );
    }

    #[test]
    fn strangers_give_no_orders() {
        let listener = Listener::new().unwrap();
        let (pipe, _) = pipe().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let answer = |name, sudo_uid| answer(pipe.as_fd(), name, sudo_uid);
        assert!(matches!(answer(None, None), Err(LaunchError::Internal)));
        for sudo_uid in [None, Some(uid + 1)] {
            let refused = answer(Some(&listener.name), sudo_uid);
            assert!(matches!(refused, Err(LaunchError::Stranger(_))));
            // Closed by the other side: nobody is there.
            while listener.accept().is_some() {}
        }
        assert!(answer(Some(&listener.name), Some(uid)).is_ok());
    }
}
