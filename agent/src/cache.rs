//! What was found in files, kept for the next run.
//!
//! A search reads a large program nearly twice; what it found is a page, and is checked by reading a few functions.
//! So an entry saves time and decides nothing: [`still_holds`] asks each of its functions again, in the very file,
//! and an entry that is wrong costs the search that it was to save. Only what was found is kept. "Nothing" can't be
//! checked so cheaply, and a stranger could give his file the size, headers and build id of one without TLS.
//!
//! The pipeline opens no file after its lock-in, so file and directory are opened before, and what is in it is
//! parsed after. An entry is one write at the end of the file, so agents can share it, and one that dies leaves at
//! most an entry whose sum is wrong: it is cut off by the next. The directory is root's and nobody else's: who
//! can write there can do all that we can.

use std::{
    collections::HashMap,
    fs::File,
    io::{self, Write as _},
    os::fd::OwnedFd,
    os::unix::fs::FileExt,
    path::Path,
};

use agent_ebpf::Shape;
use anyhow::{Context as _, Result, bail, ensure};
use rustix::{
    fs::{FileType, Mode, OFlags, fstat, mkdir, open, openat},
    io::Errno,
    process::geteuid,
};
use serde::{Deserialize, Serialize};

use crate::locate::{self, Found, Point, ReadAt, Refusal, Signature, stored};

/// Changes with all that decides what is found; an older file is emptied.
const HEAD: &str = concat!("vortex-agent found 4 ", env!("CARGO_PKG_VERSION"), "\n");
const NAME: &str = "found";
/// Some thousand libraries. A larger file is emptied.
const SIZE_MAX: u64 = 1 << 20;
const ENTRY_MAX: usize = 8 << 10;
/// Length and the beginning of a hash before each entry.
const FRAME: usize = 4 + SUM;
const SUM: usize = 16;

/// The file, opened and cut to its good entries, which are not parsed yet.
#[derive(Debug)]
pub struct Opened {
    file: File,
    bytes: Vec<u8>,
}

/// What is in it. A second search of one file in a run is not spared.
#[derive(Debug, Default)]
pub struct Cache {
    file: Option<File>,
    entries: HashMap<Key, Found>,
}

/// Of a file's size, headers and build id.
type Key = [u8; 32];

impl Opened {
    /// Makes what is missing, and takes no file that others could have written.
    pub fn open(directory: &Path) -> Result<Self> {
        let context = || format!("--cache-directory {}", directory.display());
        Self::open_in(directory, geteuid().is_root()).with_context(context)
    }

    fn open_in(directory: &Path, is_root: bool) -> Result<Self> {
        ensure!(
            is_root,
            "only root keeps a cache: a command of one's own could write into one's own"
        );
        match mkdir(directory, Mode::RWXU) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => bail!("make it: {error}"),
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = open(directory, flags, Mode::empty()).context("open it")?;
        check_owner(&directory, FileType::Directory)?;
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let flags = flags | OFlags::CLOEXEC;
        let file = match openat(&directory, NAME, flags, Mode::empty()) {
            Err(Errno::NOENT) => {
                let flags = flags | OFlags::CREATE | OFlags::EXCL;
                openat(&directory, NAME, flags, Mode::RUSR | Mode::WUSR)
            }
            opened => opened,
        };
        let file = file.with_context(|| format!("open {NAME}"))?;
        check_owner(&file, FileType::RegularFile)?;
        Ok(Self::read(file.into())?)
    }

    fn read(mut file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        let mut bytes = vec![0; if size <= SIZE_MAX { size as usize } else { 0 }];
        FileExt::read_exact_at(&file, &mut bytes, 0)?;
        let good = match bytes.strip_prefix(HEAD.as_bytes()) {
            Some(entries) => {
                HEAD.len()
                    + frames(entries)
                        .map(|entry| FRAME + entry.len())
                        .sum::<usize>()
            }
            None => 0,
        };
        if good as u64 != size {
            file.set_len(good as u64)?;
        }
        bytes.truncate(good);
        if good == 0 {
            file.write_all(HEAD.as_bytes())?;
        }
        Ok(Self { file, bytes })
    }

    /// Parses the entries.
    pub fn parse(self) -> Cache {
        let entries = self.bytes.get(HEAD.len()..).unwrap_or_default();
        let entries = frames(entries).filter_map(|entry| postcard::from_bytes::<Entry>(entry).ok());
        let entries = entries.filter(|entry| can_be_asked(&entry.found));
        Cache {
            entries: entries.map(|entry| (entry.key, entry.found)).collect(),
            file: Some(self.file),
        }
    }
}

fn check_owner(fd: &OwnedFd, kind: FileType) -> Result<()> {
    let stat = fstat(fd)?;
    ensure!(
        FileType::from_raw_mode(stat.st_mode) == kind,
        "it is not what it should be, a directory with a file {NAME}"
    );
    ensure!(
        stat.st_uid == geteuid().as_raw() && stat.st_mode & 0o077 == 0,
        "it is not ours alone: owner {}, mode {:o}",
        stat.st_uid,
        stat.st_mode & 0o7777
    );
    Ok(())
}

/// Entries whose sums are right, up to the first one that is not so.
fn frames(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let (frame, behind) = rest.split_first_chunk::<FRAME>()?;
        let (length, sum) = frame.split_first_chunk::<4>()?;
        let entry = behind.get(..u32::from_le_bytes(*length) as usize)?;
        rest = &behind[entry.len()..];
        (sum == &blake3::hash(entry).as_bytes()[..SUM]).then_some(entry)
    })
}

impl Cache {
    /// As [`locate::locate_as`], without the search if what an earlier one found still holds.
    pub fn locate(
        &self,
        file: &dyn ReadAt,
        path: &str,
        signatures: &[Signature],
    ) -> Result<Found, Refusal> {
        let Some(output) = &self.file else {
            return locate::locate_as(file, path, signatures);
        };
        let key = *blake3::hash(&locate::fingerprint(file)?).as_bytes();
        let known = self.entries.get(&key);
        // A signature is another answer than ours, and costs no search.
        if signatures.is_empty()
            && let Some(found) = known
            && locate::still_holds(file, found)?
        {
            tracing::debug!(path, "found before");
            return Ok(found.clone());
        }
        let found = locate::locate_as(file, path, signatures)?;
        if signatures.is_empty() && known != Some(&found) && can_be_asked(&found) {
            // Nothing depends on it.
            let entry = Entry {
                key,
                found: found.clone(),
            };
            let _ = append(output, entry);
        }
        Ok(found)
    }
}

fn append(mut file: &File, entry: Entry) -> io::Result<()> {
    let entry = postcard::to_allocvec(&entry).map_err(io::Error::other)?;
    if entry.len() > ENTRY_MAX || file.metadata()?.len() > SIZE_MAX - (FRAME + ENTRY_MAX) as u64 {
        return Ok(());
    }
    let mut framed = (entry.len() as u32).to_le_bytes().to_vec();
    framed.extend(&blake3::hash(&entry).as_bytes()[..SUM]);
    framed.extend(entry);
    file.write_all(&framed)
}

#[derive(Serialize, Deserialize)]
struct Entry {
    key: Key,
    #[serde(with = "stored")]
    found: Found,
}

/// Can [`still_holds`] say it of each point? Where in a function of Go's the point is, and how rustls lays its
/// messages out, takes the search to know.
fn can_be_asked(found: &Found) -> bool {
    let is_of_search = |point: &Point| {
        matches!(
            point.shape,
            Shape::Passed | Shape::Begun | Shape::Encrypted | Shape::Decrypted
        )
    };
    let mut points = found.points.iter().chain(&found.others);
    !points.any(is_of_search)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt as _, symlink},
        path::PathBuf,
    };

    use super::*;
    use crate::locate::{
        Instruction,
        image::{
            Piece::{self, Bytes},
            image,
        },
    };

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let name = format!("vortex-cache-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            let _ = fs::remove_dir_all(&path);
            Self(path)
        }

        fn file(&self) -> PathBuf {
            self.0.join(NAME)
        }

        fn cache(&self) -> Cache {
            Opened::open_in(&self.0, true).unwrap().parse()
        }

        /// What is kept, but with one entry changed, and its sum right.
        fn doctored(&self, change: impl FnOnce(&mut Entry)) {
            let bytes = fs::read(self.file()).unwrap();
            let entry = frames(&bytes[HEAD.len()..]).next().unwrap();
            let mut entry: Entry = postcard::from_bytes(entry).unwrap();
            change(&mut entry);
            fs::write(self.file(), HEAD).unwrap();
            let file = fs::OpenOptions::new().append(true).open(self.file());
            append(&file.unwrap(), entry).unwrap();
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn library() -> Vec<u8> {
        const PUSH: Piece = Bytes(&[0x55, 0x5d, 0xc3]);
        let functions: [(&str, &[Piece]); 3] = [
            ("SSL_read", &[PUSH]),
            ("SSL_write", &[Bytes(&[0x90]), PUSH]),
            ("SSL_new", &[Bytes(&[0x90, 0x90]), PUSH]),
        ];
        image(&functions)
    }

    fn size(scratch: &Scratch) -> u64 {
        fs::metadata(scratch.file()).unwrap().len()
    }

    #[test]
    fn what_was_found_is_kept() {
        let scratch = Scratch::new("kept");
        let file = library();
        let found = locate::locate(&file).unwrap();
        assert_eq!(scratch.cache().locate(&file, "", &[]), Ok(found.clone()));
        let once = size(&scratch);
        assert!(once > HEAD.len() as u64);
        assert_eq!(scratch.cache().locate(&file, "", &[]), Ok(found.clone()));
        assert_eq!(size(&scratch), once);
        // That it is asked shows in what a function can't prove.
        scratch.doctored(|entry| entry.found.version = Some("kept".to_owned()));
        let known = scratch.cache().locate(&file, "", &[]).unwrap();
        assert_eq!(known.version.as_deref(), Some("kept"));
        // Another file, one without TLS, and none at all.
        let mut other = file.clone();
        other.push(0);
        assert_eq!(scratch.cache().locate(&other, "", &[]), Ok(found));
        let nothing = image(&[("main", &[Bytes(&[0xc3])])]);
        let before = size(&scratch);
        let refusal = scratch.cache().locate(&nothing, "", &[]);
        assert_eq!((refusal, size(&scratch)), (Err(Refusal::NoLibrary), before));
    }

    #[test]
    fn damage_costs_a_search() {
        let scratch = Scratch::new("damage");
        let file = library();
        let found = scratch.cache().locate(&file, "", &[]).unwrap();
        let whole = fs::read(scratch.file()).unwrap();
        for at in 0..whole.len() {
            for value in [0, 0xff, whole[at] ^ 1] {
                let mut spoiled = whole.clone();
                spoiled[at] = value;
                fs::write(scratch.file(), &spoiled).unwrap();
                assert_eq!(scratch.cache().locate(&file, "", &[]), Ok(found.clone()));
            }
            // It is whole again, whatever was cut off.
            fs::write(scratch.file(), &whole[..at]).unwrap();
            assert_eq!(scratch.cache().locate(&file, "", &[]), Ok(found.clone()));
            assert_eq!(fs::read(scratch.file()).unwrap(), whole);
        }
        fs::write(scratch.file(), vec![b'x'; SIZE_MAX as usize + 1]).unwrap();
        assert_eq!(scratch.cache().locate(&file, "", &[]), Ok(found));
        assert_eq!(fs::read(scratch.file()).unwrap(), whole);
    }

    /// Entries that somebody wrote with care.
    #[test]
    fn a_wrong_entry_is_no_probe() {
        let scratch = Scratch::new("wrong");
        let file = library();
        let found = scratch.cache().locate(&file, "", &[]).unwrap();
        let right = fs::read(scratch.file()).unwrap();
        let changes: [fn(&mut Entry); 9] = [
            |entry| entry.found.points[0].offset += 1,
            |entry| entry.found.points[0].function_offset += 1,
            |entry| entry.found.points[0].offset = entry.found.points[1].offset,
            |entry| entry.found.points[0].offset = u64::MAX,
            |entry| entry.found.points[0].bytes[15] ^= 1,
            |entry| entry.found.points[0].shape = Shape::Encrypted,
            |entry| entry.found.points[0].instruction = Instruction::Stepped,
            |entry| entry.found.others[0].function_offset = 0,
            |entry| entry.found.points.clear(),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            fs::write(scratch.file(), &right).unwrap();
            scratch.doctored(change);
            let again = scratch.cache().locate(&file, "", &[]);
            assert_eq!(again, Ok(found.clone()), "change {number}");
        }
        // The file is not what it was.
        fs::write(scratch.file(), &right).unwrap();
        let mut changed = file.clone();
        let at = found.points[0].offset as usize;
        changed[at] = 0x56;
        let again = scratch.cache().locate(&changed, "", &[]).unwrap();
        assert_eq!(again.points[0].bytes[0], 0x56);
    }

    #[test]
    fn what_others_could_write_is_refused() {
        let why = |scratch: &Scratch| {
            let error = Opened::open_in(&scratch.0, true).unwrap_err();
            format!("{error:#}")
        };
        let mode = |path: PathBuf, mode| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let scratch = Scratch::new("others");
        assert!(Opened::open_in(&scratch.0, false).is_err());
        scratch.cache();
        assert_eq!(
            fs::metadata(&scratch.0).unwrap().permissions().mode() & 0o777,
            0o700
        );
        assert_eq!(
            fs::metadata(scratch.file()).unwrap().permissions().mode() & 0o777,
            0o600
        );
        mode(scratch.0.clone(), 0o755);
        assert!(why(&scratch).contains("mode 755"));
        mode(scratch.0.clone(), 0o700);
        mode(scratch.file(), 0o620);
        assert!(why(&scratch).contains("mode 620"));
        fs::rename(scratch.file(), scratch.0.join("elsewhere")).unwrap();
        symlink("elsewhere", scratch.file()).unwrap();
        assert!(why(&scratch).contains("open found"));
        fs::remove_file(scratch.file()).unwrap();
        fs::create_dir(scratch.file()).unwrap();
        assert!(why(&scratch).contains("open found"));
        let link = Scratch::new("link");
        symlink(&scratch.0, &link.0).unwrap();
        assert!(why(&link).contains("open it"));
        fs::remove_file(&link.0).unwrap();
    }
}
