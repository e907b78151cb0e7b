//! What /proc says of a process. Read as bytes: names in it are anybody's, of any bytes.

use std::{borrow::Cow, fs, io::Read as _, os::unix::ffi::OsStrExt as _};

use super::mapping::Mapping;
use crate::{
    container,
    half::{Choice, Facts, Runtime, clip},
};

/// Everything that can still be read: the process may be ending. `id` is what others call it; its parent is
/// called as here. `noted` says its control groups where nothing else does.
pub fn of(pid: u32, id: u32, choice: &Choice, noted: impl FnOnce() -> String) -> Facts {
    // First: who has an executable below was there to be asked for its groups. Who has none may be in any container.
    let mut groups = groups(pid);
    let mut facts = Facts {
        pid: id,
        ..Facts::default()
    };
    facts.executable = fs::read_link(format!("/proc/{pid}/exe"))
        .ok()
        .map(|path| text(path.as_os_str().as_bytes()));
    facts.comm = fs::read(format!("/proc/{pid}/comm"))
        .ok()
        .map(|comm| text(comm.trim_ascii_end()));
    facts.arguments = arguments(pid);
    if let Some(status) = Status::of(pid) {
        // Real, effective, saved, file system.
        facts.owner_uid = status.numbers("Uid:").nth(1);
        facts.parent_pid = status.numbers("PPid:").next();
        // The last one is the id in the innermost namespace.
        facts.vpid = status.numbers("NSpid:").last().filter(|vpid| *vpid != id);
    }
    // One that has ended is in no group of version 1 any more, and nowhere at all when its parent knows.
    if facts.executable.is_none() && container::id(&groups).is_none() {
        groups = noted();
    }
    facts.container_id = container::id(&groups).map(Cow::into_owned);
    facts.is_outside = !choice.holds(&groups);
    facts
}

/// The control groups of a process, a line for each hierarchy; empty if it is gone.
pub fn groups(pid: u32) -> String {
    let groups = fs::read(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    String::from_utf8_lossy(&groups).into_owned()
}

/// How much of a command line is kept: enough to know it by, little enough for a message.
const ARGUMENTS_BYTES: u64 = 4096;
const ARGUMENTS: usize = 256;

fn arguments(pid: u32) -> Vec<String> {
    let mut line = Vec::new();
    if let Ok(file) = fs::File::open(format!("/proc/{pid}/cmdline")) {
        // What was read before an error counts: the process may be ending.
        let _ = file.take(ARGUMENTS_BYTES).read_to_end(&mut line);
    }
    split_arguments(&line)
}

fn split_arguments(line: &[u8]) -> Vec<String> {
    let line = line.strip_suffix(b"\0").unwrap_or(line);
    if line.is_empty() {
        return Vec::new();
    }
    let arguments = line.split(|byte| *byte == 0).take(ARGUMENTS);
    arguments.map(text).collect()
}

fn text(bytes: &[u8]) -> String {
    clip(&String::from_utf8_lossy(bytes))
}

/// `/proc/PID/status`.
struct Status(Vec<u8>);

impl Status {
    fn of(pid: u32) -> Option<Status> {
        fs::read(format!("/proc/{pid}/status")).ok().map(Status)
    }

    /// What follows `name` on its line. The first line holds the process' name, in which the kernel
    /// escapes newlines.
    fn field(&self, name: &str) -> &[u8] {
        let mut lines = self.0.split(|byte| *byte == b'\n');
        lines
            .find_map(|line| line.strip_prefix(name.as_bytes()))
            .unwrap_or_default()
    }

    fn state(&self) -> Option<State> {
        let letter = self.field("State:").trim_ascii_start().first();
        letter.copied().map(State)
    }

    fn numbers(&self, name: &str) -> impl Iterator<Item = u32> {
        let words = self.field(name).split(u8::is_ascii_whitespace);
        words.filter_map(|word| std::str::from_utf8(word).ok()?.parse().ok())
    }
}

/// What a process is in the middle of, as anybody may know.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    /// The process that it is a thread of: itself, as a rule.
    pub leader: u32,
    pub parent: u32,
    pub uid: Option<u32>,
    pub tracer: Option<u32>,
    pub state: State,
    /// It runs no program.
    pub is_kernels: bool,
}

/// Its letter in `/proc/PID/status`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct State(u8);

impl State {
    pub fn name(self) -> &'static str {
        match self.0 {
            b'R' => "running",
            b'S' => "sleeping",
            b'D' => "waiting",
            b'T' => "stopped",
            b't' => "traced",
            b'Z' => "zombie",
            b'X' => "dead",
            b'I' => "idle",
            _ => "unknown",
        }
    }

    pub fn is_stopped(self) -> bool {
        matches!(self.0, b'T' | b't')
    }

    pub fn is_dead(self) -> bool {
        matches!(self.0, b'Z' | b'X')
    }
}

/// `None`: there is no such process.
pub fn condition(pid: u32) -> Option<Condition> {
    const FLAGS: usize = 9;
    const KERNEL_THREAD: u64 = 0x0020_0000; // PF_KTHREAD, include/linux/sched.h
    let status = Status::of(pid)?;
    let flags: u64 = stat(pid)?.field(FLAGS)?;
    Some(Condition {
        leader: status.numbers("Tgid:").next()?,
        parent: status.numbers("PPid:").next()?,
        uid: status.numbers("Uid:").nth(1),
        tracer: status.numbers("TracerPid:").next().filter(|pid| *pid != 0),
        state: status.state()?,
        is_kernels: flags & KERNEL_THREAD != 0,
    })
}

/// Has it nothing above 4 GiB? The stack of a 64-bit program is there. `None`: its memory is not ours to look at.
pub fn is_32_bit(pid: u32) -> Option<bool> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).ok()?;
    let end = |line: &str| {
        let (_, end) = line.split(' ').next()?.split_once('-')?;
        u64::from_str_radix(end, 16).ok()
    };
    let highest = maps.lines().filter_map(end).max()?;
    Some(highest <= 1 << 32)
}

/// The files that a process maps executable now.
pub fn mappings(pid: u32) -> Vec<Mapping> {
    let maps = fs::read(format!("/proc/{pid}/maps")).unwrap_or_default();
    maps.split(|byte| *byte == b'\n')
        .filter_map(|line| mapping(pid, line))
        .collect()
}

/// `555000-556000 r-xp 00001000 fe:01 1234    /path`, numbers in hexadecimal but for the inode.
fn mapping(pid: u32, line: &[u8]) -> Option<Mapping> {
    let mut fields = line.splitn(6, |byte| *byte == b' ');
    let mut field = || std::str::from_utf8(fields.next()?).ok();
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let (start, end) = field()?.split_once('-')?;
    let is_executable = field()?.as_bytes().get(2) == Some(&b'x');
    let offset = hex(field()?)?;
    let (major, minor) = field()?.split_once(':')?;
    let inode = field()?.parse().ok()?;
    let path = fields.next().unwrap_or_default().trim_ascii_start();
    (is_executable && inode != 0).then_some(Mapping {
        pid,
        address: hex(start)?,
        length: hex(end)?.checked_sub(hex(start)?)?,
        offset,
        major: hex(major)? as u32,
        minor: hex(minor)? as u32,
        inode,
        at: None,
        path: text(path),
    })
}

/// What runs the code of the process, by what it maps: these have their own TLS, in no file.
pub fn runtime(pid: u32) -> Option<Runtime> {
    mappings(pid).iter().find_map(|mapping| {
        let path = mapping.path.trim_end_matches(" (deleted)");
        match path.rsplit('/').next()? {
            "libjvm.so" => Some(Runtime::Jvm),
            "beam.smp" => Some(Runtime::Erlang),
            _ => None,
        }
    })
}

/// All processes that exist now.
pub fn all_pids() -> Vec<u32> {
    listed("/proc")
}

/// The threads that a process has now.
pub fn threads(pid: u32) -> Vec<u32> {
    listed(&format!("/proc/{pid}/task"))
}

fn listed(directory: &str) -> Vec<u32> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// May the process be stopped for a moment without anybody noticing? Not one that is stopped, traced,
/// dead or gone; and not a job of a shell, which would take it for suspended and go on: those have a
/// process group of their own, other than CMD's and their session's.
pub fn may_be_held(pid: u32, group_of_command: u32) -> bool {
    let Some(status) = Status::of(pid) else {
        return false;
    };
    let state = status.state();
    if state.is_none_or(|state| state.is_stopped() || state.is_dead()) {
        return false;
    }
    if status.numbers("TracerPid:").next() != Some(0) {
        return false;
    }
    let Some((group, session)) = group_and_session(pid) else {
        return false;
    };
    group == group_of_command || group == session
}

/// Is the process in the middle of exec? Its new program is mapped, and mappings are what we hear of; its
/// command line is not there yet (fs/exec.c, `begin_new_exec`; fs/binfmt_elf.c, `create_elf_tables`).
pub fn is_in_exec(pid: u32) -> bool {
    const ENV_END: usize = 51;
    // Who may not read the one sees zeros in the other.
    arguments(pid).is_empty()
        && fs::read_link(format!("/proc/{pid}/exe")).is_ok()
        && stat(pid).is_some_and(|stat| stat.field(ENV_END) == Some(0))
}

/// `/proc/PID/stat` from its third field on.
struct Stat(String);

fn stat(pid: u32) -> Option<Stat> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    // The name in brackets may hold anything.
    let after = stat.iter().rposition(|byte| *byte == b')')? + 1;
    Some(Stat(std::str::from_utf8(&stat[after..]).ok()?.to_owned()))
}

impl Stat {
    /// By its number in proc(5), from 4 on.
    fn field<T: std::str::FromStr>(&self, number: usize) -> Option<T> {
        let field = self.0.split_ascii_whitespace().nth(number - 3)?;
        field.parse().ok()
    }
}

/// Process group and session.
fn group_and_session(pid: u32) -> Option<(u32, u32)> {
    let stat = stat(pid)?;
    Some((stat.field(5)?, stat.field(6)?))
}

pub fn group(pid: u32) -> Option<u32> {
    group_and_session(pid).map(|(group, _)| group)
}

/// Own resident memory in bytes.
pub fn own_memory() -> u64 {
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let resident: Option<u64> = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok());
    resident.unwrap_or(0) * rustix::param::page_size() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_lines() {
        assert_eq!(split_arguments(b"curl\0-s\0\0x\0"), ["curl", "-s", "", "x"]);
        assert_eq!(split_arguments(b"[kworker]"), ["[kworker]"]);
        assert!(split_arguments(b"").is_empty());
        assert_eq!(split_arguments(&b"a\0".repeat(1000)).len(), ARGUMENTS);
        let own = arguments(std::process::id());
        assert!(own.iter().zip(std::env::args()).all(|(a, b)| *a == b) && !own.is_empty());
    }

    #[test]
    fn lines_of_maps() {
        let line = b"55d0c0001000-55d0c0002000 r-xp 00001000 fe:1f 1234    /SYSVx \xff (deleted)";
        let found = mapping(7, line).unwrap();
        assert_eq!((found.address, found.length), (0x55d0_c000_1000, 0x1000));
        assert_eq!((found.major, found.minor, found.inode), (0xfe, 0x1f, 1234));
        assert_eq!(found.path, "/SYSVx \u{fffd} (deleted)");
        assert_eq!(
            mapping(7, b"1000-2000 r--p 0 fe:1f 1234 /x"),
            None,
            "not executable"
        );
        assert_eq!(
            mapping(7, b"1000-2000 r-xp 0 00:00 0 [vdso]"),
            None,
            "no file"
        );
        for len in 0..line.len() {
            mapping(7, &line[..len]);
        }
    }

    #[test]
    fn the_facts_about_ourselves() {
        let pid = std::process::id();
        let facts = of(pid, pid, &Choice::default(), String::new);
        assert_eq!(facts.owner_uid, Some(rustix::process::geteuid().as_raw()));
        assert_eq!(facts.parent_pid, Some(std::os::unix::process::parent_id()));
        assert!(facts.executable.is_some() && facts.comm.is_some());
        assert!(may_be_held(facts.pid, group(facts.pid).unwrap()));
        assert!(!is_in_exec(facts.pid) && stat(facts.pid).unwrap().field::<u64>(51) > Some(0));
        assert!(!mappings(facts.pid).is_empty());
        let condition = condition(facts.pid).unwrap();
        assert_eq!(condition.leader, facts.pid);
        assert_eq!(
            (condition.uid, Some(condition.parent)),
            (facts.owner_uid, facts.parent_pid)
        );
        assert!(!condition.is_kernels && !condition.state.is_dead());
        assert_eq!(is_32_bit(facts.pid), Some(false));
        assert!(all_pids().contains(&facts.pid));
    }
}
