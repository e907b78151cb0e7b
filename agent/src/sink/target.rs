//! What is written to: standard output, standard error or a file of `-o`.
//!
//! Plaintext goes there, so a file is ours alone, and nobody may have put something else under its
//! name.

use std::fs::File;
use std::io::{self, IsTerminal as _};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::fs::{CWD, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::keeper::{Keeper, Place, now};
use super::rotation::{Rotate, Rotation};

/// An open descriptor, and its name in `stats` and in errors. Opened while there are privileges,
/// written to when there are none.
#[derive(Debug)]
pub struct Target {
    pub(crate) name: String,
    pub(crate) file: File,
    /// When another file takes its place.
    pub(crate) rotation: Option<Rotation>,
    /// Should it fail, it is tried again later.
    pub(crate) recovers: bool,
    /// When it still had its name.
    pub(crate) looked: Option<Instant>,
}

/// Why there is no target.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[cfg(any(feature = "otlp", feature = "prometheus"))]
    #[error(transparent)]
    Deliver(#[from] crate::deliver::StartError),
    #[error("write to {}: {what}; name a regular file, or leave out -o and redirect", path.display())]
    NotAFile { path: PathBuf, what: &'static str },
    #[error("write to {}: it belongs to user {owner}; remove it or name another file", path.display())]
    NotYours { path: PathBuf, owner: u32 },
    #[error("write to {}: it has {} other names (hard links); remove it or name another file", path.display(), links - 1)]
    Linked { path: PathBuf, links: u64 },
    #[error("write to {}: {error}; name a file that you can write to", path.display())]
    Other { path: PathBuf, error: io::Error },
    #[error("write to {name}: another output writes there already; name another file")]
    Twice { name: String },
    #[error(transparent)]
    Standard(#[from] io::Error),
}

impl Target {
    pub fn stdout() -> io::Result<Self> {
        Self::standard("stdout", &io::stdout())
    }

    pub fn stderr() -> io::Result<Self> {
        Self::standard("stderr", &io::stderr())
    }

    fn standard(name: &str, stream: &impl AsFd) -> io::Result<Self> {
        Ok(Target {
            name: name.into(),
            file: stream.as_fd().try_clone_to_owned()?.into(),
            rotation: None,
            recovers: false,
            looked: None,
        })
    }

    /// Creates the file, or empties it if it is a regular one of this user. Mode 0600 in both cases.
    pub fn file(path: &Path) -> Result<Self, OpenError> {
        let file = match open(path, OFlags::CREATE | OFlags::EXCL) {
            Err(Errno::EXIST) => existing(path)?,
            created => created.map_err(|errno| other(path, errno))?,
        };
        Ok(Target {
            name: path.display().to_string(),
            file,
            rotation: None,
            recovers: true,
            looked: None,
        })
    }

    /// The same for a file that others will follow: what is in it now becomes an old one.
    pub fn rotated(path: &Path, rotate: Rotate) -> Result<Self, OpenError> {
        let failed = |error| OpenError::Other {
            path: path.to_owned(),
            error,
        };
        let before = rustix::fs::statat(CWD, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
        if let Ok(stat) = &before {
            check(path, stat)?;
        }
        let mut place = Place::open(path, rotate).map_err(failed)?;
        let file = match before {
            Ok(stat) if stat.st_size == 0 => existing(path)?,
            _ => place.next(now()).map_err(failed)?.0,
        };
        let keeper = Keeper::start(place).map_err(failed)?;
        Ok(Target {
            name: path.display().to_string(),
            file,
            rotation: Some(Rotation::new(rotate, keeper)),
            recovers: true,
            looked: None,
        })
    }

    /// A failure is its end: what is missing would make the rest mean something else.
    pub fn without_recovery(self) -> Self {
        Target {
            recovers: false,
            ..self
        }
    }

    pub(super) fn size(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstat(&self.file)?;
        Ok(u64::try_from(stat.st_size).unwrap_or_default())
    }

    pub(super) fn has_name(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstat(&self.file)?.st_nlink > 0)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process that makes its next files.
    pub(super) fn keeper(&self) -> Option<u32> {
        self.rotation.as_ref().map(Rotation::keeper)
    }

    pub fn is_same_file(&self, other: &Target) -> io::Result<bool> {
        let [one, two] = [self, other].map(|target| rustix::fs::fstat(&target.file));
        let (one, two) = (one?, two?);
        Ok((one.st_dev, one.st_ino) == (two.st_dev, two.st_ino))
    }

    pub fn is_terminal(&self) -> bool {
        self.file.is_terminal()
    }
}

fn existing(path: &Path) -> Result<File, OpenError> {
    // Looked at before it is opened: opening a device or a FIFO is an act in itself.
    let before = rustix::fs::statat(CWD, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    check(path, &before.map_err(|errno| other(path, errno))?)?;
    let file = open(path, OFlags::empty()).map_err(|errno| other(path, errno))?;
    // And after, for this is what was opened.
    let after = rustix::fs::fstat(&file).map_err(|errno| other(path, errno))?;
    check(path, &after)?;
    rustix::fs::fchmod(&file, Mode::RUSR | Mode::WUSR)
        .and_then(|()| rustix::fs::ftruncate(&file, 0))
        .map_err(|errno| other(path, errno))?;
    Ok(file)
}

fn check(path: &Path, stat: &Stat) -> Result<(), OpenError> {
    let path = path.to_owned();
    let what = match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_uid != rustix::process::geteuid().as_raw() => {
            return Err(OpenError::NotYours {
                path,
                owner: stat.st_uid,
            });
        }
        // Somebody's name for our own file, in a directory that we didn't look at, would have it
        // emptied.
        FileType::RegularFile if stat.st_nlink > 1 => {
            return Err(OpenError::Linked {
                path,
                links: stat.st_nlink,
            });
        }
        FileType::RegularFile => return Ok(()),
        FileType::Symlink => "it is a symbolic link",
        FileType::Directory => "it is a directory",
        FileType::Fifo => "it is a FIFO",
        FileType::Socket => "it is a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "it is a device",
        FileType::Unknown => "it is no regular file",
    };
    Err(OpenError::NotAFile { path, what })
}

/// `NONBLOCK`: a FIFO put there in the meantime must not stop the start. Regular files don't care.
/// `APPEND`: whoever empties the file while it is written gets no hole at its start.
fn open(path: &Path, more: OFlags) -> Result<File, Errno> {
    let flags = OFlags::WRONLY
        | OFlags::APPEND
        | OFlags::NOFOLLOW
        | OFlags::CLOEXEC
        | OFlags::NONBLOCK
        | OFlags::NOCTTY;
    rustix::fs::open(path, flags | more, Mode::RUSR | Mode::WUSR).map(File::from)
}

fn other(path: &Path, errno: Errno) -> OpenError {
    OpenError::Other {
        path: path.to_owned(),
        error: errno.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::{env, fs, process};

    use super::*;

    /// A directory of its own, gone afterwards.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new() -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let path = env::temp_dir().join(format!("vortex-target-{}-{number}", process::id()));
            fs::create_dir(&path).unwrap();
            Scratch(path)
        }

        fn path(&self) -> PathBuf {
            self.0.join("out")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn refusal(path: &Path) -> String {
        let message = Target::file(path).unwrap_err().to_string();
        assert!(message.starts_with(&format!("write to {}: ", path.display())));
        message
    }

    #[test]
    fn a_new_file_is_private() {
        let scratch = Scratch::new();
        let mut target = Target::file(&scratch.path()).unwrap();
        target.file.write_all(b"x").unwrap();
        let metadata = fs::symlink_metadata(scratch.path()).unwrap();
        assert_eq!(metadata.permissions().mode(), 0o100600);
        assert_eq!(metadata.len(), 1);
        assert!(!target.is_terminal());
    }

    #[test]
    fn an_own_file_is_emptied_in_place_and_made_private() {
        let scratch = Scratch::new();
        fs::write(scratch.path(), "old").unwrap();
        fs::set_permissions(scratch.path(), fs::Permissions::from_mode(0o644)).unwrap();
        let before = fs::metadata(scratch.path()).unwrap();
        let mut target = Target::file(&scratch.path()).unwrap();
        target.file.write_all(b"new line").unwrap();
        let after = fs::metadata(scratch.path()).unwrap();
        assert_eq!(after.ino(), before.ino());
        assert_eq!(after.permissions().mode(), 0o100600);
        assert_eq!(fs::read(scratch.path()).unwrap(), b"new line");
    }

    #[test]
    fn links_are_refused_and_their_files_untouched() {
        let scratch = Scratch::new();
        let precious = scratch.0.join("precious");
        fs::write(&precious, "keep").unwrap();
        symlink(&precious, scratch.path()).unwrap();
        assert!(refusal(&scratch.path()).contains("symbolic link"));

        fs::remove_file(scratch.path()).unwrap();
        symlink(scratch.0.join("nowhere"), scratch.path()).unwrap();
        assert!(refusal(&scratch.path()).contains("symbolic link"));
        assert!(!scratch.0.join("nowhere").exists());
        // Also if it is put there between the look and the opening.
        let late = open(&scratch.path(), OFlags::empty());
        assert_eq!(late.unwrap_err(), Errno::LOOP);

        fs::remove_file(scratch.path()).unwrap();
        fs::hard_link(&precious, scratch.path()).unwrap();
        assert!(refusal(&scratch.path()).contains("1 other names (hard links)"));
        assert_eq!(fs::read(&precious).unwrap(), b"keep");
    }

    #[test]
    fn fifos_directories_and_devices_are_refused() {
        let scratch = Scratch::new();
        let fifo = scratch.path();
        rustix::fs::mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        assert!(refusal(&fifo).contains("FIFO"));
        let late = open(&fifo, OFlags::empty());
        assert_eq!(late.unwrap_err(), Errno::NXIO);
        // Also with a reader, when opening it would succeed.
        let read = OFlags::RDONLY | OFlags::NONBLOCK;
        let _reader = rustix::fs::open(&fifo, read, Mode::empty()).unwrap();
        assert!(refusal(&fifo).contains("FIFO"));
        assert!(refusal(&scratch.0).contains("directory"));
        assert!(refusal(Path::new("/dev/null")).contains("device"));
        let missing = scratch.0.join("no/such/directory");
        assert!(refusal(&missing).contains("No such file"));
    }

    #[test]
    fn the_file_of_another_user_is_refused() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can give a file away");
        }
        let scratch = Scratch::new();
        fs::write(scratch.path(), "theirs").unwrap();
        std::os::unix::fs::chown(scratch.path(), Some(65534), None).unwrap();
        assert!(refusal(&scratch.path()).contains("belongs to user 65534"));
        assert_eq!(fs::read(scratch.path()).unwrap(), b"theirs");
    }
}
