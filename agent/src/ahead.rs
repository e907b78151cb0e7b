//! The files that CMD will map first: found and opened before it runs, so that their probes are in
//! before its first call.
//!
//! Who knows them exactly is CMD's own loader: it is asked with `--list`, as CMD's user and in CMD's
//! environment, and so answers right for LD_LIBRARY_PATH, LD_PRELOAD and RPATH. It runs nothing of
//! CMD. What CMD opens later by itself (`dlopen`: Python's ssl) is guessed from the loader's cache.

use std::{
    collections::BTreeSet,
    ffi::{OsStr, OsString},
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::OwnedFd,
        unix::{
            ffi::{OsStrExt as _, OsStringExt as _},
            fs::FileExt as _,
            process::CommandExt as _,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, Mode, OFlags, fstat, open},
    io::Errno,
    process::{DumpableBehavior, set_dumpable_behavior},
};

use crate::{
    command::{Program, become_user},
    user::User,
};

/// A file that CMD will map, open for `pread`. Opened before the lock-in, parsed after it.
#[derive(Debug)]
pub struct Ahead {
    pub path: PathBuf,
    pub file: OwnedFd,
}

/// Opens what CMD needs and the TLS libraries of this system. What can't be opened is left out: it
/// is found again when it is mapped.
pub fn ahead(program: &Program) -> Vec<Ahead> {
    let mut paths = needed(program);
    paths.extend(installed());
    let mut seen = BTreeSet::new();
    paths.retain(|path| seen.insert(path.clone()));
    paths.truncate(FILES_MAX);

    let _rights = program.user().map(FileRights::of);
    let open = |path: PathBuf| {
        let file = open_regular(&path).ok()?;
        Some(Ahead { path, file })
    };
    paths.into_iter().filter_map(open).collect()
}

/// Well below the usual limit of 1024 descriptors.
const FILES_MAX: usize = 256;

/// Never waits for a FIFO's writer, never takes a terminal, and no device.
fn open_regular(path: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let file = open(path, flags, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    Ok(file)
}

/// The file rights of CMD's user while it lives: as root we would open what he may not read.
struct FileRights {
    uid: u32,
    gid: u32,
}

impl FileRights {
    fn of(user: &User) -> Self {
        // SAFETY: both take an integer and return the one before.
        let (gid, uid) = unsafe { (libc::setfsgid(user.gid), libc::setfsuid(user.uid)) };
        Self {
            uid: uid as u32,
            gid: gid as u32,
        }
    }
}

impl Drop for FileRights {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe {
            libc::setfsuid(self.uid);
            libc::setfsgid(self.gid);
        }
        // The kernel has set it to what fs.suid_dumpable says.
        let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    }
}

/// CMD's executable, its interpreters, and the libraries that the loader will map for them.
pub fn needed(program: &Program) -> Vec<PathBuf> {
    let Ok(mut path) = program.executable() else {
        return vec![];
    };
    let mut paths = vec![];
    // A script's interpreter may be a script; the kernel follows four.
    for _ in 0..5 {
        paths.push(path.clone());
        match Form::of(&path) {
            Ok(Form::Dynamic { loader }) => {
                paths.extend(loaded(program, &loader, &path));
                break;
            }
            Ok(Form::Static) | Err(_) => break,
            Ok(Form::Script { line }) => {
                let words = words(&line);
                let Some(interpreter) = words.first() else {
                    break;
                };
                let interpreter = PathBuf::from(interpreter);
                // `env X` is X: env itself speaks no TLS.
                let behind = (interpreter.file_name() == Some(OsStr::new("env")))
                    .then(|| env_command(&words[1..]))
                    .flatten();
                path = match behind.map(|name| program.find(&name)) {
                    Some(Ok(found)) => found,
                    Some(Err(_)) => break,
                    None => interpreter,
                };
            }
            // What execvp does with a text without `#!`.
            Ok(Form::Text) => path = "/bin/sh".into(),
        }
    }
    paths
}

/// What kind of executable a file is.
#[derive(Debug, PartialEq, Eq)]
enum Form {
    /// ELF with PT_INTERP.
    Dynamic {
        loader: PathBuf,
    },
    Static,
    /// What stands behind `#!`.
    Script {
        line: Vec<u8>,
    },
    Text,
}

impl Form {
    fn of(path: &Path) -> io::Result<Self> {
        let file = File::from(open_regular(path)?);
        let mut head = vec![];
        (&file).take(4096).read_to_end(&mut head)?;
        if let Some(script) = head.strip_prefix(b"#!") {
            let line = script.split(|byte| *byte == b'\n').next();
            return Ok(Self::Script {
                line: line.unwrap_or_default().to_vec(),
            });
        }
        if !head.starts_with(b"\x7fELF") {
            return Ok(Self::Text);
        }
        Ok(match interpreter(&file, &head) {
            Some(loader) => Self::Dynamic { loader },
            None => Self::Static,
        })
    }
}

/// PT_INTERP of a 64-bit little-endian ELF file. The only thing that is read of an executable before
/// the lock-in, hence by hand and to the letter.
fn interpreter(file: &File, head: &[u8]) -> Option<PathBuf> {
    const PT_INTERP: u32 = 3;
    if head.get(4..6)? != [2, 1] {
        return None;
    }
    let table_at = u64::from_le_bytes(*head.get(0x20..)?.first_chunk()?);
    let entry_size = u16::from_le_bytes(*head.get(0x36..)?.first_chunk()?);
    let entries = u16::from_le_bytes(*head.get(0x38..)?.first_chunk()?);
    if entry_size != 56 || entries > 256 {
        return None;
    }
    let mut table = vec![0; usize::from(entries) * 56];
    file.read_exact_at(&mut table, table_at).ok()?;
    let (entries, _) = table.as_chunks::<56>();
    let entry = entries
        .iter()
        .find(|entry| entry[..4] == PT_INTERP.to_le_bytes())?;
    let offset = u64::from_le_bytes(*entry.get(0x08..)?.first_chunk()?);
    let size = u64::from_le_bytes(*entry.get(0x20..)?.first_chunk()?);
    let mut name = vec![0; usize::try_from(size).ok().filter(|size| *size <= 4096)?];
    file.read_exact_at(&mut name, offset).ok()?;
    let end = name.iter().position(|byte| *byte == 0)?;
    name.truncate(end);
    let path = PathBuf::from(OsString::from_vec(name));
    path.is_absolute().then_some(path)
}

fn words(line: &[u8]) -> Vec<OsString> {
    line.split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty())
        .map(|word| OsStr::from_bytes(word).to_owned())
        .collect()
}

/// The command in `env [-S] [NAME=VALUE]… command …`.
fn env_command(arguments: &[OsString]) -> Option<OsString> {
    let command = arguments.iter().find(|word| {
        let word = word.as_bytes();
        !word.starts_with(b"-") && !word.contains(&b'=')
    })?;
    Some(command.clone())
}

/// Asks the loader. As CMD's user: it is a program that CMD's file names.
fn loaded(program: &Program, loader: &Path, executable: &Path) -> Vec<PathBuf> {
    let mut command = Command::new(loader);
    command
        .arg("--list")
        .arg(executable)
        .env_clear()
        .envs(program.env())
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    if let Some(user) = program.user().cloned() {
        // SAFETY: `become_user` keeps to system calls.
        unsafe { command.pre_exec(move || become_user(&user)) };
    }
    let answer = output(command, Duration::from_secs(1)).unwrap_or_default();
    parse_list(&answer)
}

/// What `command` writes to stdout, bounded in time and size.
fn output(mut command: Command, limit: Duration) -> io::Result<Vec<u8>> {
    const MAX: usize = 256 << 10;
    let deadline = Instant::now() + limit;
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().expect("piped");
    let mut answer = vec![];
    let mut chunk = [0; 4096];
    while answer.len() < MAX {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs() as _,
            tv_nsec: left.subsec_nanos() as _,
        };
        match poll(&mut [PollFd::new(&stdout, PollFlags::IN)], Some(&left)) {
            Ok(0) => break,
            Err(Errno::INTR) => continue,
            Ok(_) => {}
            Err(_) => break,
        }
        match stdout.read(&mut chunk)? {
            0 => break,
            n => answer.extend(&chunk[..n]),
        }
    }
    // It has ended in all but the worst case. A set-uid one would not let us: then it isn't waited
    // for.
    if child.kill().is_ok() {
        child.wait()?;
    }
    Ok(answer)
}

/// `name => /path (0x…)` and `/path (0x…)`, as glibc and musl write them.
fn parse_list(text: &[u8]) -> Vec<PathBuf> {
    let arrow = memchr::memmem::Finder::new(b" => ");
    let path = |line: &[u8]| {
        let line = line.trim_ascii();
        let path = arrow.find(line).map_or(line, |at| &line[at + 4..]);
        let end = memchr::memmem::rfind(path, b" (0x")?;
        let path = Path::new(OsStr::from_bytes(&path[..end]));
        path.is_absolute().then(|| path.to_owned())
    };
    text.split(|byte| *byte == b'\n').filter_map(path).collect()
}

/// TLS libraries that the loader's cache names.
fn installed() -> Vec<PathBuf> {
    const MAX: u64 = 16 << 20;
    let mut cache = vec![];
    let read =
        File::open("/etc/ld.so.cache").and_then(|file| file.take(MAX).read_to_end(&mut cache));
    if read.is_err() {
        return vec![];
    }
    let mut paths = parse_cache(&cache).unwrap_or_default();
    // The same file by several names, or in a folder that links to another.
    let mut seen = BTreeSet::new();
    paths.retain(|path| fs::canonicalize(path).is_ok_and(|real| seen.insert(real)));
    paths
}

/// Entries `libssl.so…` of glibc's cache: a header of 48 bytes, entries of 24, strings. An older
/// format may stand before it (`ldconfig -c compat`, the default before 2.32).
fn parse_cache(file: &[u8]) -> Option<Vec<PathBuf>> {
    const OLD: &[u8] = b"ld.so-1.7.0\0";
    const NEW: &[u8] = b"glibc-ld.so.cache1.1";
    let number = |bytes: &[u8], at: usize| -> Option<usize> {
        let bytes = bytes.get(at..)?.first_chunk()?;
        usize::try_from(u32::from_le_bytes(*bytes)).ok()
    };
    let mut cache = file;
    if file.starts_with(OLD) {
        let old_end = number(file, 12)?.checked_mul(12)?.checked_add(16)?;
        cache = file.get(old_end.checked_next_multiple_of(8)?..)?;
    }
    if !cache.starts_with(NEW) {
        return None;
    }
    // Offsets count from the new header.
    let string = |at: usize| {
        let rest = cache.get(at..)?;
        rest.get(..memchr::memchr(0, rest)?)
    };
    let (entries, _) = cache.get(48..)?.as_chunks::<24>();
    let entries = entries.iter().take(number(cache, 20)?);
    let paths = entries.filter_map(|entry| {
        let (key, value) = (string(number(entry, 4)?)?, string(number(entry, 8)?)?);
        let path = Path::new(OsStr::from_bytes(value));
        (key.starts_with(b"libssl.so") && path.is_absolute()).then(|| path.to_owned())
    });
    Some(paths.collect())
}
