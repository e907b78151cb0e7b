//! What findings have learned, on disk: opened before the lock-in, parsed behind it, written by a thread of its own.
//!
//! Two places in one file take turns, so what was whole before is there when a write ends early; each has a sum. The
//! file is its owner's alone, who is root: a command of one's own could write what belongs to oneself.

use std::{
    fs::File,
    io::{self, Read, Seek as _, SeekFrom, Write as _},
    path::Path,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use rustix::{
    fs::{FileType, Mode, OFlags, fstat, open},
    process::geteuid,
};

use crate::detect::baseline::{BYTES_MAX, Baseline};

/// Changes with all that is learned; an older file is begun anew.
const TITLE: &[u8] = b"vortex-agent baseline 1\n";
const SUM: usize = 32;
/// Generation, length and sum stand before what is learned.
const HEAD: usize = TITLE.len() + 8 + 4 + SUM;
const PLACE: u64 = (HEAD + BYTES_MAX) as u64;
const PLACES: u64 = 2;

/// The file, read and not parsed yet.
#[derive(Debug)]
pub struct Opened {
    file: File,
    bytes: Vec<u8>,
}

/// What was in it.
#[derive(Debug)]
pub struct Learned {
    pub baseline: Option<Baseline>,
    /// There was something, and none of it could be read.
    pub is_damaged: bool,
    generation: u64,
}

/// Writes it.
pub struct Keeper {
    to: Sender<Vec<u8>>,
    /// What became of each that was handed over.
    done: Receiver<io::Result<()>>,
    is_writing: bool,
}

impl Opened {
    /// Makes it if it is not there, and takes none that others could have written.
    pub fn open(path: &Path) -> Result<Opened> {
        let context = || format!("baseline {}", path.display());
        Opened::open_as(path, geteuid().is_root()).with_context(context)
    }

    fn open_as(path: &Path, is_root: bool) -> Result<Opened> {
        ensure!(
            is_root,
            "only root keeps one: a command of one's own could write into one's own; leave `baseline` out of \
             [findings]"
        );
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let fd = open(path, flags | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR).context("open it")?;
        let stat = fstat(&fd)?;
        ensure!(
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile,
            "it is no file"
        );
        ensure!(
            stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o077 == 0 && stat.st_nlink == 1,
            "it is not ours alone: owner {}, mode {:o}, {} names",
            stat.st_uid,
            stat.st_mode & 0o7777,
            stat.st_nlink
        );
        Ok(Opened::read(fd.into())?)
    }

    /// One that is only read, whoever's it is.
    pub fn named(path: &Path) -> Result<Opened> {
        let read = || Opened::read(File::open(path)?);
        read().with_context(|| format!("--baseline {}", path.display()))
    }

    fn read(file: File) -> io::Result<Opened> {
        let mut bytes = Vec::new();
        (&file).take(PLACES * PLACE).read_to_end(&mut bytes)?;
        Ok(Opened { file, bytes })
    }

    /// Parses it.
    pub fn parse(self) -> (Learned, File) {
        let places = self.bytes.chunks(PLACE as usize);
        let newest = places
            .filter_map(place)
            .max_by_key(|(generation, _)| *generation);
        let learned = Learned {
            is_damaged: newest.is_none() && !self.bytes.is_empty(),
            generation: newest.as_ref().map_or(0, |(generation, _)| *generation),
            baseline: newest.map(|(_, baseline)| baseline),
        };
        (learned, self.file)
    }
}

fn place(bytes: &[u8]) -> Option<(u64, Baseline)> {
    let rest = bytes.strip_prefix(TITLE)?;
    let (generation, rest) = rest.split_first_chunk::<8>()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (sum, rest) = rest.split_first_chunk::<SUM>()?;
    let learned = rest.get(..u32::from_le_bytes(*length) as usize)?;
    if sum != &sum_of(generation, learned) {
        return None;
    }
    // It counts on.
    let generation = u64::from_le_bytes(*generation);
    (generation < u64::MAX).then_some((generation, Baseline::parse(learned)?))
}

fn sum_of(generation: &[u8; 8], learned: &[u8]) -> [u8; SUM] {
    let mut hasher = blake3::Hasher::new();
    *hasher
        .update(generation)
        .update(learned)
        .finalize()
        .as_bytes()
}

impl Keeper {
    /// Starts the thread. `learned`: what was read of the file.
    pub fn start(file: File, learned: &Learned) -> io::Result<Keeper> {
        let (to, from) = channel::<Vec<u8>>();
        let (tell, done) = channel();
        let mut generation = learned.generation;
        thread::Builder::new()
            .name("baseline".into())
            .spawn(move || {
                for learned in from {
                    generation += 1;
                    if tell.send(write(&file, generation, &learned)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Keeper {
            to,
            done,
            is_writing: false,
        })
    }

    /// Hands it over, unless the one before is on its way still. Why that one could not be written, if so.
    pub fn keep(&mut self, baseline: &Baseline) -> io::Result<()> {
        let done = self.done.try_recv();
        self.is_writing &= done.is_err();
        if !self.is_writing {
            // A thread that is gone has said why.
            self.is_writing = self.to.send(baseline.bytes()).is_ok();
        }
        done.unwrap_or(Ok(()))
    }

    /// The last one, and so long at most for each that is on its way.
    pub fn end(self, last: Option<&Baseline>, patience: Duration) -> io::Result<()> {
        let late = |_| Err(io::ErrorKind::TimedOut.into());
        let before = match self.is_writing {
            true => self.done.recv_timeout(patience).unwrap_or_else(late),
            false => Ok(()),
        };
        let Some(last) = last.filter(|_| before.is_ok()) else {
            return before;
        };
        let _ = self.to.send(last.bytes());
        self.done.recv_timeout(patience).unwrap_or_else(late)
    }
}

fn write(mut file: &File, generation: u64, learned: &[u8]) -> io::Result<()> {
    let number = generation.to_le_bytes();
    let mut bytes = Vec::with_capacity(HEAD + learned.len());
    bytes.extend_from_slice(TITLE);
    bytes.extend_from_slice(&number);
    bytes.extend_from_slice(&(learned.len() as u32).to_le_bytes());
    bytes.extend_from_slice(&sum_of(&number, learned));
    bytes.extend_from_slice(learned);
    file.seek(SeekFrom::Start(generation % PLACES * PLACE))?;
    file.write_all(&bytes)?;
    file.sync_data()
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
        path::PathBuf,
    };

    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Scratch {
            let name = format!("vortex-baseline-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_file(&path);
            Scratch(path)
        }

        fn parse(&self) -> (Learned, File) {
            Opened::open_as(&self.0, true).unwrap().parse()
        }

        /// What is in it, and whether that is anything at all.
        fn watched(&self) -> (Option<u64>, bool) {
            let (learned, _) = self.parse();
            (learned.baseline.map(|it| it.watched), learned.is_damaged)
        }

        fn keep(&self, watched: u64) {
            let (learned, file) = self.parse();
            let keeper = Keeper::start(file, &learned).unwrap();
            keeper.end(Some(&baseline(watched)), SOON).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn baseline(watched: u64) -> Baseline {
        let mut baseline = Baseline::default();
        baseline.watched = watched;
        baseline
    }

    #[test]
    fn the_last_one_is_there_in_the_next_run() {
        let scratch = Scratch::new("last");
        assert_eq!(scratch.watched(), (None, false));
        for watched in 1..6 {
            scratch.keep(watched);
            assert_eq!(scratch.watched(), (Some(watched), false));
        }
        let (learned, file) = scratch.parse();
        let mut keeper = Keeper::start(file, &learned).unwrap();
        keeper.keep(&baseline(7)).unwrap();
        keeper.end(None, SOON).unwrap();
        assert_eq!(scratch.watched(), (Some(7), false));
        let mode = fs::metadata(&scratch.0).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_write_that_ends_early_leaves_the_one_before() {
        let scratch = Scratch::new("early");
        scratch.keep(1);
        let old = fs::read(&scratch.0).unwrap();
        scratch.keep(2);
        let new = fs::read(&scratch.0).unwrap();
        let first = PLACE as usize..old.len();
        assert_eq!(old[first.clone()], new[first]);
        for end in 0..HEAD {
            let mut cut = new.clone();
            cut[end..HEAD + 8].fill(0);
            fs::write(&scratch.0, &cut).unwrap();
            assert_eq!(scratch.watched(), (Some(1), false), "cut at {end}");
        }
        for at in PLACE as usize..new.len() {
            let mut spoiled = new.clone();
            spoiled[at] ^= 1;
            fs::write(&scratch.0, &spoiled).unwrap();
            assert_eq!(scratch.watched(), (Some(2), false), "at {at}");
        }
        fs::write(&scratch.0, b"something else").unwrap();
        assert_eq!(scratch.watched(), (None, true));
        scratch.keep(3);
        assert_eq!(scratch.watched(), (Some(3), false));
    }

    #[test]
    fn what_others_could_write_is_refused() {
        let scratch = Scratch::new("others");
        let why = || format!("{:#}", Opened::open_as(&scratch.0, true).unwrap_err());
        assert!(Opened::open_as(&scratch.0, false).is_err());
        scratch.keep(1);
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(why().contains("mode 640"));
        fs::set_permissions(&scratch.0, fs::Permissions::from_mode(0o600)).unwrap();
        let other = Scratch::new("other");
        fs::hard_link(&scratch.0, &other.0).unwrap();
        assert!(why().contains("2 names"));
        fs::remove_file(&scratch.0).unwrap();
        symlink(&other.0, &scratch.0).unwrap();
        assert!(why().contains("open it"));
        fs::remove_file(&scratch.0).unwrap();
        fs::create_dir(&scratch.0).unwrap();
        assert!(Opened::open_as(&scratch.0, true).is_err());
        fs::remove_dir(&scratch.0).unwrap();
    }

    #[test]
    fn a_full_disk_is_said() {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let (learned, _) = Scratch::new("full").parse();
        let keeper = Keeper::start(full, &learned).unwrap();
        assert!(keeper.end(Some(&baseline(1)), SOON).is_err());
    }
}
