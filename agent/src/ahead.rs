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
        fd::{AsFd as _, AsRawFd as _, OwnedFd},
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
    net::{AddressFamily, SocketFlags, SocketType, socketpair},
    process::{Pid, Signal, WaitOptions, kill_process, set_parent_process_death_signal, waitpid},
};

use crate::{
    command::{Program, become_user, close_all_but},
    half::{self, Received},
    locate::is_named_like_one,
    worker::is_local,
};

/// A file that CMD will map, open for `pread`. Opened before the lock-in, parsed after it.
#[derive(Debug)]
pub struct Ahead {
    /// For people.
    pub path: String,
    /// CMD can't begin without it. The others are guessed.
    pub is_needed: bool,
    pub file: OwnedFd,
}

/// Opens what CMD needs and the TLS libraries of this system. What can't be opened, or not in time, is
/// left out: it is found again when it is mapped.
///
/// In a process of its own: a file system that does not answer holds whoever looks a name up in it, past
/// SIGKILL, and CMD may never need that file. Before the first thread, as any fork.
pub fn ahead(program: &Program) -> Vec<Ahead> {
    let Ok((ours, theirs)) = socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    ) else {
        return Vec::new();
    };
    // SAFETY: this process has one thread, so the child may do anything.
    let pid = match unsafe { libc::fork() } {
        -1 => return Vec::new(),
        0 => {
            // Of all others a copy must not stay open, should this process be held.
            close_all_but(theirs.as_raw_fd(), theirs.as_raw_fd());
            let _ = set_parent_process_death_signal(Some(Signal::KILL));
            hand_over(program, &theirs);
            // SAFETY: ends this process, and runs nothing of the parent's.
            unsafe { libc::_exit(0) }
        }
        pid => Pid::from_raw(pid).expect("fork gives a positive pid"),
    };
    drop(theirs);
    let mut files = Vec::new();
    let wait = match receive_all(&ours, &mut files) {
        true => WaitOptions::empty(),
        // One that is held is left to init.
        false => WaitOptions::NOHANG,
    };
    let _ = kill_process(pid, Signal::KILL);
    let _ = waitpid(Some(pid), wait);
    files
}

/// The loader has a second of it.
const LIMIT: Duration = Duration::from_secs(2);

/// Sends what can be opened.
fn hand_over(program: &Program, socket: &OwnedFd) {
    let needed = needed(program).into_iter().map(|path| (path, true));
    let installed = installed().into_iter().map(|path| (path, false));
    let mut paths: Vec<_> = needed.chain(installed).collect();
    let mut seen = BTreeSet::new();
    paths.retain(|(path, _)| seen.insert(path.clone()));
    paths.truncate(FILES_MAX);
    // As root we would open what the user may not read.
    if let Some(user) = program.user()
        && become_user(user).is_err()
    {
        return;
    }
    for (path, is_needed) in paths {
        let Ok(file) = open_regular(&path) else {
            continue;
        };
        // Others are copied when they are mapped: reading and closing them may wait, too.
        if !is_local(&file).unwrap_or(false) {
            continue;
        }
        let named = (path.display().to_string(), is_needed);
        while let Err(error) = half::send(socket, &named, &[file.as_fd()])
            && error.kind() == io::ErrorKind::WouldBlock
        {
            let _ = poll(&mut [PollFd::new(socket, PollFlags::OUT)], None);
        }
    }
}

/// False: not all came in time.
fn receive_all(socket: &OwnedFd, files: &mut Vec<Ahead>) -> bool {
    let deadline = Instant::now() + LIMIT;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).expect("two seconds");
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => continue,
            Ok(0) | Err(_) => return false,
            Ok(_) => {}
        }
        match half::receive(socket) {
            Ok(Received::Message((path, is_needed), fds)) => {
                files.extend(fds.into_iter().next().map(|file| Ahead {
                    path,
                    is_needed,
                    file,
                }));
            }
            Ok(Received::Nothing) => {}
            Ok(Received::End) => return true,
            Err(_) => return false,
        }
    }
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
pub fn installed() -> Vec<PathBuf> {
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

/// Entries of glibc's cache that are named like a TLS library: a header of 48 bytes, entries of 24, strings. An older
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
        (is_named_like_one(key) && path.is_absolute()).then(|| path.to_owned())
    });
    Some(paths.collect())
}

#[cfg(test)]
mod tests {
    use std::{
        os::unix::fs::PermissionsExt as _,
        sync::atomic::{AtomicU32, Ordering},
    };

    use super::*;
    use crate::user::User;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(bytes: &[u8]) -> Self {
            static NUMBER: AtomicU32 = AtomicU32::new(0);
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let name = format!("vortex-ahead-{}-{number}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::write(&path, bytes).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
            Self(path)
        }

        fn program(&self) -> Program {
            Program::new(&[self.0.clone().into()], None).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_file(&self.0);
        }
    }

    fn named(name: &str) -> Program {
        Program::new(&[name.into()], None).unwrap()
    }

    fn has(paths: &[PathBuf], start: &str) -> bool {
        let name = |path: &PathBuf| path.file_name().is_some_and(|n| starts(n, start));
        paths.iter().any(name)
    }

    fn starts(name: &OsStr, start: &str) -> bool {
        name.as_bytes().starts_with(start.as_bytes())
    }

    #[test]
    fn the_loader_names_the_libraries() {
        let Ok(curl) = named("curl").executable() else {
            eprintln!("skipped: no curl");
            return;
        };
        let paths = needed(&named("curl"));
        assert_eq!(paths.first(), Some(&curl));
        assert!(
            has(&paths, "libcurl") && has(&paths, "libc.so"),
            "{paths:?}"
        );
        assert!(paths.iter().all(|path| path.is_absolute()), "{paths:?}");
    }

    #[test]
    fn what_is_opened_can_be_read() {
        for Ahead { path, file, .. } in ahead(&named("sh")) {
            let mut magic = [0; 4];
            rustix::io::pread(&file, &mut magic, 0).unwrap();
            assert_eq!(&magic, b"\x7fELF", "{path}");
        }
    }

    #[test]
    fn scripts_lead_to_their_interpreter() {
        let shell = named("sh").executable().unwrap();
        for text in [
            "#!/bin/sh\n",
            "#! /bin/sh -e\n",
            "#!/bin/sh",
            "#!/usr/bin/env sh\n",
            "#!/usr/bin/env -S A=b sh -e\n",
            "no interpreter\n",
        ] {
            let script = Scratch::new(text.as_bytes());
            let paths = needed(&script.program());
            assert_eq!(paths.first(), Some(&script.0), "{text:?}");
            let second = paths.get(1).and_then(|path| path.file_name());
            assert_eq!(second, shell.file_name(), "{text:?}");
            assert!(has(&paths, "libc.so"), "{text:?}: {paths:?}");
        }
    }

    #[test]
    fn scripts_that_lead_nowhere() {
        for text in [
            "#!\n",
            "#!",
            "#!/no/such/file\n",
            "#!/usr/bin/env\n",
            "#!/usr/bin/env no-such\n",
        ] {
            let script = Scratch::new(text.as_bytes());
            let paths = needed(&script.program());
            assert_eq!(paths.first(), Some(&script.0), "{text:?}");
        }
        let own = Scratch::new(b"");
        fs::write(&own.0, format!("#!{}\n", own.0.display())).unwrap();
        assert_eq!(needed(&own.program()).len(), 5);
        assert!(needed(&named("no-such-command-here")).is_empty());
    }

    #[test]
    fn a_static_program_needs_itself() {
        // ELF64, little-endian, without program headers.
        let mut elf = [0_u8; 64];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[0x36] = 56;
        let program = Scratch::new(&elf);
        assert_eq!(Form::of(&program.0).unwrap(), Form::Static);
        assert_eq!(needed(&program.program()), [&*program.0]);
    }

    /// Every cut of a real header, and every byte of it spoiled: an answer, never a panic.
    #[test]
    fn hostile_headers() {
        let shell = named("sh").executable().unwrap();
        let whole = fs::read(&shell).unwrap();
        assert!(matches!(Form::of(&shell), Ok(Form::Dynamic { .. })));
        let bytes = &whole[..whole.len().min(1024)];
        let file = Scratch::new(bytes);
        let open = || File::open(&file.0).unwrap();
        for end in 0..bytes.len() {
            let _ = interpreter(&open(), &bytes[..end]);
        }
        for at in 0..bytes.len() {
            for value in [0, 0x7f, 0xff] {
                let mut spoiled = bytes.to_vec();
                spoiled[at] = value;
                fs::write(&file.0, &spoiled).unwrap();
                if let Some(loader) = interpreter(&open(), &spoiled) {
                    assert!(loader.is_absolute());
                }
            }
        }
    }

    #[test]
    fn never_waits_for_a_fifo() {
        let fifo = Scratch::new(b"");
        fs::remove_file(&fifo.0).unwrap();
        let mode = Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, &fifo.0, FileType::Fifo, mode, 0).unwrap();
        assert_eq!(open_regular(&fifo.0).unwrap_err(), Errno::INVAL);
        assert_eq!(
            open_regular(Path::new("/dev/null")).unwrap_err(),
            Errno::INVAL
        );
        assert_eq!(open_regular(Path::new("/")).unwrap_err(), Errno::INVAL);
    }

    #[test]
    fn a_loader_is_bounded() {
        let mut sleeper = Command::new("sleep");
        sleeper.arg("20");
        let start = Instant::now();
        assert_eq!(output(sleeper, Duration::from_millis(50)).unwrap(), b"");
        assert!(start.elapsed() < Duration::from_secs(10));
        let flood = output(Command::new("yes"), Duration::from_secs(10)).unwrap();
        assert!(flood.len() < 512 << 10, "{}", flood.len());
        assert!(start.elapsed() < Duration::from_secs(10));
    }

    #[test]
    fn opens_with_the_users_rights() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let secret = Scratch::new(b"x");
        fs::set_permissions(&secret.0, fs::Permissions::from_mode(0o700)).unwrap();
        let nobody = User {
            name: None,
            uid: 65534,
            gid: 65534,
            groups: vec![],
            home: None,
        };
        for (user, may) in [(None, true), (Some(nobody), false)] {
            let program = Program::new(&[secret.0.clone().into()], user).unwrap();
            let path = secret.0.display().to_string();
            let files = ahead(&program);
            assert_eq!(files.iter().any(|file| file.path == path), may);
        }
    }

    #[test]
    fn lists_of_both_loaders() {
        let glibc =
            b"\tlinux-vdso.so.1 (0x00007ffc)\n\tlibssl.so.3 => /lib/x (y)/libssl.so.3 (0x00007f)\n\
            \tlibgone.so => not found\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        assert_eq!(
            parse_list(glibc),
            ["/lib/x (y)/libssl.so.3", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from)
        );
        let musl = b"\t/lib/ld-musl-x86_64.so.1 (0x7f)\n\tlibc.musl-x86_64.so.1 => /lib/ld-musl-x86_64.so.1 (0x7f)\n";
        assert_eq!(parse_list(musl), [Path::new("/lib/ld-musl-x86_64.so.1"); 2]);
        for rubbish in [
            &b""[..],
            b" => ",
            b"=> (0x",
            b" => a (0x1)",
            b"(0x",
            b"\xff\xfe\n\n",
        ] {
            assert!(parse_list(rubbish).is_empty(), "{rubbish:?}");
        }
    }

    /// A cache of these (name, path) pairs; `compat` puts the older format before it.
    fn cache(entries: &[(&str, &str)], compat: bool) -> Vec<u8> {
        let mut head = b"glibc-ld.so.cache1.1".to_vec();
        head.extend((entries.len() as u32).to_le_bytes());
        head.resize(48, 0);
        let strings_at = (48 + 24 * entries.len()) as u32;
        let mut strings = vec![];
        for (name, path) in entries {
            let key = strings_at + strings.len() as u32;
            strings.extend(name.bytes().chain([0]));
            let value = strings_at + strings.len() as u32;
            strings.extend(path.bytes().chain([0]));
            head.extend(0x303_u32.to_le_bytes());
            head.extend(key.to_le_bytes());
            head.extend(value.to_le_bytes());
            head.extend([0; 12]);
        }
        head.extend(strings);
        if !compat {
            return head;
        }
        let mut file = b"ld.so-1.7.0\0".to_vec();
        file.extend(1_u32.to_le_bytes());
        file.resize(32, 0xff);
        file.extend(head);
        file
    }

    const ENTRIES: &[(&str, &str)] = &[
        ("libssl.so.3", "/lib/libssl.so.3"),
        ("libssl3.so", "/lib/libssl3.so"),
        ("libssl.so.1.1", "/opt/libssl.so.1.1"),
        ("libssl.so", "relative/libssl.so"),
        ("libc.so.6", "/lib/libc.so.6"),
    ];

    #[test]
    fn the_cache_names_tls_libraries() {
        for compat in [false, true] {
            assert_eq!(
                parse_cache(&cache(ENTRIES, compat)).unwrap(),
                ["/lib/libssl.so.3", "/lib/libssl3.so", "/opt/libssl.so.1.1"].map(PathBuf::from)
            );
        }
        if let Ok(real) = fs::read("/etc/ld.so.cache") {
            assert!(parse_cache(&real).is_some());
        }
    }

    #[test]
    fn hostile_caches() {
        for compat in [false, true] {
            let whole = cache(ENTRIES, compat);
            for end in 0..whole.len() {
                let found = parse_cache(&whole[..end]).unwrap_or_default();
                assert!(found.len() <= 3);
            }
            for at in 0..whole.len() {
                for value in [0, 1, 0x7f, 0xff] {
                    let mut spoiled = whole.clone();
                    spoiled[at] = value;
                    let found = parse_cache(&spoiled).unwrap_or_default();
                    assert!(found.len() <= ENTRIES.len());
                }
            }
        }
        assert_eq!(parse_cache(b"glibc-ld.so.cache1.0"), None);
    }
}
