//! Who reads a daemon's configuration again: a process of its own, started before the lock-in.
//!
//! The pipeline may open no file, and the privileged half parses nothing; names of users and the file itself need
//! somebody who does both. It is root without a capability, so it reads what root owns, and it hears nothing but "read
//! it again" from the pipeline. What it says is the text of a file that is valid as a whole, with the users' names looked
//! up and the directories of control groups open, or why it is not. It ends when the pipeline does.

use std::{
    fmt::Display,
    fs::File,
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::inotify,
    io::Errno,
};
use serde::{Deserialize, Serialize};

use crate::{
    cgroup::Groups,
    command::close_all_but,
    config::{Config, ConfigError, Owner, Settings},
    confine::{ConfineError, lock_in_reader},
    half::{self, Received, clip},
    helper::Helper,
};

/// The reader, seen from the pipeline.
#[derive(Debug)]
pub struct Reader(Helper);

/// Pipeline → reader.
#[derive(Debug, Serialize, Deserialize)]
enum Ask {
    Again,
}

/// Reader → pipeline.
#[derive(Debug, Serialize, Deserialize)]
pub enum Said {
    /// The file, which is valid, the users of its filter by number, and its control groups. With their directories, if
    /// the kernel side can ask for them.
    Text {
        text: String,
        uids: Vec<u32>,
        groups: Groups,
    },
    /// Nothing of it is taken, and why.
    Refused(String),
}

/// What was meant, without a file or a name to look up.
#[derive(Debug)]
pub struct Meant {
    pub config: Config,
    pub groups: Groups,
    pub directories: Vec<OwnedFd>,
}

impl Said {
    pub fn meant(self, path: &Path, directories: Vec<OwnedFd>) -> Result<Meant, String> {
        let (text, uids, groups) = match self {
            Said::Text { text, uids, groups } => (text, uids, groups),
            Said::Refused(why) => return Err(why),
        };
        let config = Settings::parse(&text, path).and_then(|settings| {
            let uid = settings.uid.as_ref();
            let uid = uid.map(|_| uids.into_iter().map(Owner::Uid).collect());
            Config::try_from(Settings { uid, ..settings })
        });
        Ok(Meant {
            config: config.map_err(|error| error.to_string())?,
            groups,
            directories,
        })
    }
}

impl Reader {
    /// Starts it. `text` is what was read of the file so far. While this process has one thread.
    pub fn start(path: &Path, text: &str) -> io::Result<Reader> {
        let helper = Helper::start(c"vortex-reader", |socket| {
            // Not the lock of the daemon, nor its manager's socket.
            close_all_but(socket.as_raw_fd(), socket.as_raw_fd());
            if become_little().is_ok() {
                Watch::new(path, text).serve(&socket);
            }
        })?;
        Ok(Reader(helper))
    }

    pub fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Answered by [`Reader::said`], also if nothing has changed.
    pub fn ask(&self) -> io::Result<()> {
        half::send(&self.0.socket, &Ask::Again, &[])
    }

    /// What it has said since the last time. `End`: it is gone.
    pub fn said(&self) -> io::Result<Received<Said>> {
        half::receive(&self.0.socket)
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// The terminal's signals are the pipeline's, with which this process ends. SIGIO is what somebody is announced by who
/// would write a leased file.
fn become_little() -> Result<(), ConfineError> {
    for signal in [
        libc::SIGINT,
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGQUIT,
        libc::SIGIO,
    ] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    lock_in_reader()?;
    Ok(())
}

/// The file, and what is known of it.
struct Watch {
    path: PathBuf,
    text: String,
    /// Watches the directory: an editor or a package puts a new file in the place of the old one.
    changes: Option<OwnedFd>,
    /// To be sent with what is said next.
    directories: Vec<OwnedFd>,
}

/// So long nothing more must happen, and at most so long it is waited for.
const CALM: Duration = Duration::from_millis(100);
const CALM_MAX: Duration = Duration::from_secs(1);
/// What fits into a message with room to spare.
const TEXT_MAX: usize = 48 << 10;

impl Watch {
    fn new(path: &Path, text: &str) -> Watch {
        Watch {
            path: path.to_owned(),
            text: text.to_owned(),
            changes: changes(path).ok(),
            directories: Vec::new(),
        }
    }

    fn serve(&mut self, socket: &OwnedFd) {
        loop {
            let mut fds = vec![PollFd::new(socket, PollFlags::IN)];
            fds.extend(self.changes.iter().map(|fd| PollFd::new(fd, PollFlags::IN)));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let said = match half::receive(socket) {
                Ok(Received::Message(Ask::Again, _)) => Some(self.when_written()),
                Ok(Received::Nothing) => self.if_changed(),
                Ok(Received::End) | Err(_) => return,
            };
            if let Some(said) = said
                && self.send(socket, &said).is_err()
            {
                return;
            }
        }
    }

    /// Says nothing of a file that was written again as it was.
    fn if_changed(&mut self) -> Option<Said> {
        if !self.has_happened() {
            return None;
        }
        let until = Instant::now() + CALM_MAX;
        while Instant::now() < until && self.happens_within(CALM) {
            self.has_happened();
        }
        let before = self.text.clone();
        let said = self.read();
        let is_news = self.text != before || matches!(said, Said::Refused(_));
        is_news.then_some(said)
    }

    /// The first half of a file may be valid, too: who asks too early is told when it is closed.
    fn when_written(&mut self) -> Said {
        let until = Instant::now() + CALM_MAX;
        while self.is_being_written() && Instant::now() < until {
            self.happens_within(CALM);
        }
        self.has_happened();
        match self.is_being_written() {
            true => Said::Refused(clip(&format!(
                "{} is being written: it is read when that is closed",
                self.path.display()
            ))),
            false => self.read(),
        }
    }

    fn send(&mut self, socket: &OwnedFd, said: &Said) -> io::Result<()> {
        let directories = std::mem::take(&mut self.directories);
        let fds: Vec<BorrowedFd<'_>> = directories.iter().map(AsFd::as_fd).collect();
        half::send(socket, said, &fds)
    }

    fn read(&mut self) -> Said {
        let refused = |error: &dyn Display| Said::Refused(clip(&format!("{error:#}")));
        let config = match self.settings() {
            Ok(config) => config,
            Err(error) => return refused(&error),
        };
        match Groups::open(&config.filter.cgroups) {
            Ok((groups, directories)) => {
                self.directories = directories;
                Said::Text {
                    text: self.text.clone(),
                    uids: config.filter.uids,
                    groups,
                }
            }
            Err(error) => refused(&error),
        }
    }

    fn settings(&mut self) -> Result<Config, ConfigError> {
        let text = Settings::text(&self.path)?;
        let unreadable = |why: &str| ConfigError::Read {
            path: self.path.clone(),
            error: io::Error::other(why),
        };
        if text.len() > TEXT_MAX {
            return Err(unreadable("it is larger than 48 KiB"));
        }
        // All filters and the policy would be gone: rather what is left of a file that found no room.
        if text.trim_ascii().is_empty() {
            return Err(unreadable("it is empty"));
        }
        self.text = text;
        Config::try_from(Settings::parse(&self.text, &self.path)?)
    }

    /// Has anything been done to the file? A file that is being written is not looked at before it is closed. A name
    /// with two dots is what Kubernetes puts a new version under.
    fn has_happened(&self) -> bool {
        let Some(changes) = &self.changes else {
            return false;
        };
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut events = inotify::Reader::new(changes, &mut buffer);
        let mut has_happened = false;
        while let Ok(event) = events.next() {
            let name = event.file_name().map(|name| name.to_bytes());
            let file = self.path.file_name().map(|name| name.as_encoded_bytes());
            has_happened |= name == file || name.is_some_and(|name| name.starts_with(b".."));
        }
        has_happened
    }

    /// Has somebody opened it to write? Then it can't be leased to who reads it (`fcntl(2)`). Where files can't be leased
    /// at all nobody knows.
    fn is_being_written(&self) -> bool {
        let Ok(file) = File::open(&self.path) else {
            return false;
        };
        // SAFETY: plain numbers. The descriptor's end is the lease's.
        let leased = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_RDLCK) };
        leased < 0 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock
    }

    fn happens_within(&self, time: Duration) -> bool {
        let Some(changes) = &self.changes else {
            return false;
        };
        let time = Timespec::try_from(time).expect("a moment");
        poll(&mut [PollFd::new(changes, PollFlags::IN)], Some(&time)).is_ok_and(|ready| ready > 0)
    }
}

fn changes(path: &Path) -> rustix::io::Result<OwnedFd> {
    use inotify::{CreateFlags, WatchFlags};
    let directory = match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    };
    let changes = inotify::init(CreateFlags::NONBLOCK | CreateFlags::CLOEXEC)?;
    let what = WatchFlags::CLOSE_WRITE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
    inotify::add_watch(&changes, directory, what)?;
    Ok(changes)
}
