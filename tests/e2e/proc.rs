//! What `/proc` says about a process: its children, its state, the breakpoints in its code.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use crate::harness::{seconds, wait_for};

/// Fields of `/proc/PID/stat` that the tests need.
struct Stat {
    state: char,
    parent: u32,
    group: u32,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // comm may hold anything, the last parenthesis ends it.
    let mut fields = text.rsplit_once(") ")?.1.split(' ');
    Some(Stat {
        state: fields.next()?.chars().next()?,
        parent: fields.next()?.parse().ok()?,
        group: fields.next()?.parse().ok()?,
    })
}

/// The state letter; none when it is gone.
pub(crate) fn state(pid: u32) -> Option<char> {
    stat(pid).map(|stat| stat.state)
}

/// Neither gone nor a zombie.
pub(crate) fn alive(pid: u32) -> bool {
    state(pid).is_some_and(|state| state != 'Z' && state != 'X')
}

fn all() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
}

/// The process and all that descend from it now.
pub(crate) fn tree(root: u32) -> Vec<u32> {
    let parents: Vec<(u32, u32)> = all()
        .filter_map(|pid| Some((pid, stat(pid)?.parent)))
        .collect();
    let mut tree = vec![root];
    let mut at = 0;
    while at < tree.len() {
        let parent = tree[at];
        tree.extend(
            parents
                .iter()
                .filter(|(_, of)| *of == parent)
                .map(|(pid, _)| *pid),
        );
        at += 1;
    }
    tree
}

/// The processes of a group that are stopped, and what they are.
pub(crate) fn stopped(group: u32) -> Vec<(u32, Vec<String>)> {
    let stats = all().filter_map(|pid| Some((pid, stat(pid)?)));
    let stopped = stats.filter(|(_, stat)| stat.group == group && stat.state == 'T');
    stopped.map(|(pid, _)| (pid, command_line(pid))).collect()
}

pub(crate) fn command_line(pid: u32) -> Vec<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let words = bytes
        .split(|&byte| byte == 0)
        .filter(|word| !word.is_empty());
    words
        .map(|word| String::from_utf8_lossy(word).into_owned())
        .collect()
}

/// The agent's privileged half: the process below it that runs `… attach`, sudo not counted.
pub(crate) fn half_of(agent: u32) -> Option<u32> {
    tree(agent).into_iter().skip(1).find(|&pid| {
        let words = command_line(pid);
        let sudo = words.first().is_some_and(|word| word.ends_with("sudo"));
        !sudo && words.get(1).is_some_and(|word| word == "attach")
    })
}

/// The kinds of BPF links that a process holds.
pub(crate) fn links_of(pid: u32) -> Vec<String> {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let kind = |info: fs::DirEntry| {
        let text = fs::read_to_string(info.path()).ok()?;
        let kind = text
            .lines()
            .find_map(|line| line.strip_prefix("link_type:"));
        kind.map(|kind| kind.trim().to_owned())
    };
    infos.filter_map(|info| kind(info.unwrap())).collect()
}

/// The process whose executable this is. Only for executables that the test made itself.
pub(crate) fn running(executable: &Path) -> Option<u32> {
    all().find(|pid| fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|path| path == executable))
}

#[track_caller]
pub(crate) fn wait_for_running(executable: &Path) -> u32 {
    wait_for(
        &format!("{} to run", executable.display()),
        seconds(20),
        || running(executable),
    )
}

/// One line of `/proc/PID/status`.
pub(crate) fn status(pid: u32, field: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let mut lines = text.lines();
    let value = lines.find_map(|line| line.strip_prefix(field)?.strip_prefix(':').map(str::trim));
    value.map(str::to_owned)
}

/// Places where the code in memory is not what the file says: (file offset, byte in memory).
/// Empty too if the process is gone or has not mapped the file.
pub(crate) fn breakpoints(pid: u32, file: &Path) -> Vec<(u64, u8)> {
    code_of(pid, file)
        .into_iter()
        .flat_map(|(offset, memory, disk)| {
            let differ = memory
                .into_iter()
                .zip(disk)
                .enumerate()
                .filter(|(_, (a, b))| a != b);
            differ
                .map(|(at, (byte, _))| (offset + at as u64, byte))
                .collect::<Vec<_>>()
        })
        .collect()
}

/// Has the process mapped code of the file?
pub(crate) fn has_mapped(pid: u32, file: &Path) -> bool {
    !code_of(pid, file).is_empty()
}

/// The executable mappings of the file: its offset, what is in memory, what is on disk.
fn code_of(pid: u32, file: &Path) -> Vec<(u64, Vec<u8>, Vec<u8>)> {
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap_or_default();
    let mut found = Vec::new();
    for line in maps.lines() {
        let mut fields = line.split_whitespace();
        let (Some(range), Some(flags), Some(offset)) =
            (fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        // A deleted file is still the one that is mapped.
        let words: Vec<&str> = fields.skip(2).filter(|word| *word != "(deleted)").collect();
        if !flags.contains('x') || Path::new(&words.join(" ")) != file {
            continue;
        }
        let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
        let (start, end) = range.split_once('-').unwrap();
        let (start, end, offset) = (hex(start), hex(end), hex(offset));
        // The file that is mapped, also if it is deleted; only root may ask for it.
        let same = File::open(format!("/proc/{pid}/map_files/{start:x}-{end:x}"))
            .or_else(|_| File::open(file));
        let mut memory = vec![0; (end - start) as usize];
        let mut disk = memory.clone();
        let read = File::open(format!("/proc/{pid}/mem"))
            .and_then(|mem| mem.read_exact_at(&mut memory, start));
        let same = same.and_then(|file| {
            let size = file.metadata()?.len().saturating_sub(offset);
            let size = disk.len().min(size as usize);
            file.read_exact_at(&mut disk[..size], offset)
        });
        if read.is_ok() && same.is_ok() {
            found.push((offset, memory, disk));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A byte of code written to by a debugger's way is found where it is; without it none is.
    #[test]
    fn breakpoints_are_seen() {
        let me = std::process::id();
        let program = std::env::current_exe().unwrap();
        assert!(has_mapped(me, &program));
        assert_eq!(breakpoints(me, &program), []);
        let (offset, memory, disk) = code_of(me, &program).remove(0);
        assert_eq!(memory, disk);
        // The last byte of the mapping is padding behind the code; in the file it is not 0xCC.
        let start = fs::read_to_string("/proc/self/maps").unwrap();
        let hex = format!("{offset:08x}");
        let line = start
            .lines()
            .find(|line| line.contains(" r-xp ") && line.contains(&hex))
            .unwrap();
        let end = u64::from_str_radix(line.split(['-', ' ']).nth(1).unwrap(), 16).unwrap();
        let mem = File::options().write(true).open("/proc/self/mem").unwrap();
        mem.write_all_at(&[!memory[memory.len() - 1]], end - 1)
            .unwrap();
        let place = offset + memory.len() as u64 - 1;
        assert_eq!(
            breakpoints(me, &program),
            [(place, !memory[memory.len() - 1])]
        );
        mem.write_all_at(&memory[memory.len() - 1..], end - 1)
            .unwrap();
        assert_eq!(breakpoints(me, &program), []);
    }

    #[test]
    fn tree_has_children() {
        let mut child = std::process::Command::new("sleep")
            .arg("20")
            .spawn()
            .unwrap();
        let found = tree(std::process::id()).contains(&child.id());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found);
        assert_eq!(state(child.id()), None);
    }
}
