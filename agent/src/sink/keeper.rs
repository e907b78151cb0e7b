//! The process that keeps the files of one rotating output: it begins the next one, compresses old ones and
//! removes the oldest.
//!
//! The pipeline, once it is locked in, opens no file and renames none, and may be nobody, whom no directory lets in.
//! So this one is forked before, keeps the user that it was started as, without a capability, and can reach one
//! directory. It reads two words from the pipeline and the records that were written.
//!
//! What a kill leaves at any moment is put right at the next start: `FILE.next` and `*.partial` are nothing yet, and
//! of an old file and its compressed copy the copy is whole.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt::Display;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;
use rustix::time::ClockId;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::rotation::{Compress, Rotate, is_stamp, stamp};
use crate::clock::nanoseconds;
use crate::command::close_all_but;
use crate::confine::{self, Mode as SeccompMode};
use crate::half::{self, Received};
use crate::helper::Helper;
use crate::record::WallTime;

/// The pipeline's end.
#[derive(Debug)]
pub(super) struct Keeper(Helper);

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// A file to follow the one that is written.
    Next,
    /// Nothing more will be written to the one before.
    Switched,
}

/// With the file, if there is one.
#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    /// Why there is none.
    failed: Option<String>,
    /// What went wrong with old files since the last reply.
    trouble: Option<String>,
}

/// What a rotation came to.
pub(super) struct Turn {
    /// `None`: the old one has to do.
    pub(super) file: Option<File>,
    pub(super) trouble: Option<String>,
}

impl Keeper {
    /// Forks it. Before the first thread, as any fork, and before the lock-in.
    pub(super) fn start(place: Place) -> io::Result<Keeper> {
        let helper = Helper::start(c"vortex-keeper", |socket| {
            let _ = keep(place, &socket);
        })?;
        Ok(Keeper(helper))
    }

    pub(super) fn pid(&self) -> u32 {
        self.0.pid
    }

    /// Asks for the next file, and waits as long as a write would: for the file system.
    pub(super) fn turn(&self) -> Turn {
        let asked = half::send(&self.0.socket, &Request::Next, &[]);
        match asked.and_then(|()| receive::<Reply>(&self.0.socket)) {
            Ok(Some((reply, mut fds))) => {
                let file = fds.pop().map(File::from);
                if file.is_some() {
                    // Should it not be told, the old file stays as it is until the next start.
                    let _ = half::send(&self.0.socket, &Request::Switched, &[]);
                }
                let of_old = |why| format!("{why}: an old file stays as it is");
                Turn {
                    file,
                    trouble: reply.failed.map(same_file).or(reply.trouble.map(of_old)),
                }
            }
            Ok(None) => Turn::failed("its process has ended"),
            Err(error) => Turn::failed(&error.to_string()),
        }
    }
}

impl Turn {
    fn failed(why: &str) -> Turn {
        Turn {
            file: None,
            trouble: Some(same_file(why)),
        }
    }
}

fn same_file(why: impl Display) -> String {
    format!("{why}: the records go on in the same file")
}

pub(super) fn now() -> WallTime {
    WallTime(nanoseconds(ClockId::Realtime))
}

/// Waits for a message. `None`: the other end has gone.
fn receive<M: DeserializeOwned>(socket: &OwnedFd) -> io::Result<Option<(M, Vec<OwnedFd>)>> {
    loop {
        match half::receive(socket)? {
            Received::Message(message, fds) => return Ok(Some((message, fds))),
            Received::End => return Ok(None),
            Received::Nothing => {}
        }
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// A directory, and the file in it that is written.
#[derive(Debug)]
pub(super) struct Place {
    directory: OwnedFd,
    name: OsString,
    rotate: Rotate,
    /// The stamps of old files, by age.
    old: BTreeSet<String>,
}

impl Place {
    /// Opens the directory, and tidies up what an earlier run left there.
    pub(super) fn open(path: &Path, rotate: Rotate) -> io::Result<Place> {
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let name = path.file_name().ok_or(Errno::ISDIR)?.to_owned();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(parent, flags, Mode::empty())?;
        // Without a capability root gets into its own only.
        let owner = rustix::fs::fstat(&directory)?.st_uid;
        if rustix::process::geteuid().is_root() && owner != 0 {
            return Err(io::Error::other(format!(
                "to rotate it its directory must belong to root, and belongs to user {owner}"
            )));
        }
        let mut place = Place {
            directory,
            name,
            rotate,
            old: BTreeSet::new(),
        };
        place.tidy_up()?;
        Ok(place)
    }

    fn tidy_up(&mut self) -> io::Result<()> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.directory)? {
            names.push(OsString::from_vec(entry?.file_name().to_bytes().to_vec()));
        }
        for name in &names {
            let Some(rest) = self.behind_name(name) else {
                continue;
            };
            let (stamp, extension) = rest.split_at(rest.find('Z').map_or(0, |at| at + 1));
            if rest == "next" || is_stamp(stamp) && extension.ends_with(PARTIAL) {
                self.remove(name)?;
            } else if is_stamp(stamp) && [".gz", ".zst", ""].contains(&extension) {
                self.old.insert(stamp.to_owned());
            }
        }
        for stamp in &self.old {
            let plain = self.named(stamp);
            let is_there = |extension| names.contains(&joined(&plain, extension));
            if is_there("") && (is_there(".gz") || is_there(".zst")) {
                self.remove(&plain)?;
            }
        }
        Ok(())
    }

    /// What follows `FILE.`
    fn behind_name<'a>(&self, name: &'a OsStr) -> Option<&'a str> {
        let rest = name.as_bytes().strip_prefix(self.name.as_bytes())?;
        str::from_utf8(rest.strip_prefix(b".")?).ok()
    }

    fn named(&self, suffix: &str) -> OsString {
        joined(&joined(&self.name, "."), suffix)
    }

    fn remove(&self, name: &OsStr) -> io::Result<()> {
        match unlinkat(&self.directory, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Begins the next file, and gives the one that was written its own name. An error leaves all as it was.
    pub(super) fn next(&mut self, now: WallTime) -> io::Result<(File, Option<String>)> {
        let next = self.named("next");
        // There must be room for it before the old one is touched.
        self.remove(&next)?;
        let file = self.create(&next)?;
        let stamp = stamp(now, self.old.last().map(String::as_str));
        let moved = match self.rename(&self.name, &self.named(&stamp)) {
            Ok(()) => Some(stamp),
            // Somebody else has moved it, and has it.
            Err(Errno::NOENT) => None,
            Err(error) => {
                let _ = self.remove(&next);
                return Err(error.into());
            }
        };
        if let Err(error) = self.rename(&next, &self.name) {
            if let Some(stamp) = &moved {
                let _ = self.rename(&self.named(stamp), &self.name);
            }
            return Err(error.into());
        }
        if let Some(stamp) = &moved {
            self.old.insert(stamp.clone());
        }
        Ok((file, moved))
    }

    fn rename(&self, from: &OsStr, to: &OsStr) -> Result<(), Errno> {
        renameat(&self.directory, from, &self.directory, to)
    }

    /// A new file for its owner alone.
    fn create(&self, name: &OsStr) -> io::Result<File> {
        let flags = OFlags::WRONLY
            | OFlags::APPEND
            | OFlags::CREATE
            | OFlags::EXCL
            | OFlags::NOFOLLOW
            | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        Ok(openat(&self.directory, name, flags, mode)?.into())
    }

    /// Removes the oldest files.
    pub(super) fn prune(&mut self) -> io::Result<()> {
        while self.old.len() > self.rotate.keep
            && let Some(oldest) = self.old.pop_first()
        {
            for extension in ["", ".gz", ".zst"] {
                self.remove(&joined(&self.named(&oldest), extension))?;
            }
        }
        Ok(())
    }
}

const PARTIAL: &str = ".partial";

fn joined(name: &OsStr, more: &str) -> OsString {
    let mut name = name.to_owned();
    name.push(more);
    name
}

/// How long old files may still be compressed when the pipeline has gone.
const LAST: Duration = Duration::from_secs(30);

/// The process.
fn keep(place: Place, socket: &OwnedFd) -> Result<(), confine::ConfineError> {
    // A copy of another's pipe would keep its reader waiting.
    if let Ok(null) = File::options().read(true).write(true).open("/dev/null") {
        for standard in [0, 1, 2] {
            // SAFETY: takes integers. Nothing here reads or writes what they were.
            unsafe { libc::dup2(null.as_raw_fd(), standard) };
        }
    }
    close_all_but(socket.as_raw_fd(), place.directory.as_raw_fd());
    // It ends with the pipeline, which may have its last records before it.
    for signal in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT] {
        // SAFETY: ignoring a signal installs no handler.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    confine::keep_to(place.directory.as_fd(), SeccompMode::Enforce)?;
    let (rotated, rotations) = channel();
    let (done, is_done) = channel::<()>();
    for stamp in &place.old {
        // Those that an earlier run did not come to.
        let _ = rotated.send(stamp.clone());
    }
    let shared = Arc::new(Shared {
        place: Mutex::new(place),
        trouble: Mutex::new(None),
    });
    let of_thread = Arc::clone(&shared);
    let thread = thread::Builder::new()
        .name("compress".into())
        .spawn(move || {
            // SAFETY: takes integers. This thread is behind all others; who asks for a file is not.
            unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
            of_thread.compress_all(&rotations);
            drop(done);
        });
    if let Err(error) = thread {
        shared.complain(&error);
    }
    shared.place().prune().unwrap_or_else(|error| {
        shared.complain(&error);
    });
    shared.serve(socket, |stamp| {
        let _ = rotated.send(stamp);
    });
    drop(rotated);
    let _ = is_done.recv_timeout(LAST);
    Ok(())
}

struct Shared {
    place: Mutex<Place>,
    trouble: Mutex<Option<String>>,
}

impl Shared {
    fn place(&self) -> MutexGuard<'_, Place> {
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn trouble(&self) -> MutexGuard<'_, Option<String>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complain(&self, error: &io::Error) {
        self.trouble().get_or_insert_with(|| error.to_string());
    }

    /// Answers the pipeline until it has gone.
    fn serve(&self, socket: &OwnedFd, rotated: impl Fn(String)) {
        let mut before = None;
        while let Ok(Some((request, _))) = receive(socket) {
            match request {
                Request::Next => {
                    let (file, old, failed) = match self.turn() {
                        Ok((file, old)) => (Some(file), old, None),
                        Err(error) => (None, None, Some(half::clip(&error.to_string()))),
                    };
                    let reply = Reply {
                        failed,
                        trouble: self.trouble().take(),
                    };
                    let fds: Vec<_> = file.iter().map(|file| file.as_fd()).collect();
                    before = old;
                    if half::send(socket, &reply, &fds).is_err() {
                        break;
                    }
                }
                Request::Switched => before.take().into_iter().for_each(&rotated),
            }
        }
        // Nobody writes to it any more.
        before.into_iter().for_each(rotated);
    }

    fn turn(&self) -> io::Result<(File, Option<String>)> {
        let mut place = self.place();
        let turned = place.next(now())?;
        if let Err(error) = place.prune() {
            self.complain(&error);
        }
        Ok(turned)
    }

    /// The thread.
    fn compress_all(&self, rotations: &Receiver<String>) {
        for stamp in rotations {
            if let Err(error) = self.compress(&stamp) {
                self.complain(&error);
            }
        }
    }

    /// Makes a compressed copy and removes the file. What is no more, or not yet, is left.
    fn compress(&self, stamp: &str) -> io::Result<()> {
        let (plain, copy, partial, how, from, to) = {
            let place = self.place();
            let how = place.rotate.compress;
            let plain = place.named(stamp);
            if how == Compress::None || !place.old.contains(stamp) {
                return Ok(());
            }
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
            let from: File = match openat(&place.directory, &plain, flags, Mode::empty()) {
                Ok(file) => file.into(),
                // Compressed already.
                Err(Errno::NOENT) => return Ok(()),
                Err(error) => return Err(error.into()),
            };
            let copy = joined(&plain, how.extension());
            let partial = joined(&copy, PARTIAL);
            let to = place.create(&partial)?;
            (plain, copy, partial, how, from, to)
        };
        let copied = how.copy(from, &to).and_then(|()| to.sync_all());
        let place = self.place();
        // It may have become too old meanwhile.
        let is_wanted = copied.is_ok() && place.old.contains(stamp);
        if !is_wanted {
            place.remove(&partial)?;
            return copied;
        }
        place.rename(&partial, &copy)?;
        place.remove(&plain)
    }
}

impl Compress {
    fn copy(self, mut from: File, to: &File) -> io::Result<()> {
        match self {
            Compress::None => io::copy(&mut from, &mut &*to).map(drop),
            Compress::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(to, flate2::Compression::default());
                pour(&mut from, &mut encoder)?;
                encoder.finish().map(drop)
            }
            Compress::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(to, 3)?;
                pour(&mut from, &mut encoder)?;
                encoder.finish().map(drop)
            }
        }
    }
}

/// In larger pieces than `io::copy` takes.
fn pour(from: &mut File, to: &mut impl io::Write) -> io::Result<()> {
    let mut piece = vec![0; 256 << 10];
    loop {
        match from.read(&mut piece)? {
            0 => return Ok(()),
            length => to.write_all(&piece[..length])?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A directory of its own, gone afterwards.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("vortex-keeper-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }

        fn place(&self, keep: usize, compress: Compress) -> Place {
            let rotate = Rotate {
                size: 1,
                age: Duration::MAX,
                keep,
                compress,
            };
            Place::open(&self.0.join("log"), rotate).unwrap()
        }

        fn write(&self, name: &str, content: &str) {
            fs::write(self.0.join(name), content).unwrap();
        }

        /// Names and what is in them, by name.
        fn files(&self) -> Vec<(String, String)> {
            let entries = fs::read_dir(&self.0).unwrap();
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            let read = |name: String| {
                let content = fs::read(self.0.join(&name)).unwrap();
                (name, String::from_utf8_lossy(&content).into_owned())
            };
            let mut files: Vec<_> = names.map(read).collect();
            files.sort();
            files
        }

        fn names(&self) -> Vec<String> {
            self.files().into_iter().map(|(name, _)| name).collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// 2026-11-21T01:20:29.000042Z
    const NOW: WallTime = WallTime(1_795_224_029_000_042_000);

    #[test]
    fn the_next_file_takes_the_name() {
        let scratch = Scratch::new();
        let mut place = scratch.place(2, Compress::None);
        for number in 0..4 {
            let (mut file, _) = place.next(NOW).unwrap();
            write!(file, "{number}").unwrap();
            place.prune().unwrap();
        }
        let file = |name: &str, content: &str| (name.to_owned(), content.to_owned());
        // The clock stood still, and the first file had no one before it.
        let expected = [
            file("log", "3"),
            file("log.20261121T012029.000043Z", "1"),
            file("log.20261121T012029.000044Z", "2"),
        ];
        assert_eq!(scratch.files(), expected);
    }

    #[test]
    fn without_room_for_the_next_one_all_stays() {
        let scratch = Scratch::new();
        scratch.write("log", "old");
        let mut place = scratch.place(2, Compress::None);
        // What can't be removed as a file stands for a full disk.
        fs::create_dir(scratch.0.join("log.next")).unwrap();
        place.next(NOW).unwrap_err();
        fs::remove_dir(scratch.0.join("log.next")).unwrap();
        assert_eq!(scratch.files(), [("log".to_owned(), "old".to_owned())]);
        // Somebody else moved it away: so be it.
        fs::remove_file(scratch.0.join("log")).unwrap();
        let (_, old) = place.next(NOW).unwrap();
        assert_eq!(old, None);
        assert_eq!(scratch.names(), ["log"]);
    }

    #[test]
    fn what_a_kill_left_is_put_right() {
        let scratch = Scratch::new();
        let stamp = |number| format!("log.20261121T012029.00000{number}Z");
        scratch.write("log", "now");
        scratch.write("log.next", "");
        scratch.write(&format!("{}.gz.partial", stamp(1)), "half");
        scratch.write(&stamp(1), "one");
        scratch.write(&stamp(2), "two");
        scratch.write(&format!("{}.gz", stamp(2)), "packed");
        scratch.write(&format!("{}.zst", stamp(3)), "packed");
        let foreign = [
            "log.1",
            "log.20261121",
            "logs.next",
            "log.20261121T012029.000001Z.bak",
        ];
        for name in foreign {
            scratch.write(name, "foreign");
        }
        let place = scratch.place(2, Compress::Gzip);
        assert_eq!(place.old.len(), 3);
        let mut expected = vec![
            "log".to_owned(),
            stamp(1),
            format!("{}.gz", stamp(2)),
            format!("{}.zst", stamp(3)),
        ];
        expected.extend(foreign.map(str::to_owned));
        expected.sort();
        assert_eq!(scratch.names(), expected);
    }

    #[test]
    fn old_files_are_compressed() {
        let scratch = Scratch::new();
        let text = "all work and no play\n".repeat(100_000);
        for (compress, extension) in [(Compress::Gzip, "gz"), (Compress::Zstd, "zst")] {
            scratch.write("log", &text);
            let mut place = scratch.place(2, compress);
            let (_, stamp) = place.next(now()).unwrap();
            let stamp = stamp.unwrap();
            let shared = Shared {
                place: Mutex::new(place),
                trouble: Mutex::new(None),
            };
            shared.compress(&stamp).unwrap();
            // Once more does no harm.
            shared.compress(&stamp).unwrap();
            let copy = scratch.0.join(format!("log.{stamp}.{extension}"));
            let packed = fs::read(&copy).unwrap();
            assert!(packed.len() < text.len() / 10);
            let mut read = String::new();
            match compress {
                Compress::Zstd => zstd::Decoder::new(&packed[..])
                    .unwrap()
                    .read_to_string(&mut read),
                _ => flate2::read::GzDecoder::new(&packed[..]).read_to_string(&mut read),
            }
            .unwrap();
            assert_eq!(read, text);
            fs::remove_file(copy).unwrap();
            assert_eq!(scratch.names(), ["log"]);
        }
    }

    #[test]
    fn what_became_too_old_is_not_kept_for_its_copy() {
        let scratch = Scratch::new();
        scratch.write("log", "old");
        let mut place = scratch.place(1, Compress::Gzip);
        let (_, first) = place.next(NOW).unwrap();
        let (_, second) = place.next(NOW).unwrap();
        place.prune().unwrap();
        let shared = Shared {
            place: Mutex::new(place),
            trouble: Mutex::new(None),
        };
        shared.compress(&first.unwrap()).unwrap();
        assert_eq!(
            scratch.names(),
            ["log".to_owned(), format!("log.{}", second.unwrap())]
        );
    }
}
