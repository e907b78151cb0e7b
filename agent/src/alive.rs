//! A daemon's own socket: who asks there is told how it is, in one line of JSON. It is also how one agent finds
//! another.
//!
//! Nothing is read from who asks: a connection is the question. So there is nothing to parse, and who connects and does
//! nothing holds nobody up. What is answered is answered by the task that owns the line, or not at all: an answer is a
//! sign of life.
//!
//! The socket is made before the lock-in, 0600, in a directory that is root's. That it is the only one is what the lock
//! beside it says: it ends with its process, so a socket without it is a dead agent's.

use std::{
    fs::{self, DirBuilder},
    io::{self, Read as _},
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt as _, MetadataExt as _},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    fs::{FlockOperation, Mode, OFlags, chmod, flock, open},
    io::Errno,
    net::{
        AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
        listen, send, socket_with, sockopt::socket_peercred,
    },
};
use serde::{Deserialize, Serialize};

use crate::{
    coverage::Counts,
    record::{Civil, Ledger, WallTime},
};

/// How a daemon is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    pub state: State,
    /// When it was started, RFC 3339.
    pub since: String,
    pub pid: u32,
    pub version: String,
    /// Coverage records so far.
    pub coverage: Counts,
    pub bytes: Sums,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Probes are being placed.
    Starting,
    /// What was mapped at the start is probed or refused, and the ring is read.
    Ready,
    Stopping,
}

/// The ledger's bytes. What is lost is one sum: `stats` has its causes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sums {
    pub seen: u64,
    pub filtered: u64,
    pub over_limit: u64,
    pub lost: u64,
    pub delivered: u64,
    pub in_flight: u64,
}

impl From<&Ledger> for Sums {
    fn from(ledger: &Ledger) -> Sums {
        let bytes = &ledger.bytes;
        Sums {
            seen: bytes.seen,
            filtered: bytes.filtered,
            over_limit: bytes.over_limit,
            lost: bytes.lost.sum(),
            delivered: bytes.delivered,
            in_flight: bytes.in_flight,
        }
    }
}

/// To the second: `2026-01-31T09:30:00Z`.
pub fn written(moment: WallTime) -> String {
    let Civil {
        year,
        month,
        day,
        hour,
        minute,
        second,
        ..
    } = moment.civil();
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

/// Where a daemon is asked.
#[derive(Debug)]
pub struct Door {
    socket: OwnedFd,
    /// Its owner may ask, as root may.
    uid: u32,
    /// While it is held there is no other daemon.
    _lock: OwnedFd,
}

impl Door {
    /// Makes the socket, in the place of one whose daemon is dead. `uid` may ask beside root.
    pub fn open(path: &Path, uid: u32) -> Result<Door, DoorError> {
        let wrong = |errno: Errno| DoorError::Make {
            path: path.to_owned(),
            error: errno.into(),
        };
        make_directory(path)?;
        let lock = path.with_extension("lock");
        let flags = OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let lock = open(&lock, flags, Mode::RUSR | Mode::WUSR).map_err(wrong)?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK) => {
                return Err(DoorError::Taken {
                    path: path.to_owned(),
                    pid: ask(path, Duration::from_secs(1)).ok().map(|it| it.pid),
                });
            }
            Err(error) => return Err(wrong(error)),
        }
        Ok(Door {
            socket: listen_at(path).map_err(wrong)?,
            uid,
            _lock: lock,
        })
    }

    /// Tells everybody who has asked. Never waits: the line fits into any socket's buffer.
    pub fn answer(&self, status: impl Fn() -> Status) {
        while let Some(asking) = accept_one(&self.socket, self.uid) {
            let mut line = serde_json::to_vec(&status()).unwrap_or_default();
            line.push(b'\n');
            let _ = send(&asking, &line, SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        }
    }
}

impl AsFd for Door {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// So many may have asked and not be answered yet.
const WAITING: i32 = 16;

/// A socket 0600, in the place of a dead daemon's.
pub(crate) fn listen_at(path: &Path) -> Result<OwnedFd, Errno> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error),
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddrUnix::new(path)?)?;
    // Nobody can connect before it listens.
    chmod(path, Mode::RUSR | Mode::WUSR)?;
    listen(&socket, WAITING)?;
    Ok(socket)
}

/// The next of those who may ask: root and `uid`. All others find the connection closed.
pub(crate) fn accept_one(socket: &OwnedFd, uid: u32) -> Option<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    while let Ok(asking) = accept_with(socket, flags) {
        let may_ask = socket_peercred(&asking)
            .is_ok_and(|peer| peer.uid.is_root() || peer.uid.as_raw() == uid);
        if may_ask {
            return Some(asking);
        }
    }
    None
}

/// Ours alone: who can write there puts another socket in the place of ours.
fn make_directory(path: &Path) -> Result<(), DoorError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(DoorError::Make {
                path: directory.to_owned(),
                error,
            });
        }
        _ => {}
    }
    let metadata = fs::metadata(directory).map_err(|error| DoorError::Make {
        path: directory.to_owned(),
        error,
    })?;
    if metadata.uid() != rustix::process::geteuid().as_raw() || metadata.mode() & 0o022 != 0 {
        return Err(DoorError::Open(directory.to_owned()));
    }
    Ok(())
}

/// Asks the daemon behind `path`.
pub fn ask(path: &Path, patience: Duration) -> Result<Status, AskError> {
    let until = Instant::now() + patience;
    let socket = connect(path, until)?;
    let mut line = Vec::new();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(AskError::Silent(patience));
        }
        socket.set_read_timeout(Some(left))?;
        let mut chunk = [0; 1024];
        match (&socket).read(&mut chunk) {
            Ok(0) => break,
            Ok(read) => line.extend_from_slice(&chunk[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                return Err(AskError::Silent(patience));
            }
            Err(error) => return Err(error.into()),
        }
        if line.len() > LINE_MAX {
            return Err(AskError::Nonsense);
        }
    }
    match line[..] {
        [] => Err(AskError::Refused),
        _ => serde_json::from_slice(&line).map_err(|_| AskError::Nonsense),
    }
}

const LINE_MAX: usize = 16 << 10;

/// A daemon that accepts nobody has a full queue: that, too, is waited for no longer than `until`.
pub(crate) fn connect(path: &Path, until: Instant) -> Result<UnixStream, AskError> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(path)?;
    loop {
        match rustix::net::connect(&socket, &address) {
            Ok(()) => break,
            Err(Errno::AGAIN) if Instant::now() < until => {
                thread::sleep(Duration::from_millis(10));
            }
            Err(Errno::AGAIN) => return Err(AskError::Full),
            Err(Errno::NOENT | Errno::CONNREFUSED) => return Err(AskError::Nobody),
            Err(error) => return Err(error.into()),
        }
    }
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    #[error("make {}: {error}", path.display())]
    Make { path: PathBuf, error: io::Error },
    #[error("{} can be written to by others, or is another user's: give it to root alone", .0.display())]
    Open(PathBuf),
    #[error(
        "another daemon{} watches this machine, and answers at {}: one is enough",
        of(*pid),
        path.display()
    )]
    Taken { path: PathBuf, pid: Option<u32> },
}

fn of(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

#[derive(Debug, thiserror::Error)]
pub enum AskError {
    #[error("nobody listens there")]
    Nobody,
    #[error("it does not answer within {0:?}")]
    Silent(Duration),
    #[error("it does not answer, and too many have asked before")]
    Full,
    #[error("it answers to root and to its own user only")]
    Refused,
    #[error("what listens there is no vortex-agent of this version")]
    Nonsense,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for AskError {
    fn from(error: Errno) -> AskError {
        AskError::Io(error.into())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    /// A directory of its own, gone afterwards.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let id = std::process::id();
            let path = std::env::temp_dir().join(format!("vortex-alive-{id}-{name}"));
            DirBuilder::new().mode(0o700).create(&path).unwrap();
            Scratch(path)
        }

        fn socket(&self) -> PathBuf {
            self.0.join("agent.sock")
        }
    }

    #[test]
    fn a_cause_is_said_once() {
        let error = Door::open(Path::new("/proc/no-such/agent.sock"), 0).unwrap_err();
        let said = format!("{:#}", anyhow::Error::from(error));
        assert_eq!(said.matches("(os error").count(), 1, "{said}");
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn status() -> Status {
        Status {
            state: State::Ready,
            since: written(WallTime(1_769_851_800_000_000_000)),
            pid: 7,
            version: "0.1.0".into(),
            coverage: Counts::default(),
            bytes: Sums {
                seen: 5,
                delivered: 5,
                ..Sums::default()
            },
        }
    }

    const PATIENCE: Duration = Duration::from_secs(5);

    #[test]
    fn who_asks_is_told() {
        let scratch = Scratch::new("told");
        let path = scratch.socket();
        let uid = rustix::process::geteuid().as_raw();
        let door = Door::open(&path, uid).unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let asked = thread::spawn(move || ask(&path, PATIENCE));
        while !asked.is_finished() {
            door.answer(status);
            thread::sleep(Duration::from_millis(1));
        }
        let told = asked.join().unwrap().unwrap();
        assert_eq!(told, status());
        assert_eq!(told.since, "2026-01-31T09:30:00Z");
    }

    /// What other tests have forked holds copies of our descriptors while it lives: a lock and a socket that we have
    /// closed are still there.
    fn soon(is_so: impl Fn() -> bool) -> bool {
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if is_so() {
                return true;
            }
            thread::sleep(Duration::from_millis(10));
        }
        false
    }

    #[test]
    fn silence_is_no_life() {
        let scratch = Scratch::new("silence");
        let path = scratch.socket();
        assert!(matches!(ask(&path, PATIENCE), Err(AskError::Nobody)));
        let door = Door::open(&path, 0).unwrap();
        let little = Duration::from_millis(20);
        // Until its queue is full, and then.
        let asked: Vec<_> = (0..2 * WAITING).map(|_| ask(&path, little)).collect();
        assert!(matches!(asked[0], Err(AskError::Silent(_))));
        assert!(asked.iter().all(Result::is_err));
        drop(door);
        assert!(soon(|| matches!(ask(&path, little), Err(AskError::Nobody))));
    }

    #[test]
    fn one_at_a_time() {
        let scratch = Scratch::new("one");
        let path = scratch.socket();
        let first = Door::open(&path, 0).unwrap();
        let second = Door::open(&path, 0).unwrap_err();
        assert!(matches!(second, DoorError::Taken { pid: None, .. }));
        // As if it had been killed: the socket stays.
        drop(first);
        assert!(path.exists());
        assert!(soon(|| Door::open(&path, 0).is_ok()));
    }

    #[test]
    fn of_two_that_start_at_once_one_wins() {
        let scratch = Scratch::new("race");
        let path = scratch.socket();
        let start = std::sync::Barrier::new(8);
        let open = || {
            start.wait();
            Door::open(&path, 0)
        };
        let doors: Vec<_> = thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(open)).collect();
            threads.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(doors.iter().filter(|door| door.is_ok()).count(), 1);
    }

    #[test]
    fn a_directory_of_others_is_refused() {
        let scratch = Scratch::new("others");
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o777)).unwrap();
        let refused = Door::open(&scratch.socket(), 0).unwrap_err();
        assert!(matches!(refused, DoorError::Open(_)));
    }
}
